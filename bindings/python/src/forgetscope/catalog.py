"""What the numbers in a ring mean: names of kinds, values, tasks and tensors, read from the ring's own header and
catalog.

Layout: docs/ring.md. Both are read with system calls and not mapped: what lies below `catalog_len` never changes, and
a file that is cut short while it is read gives an error, not a signal.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

from ._abi import Status
from ._library import Error

NONE_U16 = 2**16 - 1
NONE_U32 = 2**32 - 1
_HEADER = struct.Struct("<8s18Q")
_STATE, _PUBLISHED, _HEARTBEAT, _CATALOG_LENGTH = 1024, 1152, 1280, 1408


@dataclass(frozen=True)
class Header:
    """Constant facts of a ring."""

    slot_count: int
    catalog_offset: int
    catalog_bytes: int
    pid: int
    pid_start_time: int
    pid_namespace: int
    rank: int
    world: int
    monotonic_ns: int
    realtime_ns: int


@dataclass(frozen=True)
class TensorEntry:
    """A tensor; sizes are those of the unsharded one. `layer` and `expert` are −1 where there is none."""

    name: str
    role: int
    layer: int
    expert: int
    heads: int
    kv_heads: int
    rows: int
    cols: int
    group: int
    flags: int


class RingFile:
    """The fixed part of a ring's file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise Error(Status.ERROR_NOT_FOUND, f"path: there is no file {self.path}") from None
        except OSError as error:
            raise Error(Status.ERROR_RING, f"path: {self.path} cannot be read: {error.strerror}") from error
        try:
            self.header = self._header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> RingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refuse(self, why: str) -> Error:
        return Error(Status.ERROR_RING, f"path: {self.path} is not a ring that can be read: {why}")

    def _bytes(self, offset: int, length: int) -> bytes:
        data = os.pread(self._file, length, offset)
        if len(data) != length:
            raise self._refuse("it is too short")
        return data

    def _word(self, offset: int) -> int:
        return int.from_bytes(self._bytes(offset, 8), "little")

    def _header(self) -> Header:
        magic, version, *words = _HEADER.unpack(self._bytes(0, _HEADER.size))
        if magic != b"FGSRING\0" or version != 1:
            raise self._refuse("its first bytes are others, or its layout is of another version")
        (
            _,
            _,
            slot_count,
            _,
            catalog_offset,
            catalog_bytes,
            _,
            _,
            _,
            _,
            pid,
            start,
            space,
            rank,
            world,
            monotonic,
            realtime,
        ) = words
        if catalog_offset < 4096 or catalog_bytes > 1 << 30:
            raise self._refuse("its catalog is outside the file")
        return Header(slot_count, catalog_offset, catalog_bytes, pid, start, space, rank, world, monotonic, realtime)

    @property
    def state(self) -> int:
        """1 open, 2 closed as intended, 3 abandoned."""
        return self._word(_STATE)

    @property
    def published(self) -> int:
        return self._word(_PUBLISHED)

    @property
    def heartbeat_ns(self) -> int:
        return self._word(_HEARTBEAT)

    def catalog(self, begin: int = 0) -> tuple[bytes, int]:
        """The catalog from byte `begin` on, and its length."""
        length = self._word(_CATALOG_LENGTH)
        if not begin <= length <= self.header.catalog_bytes:
            raise self._refuse("its catalog is longer than its place")
        return self._bytes(self.header.catalog_offset + begin, length - begin), length


@dataclass
class Catalog:
    """All names so far."""

    kinds: dict[int, str] = field(default_factory=dict)
    values: dict[int, list[str]] = field(default_factory=dict)
    levels: dict[int, str] = field(default_factory=dict)
    flags: dict[int, str] = field(default_factory=dict)
    roles: dict[int, str] = field(default_factory=dict)
    tensors: dict[int, TensorEntry] = field(default_factory=dict)
    tasks: dict[int, str] = field(default_factory=dict)
    metrics: dict[int, str] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)
    _length: int = 0

    def update(self, ring: RingFile) -> None:
        """Takes in what was added since the last time."""
        data, length = ring.catalog(self._length)
        place = 0
        try:
            while place < len(data):
                size, kind = struct.unpack_from("<IH", data, place)
                body = data[place + 8 : place + 8 + size]
                if len(body) != size:
                    raise struct.error
                self._take(kind, _Body(body))
                place += 8 + (size + 7) // 8 * 8
        except (struct.error, UnicodeDecodeError):
            raise ring._refuse("its catalog is damaged") from None
        self._length = length

    def _take(self, kind: int, body: _Body) -> None:
        # Sizes of the number that an entry begins with.
        sizes = {1: "H", 2: "B", 3: "I", 4: "H", 5: "I", 7: "H", 8: "H", 9: "B"}
        if kind in sizes:
            number, name = body.number(sizes[kind]), body.text()
        match kind:
            case 1:
                count = body.number("I")
                # A record has ten values.
                self.kinds[number], self.values[number] = name, [body.text() for _ in range(min(count, 10))]
            case 2:
                self.levels[number] = name
            case 3:
                self.flags[number] = name
            case 4:
                self.roles[number] = name
            case 5:
                self.tensors[number] = TensorEntry(name, *(body.number(code) for code in "HiiIIQQII"))
            case 7:
                self.tasks[number] = name
            case 8:
                self.metrics[number] = name
            case 9:
                self.faults[number] = name
            case 10:
                key, value = body.text(), body.text()
                self.attributes[key] = value
            # 6, slices, say nothing that records do not; others are of later versions.


class _Body:
    """Fields of an entry, one after another, without alignment."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def number(self, code: str) -> int:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._place)
        self._place += struct.calcsize(f"<{code}")
        return int(value)

    def text(self) -> str:
        length = self.number("I")
        raw = self._data[self._place : self._place + length]
        if len(raw) != length:
            raise struct.error
        self._place += length
        return raw.decode()
