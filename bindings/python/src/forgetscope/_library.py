"""Finds libforgetscope.so, loads it once, and turns statuses into errors.

The wheel has the library inside; `FGS_LIB` names another one. It is loaded with the first scope or reader, not on
import, so `import forgetscope` costs nothing and cannot fail.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

from . import _abi
from ._abi import Status

# FGS_VERSION of the header that _abi.py mirrors.
VERSION = 100
_FILE = "libforgetscope.so"


class Error(Exception):
    """What forgetscope refuses, with a sentence that names the argument.

    Raised while things are set up and by calls of the trainer's own, never by the hooks of a step.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = Status(status)

    def __reduce__(self) -> tuple[Any, ...]:
        # It may come from another process, as of a pool or a distributed launcher.
        return Error, (self.status, str(self))


def invalid(sentence: str) -> Error:
    """An argument that cannot be used, found on this side of the C ABI."""
    return Error(Status.ERROR_INVALID, sentence)


class Library:
    """The loaded library. `raw` has the functions as they are; `check` raises for a status that is an error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.raw: Any = ctypes.CDLL(str(path))
        except OSError as error:
            raise Error(Status.ERROR_SYSTEM, f"{path} cannot be loaded: {error}") from error
        for name, arguments in _abi.FUNCTIONS.items():
            function = getattr(self.raw, name, None)
            if function is None:
                raise Error(
                    Status.ERROR_STRUCT, f"{path} has no {name}: it is older than this Python package; update both"
                )
            function.argtypes = arguments
            function.restype = _abi.RESULTS.get(name, ctypes.c_int32)
        if self.raw.fgs_version() // 100 != VERSION // 100:
            raise Error(
                Status.ERROR_STRUCT, f"{path} is version {self.raw.fgs_version()}, this package needs {VERSION}"
            )

    def check(self, status: int) -> int:
        if status < 0:
            raise Error(status, self.reason())
        return status

    def reason(self) -> str:
        """Why the latest call of this thread was refused."""
        return str(self.raw.fgs_last_error(), "utf-8")


def find() -> Path:
    """Where the library is: `FGS_LIB`, else inside this package."""
    if given := os.environ.get("FGS_LIB"):
        path = Path(given)
        path = path / _FILE if path.is_dir() else path
        if not path.exists():
            raise Error(Status.ERROR_CONFIG, f"FGS_LIB: there is no file {path}")
        return path
    path = Path(__file__).parent / _FILE
    if not path.exists():
        raise Error(
            Status.ERROR_CONFIG,
            f"there is no {_FILE} in {path.parent}: install the wheel, or name the library in the variable FGS_LIB",
        )
    return path


@functools.cache
def library() -> Library:
    return Library(find())
