"""Scopes whose rings lie in a directory of the test, small models, processes of a group, and the records of a run."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forgetscope
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

REPOSITORY = Path(__file__).parents[3]
# Processes that tests start find the package, and the tests, too.
if "FGS_LIB" in os.environ:
    os.environ["FGS_LIB"] = str(Path(os.environ["FGS_LIB"]).resolve())
_paths = [str(REPOSITORY / "bindings/python" / name) for name in ("src", "tests")]
os.environ["PYTHONPATH"] = os.pathsep.join([*_paths, *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(autouse=True)
def own_rings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGS_RING_DIR", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("FGS_") and name not in ("FGS_LIB", "FGS_RING_DIR")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def faults_are_failures() -> Iterator[None]:
    """What the instrument says once is a warning: where a test does not expect it, it fails."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield
    said = [str(one.message) for one in seen if "forgetscope" in str(one.message)]
    assert not said


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.Module()
        self.attn.num_heads = heads
        self.attn.q_proj, self.attn.k_proj, self.attn.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.attn.o_proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        h = self.norm1(x)
        split = [p(h).view(n, length, self.num_heads, -1).transpose(1, 2) for p in
                 (self.attn.q_proj, self.attn.k_proj, self.attn.v_proj)]  # fmt: skip
        mixed = nn.functional.scaled_dot_product_attention(*split, is_causal=True)
        x = x + self.attn.o_proj(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(self.norm2(x))


class Tiny(nn.Module):
    """A transformer of two layers; `loss(tokens)`."""

    def __init__(self, width: int = 16, heads: int = 4, dropout: float = 0.1, vocabulary: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Block(width, heads, dropout) for _ in range(2))
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def batches(count: int, seed: int, sequences: int = 4, length: int = 9, vocabulary: int = 32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocabulary, (sequences, length), generator=generator) for _ in range(count)]


@pytest.fixture
def tiny() -> Tiny:
    """Every sort of its parameters is known but those of the MLP, which rules name."""
    torch.manual_seed(7)
    return Tiny()


RULES = [
    {"match": r"mlp\.0\.weight$", "role": "mlp_in"},
    {"match": r"mlp\.3\.weight$", "role": "mlp_out"},
]


def records_of(scope: Any, kind: str) -> Any:
    """A kind of the records of a scope, as a DataFrame; no fault may be among all of them."""
    scope.flush()
    reader = forgetscope.Reader(scope.ring_path)
    faults = reader.frame("fault")
    assert faults.empty, faults
    return reader.frame(kind)


def raw_records(path: Path) -> np.ndarray:
    """All records but for the moments when they were made."""
    records = forgetscope.Reader(path).read()
    records["time_ns"] = 0
    # A step says how long it took.
    kinds = {name: number for number, name in forgetscope.Reader(path).catalog.kinds.items()}
    records["values"][records["kind"] == kinds["step"], 7] = 0
    return records


def spawn(function: Any, world: int, directory: Path, *arguments: Any) -> None:
    """Runs `function(rank, directory, …)` in `world` processes of one gloo group.

    They are forked from a process that has imported what takes long, and has done nothing else.
    """
    multiprocessing.set_forkserver_preload(["megatron_on_cpu", "pandas"])
    torch.multiprocessing.start_processes(
        _process, (world, directory, function, arguments), nprocs=world, start_method="forkserver"
    )


def _process(rank: int, world: int, directory: Path, function: Any, arguments: Any) -> None:
    os.environ["FGS_RING_DIR"] = str(directory)
    torch.set_num_threads(1)
    store = f"file://{directory}/store-{function.__name__}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    try:
        function(rank, directory, *arguments)
    finally:
        dist.destroy_process_group()
