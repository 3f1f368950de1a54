#!/usr/bin/env python3
"""What measuring costs a training step in PyTorch, beside what people write instead.

    FGS_LIB=libforgetscope.so python3 benches/gpu/torch_overhead.py --out FILE.json [--quick]

A GPT of GPT-2's small size (124 M parameters), bf16 autocast, fused AdamW, one earlier task with an exact reference and a
snapshot. Variants take turns, round by round, so that all of them saw the same machine:

    none                 nothing is measured
    forgetscope, every   every step, every 10th
    cosine_similarity    a loop over the tensors with torch.nn.functional.cosine_similarity, gradient against reference,
                         every step; the results stay on the device until the step's end
    _foreach             the same numbers and norms with torch._foreach_mul and torch._foreach_norm

Times are CUDA events around whole steps. The library's numbers are per head too, with sketches, update and drift; the loops
have the cosine of each tensor and nothing else. --quick and --device cpu try the script: figures mean nothing then.
"""

import argparse
import ctypes as c
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/gpu"))
import on_torch  # noqa: E402
from on_torch import fgs  # noqa: E402

ROLES = {"qkv": 6, "output": 7, "wide": 9, "narrow": 10, "norm": 12, "embedding": 1, "position": 2}


class Block(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.qkv, self.output = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.wide, self.narrow = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, x):
        n, length, width = x.shape
        q, k, v = (t.view(n, length, self.heads, -1).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x)), approximate="tanh"))


class GPT(torch.nn.Module):
    def __init__(self, layers=12, width=768, heads=12, vocabulary=50257, length=1024):
        super().__init__()
        self.heads = heads
        self.embedding, self.position = torch.nn.Embedding(vocabulary, width), torch.nn.Embedding(length, width)
        self.blocks = torch.nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = torch.nn.LayerNorm(width)
        for parameter in (p for p in self.parameters() if p.ndim == 2):
            torch.nn.init.normal_(parameter, std=0.02)

    def loss(self, tokens):
        x = self.embedding(tokens[:, :-1]) + self.position.weight[: tokens.shape[1] - 1]
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(F.linear(self.norm(x), self.embedding.weight).flatten(0, 1), tokens[:, 1:].flatten())

    def spec(self, name):
        parts = name.split(".")
        role = next((ROLES[part.rstrip("12")] for part in parts if part.rstrip("12") in ROLES), 0)
        heads = {"head_count": self.heads} if role in (6, 7) and not (role == 7 and parts[-1] == "bias") else {}
        return {"role": role, "layer": int(parts[1]) if parts[0] == "blocks" else -1, **heads}


class Trainer:
    def __init__(self, device, quick):
        torch.manual_seed(1)
        shape = {"layers": 2, "width": 64, "heads": 4, "vocabulary": 512, "length": 32} if quick else {}
        self.device, self.model = device, GPT(**shape).to(device)
        self.batch = torch.randint(512, (2, 33) if quick else (8, 1025), device=device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=device.type == "cuda")
        self.backward()  # gradients get their memory
        self.parameters = list(self.model.parameters())
        self.references = [p.grad.clone() for p in self.parameters]
        self.optimizer.step()

    def backward(self):
        self.optimizer.zero_grad(set_to_none=False)
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.model.loss(self.batch)
        loss.backward()

    def step(self, at_gradients=lambda: None, at_end=lambda: None):
        self.backward()
        at_gradients()
        self.optimizer.step()
        at_end()


class Forgetscope:
    """Steps with the library on them, sampled as `every` says."""

    def __init__(self, trainer, every):
        self.trainer, self.number = trainer, 0
        settings = {"FGS_EVERY": str(every), "FGS_RING_SLOTS": str(1 << 20)}  # the ring holds the whole bench
        self.measured = on_torch.Measured(trainer.model, trainer.model.spec, budget_bytes=1 << 40, **settings)
        self.measured.bind_gradients()
        self.measured.scope.task_begin("earlier")
        trainer.backward()
        self.measured.reference_add("earlier", 8)
        self.measured.task_end()
        self.measured.scope.task_begin("now")

    def step(self):
        self.measured.step_begin(self.number)
        self.trainer.step(self.measured.gradients_ready, self.measured.step_end)
        self.number += 1

    def close(self):
        """Returns how many sampled steps were left out: their cost was not paid."""
        scope, fault = self.measured.scope, 13
        scope.flush()
        reader, record, lost, faults = c.c_void_p(), fgs.RawRecord(), c.c_uint64(), 0
        scope.fgs.reader_open(scope.path, c.byref(reader))
        following = scope.fgs.handle.fgs_reader_next  # a million records: without names
        while following(reader, c.byref(record), c.byref(lost)) == 0:
            faults += record.kind == fault
        scope.fgs.reader_close(reader)
        self.measured.__exit__()
        return faults


def cosine_loop(trainer):
    pairs = [(p.grad.flatten(), r.flatten()) for p, r in zip(trainer.parameters, trainer.references)]
    return torch.stack([F.cosine_similarity(g, r, dim=0) for g, r in pairs])


def foreach(trainer):
    gradients = [p.grad for p in trainer.parameters]
    products = torch.stack([product.sum() for product in torch._foreach_mul(gradients, trainer.references)])
    norms = [torch.stack(torch._foreach_norm(tensors)) for tensors in (gradients, trainer.references)]
    return products / (norms[0] * norms[1])


class Clock:
    """Seconds of `steps` steps: by the device's clock, or by the host's where there is no device."""

    def __init__(self, device):
        self.on_device = device.type == "cuda"

    def __call__(self, work, steps):
        if not self.on_device:
            start = time.perf_counter()
            for _ in range(steps):
                work()
            return (time.perf_counter() - start) / steps
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        before.record()
        for _ in range(steps):
            work()
        after.record()
        torch.cuda.synchronize()
        return 1e-3 * before.elapsed_time(after) / steps


def quantile(values, share):
    values = sorted(values)
    return values[int(share * (len(values) - 1) + 0.5)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"skipped: PyTorch {torch.__version__} has no GPU here")
        return 0
    trainer, clock = Trainer(device, options.quick), Clock(device)
    scopes = {f"forgetscope, every {n}": Forgetscope(trainer, n) for n in (1, 10)}
    variants = {
        "none": trainer.step,
        **{name: scope.step for name, scope in scopes.items()},
        "cosine_similarity loop": lambda: trainer.step(lambda: cosine_loop(trainer)),
        "_foreach": lambda: trainer.step(lambda: foreach(trainer)),
    }
    rounds, steps = (2, 10) if options.quick else (9, 20)
    seconds = {name: [] for name in variants}
    for turn in range(-1, rounds):
        for name, work in variants.items():
            time_of = clock(work, steps)
            if turn >= 0:
                seconds[name].append(time_of)
    size = f"{sum(p.numel() for p in trainer.parameters) / 1e6:.0f} M parameters"
    figures = []

    def add(name, values, unit):
        figures.append({"name": name, "value": quantile(values, 0.5), "low": quantile(values, 0.1),
                        "high": quantile(values, 0.9), "runs": len(values), "unit": unit})
        print(f"{name:<64} {figures[-1]['value']:12.4g} {unit}")

    add(f"PyTorch step, {size}", [1e3 * s for s in seconds["none"]], "ms")
    for name in list(variants)[1:]:
        add(f"PyTorch step, {name}: added", [100 * (s / n - 1) for s, n in zip(seconds[name], seconds["none"])], "%")
    for name, scope in scopes.items():
        add(f"PyTorch step, {name}: faults", [scope.close()], "")
    if options.out:
        about = {"torch": torch.__version__, "quick": options.quick or device.type != "cuda", "figures": figures}
        Path(options.out).write_text(json.dumps(about, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
