"""Every oracle reports how far the library was from it; `make oracles` makes the table of docs/statistics/oracles.md."""

import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from on_device import ON_DEVICE

TABLE = Path(__file__).parents[2] / "docs/statistics/oracles.md"
HEAD = """# Oracles

How far each statistic was from an independent computation: largest deviation seen over all cases of its test, and the
bound that the test holds it to. Deviations are absolute where a statistic has a natural scale of about one, and relative
where it says so. The oracles share no code with the library: they drive it through its C functions and read its ring.

`make oracles` runs them and writes this page; `make test` runs them too.

| statistic | oracle | largest deviation seen | bound | why this bound |
|---|---|---|---|---|
"""

# What only a CUDA device has.
collect_ignore = [] if ON_DEVICE else ["test_graph.py", "test_references.py"]

rows = defaultdict(lambda: (0.0, 0.0, ""))


@pytest.fixture
def oracle():
    """oracle(statistic, name, found, expected, bound, why, relative=False): checks, and keeps a row of the table."""

    def check(statistic, name, found, expected, bound, why, relative=False):
        found, expected = np.atleast_1d(np.asarray(found, float)), np.atleast_1d(np.asarray(expected, float))
        assert found.shape == expected.shape and np.isfinite(found).all(), (statistic, found, expected)
        deviation = np.abs(found - expected)
        if relative:
            deviation = deviation / np.abs(expected)
        worst = float(deviation.max())
        key = (statistic + (", relative" if relative else ""), name)
        rows[key] = max(rows[key], (worst, bound, why))
        assert worst <= bound, f"{statistic} against {name}: off by {worst}, bound {bound}: {found} and {expected}"

    return check


@pytest.fixture
def rng():
    return np.random.default_rng(20260118)


def pytest_sessionfinish(session, exitstatus):
    if not os.environ.get("FGS_WRITE_ORACLES") or exitstatus != 0:
        return
    lines = [f"| {statistic} | {name} | {worst:.1e} | {bound:.1e} | {why} |"
             for (statistic, name), (worst, bound, why) in sorted(rows.items())]
    TABLE.write_text(HEAD + "\n".join(lines) + "\n")
    print("\n" + "\n".join(lines))
