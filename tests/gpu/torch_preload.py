#!/usr/bin/env python3
"""PyTorch's DistributedDataParallel on NCCL with libforgetscope_preload.so: trains as without it, and what is measured of
each bucket is the gradient that PyTorch has.

    FGS_LIB=build/lib/libforgetscope.so FGS_PRELOAD_LIB=build/lib/libforgetscope_preload.so python3 tests/gpu/torch_preload.py

One process, one GPU, a communicator of one rank: NCCL is called all the same. Without a GPU, or with a PyTorch that has no
NCCL, it says so and skips. Ends with the line `N passed, M failed, K skipped`.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import on_torch
import torch
import torch.distributed
from torch_step import Transformer, batch, text

STEPS = 40
# Buckets of about 100 KB: several of them, rebuilt after the first iteration as DDP does it.
BUCKET_MB = 0.1
# Sums in fp32 of up to 64 terms and in fp64 above: docs/statistics/README.md.
RELATIVE = 1e-5


def train(device: torch.device, store: str) -> None:
    """Prints for each step the loss, exactly, and the sum of squares of the gradient."""
    torch.distributed.init_process_group("nccl", init_method=f"file://{store}", rank=0, world_size=1)
    torch.manual_seed(20260118)
    generator = torch.Generator().manual_seed(7)
    model = Transformer().to(device)
    parallel = torch.nn.parallel.DistributedDataParallel(Loss(model), bucket_cap_mb=BUCKET_MB)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    data = text(on_torch.__file__)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = parallel(batch(data, generator, device))
        loss.backward()
        squares = sum(p.grad.double().square().sum().item() for p in model.parameters())
        print(loss.item().hex(), squares)
        optimizer.step()
    torch.cuda.synchronize()
    torch.distributed.destroy_process_group()


class Loss(torch.nn.Module):
    """DDP hooks into `forward`."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.model.loss(rows)


class Run:
    """A process that trains: its losses, its gradients' squares, what it said, what was measured."""

    def __init__(self, **variables: str) -> None:
        with tempfile.TemporaryDirectory() as directory:
            ring = Path(directory) / "ring"
            environment = {key: value for key, value in os.environ.items() if not key.startswith("FGS_PRELOAD")}
            environment |= {"RANK": "0", "WORLD_SIZE": "1", "FGS_RING": str(ring), "FGS_EVERY": "1"} | variables
            command = [sys.executable, __file__, "--train", f"{directory}/store"]
            child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
            self.said = child.stderr
            assert child.returncode == 0, f"the trainer ended with {child.returncode}:\n{child.stderr}"
            lines = [line.split() for line in child.stdout.splitlines()]
            self.losses = [line[0] for line in lines]
            self.squares = [float(line[1]) for line in lines]
            library = on_torch.fgs.Library()
            self.records = on_torch.fgs.records(str(ring), library) if ring.exists() else []


def losses_are_the_same(plain: Run, inert: Run, measured: Run) -> None:
    assert plain.losses == inert.losses == measured.losses
    assert not inert.records and "forgetscope" not in inert.said


def steps_are_found(measured: Run) -> None:
    assert "a step is " in measured.said, measured.said
    steps = [record.step for record in measured.records if record.kind == "step"]
    assert len(steps) > STEPS // 2, steps


def gradients_are_those_of_pytorch(measured: Run) -> None:
    """Whatever number the first step that was seen got: all later ones count on from it."""
    found = {record.step: record["gradient_squares"] for record in measured.records if record.kind == "step"}
    offsets = [
        offset
        for offset in range(STEPS)
        if all(
            step + offset < STEPS and math.isclose(squares, measured.squares[step + offset], rel_tol=RELATIVE)
            for step, squares in found.items()
        )
    ]
    assert offsets, f"{found}\nand PyTorch has\n{measured.squares}"


def main() -> int:
    if not torch.cuda.is_available() or not torch.distributed.is_nccl_available():
        print("torch_preload.py: no GPU that PyTorch can use, or no NCCL in it")
        print("0 passed, 0 failed, 1 skipped")
        return 0
    preload = {"LD_PRELOAD": os.environ["FGS_PRELOAD_LIB"]}
    plain, inert = Run(), Run(**preload)
    measured = Run(**preload, FGS_PRELOAD="1", FGS_PRELOAD_TASK="prose")
    tests = [
        (losses_are_the_same, (plain, inert, measured)),
        (steps_are_found, (measured,)),
        (gradients_are_those_of_pytorch, (measured,)),
    ]
    failed = 0
    for test, arguments in tests:
        try:
            test(*arguments)
        except AssertionError:
            traceback.print_exc()
            failed += 1
    print(f"{len(tests) - failed} passed, {failed} failed, 0 skipped")
    return min(failed, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", metavar="STORE", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train(torch.device("cuda", 0), given.train)
    else:
        sys.exit(main())
