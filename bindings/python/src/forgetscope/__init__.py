"""forgetscope: a live instrument for catastrophic forgetting, built into the trainer.

    scope = forgetscope.attach(model, optimizer, every=10)
    with scope.task("legal"):
        train(model, optimizer)                      # as ever
    forgetscope.Reader(scope.ring_path).frame("interference")

`attach` is for PyTorch, `Scope` for any array library, `Reader` and `runs` for whoever watches. See docs/python.md.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
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
    if name in _LATER:
        try:
            return getattr(import_module(f".{_LATER[name]}", __name__), name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            # Whoever asks with hasattr() gets an answer.
            raise AttributeError(
                f"forgetscope.{name} needs PyTorch, which is not installed: pip install torch"
            ) from error
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
    "Run",
    "Scope",
    "Shard",
    "Status",
    "log_to_tensorboard",
    "log_to_wandb",
    "runs",
]
if find_spec("torch"):
    __all__ += ["Rule", "TorchScope", "attach"]
