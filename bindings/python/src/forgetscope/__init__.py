"""forgetscope: a live instrument for catastrophic forgetting, built into the trainer.

    scope = forgetscope.attach(model, optimizer, every=10)
    with scope.task("legal"):
        train(model, optimizer)                      # as ever
    forgetscope.Reader(scope.ring_path).frame("interference")

`attach` is for PyTorch, `Scope` for any array library, `Reader` and `runs` for whoever watches. See docs/python.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._abi import Data, HeadLayout, Mask, Role, Shard, Status
from ._library import Error
from .dlpack import Pointer
from .reader import Reader
from .runs import Run, runs
from .scope import Scope

if TYPE_CHECKING:
    from . import layout as layout
    from .logging import log_to_tensorboard, log_to_wandb
    from .torch import Rule as Rule
    from .torch import TorchScope as TorchScope
    from .torch import attach as attach

__version__ = "0.1.0"

# What needs PyTorch, or is needed by few: imported when it is asked for.
_LATER = {
    "attach": "torch",
    "TorchScope": "torch",
    "Rule": "torch",
    "log_to_tensorboard": "logging",
    "log_to_wandb": "logging",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _LATER:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    if name in ("layout", "callbacks"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Data",
    "Error",
    "HeadLayout",
    "Mask",
    "Pointer",
    "Reader",
    "Role",
    "Rule",
    "Run",
    "Scope",
    "Shard",
    "Status",
    "TorchScope",
    "attach",
    "log_to_tensorboard",
    "log_to_wandb",
    "runs",
]
