"""A step that is captured into a CUDA graph is measured at its replays: on a device only."""

import ctypes as c

import numpy as np
import pytest

from on_device import mirror
from fgs import Scope

RELAXED, THREAD_LOCAL, GLOBAL = 2, 1, 0


class Stream:
    """A stream of the trainer's, what it copies, and graphs of it."""

    def __init__(self):
        self.handle = c.c_void_p()
        mirror.call("cuStreamCreate", c.byref(self.handle), 1)

    def set(self, array):
        mirror.call("cuMemcpyHtoDAsync_v2", c.c_uint64(mirror.address(array)), array.ctypes.data_as(c.c_void_p),
                    c.c_size_t(array.nbytes), self.handle)
        self.wait()

    def copy(self, target, source):
        mirror.call("cuMemcpyDtoDAsync_v2", c.c_uint64(mirror.address(target)), c.c_uint64(mirror.address(source)),
                    c.c_size_t(source.nbytes), self.handle)

    def wait(self):
        mirror.call("cuStreamSynchronize", self.handle)

    def capture(self, mode, body):
        graph, runnable = c.c_void_p(), c.c_void_p()
        mirror.call("cuStreamBeginCapture_v2", self.handle, mode)
        body()
        mirror.call("cuStreamEndCapture", self.handle, c.byref(graph))
        mirror.call("cuGraphInstantiateWithFlags", c.byref(runnable), graph, c.c_uint64(0))
        return lambda: mirror.call("cuGraphLaunch", runnable, self.handle)


@pytest.fixture
def quiet():
    """The mirror copies nothing by itself: a synchronous copy is not allowed while a stream is captured."""
    upload, mirror.upload = mirror.upload, lambda: None
    yield
    mirror.upload = upload


@pytest.mark.parametrize("mode", [RELAXED, THREAD_LOCAL, GLOBAL])
@pytest.mark.parametrize("every", [1, 3])
def test_replays_are_steps(rng, quiet, mode, every):
    n, replays = 5000, 7
    parameter, gradient, following, reference = (rng.normal(size=n).astype(np.float32) for _ in range(4))
    stream = Stream()
    for array in (parameter, gradient, following):
        stream.set(array)
    with Scope(FGS_EVERY=str(every)) as scope:
        scope.tensor("w", parameter, gradient, rows=50, cols=100)
        scope.task_begin("A")
        stream.set(np_view(gradient, reference))
        scope.reference_add("A", c.c_uint64(1), 1.0, stream.handle)
        scope.snapshot("A", stream.handle)
        scope.task_end()
        scope.task_begin("B")

        def step():
            scope.step_begin(c.c_uint64(10))
            scope.gradients_ready(1.0, 0, stream.handle)
            stream.copy(parameter, following)  # the optimizer
            scope.step_end(1, stream.handle)

        replay = stream.capture(mode, step)
        scope.flush()
        assert not scope.records("gradient"), "a capture runs nothing"
        expected, moved, previous = {}, {}, parameter.astype(np.float64)
        for number in range(replays):
            gradients, updated = (rng.normal(size=n).astype(np.float32) for _ in range(2))
            stream.set(np_view(gradient, gradients))
            stream.set(np_view(following, updated))
            replay()
            stream.wait()
            expected[10 + number] = (gradients, updated)
            moved[10 + number] = updated.astype(np.float64) - previous
            previous = updated.astype(np.float64)
        found = {record.step: record for record in scope.records("gradient") if record.level == "model"}
        updates = {record.step: record for record in scope.records("update") if record.level == "model"}
        drifts = {record.step: record for record in scope.records("drift") if record.level == "model"}
        assert sorted(found) == [step for step in expected if (step - 10) % every == 0]
        for step, record in found.items():
            gradients, updated = (array.astype(np.float64) for array in expected[step])
            assert record["norm"] == pytest.approx(np.linalg.norm(gradients), rel=1e-5)
            snapshot = parameter.astype(np.float64)
            drift = np.linalg.norm(updated - snapshot) / np.linalg.norm(snapshot)
            moving = np.linalg.norm(moved[step]) / np.linalg.norm(updated)
            assert updates[step]["relative_step"] == pytest.approx(moving, rel=1e-5)
            assert drifts[step]["relative"] == pytest.approx(drift, rel=1e-5)
        cosines = {record.step: record["cosine"] for record in scope.records("interference") if record.level == "model"}
        for step in found:
            g, r = expected[step][0].astype(np.float64), reference.astype(np.float64)
            assert cosines[step] == pytest.approx(g @ r / np.linalg.norm(g) / np.linalg.norm(r), abs=1e-5)
        assert not scope.records("fault")


def np_view(target, values):
    """Gives `target` these values, so that its copy on the device can be brought up to date."""
    target[...] = values
    return target


def test_what_cannot_be_captured_leaves_the_graph_whole(rng, quiet):
    """A reference inside a capture is refused by a fault; the trainer's own work is captured all the same."""
    parameter, gradient, following = (rng.normal(size=4096).astype(np.float32) for _ in range(3))
    stream = Stream()
    for array in (parameter, gradient, following):
        stream.set(array)
    with Scope() as scope:
        scope.tensor("w", parameter, gradient)
        scope.task_begin("A")

        def work():
            scope.reference_add("A", c.c_uint64(1), 1.0, stream.handle)
            stream.copy(parameter, following)

        replay = stream.capture(GLOBAL, work)
        replay()
        stream.wait()
        mirror.download()
        assert np.array_equal(parameter, following)
        # The batch never came, and the exact sum would lack it.
        assert [record["code"] for record in scope.records("fault")] == [5, 9]


def test_a_model_of_which_only_gradients_are_bound(rng, quiet):
    """Passes over nothing are part of a captured step, and of steps that are like the one before."""
    gradient = rng.normal(size=4096).astype(np.float32)
    stream = Stream()
    stream.set(gradient)
    with Scope() as scope:
        tensor = scope.tensor("w", gradient)
        scope.bind(tensor, 0, gradient)  # FGS_GRAD
        scope.bind(tensor, 1, None)  # FGS_PARAM: nothing any more
        scope.task_begin("A")

        def step():
            scope.step_begin(c.c_uint64(1))
            scope.gradients_ready(1.0, 0, stream.handle)
            scope.step_end(1, stream.handle)

        replay = stream.capture(GLOBAL, step)
        for _ in range(3):
            replay()
        stream.wait()
        found = [record for record in scope.records("gradient") if record.level == "model"]
        assert [record.step for record in found] == [1, 2, 3]
        assert all(record["norm"] == pytest.approx(np.linalg.norm(gradient.astype(np.float64)), rel=1e-5) for record in found)
        assert not scope.records("fault")
