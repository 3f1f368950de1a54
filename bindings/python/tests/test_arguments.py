"""What C would cut, wrap or misread is refused with the argument's name, before the library sees it."""

import numpy as np
import pytest
from forgetscope import Error, Pointer, Scope
from forgetscope.dlpack import View

LARGE = 2**33 + 1


class Unchanging:
    """An array of JAX, as far as can be seen from outside."""

    __module__ = "jaxlib._jax"

    def __init__(self, values: np.ndarray) -> None:
        self.__dlpack__, self.__dlpack_device__ = values.__dlpack__, values.__dlpack_device__


@pytest.fixture
def scope():
    with Scope(every=1) as opened:
        yield opened


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"layer": 2**40}, "layer: 1099511627776 is not between 0 and 2147483647"),
        ({"layer": -1}, "layer: -1 is not"),
        ({"expert": LARGE}, "expert: "),
        ({"group": -1}, "group: -1 is not"),
        ({"heads": -1}, "heads: "),
        ({"head_offset": LARGE}, "head_offset: "),
        ({"kv_head_offset": -1}, "kv_head_offset: "),
        ({"layer_count": 2.5}, "layer_count: 2.5 is no whole number"),
        ({"tied_to": LARGE}, "tied_to: "),
        ({"replica": -2}, "replica: "),
        ({"numel": 4.0}, "numel: 4.0 is no whole number"),
        ({"name": "a\0b"}, "name: 'a\\\\x00b' has a NUL"),
        ({"name": "\udc80"}, "name: .* cannot be written in UTF-8"),
    ],
)
def test_descriptions(scope, arguments, sentence):
    with pytest.raises(Error, match=sentence):
        scope.register(**{"name": "w", "numel": 4, **arguments})


def test_calls(scope):
    number = scope.register("w", 4)
    scope.bind(number, "grad", np.ones(4, np.float32))
    scope.bind(number, "param", np.ones(4, np.float32))
    calls = {
        "task_begin|name: 'a.x00b' has a NUL": ("a\0b",),
        "bind|tensor_id: -1 is not": (-1, "grad", None),
        "gradients_ready|scale: 'x' is no number": ("x",),
        "record_loss|value: 'x' is no number": ("a", "x"),
        "head_effect|head: -1 is not": ("a", 0, -1, 1.0, 1.0, 0.1),
        "step_begin|step: 1.5 is no whole number": (1.5,),
    }
    for expected, arguments in calls.items():
        call, sentence = expected.split("|")
        with pytest.raises(Error, match=sentence):
            getattr(scope, call)(*arguments)
    with pytest.raises(Error, match="examples: -1 is not"):
        scope.reference_add("a", examples=-1)
    with pytest.raises(Error, match="run: -1 is not"), scope.probe("a", run=-1):
        pass
    with pytest.raises(Error, match="sequences: -1 is not"), scope.probe("a") as probe:
        probe.batch(-1, 4)


def test_arrays_that_would_be_misread():
    with pytest.raises(Error, match=r"tensor\.dtype: >f4 has the other order of bytes"):
        View.of(np.ones(4, ">f4"))
    packed = np.zeros(4, [("number", np.int32), ("value", np.float64)])["value"]
    with pytest.raises(Error, match=r"tensor.strides: \(12,\) bytes are no multiples of an element's 8"):
        View.of(packed)
    steps = View.of(np.zeros((4, 6), np.float32)[::2, ::-3])
    assert (steps.lengths, steps.strides[:2]) == ((2, 2), [12, -3])


def test_memory_that_may_only_be_read_is_not_moved(scope, tmp_path):
    np.save(tmp_path / "w.npy", np.ones(4, np.float32))
    number = scope.register("w", 4)
    scope.bind(number, "grad", np.ones(4, np.float32))
    for values in (np.load(tmp_path / "w.npy", mmap_mode="r"), Unchanging(np.ones(4, np.float32))):
        scope.bind(number, "param", values)
        with scope.task("a"), pytest.raises(Error, match="tensor w: its memory may only be read"):
            scope.curvature("a", lambda _: 0.0)
    values = np.ones(4, np.float32)
    scope.bind(number, "param", Pointer(values.ctypes.data, (4,), "float32"))
    with scope.task("b"):
        scope.curvature("b", lambda _: 0.0, lanczos_steps=2, trace_vectors=2)
    assert (values == 1).all()
