"""How references are kept on a CUDA device: in fp32, bfloat16 or e4m3, near or in pinned host memory."""

import ctypes as c

import numpy as np
import pytest

from fgs import Scope

# Each value of a reference is rounded by at most this share of itself, so the cosine with any vector moves by at most as much.
ROUNDING = {"f32": 2.0**-23, "bf16": 2.0**-8, "e4m3": 2.0**-4}


def references(rng, n, batches):
    """Gradients whose magnitudes differ from place to place, as those of a model do."""
    scale = 10.0 ** rng.uniform(-3, 0, size=n)
    return [(rng.normal(size=n) * scale).astype(np.float32) for _ in range(batches)]


@pytest.mark.parametrize("name", ROUNDING)
@pytest.mark.parametrize("n", [3001, 40_000])
def test_rounding_of_references(rng, name, n):
    """Compared, added to again, compared again: sums are taken in fp32 whatever they are kept in."""
    batches = references(rng, n, 5)
    gradient = batches[0].copy()
    parameter = rng.normal(size=n).astype(np.float32)
    with Scope(FGS_REFERENCE_FORMAT=name) as scope:
        scope.tensor("w", parameter, gradient)
        cosines = []
        for count in (3, 5):
            for batch in batches[count - 3 if count == 3 else 3:count]:
                gradient[...] = batch
                scope.reference_add("A", c.c_uint64(1), 1.0, None)
            gradient[...] = rng.normal(size=n)
            scope.step_begin(c.c_uint64(count))
            scope.gradients_ready(1.0, 0, None)
            scope.step_end(0, None)
            g, r = gradient.astype(np.float64), np.sum(batches[:count], axis=0, dtype=np.float64)
            cosines.append((count, g @ r / np.linalg.norm(g) / np.linalg.norm(r)))
        found = {record.step: record["cosine"] for record in scope.records("interference") if record.level == "model"}
        for count, cosine in cosines:
            # What was rounded once may be rounded again after the second half was added.
            assert abs(found[count] - cosine) < 2.0 * ROUNDING[name] + 1e-6
        assert not scope.records("fault")


def test_a_format_makes_room(rng):
    """Two references of fp32 do not fit where four of e4m3 do."""
    n = 1 << 16
    parameter, gradient = (rng.normal(size=n).astype(np.float32) for _ in range(2))

    def exact(**environment):
        with Scope(budget_bytes=6 * 4 * n // 2, **environment) as scope:
            scope.tensor("w", parameter, gradient, rows=256, cols=256)
            for task in "ABCD":
                scope.reference_add(task, c.c_uint64(1), 1.0, None)
                scope.step_begin(c.c_uint64(ord(task)))
                scope.gradients_ready(1.0, 0, None)
                scope.step_end(0, None)
            last = [r for r in scope.records("interference") if r.level == "model" and r.step == ord("D")]
            return sum("exact" in record.flags for record in last)

    assert exact() < 4
    assert exact(FGS_REFERENCE_FORMAT="e4m3") == 4


def test_pinned_memory_takes_what_a_device_has_no_room_for(rng):
    n = 1 << 16
    parameter, gradient = (rng.normal(size=n).astype(np.float32) for _ in range(2))
    for spill, expected in (("false", False), ("true", True)):
        # Room for the copy of the parameters, and for no reference.
        with Scope(budget_bytes=4 * n + 64, FGS_REFERENCE_SPILL=spill) as scope:
            scope.tensor("w", parameter, gradient, rows=256, cols=256)
            scope.step_begin(c.c_uint64(1))
            scope.gradients_ready(1.0, 0, None)
            scope.step_end(1, None)
            scope.reference_add("A", c.c_uint64(1), 1.0, None)
            scope.step_begin(c.c_uint64(2))
            scope.gradients_ready(1.0, 0, None)
            scope.step_end(1, None)
            record, = [r for r in scope.records("interference") if r.level == "model"]
            assert ("exact" in record.flags) == expected
            if expected:
                assert record["cosine"] == pytest.approx(1.0, abs=1e-6)


def test_any_number_of_tensors_may_be_fed(rng):
    """Each tensor that is fed holds a result until its batch or step is complete; none waits for another."""
    count, n = 60, 512
    values = rng.normal(size=(count, n)).astype(np.float32)
    with Scope() as scope:
        tensors = [scope.tensor(f"w{k}", values[k]) for k in range(count)]
        gradient = rng.normal(size=(count, n)).astype(np.float32)
        for k, tensor in enumerate(tensors):
            scope.reference_feed("A", tensor, gradient[k], None, 1.0, None)
        scope.reference_add("A", c.c_uint64(1), 1.0, None)
        scope.step_begin(c.c_uint64(1))
        for k, tensor in enumerate(tensors):
            scope.gradient_feed(tensor, gradient[k], None, 1.0, None)
        scope.gradients_ready(1.0, 0, None)
        scope.step_end(1, None)
        record, = [r for r in scope.records("interference") if r.level == "model"]
        assert record["cosine"] == pytest.approx(1.0, abs=1e-6)
        assert not scope.records("fault")
