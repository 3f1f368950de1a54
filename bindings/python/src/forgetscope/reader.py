"""`Reader`: the records of a run as NumPy arrays, live or afterwards, from any process.

    reader = Reader(scope.ring_path)
    records = reader.read()                              # structured array, all records that are still there
    for batch in reader.follow():                        # arrays as they come, until the run ends
        ...
    reader.frame("interference")                         # pandas: values by name, tasks and tensors by name

Costs about 1 µs a record, and nothing for the trainer.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ._abi import Status
from ._library import Error, invalid, library
from .catalog import NONE_U16, NONE_U32, Catalog, RingFile

if TYPE_CHECKING:
    import pandas

RECORD = np.dtype(
    [
        ("time_ns", np.uint64),
        ("step", np.uint64),
        ("kind", np.uint16),
        ("level", np.uint8),
        ("reserved", np.uint8),
        ("flags", np.uint32),
        ("rank", np.uint32),
        ("task", np.uint16),
        ("reference", np.uint16),
        ("tensor", np.uint32),
        ("slice", np.uint32),
        ("values", np.float64, (10,)),
    ],
    align=True,
)
"""`fgs_record`. Ids that do not apply are all ones, values that do not apply are NaN."""

_CHUNK = 4096


class Reader:
    """Reads the ring at `path` from the oldest record that is still there. For one thread at a time."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        if path is None:
            raise invalid("path: None, which is the ring of a scope that FGS_DISABLE=1 made do nothing")
        self._library = library()
        self._ring = RingFile(path)
        self.path = self._ring.path
        self._handle = ctypes.c_void_p()
        try:
            self._library.check(self._library.raw.fgs_reader_open(os.fsencode(path), ctypes.byref(self._handle)))
        except BaseException:
            self._ring.close()
            raise
        self._catalog = Catalog()
        self.lost = 0
        """Records that were overwritten before they could be read, exactly."""
        self.closed = False
        """Whether the run has ended and everything was read."""

    def close(self) -> None:
        if self._handle:
            self._library.raw.fgs_reader_close(self._handle)
            self._ring.close()
            self._handle = ctypes.c_void_p()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

    @property
    def catalog(self) -> Catalog:
        """Names of kinds, values, tasks, tensors, …, as of now."""
        self._expect_open()
        self._catalog.update(self._ring)
        return self._catalog

    def read(self, limit: int | None = None) -> np.ndarray[Any, np.dtype[np.void]]:
        """The records that have come since the last call, at most `limit`."""
        self._expect_open()
        chunks = []
        wanted = limit if limit is not None else 2**63
        while wanted > 0 and (chunk := self._chunk(min(_CHUNK, wanted))).size:
            chunks.append(chunk)
            wanted -= chunk.size
        return np.concatenate(chunks) if chunks else np.empty(0, RECORD)

    def _expect_open(self) -> None:
        if not self._handle:
            raise Error(Status.ERROR_PHASE, "the reader was closed")

    def _chunk(self, size: int) -> np.ndarray[Any, np.dtype[np.void]]:
        chunk = np.empty(size, RECORD)
        following, lost = self._library.raw.fgs_reader_next, ctypes.c_uint64()
        address, handle, lost_by_reference = chunk.ctypes.data, self._handle, ctypes.byref(lost)
        count = 0
        while count < size:
            status = following(handle, address + count * RECORD.itemsize, lost_by_reference)
            self.lost += lost.value
            if status != Status.OK:
                self.closed = self._library.check(status) == Status.CLOSED
                break
            count += 1
        return chunk[:count]

    def follow(self, poll: float = 0.1) -> Iterator[np.ndarray[Any, np.dtype[np.void]]]:
        """Arrays of records as they come, never empty, until the run ends. Looks every `poll` seconds."""
        while True:
            records = self.read(_CHUNK)
            if records.size:
                yield records
            elif self.closed:
                return
            else:
                time.sleep(poll)

    def select(self, records: np.ndarray, kind: str, level: str | None = None) -> np.ndarray:
        """The records of a kind, and of a level ("head", "tensor", "role", "layer", "model", "attention_head")."""
        catalog = self.catalog
        chosen = records["kind"] == _numbered(catalog.kinds, kind, "kind")
        if level is not None:
            chosen &= records["level"] == _numbered(catalog.levels, level, "level")
        return records[chosen]

    def frame(self, kind: str, records: np.ndarray | None = None) -> pandas.DataFrame:
        """The records of a kind as a pandas DataFrame; all that are still in the ring, or those that are given.

        Columns: time, step, level, flags, rank, task, reference, tensor, layer, expert, role, head, and the kind's
        values by name. What does not apply is missing.
        """
        import pandas

        if records is None:
            with Reader(self.path) as whole:
                records = whole.read()
        catalog = self.catalog
        records = self.select(records, kind)
        subject = _subject(records, catalog)
        clock = self._ring.header
        table = {
            "time": pandas.to_datetime(
                records["time_ns"].astype(np.int64) - clock.monotonic_ns + clock.realtime_ns, unit="ns", utc=True
            ),
            "step": records["step"],
            "level": _names(records["level"], catalog.levels),
            "flags": _each(
                records["flags"], lambda flags: "|".join(n for bit, n in catalog.flags.items() if flags & bit)
            ),
            "rank": records["rank"],
            "task": _names(records["task"], catalog.tasks),
            "reference": _names(records["reference"], catalog.tasks),
            "tensor": _each(records["tensor"], lambda i: catalog.tensors[i].name if i in catalog.tensors else None),
            **{name: pandas.array(column, dtype="Int64") for name, column in subject.items() if name != "role"},
            "role": subject["role"],
        }
        (number,) = (number for number, name in catalog.kinds.items() if name == kind)
        for index, name in enumerate(catalog.values[number]):
            table[name] = records["values"][:, index]
        return pandas.DataFrame(table)


def _numbered(names: dict[int, str], name: str, argument: str) -> int:
    for number, known in names.items():
        if known == name:
            return number
    raise Error(Status.ERROR_NOT_FOUND, f"{argument}: {name!r} is none of {', '.join(names.values())}")


def _each(column: np.ndarray, convert: Any) -> np.ndarray:
    """Converts every different number once."""
    different, places = np.unique(column, return_inverse=True)
    return np.array([convert(int(number)) for number in different], object)[places]


def _names(column: np.ndarray, names: dict[int, str]) -> np.ndarray:
    return _each(column, lambda number: None if number == NONE_U16 else names.get(number, str(number)))


def _subject(records: np.ndarray, catalog: Catalog) -> dict[str, list[Any]]:
    """Layer, expert, head and role that each record is about: its slice means another thing at every level."""
    subject: dict[str, list[Any]] = {"layer": [], "expert": [], "head": [], "role": []}
    for level, number, slice_ in zip(
        records["level"].tolist(), records["tensor"].tolist(), records["slice"].tolist(), strict=True
    ):
        tensor = catalog.tensors.get(number)
        layer = tensor.layer if tensor and tensor.layer >= 0 else None
        expert = tensor.expert if tensor and tensor.expert >= 0 else None
        role = tensor.role if tensor else None
        head = None
        if slice_ != NONE_U32:
            match catalog.levels.get(level):
                case "head":
                    role, head = slice_ >> 16, slice_ & 0xFFFF
                case "role":
                    role = slice_
                case "layer":
                    layer = slice_
                case "attention_head":
                    layer, head = slice_ >> 16, slice_ & 0xFFFF
        found = (layer, expert, head, None if role is None else catalog.roles.get(role, str(role)))
        for column, value in zip(subject.values(), found, strict=True):
            column.append(value)
    return subject
