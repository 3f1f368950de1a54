"""Tensors of any library as `fgs_dltensor`, without a copy.

NumPy arrays are described directly, everything else (PyTorch, JAX, CuPy, …) through its `__dlpack__`, and memory that
belongs to no such object through `Pointer`. Costs some microseconds; in every step use `Scope.rebind`, which takes
addresses.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._abi import DLTensor, Status
from ._library import Error, invalid

# Device types of DLPack that the library reads.
DEVICES = {"cpu": 1, "cuda": 2, "cuda_pinned": 3, "cuda_managed": 13}
# Type codes and bits of DLPack.
DTYPES = {
    "float64": (2, 64),
    "float32": (2, 32),
    "float16": (2, 16),
    "bfloat16": (4, 16),
    "float8_e4m3fn": (10, 8),
    "float8_e5m2": (12, 8),
}

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


@dataclass(frozen=True)
class Pointer:
    """Memory that is described by hand, and that the caller keeps alive.

    `strides` are in elements; None: row-major without gaps.
    """

    address: int
    shape: Sequence[int]
    dtype: str
    device: str = "cpu"
    device_id: int = 0
    strides: Sequence[int] | None = None


class View(DLTensor):
    """A description of memory, with what it needs to stay valid."""

    keep: tuple[Any, ...]
    is_writable: bool = True
    """Whether its values may be changed, as in a curvature run."""

    @classmethod
    def of(cls, tensor: Any) -> View:
        """`tensor`: a NumPy array, a `Pointer`, or an object with `__dlpack__`."""
        if isinstance(tensor, cls):
            return tensor
        if isinstance(tensor, np.ndarray):
            return cls._of_numpy(tensor)
        if isinstance(tensor, Pointer):
            t = tensor
            return cls._described(t.address, t.shape, t.dtype, t.device, t.device_id, t.strides)
        if hasattr(tensor, "__dlpack__"):
            # PyTorch gives no capsule of what autograd follows. Reading is ordered by the stream of each call: −1 asks
            # the producer not to order it by another one.
            source = tensor.detach() if hasattr(tensor, "detach") else tensor
            on_host = source.__dlpack_device__()[0] == DEVICES["cpu"]
            capsule = source.__dlpack__() if on_host else source.__dlpack__(stream=-1)
            view = cls.from_buffer_copy(DLTensor.from_address(_capsule_pointer(capsule, b"dltensor")))
            view.keep = (capsule,)
            # Arrays of JAX never change; others say nothing of it.
            view.is_writable = type(tensor).__module__.partition(".")[0] not in ("jax", "jaxlib")
            return view
        raise Error(
            Status.ERROR_UNSUPPORTED,
            f"tensor: a {type(tensor).__name__} is neither a NumPy array nor has it __dlpack__; describe it with "
            "forgetscope.Pointer",
        )

    @classmethod
    def _of_numpy(cls, array: np.ndarray) -> View:
        if not array.dtype.isnative:
            raise Error(Status.ERROR_UNSUPPORTED, f"tensor.dtype: {array.dtype.str} has the other order of bytes")
        if any(step % max(array.itemsize, 1) for step in array.strides):
            raise Error(
                Status.ERROR_UNSUPPORTED,
                f"tensor.strides: {array.strides} bytes are no multiples of an element's {array.itemsize}; pass a copy",
            )
        steps = [step // max(array.itemsize, 1) for step in array.strides]
        view = cls._described(array.ctypes.data, array.shape, array.dtype.name, "cpu", 0, steps)
        view.keep += (array,)
        view.is_writable = array.flags.writeable
        return view

    @classmethod
    def _described(
        cls,
        address: int,
        shape: Sequence[int],
        dtype: str,
        device: str,
        device_id: int,
        strides: Sequence[int] | None,
    ) -> View:
        if dtype not in DTYPES:
            raise Error(Status.ERROR_UNSUPPORTED, f"tensor.dtype: {dtype} is none of {', '.join(DTYPES)}")
        if device not in DEVICES:
            raise invalid(f"tensor.device: {device!r} is none of {', '.join(DEVICES)}")
        code, bits = DTYPES[dtype]
        numbers = ctypes.c_int64 * max(len(shape), 1)
        lengths = numbers(*shape)
        steps = None if strides is None else numbers(*strides)
        view = cls(address, DEVICES[device], device_id, len(shape), code, bits, 1, lengths, steps, 0)
        view.keep = (lengths, steps)
        return view

    @property
    def lengths(self) -> tuple[int, ...]:
        """The shape."""
        return tuple(self.shape[: self.ndim])

    @property
    def numel(self) -> int:
        return math.prod(self.lengths)

    @property
    def address(self) -> int:
        """Of the first element; 0 if there is none."""
        return int(self.data or 0) + int(self.byte_offset)


def stream_handle(stream: Any) -> int | None:
    """A stream as a number: None, an address, or an object of PyTorch, CuPy or cuda-python."""
    if stream is None or isinstance(stream, int):
        return stream
    for attribute in ("cuda_stream", "ptr", "handle"):
        if isinstance(handle := getattr(stream, attribute, None), int):
            return handle
    raise invalid(f"stream: a {type(stream).__name__} is no stream; pass its handle as a number")
