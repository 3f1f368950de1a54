"""include/forgetscope.h in Python: numbers, structs and functions, in the header's order.

Nothing here decides anything. A test compares every constant, size, offset and function with the header through a C
compiler, so the two cannot drift apart.
"""

from __future__ import annotations

import ctypes as c
from enum import IntEnum, IntFlag
from typing import Any, ClassVar

MAGIC = 0x31534746
UNSET_U32 = 2**32 - 1
UNSET_U64 = 2**64 - 1


class Status(IntEnum):
    """Outcome of a call. Negative: an error."""

    OK = 0
    EMPTY = 1
    CLOSED = 2
    ERROR_NULL = -1
    ERROR_INVALID = -2
    ERROR_STRUCT = -3
    ERROR_NOT_FOUND = -4
    ERROR_PHASE = -5
    ERROR_UNSUPPORTED = -6
    ERROR_CONFIG = -7
    ERROR_RING = -8
    ERROR_SYSTEM = -9
    ERROR_INTERNAL = -10
    ERROR_FORKED = -11


class Role(IntEnum):
    """What a tensor does in the model."""

    OTHER = 0
    EMBEDDING = 1
    POSITION = 2
    QUERY = 3
    KEY = 4
    VALUE = 5
    QKV = 6
    OUTPUT = 7
    GATE = 8
    MLP_IN = 9
    MLP_OUT = 10
    MLP_GATE = 11
    NORM = 12
    ROUTER = 13
    LM_HEAD = 14
    BIAS = 15


class HeadLayout(IntEnum):
    """How the heads of a tensor lie along its head axis."""

    AUTO = 0
    NONE = 1
    SEPARATE = 2
    CONCATENATED = 3
    INTERLEAVED = 4
    INTERLEAVED_GATED = 5


class Data(IntEnum):
    """Which data of a tensor is meant."""

    GRAD = 0
    PARAM = 1
    MASTER = 2


class TensorFlag(IntFlag):
    REPLICATED = 1
    TIED = 2
    EXPERT = 4


class GradientFlag(IntFlag):
    UNREDUCED = 1


class ProbeFlag(IntFlag):
    BASE = 1


class Mask(IntEnum):
    """Which keys a query sees."""

    NONE = 0
    CAUSAL = 1


class Want(IntEnum):
    """What a curvature run wants."""

    DONE = 0
    GRADIENT = 1
    LOSS = 2


class DLTensor(c.Structure):
    """A DLPack tensor: `fgs_dltensor`."""

    _fields_ = [
        ("data", c.c_void_p),
        ("device_type", c.c_int32),
        ("device_id", c.c_int32),
        ("ndim", c.c_int32),
        ("code", c.c_uint8),
        ("bits", c.c_uint8),
        ("lanes", c.c_uint16),
        ("shape", c.POINTER(c.c_int64)),
        ("strides", c.POINTER(c.c_int64)),
        ("byte_offset", c.c_uint64),
    ]


class _Sized(c.Structure):
    """A struct that begins with its size and the magic number.

    `Options(every=1)` is the header's FGS_OPTIONS_INIT with one field set.
    """

    _initial_: ClassVar[dict[str, Any]] = {}

    def __init__(self, **fields: Any) -> None:
        super().__init__(**{"size": c.sizeof(type(self)), "magic": MAGIC, **self._initial_, **fields})


class Options(_Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("magic", c.c_uint32),
        ("run", c.c_char_p),
        ("ring_path", c.c_char_p),
        ("include", c.c_char_p),
        ("exclude", c.c_char_p),
        ("ring_slots", c.c_uint64),
        ("every", c.c_uint64),
        ("start_step", c.c_uint64),
        ("end_step", c.c_uint64),
        ("budget_bytes", c.c_uint64),
        ("reference_budget", c.c_double),
        ("threads", c.c_uint32),
        ("rank", c.c_uint32),
        ("world_size", c.c_uint32),
        ("sketch_head", c.c_uint32),
        ("sketch_matrix", c.c_uint32),
        ("window", c.c_uint32),
    ]
    _initial_ = {
        **dict.fromkeys(("ring_slots", "every", "start_step", "end_step", "budget_bytes"), UNSET_U64),
        "reference_budget": -1.0,
        **dict.fromkeys(("threads", "rank", "world_size", "sketch_head", "sketch_matrix", "window"), UNSET_U32),
    }


class Tensor(_Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("magic", c.c_uint32),
        ("name", c.c_char_p),
        ("numel", c.c_uint64),
        ("rows", c.c_uint64),
        ("cols", c.c_uint64),
        ("role", c.c_uint32),
        ("layer", c.c_int32),
        ("expert", c.c_int32),
        ("group", c.c_uint32),
        ("head_layout", c.c_uint32),
        ("head_axis", c.c_uint32),
        ("head_count", c.c_uint32),
        ("kv_head_count", c.c_uint32),
        ("head_offset", c.c_uint32),
        ("kv_head_offset", c.c_uint32),
        ("flags", c.c_uint32),
        ("replica", c.c_uint32),
        ("tied_to", c.c_uint32),
        ("layer_count", c.c_uint32),
    ]
    _initial_ = {"layer": -1, "expert": -1, "head_axis": UNSET_U32, "tied_to": UNSET_U32, "layer_count": 1}


class Shard(_Sized):
    """Which elements of the unsharded tensor the local data is: `run_count` runs of `run_length` elements, `run_step`
    apart.

    Counted in the row-major order of the unsharded tensor. A flat range: `offset` only.
    """

    _fields_ = [
        ("size", c.c_uint32),
        ("magic", c.c_uint32),
        ("offset", c.c_uint64),
        ("run_length", c.c_uint64),
        ("run_step", c.c_uint64),
        ("run_count", c.c_uint64),
    ]


class Probe(_Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("magic", c.c_uint32),
        ("task", c.c_char_p),
        ("continued_updates", c.c_uint64),
        ("flags", c.c_uint32),
        ("run", c.c_uint32),
    ]
    _initial_ = {"continued_updates": UNSET_U64}


class Attention(_Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("magic", c.c_uint32),
        ("probabilities", c.POINTER(DLTensor)),
        ("query", c.POINTER(DLTensor)),
        ("key", c.POINTER(DLTensor)),
        ("log_sum_exp", c.POINTER(DLTensor)),
        ("scale", c.c_double),
        ("softcap", c.c_double),
        ("mask", c.c_uint32),
        ("window", c.c_uint32),
        ("first_head", c.c_uint32),
        ("reserved", c.c_uint32),
    ]


class Curvature(_Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("magic", c.c_uint32),
        ("task", c.c_char_p),
        ("lanczos_steps", c.c_uint32),
        ("trace_vectors", c.c_uint32),
        ("density_vectors", c.c_uint32),
        ("eigenvectors", c.c_uint32),
        ("path_points", c.c_uint32),
        ("block_vectors", c.c_uint32),
        ("blocks", c.POINTER(c.c_uint32)),
        ("block_count", c.c_uint64),
        ("relative_step", c.c_double),
        ("seed", c.c_uint64),
    ]
    _initial_ = {
        "lanczos_steps": 32,
        "trace_vectors": 8,
        "density_vectors": 1,
        "eigenvectors": 3,
        "block_vectors": 4,
        "relative_step": 1e-3,
    }


class CurvatureRequest(_Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("magic", c.c_uint32),
        ("want", c.c_uint32),
        ("index", c.c_uint32),
        ("total", c.c_uint32),
    ]


class Record(c.Structure):
    _fields_ = [
        ("time_ns", c.c_uint64),
        ("step", c.c_uint64),
        ("kind", c.c_uint16),
        ("level", c.c_uint8),
        ("reserved", c.c_uint8),
        ("flags", c.c_uint32),
        ("rank", c.c_uint32),
        ("task", c.c_uint16),
        ("reference", c.c_uint16),
        ("tensor", c.c_uint32),
        ("slice", c.c_uint32),
        ("values", c.c_double * 10),
    ]


# A scope or reader, a pointer to a struct, a stream: what is not a number or a string.
_P = c.c_void_p
_U32, _U64, _I32, _F64, _TEXT = c.c_uint32, c.c_uint64, c.c_int32, c.c_double, c.c_char_p

# Arguments of every function. All return an `fgs_status`, but for those in RESULTS.
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "fgs_last_error": (),
    "fgs_status_name": (_I32,),
    "fgs_open": (_P, _P),
    "fgs_close": (_P,),
    "fgs_flush": (_P,),
    "fgs_ring_path": (_P, _P),
    "fgs_version": (),
    "fgs_register": (_P, _P, _P),
    "fgs_bind": (_P, _U32, _U32, _P),
    "fgs_bind_shard": (_P, _U32, _U32, _P, _P),
    "fgs_rebind": (_P, _U32, _P, _P, _U64),
    "fgs_task_begin": (_P, _TEXT),
    "fgs_task_end": (_P,),
    "fgs_reference_add": (_P, _TEXT, _U64, _F64, _P),
    "fgs_reference_feed": (_P, _TEXT, _U32, _P, _P, _F64, _P),
    "fgs_snapshot": (_P, _TEXT, _P),
    "fgs_step_begin": (_P, _U64),
    "fgs_step_sampled": (_P, _P),
    "fgs_set_every": (_P, _U64),
    "fgs_gradient_feed": (_P, _U32, _P, _P, _F64, _P),
    "fgs_gradients_ready": (_P, _F64, _U32, _P),
    "fgs_step_end": (_P, _I32, _P),
    "fgs_probe_begin": (_P, _P),
    "fgs_probe_batch": (_P, _U64, _U64, _P, _U64),
    "fgs_probe_hidden": (_P, _U32, _P, _P),
    "fgs_probe_attention": (_P, _U32, _P, _P),
    "fgs_probe_head_output": (_P, _U32, _U32, _U32, _P, _P, _P),
    "fgs_probe_router": (_P, _U32, _P, _U32, _P),
    "fgs_probe_end": (_P,),
    "fgs_probe_abandon": (_P,),
    "fgs_head_effect": (_P, _TEXT, _U32, _U32, _F64, _F64, _F64),
    "fgs_curvature_begin": (_P, _P),
    "fgs_curvature_next": (_P, _P),
    "fgs_curvature_submit": (_P, _F64, _F64, _P),
    "fgs_curvature_end": (_P,),
    "fgs_record_loss": (_P, _TEXT, _F64),
    "fgs_record_eval": (_P, _TEXT, _TEXT, _F64, _I32),
    "fgs_reader_open": (_TEXT, _P),
    "fgs_reader_next": (_P, _P, _P),
    "fgs_reader_name": (_P, _U32, _U32, _P),
    "fgs_reader_close": (_P,),
}
RESULTS: dict[str, Any] = {"fgs_last_error": _TEXT, "fgs_status_name": _TEXT, "fgs_version": _U32}
