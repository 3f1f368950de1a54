#!/usr/bin/env python3
"""Shows by a trace of Nsight Systems that a measured step waits for nothing.

    synchronisations.py cuda_step ARGUMENTS...

The example is traced with the instrument and with FGS_DISABLE=1, each with 20 and with 80 steps per task. What 60 steps more
add in calls that wait (cu...Synchronize, synchronous copies, allocations and frees) has to be the same in both.
"""

import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

WAITS = ("Synchronize", "cuMemcpyDtoH_v2", "cuMemcpyHtoD_v2", "cuMemAlloc", "cuMemFree", "cuMemHostAlloc")


def waits(directory, command, steps, **environment):
    """How many calls that wait a run makes."""
    trace = Path(directory) / f"trace-{steps}-{len(environment)}"
    command = ["nsys", "profile", "--trace=cuda", "--sample=none", "--cpuctxsw=none", "--export=sqlite", f"--output={trace}",
               "--force-overwrite=true", *command, "--steps", str(steps)]
    variables = {**os.environ, "FGS_EVERY": "1", **environment}
    subprocess.run(command, check=True, env=variables, stdout=subprocess.DEVNULL)
    calls = sqlite3.connect(trace.with_suffix(".sqlite")).execute(
        "select value, count(*) from CUPTI_ACTIVITY_KIND_RUNTIME join StringIds on nameId = id group by value")
    return sum(count for name, count in calls if any(part in name for part in WAITS))


def main():
    command = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory:
        measured = [waits(directory, command, steps) for steps in (20, 80)]
        disabled = [waits(directory, command, steps, FGS_DISABLE="1") for steps in (20, 80)]
    print(f"calls that wait, 20 and 80 steps: measured {measured}, disabled {disabled}")
    if measured[1] - measured[0] != disabled[1] - disabled[0]:
        sys.exit("a measured step waits")


if __name__ == "__main__":
    main()
