"""The C ABI through ctypes, as far as the oracles need it: a scope, tensors over NumPy arrays, the records of its ring."""

import ctypes as c
import math
import os
import tempfile
from pathlib import Path

import numpy as np

from on_device import CUDA, HOST, mirror

LIBRARY = os.environ.get("FGS_LIB", str(Path(__file__).parents[2] / "build/lib/libforgetscope.so"))
MAGIC, UNSET32, UNSET64, NONE16, NONE32 = 0x31534746, 2**32 - 1, 2**64 - 1, 2**16 - 1, 2**32 - 1
GRAD, PARAM = 0, 1
KIND, VALUE, TASK, LEVEL, FLAG = 0, 1, 2, 6, 7  # of fgs_name
ROLE_OUTPUT = 7


class Tensor(c.Structure):
    """fgs_dltensor over an array, which it keeps alive."""

    _fields_ = [("data", c.c_void_p), ("device_type", c.c_int32), ("device_id", c.c_int32), ("ndim", c.c_int32),
                ("code", c.c_uint8), ("bits", c.c_uint8), ("lanes", c.c_uint16), ("shape", c.POINTER(c.c_int64)),
                ("strides", c.POINTER(c.c_int64)), ("byte_offset", c.c_uint64)]

    def __init__(self, array):
        assert array.dtype in (np.float32, np.float64)
        self.array = array
        numbers = c.c_int64 * array.ndim
        self.lengths, self.steps = numbers(*array.shape), numbers(*(s // array.itemsize for s in array.strides))
        data, device = (mirror.address(array), CUDA) if mirror else (array.ctypes.data, HOST)
        super().__init__(data, device, 0, array.ndim, 2, 8 * array.itemsize, 1, self.lengths, self.steps, 0)


class Options(c.Structure):
    _fields_ = [("size", c.c_uint32), ("magic", c.c_uint32), ("run", c.c_char_p), ("ring_path", c.c_char_p),
                ("include", c.c_char_p), ("exclude", c.c_char_p), ("ring_slots", c.c_uint64), ("every", c.c_uint64),
                ("start_step", c.c_uint64), ("end_step", c.c_uint64), ("budget_bytes", c.c_uint64),
                ("reference_budget", c.c_double), ("threads", c.c_uint32), ("rank", c.c_uint32),
                ("world_size", c.c_uint32), ("sketch_head", c.c_uint32), ("sketch_matrix", c.c_uint32),
                ("window", c.c_uint32)]


class TensorSpec(c.Structure):
    _fields_ = [("size", c.c_uint32), ("magic", c.c_uint32), ("name", c.c_char_p), ("numel", c.c_uint64),
                ("rows", c.c_uint64), ("cols", c.c_uint64), ("role", c.c_uint32), ("layer", c.c_int32),
                ("expert", c.c_int32), ("group", c.c_uint32), ("head_layout", c.c_uint32), ("head_axis", c.c_uint32),
                ("head_count", c.c_uint32), ("kv_head_count", c.c_uint32), ("head_offset", c.c_uint32),
                ("kv_head_offset", c.c_uint32), ("flags", c.c_uint32), ("replica", c.c_uint32), ("tied_to", c.c_uint32),
                ("layer_count", c.c_uint32)]


class Probe(c.Structure):
    _fields_ = [("size", c.c_uint32), ("magic", c.c_uint32), ("task", c.c_char_p), ("continued_updates", c.c_uint64),
                ("flags", c.c_uint32), ("run", c.c_uint32)]


class Attention(c.Structure):
    _fields_ = [("size", c.c_uint32), ("magic", c.c_uint32), ("probabilities", c.POINTER(Tensor)),
                ("query", c.POINTER(Tensor)), ("key", c.POINTER(Tensor)), ("log_sum_exp", c.POINTER(Tensor)),
                ("scale", c.c_double), ("softcap", c.c_double), ("mask", c.c_uint32), ("window", c.c_uint32),
                ("first_head", c.c_uint32), ("reserved", c.c_uint32)]


class RawRecord(c.Structure):
    _fields_ = [("time_ns", c.c_uint64), ("step", c.c_uint64), ("kind", c.c_uint16), ("level", c.c_uint8),
                ("reserved", c.c_uint8), ("flags", c.c_uint32), ("rank", c.c_uint32), ("task", c.c_uint16),
                ("reference", c.c_uint16), ("tensor", c.c_uint32), ("slice", c.c_uint32), ("values", c.c_double * 10)]


class Record:
    """A record by names: `record["cka"]`, `record.level`, `record.flags`."""

    def __init__(self, raw, name):
        self.step, self.tensor, self.slice = raw.step, raw.tensor, raw.slice
        self.kind, self.level = name(KIND, raw.kind), name(LEVEL, raw.level)
        self.flags = {name(FLAG, 1 << bit) for bit in range(32) if raw.flags >> bit & 1}
        self.task, self.reference = (None if t == NONE16 else name(TASK, t) for t in (raw.task, raw.reference))
        names = (name(VALUE, raw.kind << 8 | i) for i in range(10))
        self.values = {key: value for key, value in zip(names, raw.values) if key is not None}

    def __getitem__(self, key):
        return self.values[key]

    def __repr__(self):
        known = {key: value for key, value in self.values.items() if not math.isnan(value)}
        return f"{self.kind} {self.level} {self.slice} step {self.step} {sorted(self.flags)} {known}"


class Refused(Exception):
    pass


class Library:
    """The functions; a call that is refused raises with the library's sentence."""

    def __init__(self, path=LIBRARY):
        self.handle = c.CDLL(path)
        self.handle.fgs_last_error.restype = c.c_char_p

    def __getattr__(self, name):
        function = getattr(self.handle, "fgs_" + name)

        def call(*arguments, allowed=(0,)):
            arguments = [Library.convert(argument) for argument in arguments]
            if mirror:
                mirror.upload()
            status = function(*arguments)
            if mirror and name.startswith("curvature"):
                mirror.download()  # the parameters were moved
            if status not in allowed:
                raise Refused(f"fgs_{name}: {self.handle.fgs_last_error().decode()}")
            return status

        return call

    @staticmethod
    def convert(argument):
        match argument:
            case str():
                return argument.encode()
            case float():
                return c.c_double(argument)
            case c.Structure():
                return c.byref(argument)
            case np.ndarray():
                return c.byref(Tensor(argument))
            case int() if argument > 2**31:
                return c.c_uint64(argument)
            case _:
                return argument


class Scope:
    """An open scope in a directory of its own; every step is sampled. Calls: `scope.step_begin(3)`."""

    def __init__(self, budget_bytes=UNSET64, **environment):
        self.fgs = Library()
        self.directory = tempfile.TemporaryDirectory()
        self.path = f"{self.directory.name}/ring"
        options = Options(c.sizeof(Options), MAGIC, b"oracles", self.path.encode(), None, None, UNSET64, 1, UNSET64,
                          UNSET64, budget_bytes, -1.0, 2, UNSET32, UNSET32, UNSET32, UNSET32, UNSET32)
        self.handle = c.c_void_p()
        before = {key: os.environ.get(key) for key in environment}
        os.environ.update(environment)
        self.fgs.open(options, c.byref(self.handle))
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
        self.kept = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.fgs.close(self.handle)
        self.directory.cleanup()
        if mirror:
            mirror.clear()

    def __getattr__(self, name):
        function = getattr(self.fgs, name)
        return lambda *arguments, **options: function(self.handle, *arguments, **options)

    def tensor(self, name, value, gradient=None, **spec):
        """Registers and binds a tensor; arrays are bound as they are and must stay."""
        raw = TensorSpec(size=c.sizeof(TensorSpec), magic=MAGIC, name=name.encode(), numel=value.size,
                         head_axis=UNSET32, tied_to=UNSET32, layer_count=1, layer=-1, expert=-1)
        if value.ndim == 2:
            raw.rows, raw.cols = value.shape
        for key, given in spec.items():
            setattr(raw, key, given)
        tensor = c.c_uint32()
        self.register(raw, c.byref(tensor))
        self.bind(tensor.value, PARAM, value)
        if gradient is not None:
            self.bind(tensor.value, GRAD, gradient)
        self.kept += [value, gradient]
        return tensor.value

    def probe(self, task, continued=UNSET64, flags=0, run=0):
        self.probe_begin(Probe(c.sizeof(Probe), MAGIC, task.encode(), continued, flags, run))

    def batch(self, sequences, length, labels=None):
        labels = None if labels is None else np.ascontiguousarray(labels, np.int32)
        pointer = None if labels is None else labels.ctypes.data_as(c.POINTER(c.c_int32))
        self.probe_batch(c.c_uint64(sequences), c.c_uint64(length), pointer, c.c_uint64(0 if labels is None else labels.size))

    def attention(self, layer, probabilities=None, query=None, key=None, log_sum_exp=None, **fields):
        def pointer(array):
            return None if array is None else c.pointer(Tensor(array))

        raw = Attention(c.sizeof(Attention), MAGIC, pointer(probabilities), pointer(query), pointer(key), pointer(log_sum_exp))
        for name, value in fields.items():
            setattr(raw, name, value)
        self.probe_attention(layer, raw, None)

    def records(self, kind=None):
        """All records so far, or those of a kind."""
        self.flush()
        return [record for record in records(self.path, self.fgs) if kind in (None, record.kind)]


def records(path, library):
    """What the ring at `path` holds."""
    reader, raw = c.c_void_p(), RawRecord()
    library.reader_open(path, c.byref(reader))

    def name(what, number):
        text = c.c_char_p()
        found = library.handle.fgs_reader_name(reader, what, number, c.byref(text)) == 0
        return text.value.decode() if found else None

    found, lost = [], c.c_uint64()
    while library.reader_next(reader, raw, c.byref(lost), allowed=(0, 1, 2)) == 0:
        assert lost.value == 0
        found.append(Record(raw, name))
    library.reader_close(reader)
    return found
