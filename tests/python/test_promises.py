"""What the documentation promises of probes and curvature runs beside numbers."""

import ctypes as c
import time

import numpy as np
import pytest
from fgs import ROLE_OUTPUT, Refused, Scope
from on_device import ON_DEVICE
from test_landscape import Curvature, Problem, Request, network
from fgs import MAGIC


def f32(array):
    return np.ascontiguousarray(array, np.float32)


def hidden_pass(scope, task, rows, **probe):
    scope.probe(task, **probe)
    scope.batch(len(rows), 1)
    scope.probe_hidden(0, f32(rows), None)
    scope.probe_end()


def steps(scope, count, value=None, gradient=None):
    for step in range(count):
        scope.step_begin(step)
        scope.gradients_ready(1.0, 0, None)
        if value is not None:
            value += 0.01
        scope.step_end(1, None)


def test_a_projection_with_gaps_is_never_misread(rng):
    """Rows of heads with padding between them: not a matrix with one stride, so nothing is taken from it."""
    n, c_out, heads, width = 20, 12, 3, 4
    padded = f32(rng.normal(size=(c_out, heads, width + 2)))
    o = f32(rng.normal(size=(n, heads, width)))
    with Scope() as scope:
        view = padded[:, :, :width]
        tensor = scope.tensor("o", np.zeros((c_out, heads * width), np.float32), role=ROLE_OUTPUT, layer=0, head_count=heads)
        scope.bind(tensor, 1, view)
        scope.task_begin("A")
        for moment in range(2):
            scope.probe("A")
            scope.batch(n, 1)
            scope.probe_hidden(0, f32(rng.normal(size=(n, c_out))), None)
            scope.probe_head_output(0, heads, 0, f32(o * (1 + moment)), None, None)
            scope.probe_end()
            if moment == 0:
                scope.task_end()
        heads_found = scope.records("head")
    for record in heads_found:
        assert np.isnan(record["contribution_change"])
        assert record["output_cosine"] == pytest.approx(1)


def test_a_task_that_returns_has_no_base_of_old_weights(rng):
    rows = rng.normal(size=(40, 6))
    value, gradient = np.ones(4, np.float32), np.zeros(4, np.float32)
    with Scope() as scope:
        scope.tensor("w", value, gradient)
        scope.task_begin("A")
        hidden_pass(scope, "A", rows)
        scope.task_end()
        scope.task_begin("A")
        steps(scope, 5, value)
        scope.task_end()
        scope.task_begin("B")
        steps(scope, 3, value)
        with pytest.raises(Refused, match="FGS_PROBE_BASE"):
            scope.probe("A")
        hidden_pass(scope, "A", rows, flags=1)
        assert "base" in scope.records("representation")[-1].flags


def test_a_curvature_run_gives_an_open_pass_up(rng):
    loss, parameters = network(rng, width=4)
    with Scope() as scope:
        problem = Problem(scope, loss, **parameters)
        scope.task_begin("A")
        scope.probe("A")
        scope.batch(8, 1)
        problem.run(lanczos_steps=2, trace_vectors=1)
        with pytest.raises(Refused, match="fgs_probe_begin"):
            scope.probe_hidden(0, f32(rng.normal(size=(8, 3))), None)
        assert len(scope.records("fault")) == 1 and not scope.records("representation")


def test_refused_calls_leave_nothing_behind(rng):
    rows = f32(rng.normal(size=(8, 3)))
    with Scope() as scope:
        scope.task_begin("A")
        scope.probe("A")
        scope.batch(8, 1)
        for wrong in (f32(rng.normal(size=(7, 3))), f32(rng.normal(size=(8,)))):
            with pytest.raises(Refused):
                scope.probe_hidden(0, wrong, None)
        with pytest.raises(Refused, match="nothing was handed over"):
            scope.probe_end()
        # A thousand refusals later there is as much room as before.
        scope.probe("A")
        scope.batch(8, 1)
        scope.probe_hidden(0, rows, None)
        for _ in range(1000):
            with pytest.raises(Refused, match="already"):
                scope.probe_hidden(0, rows, None)
        scope.probe_end()
        assert len(scope.records("representation")) == 1


def test_a_pass_beyond_the_budget_is_given_up_without_a_word(rng):
    """Not even in its later batches; what was wrong attention takes no room either."""
    rows, wrong = f32(rng.normal(size=(256, 64))), f32(np.full((4, 1, 64, 64), 0.5))
    with Scope(FGS_PROBE_BUDGET="1e-9") as scope:
        scope.task_begin("A")
        scope.probe("A")
        for _ in range(3):
            scope.batch(256, 1)
            scope.probe_hidden(0, rows, None)
        scope.probe_end()
        assert len(scope.records("fault")) == 1 and not scope.records("representation")
    if ON_DEVICE:
        return  # nobody waits for a device to see whether its rows sum to 1: a fault says so later, and no call refuses
    with Scope(FGS_PROBE_BUDGET="1e-4") as scope:  # a few megabytes
        scope.task_begin("A")
        scope.probe("A")
        scope.batch(4, 64)
        for _ in range(2000):
            with pytest.raises(Refused, match="sum to"):
                scope.attention(0, probabilities=wrong)
        scope.probe_hidden(0, f32(rng.normal(size=(256, 8))), None)
        scope.probe_end()
        assert len(scope.records("representation")) == 1


@pytest.mark.parametrize("first, count", [(65535, 2), (2**32 - 1, 1)])
def test_heads_beyond_their_field_are_refused(rng, first, count):
    with Scope() as scope:
        scope.task_begin("A")
        scope.probe("A")
        scope.batch(4, 1)
        with pytest.raises(Refused, match="first_head"):
            scope.probe_head_output(0, count, c.c_uint32(first), f32(rng.normal(size=(4, count, 2))), None, None)
        with pytest.raises(Refused, match="head: 65541"):
            scope.head_effect("A", 0, 65541, 1.0, 1.0, 0.1)


def test_one_scope_at_a_time_moves_parameters(rng):
    """Another scope must not take moved weights for the weights."""
    loss, parameters = network(rng, width=4)
    with Scope() as one, Scope() as other:
        problem = Problem(one, loss, **parameters)
        for name, value in problem.values.items():
            other.tensor(name, value, problem.gradients[name])
        raw = Curvature(size=c.sizeof(Curvature), magic=MAGIC, task=b"A", lanczos_steps=2, trace_vectors=1, density_vectors=1,
                        block_vectors=1, relative_step=1e-3)
        one.curvature_begin(raw)
        request = Request(c.sizeof(Request), MAGIC)
        for _ in range(3):
            one.curvature_next(request)
            one.curvature_submit(problem.answer(), 1.0, None)
        one.curvature_next(request)
        with pytest.raises(Refused, match="another scope"):
            other.curvature_begin(raw)
        one.curvature_end()
        assert np.array_equal(problem.vector(), problem.start)
        other.curvature_begin(raw)
        other.curvature_end()


def test_sampled_steps_do_not_wait_for_the_algebra_of_probes(rng):
    """A probe of several seconds of algebra, and steps that come meanwhile: all of them are measured."""
    rows = rng.normal(size=(1024, 1024))
    value, gradient = np.ones(64, np.float32), np.ones(64, np.float32)
    with Scope() as scope:
        scope.tensor("w", value, gradient)
        scope.task_begin("A")
        scope.probe("A")
        scope.batch(1024, 1)
        for layer in range(3):
            scope.probe_hidden(layer, f32(rows), None)
        scope.probe_end()
        for step in range(40):
            scope.step_begin(step)
            scope.gradients_ready(1.0, 0, None)
            scope.step_end(1, None)
            time.sleep(0.02)
        records = scope.records()
    assert sum(record.kind == "step" for record in records) == 40
    assert not [record for record in records if record.kind == "fault"]
    assert sum(record.kind == "representation" for record in records) == 3
