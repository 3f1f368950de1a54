#!/usr/bin/env python3
"""Joins the figures of the bench's programs into one file of benches/results, with what they were measured on.

    collect.py --to DIRECTORY --commit COMMIT FILE.json...

The file is DEVICE-DATE.json. Figures of trials (--quick, or without a GPU) are refused. Needs Python alone.
"""

import argparse
import datetime
import json
import re
import subprocess
import sys
from pathlib import Path


def driver():
    """The driver's version, as nvidia-smi says it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--commit", required=True)
    parser.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    parts = [json.loads(file.read_text()) for file in options.files if file.exists()]
    if not parts or any(part["quick"] for part in parts):
        sys.exit("collect.py: nothing to keep: no figures, or figures of a trial")
    date = datetime.date.today().isoformat()
    about = {key: part[key] for part in parts for key in ("device", "torch") if key in part}
    result = {**about, "cuda": parts[0].get("driver"), "driver": driver(), "date": date, "commit": options.commit,
              "figures": [figure for part in parts for figure in part["figures"]]}
    name = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    options.to.mkdir(parents=True, exist_ok=True)
    target = options.to / f"{name}-{date}.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{target} has the figures")


if __name__ == "__main__":
    main()
