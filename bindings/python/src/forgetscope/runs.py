"""Which runs there are on this machine: `forgetscope.runs()`.

Looks where the library puts its rings: the directory that is given, else `FGS_RING_DIR`, else /dev/shm. Costs a few
system calls for each ring.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from ._library import Error
from .catalog import Catalog, Header, RingFile


@dataclass(frozen=True)
class Run:
    """A ring that was found. `Reader(run.path)` reads it."""

    path: Path
    name: str
    pid: int
    rank: int
    world: int
    records: int
    created: datetime
    live: bool
    """Whether the process that writes it is still there."""


def runs(directory: str | os.PathLike[str] | None = None) -> list[Run]:
    """The runs in a directory, oldest first. Files that are no rings, or not readable for this user, are left out."""
    place = Path(directory or os.environ.get("FGS_RING_DIR") or "/dev/shm")
    found = []
    for path in place.glob("forgetscope-*.ring"):
        try:
            with RingFile(path) as ring:
                catalog = Catalog()
                catalog.update(ring)
                header = ring.header
                live = ring.state == 1 and _is_alive(header, ring.heartbeat_ns)
                created = datetime.fromtimestamp(header.realtime_ns / 1e9, timezone.utc)
                name = catalog.attributes.get("run", "")
                found.append(Run(path, name, header.pid, header.rank, header.world, ring.published, created, live))
        except Error:
            continue
    return sorted(found, key=lambda run: (run.created, run.rank))


def _is_alive(header: Header, heartbeat_ns: int) -> bool:
    if header.pid_namespace and header.pid_namespace != os.stat("/proc/self/ns/pid").st_ino:
        # Its process id means nothing here.
        return time.monotonic_ns() - heartbeat_ns < 60e9
    try:
        # Behind the name, which may contain anything, come the state (field 3) and later the start time (field 22).
        fields = Path(f"/proc/{header.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] != "Z" and header.pid_start_time in (0, int(fields[19]))
