"""`Scope` and DLPack: what is bound is what is measured; what cannot be is refused with the argument's name."""

import os
import pickle
import sys
from pathlib import Path

import forgetscope
import numpy as np
import pytest
import torch
from conftest import records_of
from forgetscope import Error, Pointer, Scope, Status
from forgetscope.dlpack import View


def norms(scope: Scope) -> dict[str, float]:
    found = records_of(scope, "gradient")
    found = found[found.level == "tensor"]
    return dict(zip(found.tensor, found.norm, strict=True))


def test_arrays_of_any_library_are_read_where_they_lie():
    values = np.arange(1.0, 13.0, dtype=np.float32).reshape(3, 4)
    owner = torch.tensor(values)
    tensors = {
        "numpy": values,
        "strided": np.asarray(np.stack([values, -values], axis=-1))[..., 0],
        "transposed": np.ascontiguousarray(values.T).T,
        "float64": values.astype(np.float64),
        "torch": owner,
        "follows": owner.clone().requires_grad_(),
        "bfloat16": owner.bfloat16(),
        "half": owner.half(),
        "address": Pointer(owner.data_ptr(), (3, 4), "float32"),
    }
    with Scope(every=1) as scope:
        for name, tensor in tensors.items():
            number = scope.register(name, shape=(3, 4))
            scope.bind(number, "grad", tensor)
            assert View.of(tensor).lengths == (3, 4)
        with scope.task("a"):
            scope.step_begin(0)
            assert scope.sampled
            # Nothing was copied: a later change is seen.
            values[:] *= 2
            scope.gradients_ready()
            scope.step_end()
        found = norms(scope)
    once = np.sqrt((np.arange(1.0, 13.0) ** 2).sum())
    assert found.pop("numpy") == pytest.approx(2 * once, rel=1e-6)
    assert list(found) == [name for name in tensors if name != "numpy"]
    assert found == pytest.approx(dict.fromkeys(found, once), rel=1e-6)


def test_what_is_bound_is_kept_alive():
    array = np.ones(8, np.float32)
    scope = Scope(every=1)
    number = scope.register("w", 8)
    before = sys.getrefcount(array)
    scope.bind(number, "grad", array)
    assert sys.getrefcount(array) > before
    scope.bind(number, "grad", None)
    assert sys.getrefcount(array) == before
    scope.close()


def test_rebind_moves_many_and_unbinds():
    first, second = np.full((2, 8), 1.0, np.float32), np.full((2, 8), 3.0, np.float32)
    with Scope(every=1) as scope:
        ids = [scope.register(f"w{i}", 8) for i in range(2)]
        for number, row in zip(ids, first, strict=True):
            scope.bind(number, "grad", row)
        scope.rebind("grad", ids, [second[0].ctypes.data, 0])
        scope.step_begin(0)
        scope.gradients_ready()
        scope.step_end()
        assert norms(scope) == pytest.approx({"w0": 3 * np.sqrt(8)})


def test_steps_are_sampled_as_it_is_said():
    array = np.ones(8, np.float32)
    with Scope(every=3) as scope:
        scope.bind(scope.register("w", 8), "grad", array)
        seen = []
        for step in range(9):
            if step == 6:
                scope.every(1)
            scope.step_begin(step)
            seen.append(scope.sampled)
            scope.gradients_ready()
            scope.step_end()
        assert seen == [True, False, False, True, False, False, True, True, True]
        assert not scope.sampled
        assert list(records_of(scope, "step").step) == [0, 3, 6, 7, 8]


@pytest.mark.parametrize(
    ("call", "status", "sentence"),
    [
        (lambda s: s.register("w", 8, role="quary"), Status.ERROR_INVALID, "role: 'quary' is none of other, embedding"),
        (lambda s: s.register("w"), Status.ERROR_INVALID, "numel: give it, or shape"),
        (lambda s: s.register("w", 7, role="q", heads=2), Status.ERROR_INVALID, "head_count: 7 rows"),
        (lambda s: s.bind(9, "grad", np.ones(3, np.float32)), Status.ERROR_NOT_FOUND, "no tensor with the id 9"),
        (lambda s: s.bind(0, "grad", np.ones(8, np.int32)), Status.ERROR_UNSUPPORTED, "tensor.dtype: int32"),
        (lambda s: s.bind(0, "grad", [1.0]), Status.ERROR_UNSUPPORTED, "tensor: a list"),
        (lambda s: s.bind(0, "gard", np.ones(8, np.float32)), Status.ERROR_INVALID, "what: 'gard' is none of"),
        (lambda s: s.rebind("grad", [0], []), Status.ERROR_INVALID, "addresses: 0 for 1 ids"),
        (lambda s: s.step_end(), Status.ERROR_PHASE, "fgs_step_begin"),
        (lambda s: s.task_end(), Status.ERROR_PHASE, "task"),
        (lambda s: s.gradients_ready(stream="0"), Status.ERROR_INVALID, "stream: a str"),
        (lambda s: s.task_begin(5), Status.ERROR_INVALID, "name: 5 is no text"),
        (lambda s: s.record_loss(b"a", 1.0), Status.ERROR_INVALID, "task: b'a' is no text"),
        (lambda s: s.every(-1), Status.ERROR_INVALID, "steps: -1 is not between 0 and"),
        (lambda s: s.step_begin(2.5), Status.ERROR_INVALID, "step: 2.5 is no whole number"),
        (lambda s: s.curvature("a", None, lanczos_step=3), Status.ERROR_INVALID, "lanczos_step: there is no such opt"),
        (lambda s: s.curvature("a", None, seed=-1), Status.ERROR_INVALID, "seed: -1 is not between"),
    ],
)
def test_wrong_use_is_refused_with_the_argument(call, status, sentence):
    with Scope(every=1) as scope:
        scope.register("first", 8)
        with pytest.raises(Error, match=sentence) as refused:
            call(scope)
        assert refused.value.status == status


def test_options_are_named(tmp_path: Path):
    with pytest.raises(Error, match="evry: there is no such option; there are budget_bytes"):
        Scope(evry=3)
    for options, sentence in (
        ({"every": -1}, "every: -1 is not between 0 and"),
        ({"every": 2.5}, "every: 2.5 is no whole number"),
        ({"every": 2**64 - 1}, f"every: {2**64 - 1} is not between"),
        ({"threads": 2**32}, f"threads: {2**32} is not between"),
        ({"reference_budget": "half"}, "reference_budget: 'half' is no number"),
        ({"run": 7}, "run: 7 is neither text nor a path"),
    ):
        with pytest.raises(Error, match=sentence):
            Scope(**options)
    Scope(every=np.int64(3), reference_budget=0.5).close()
    with Scope("named", every=1, ring_path=tmp_path / "ring", ring_slots=1024) as scope:
        assert scope.ring_path == tmp_path / "ring"
        with pytest.raises(Error, match="ring"):
            Scope(ring_path=tmp_path / "ring")


def test_a_closed_scope_says_that_it_is():
    scope = Scope()
    scope.close()
    scope.close()
    with pytest.raises(Error, match="the scope was closed") as refused:
        scope.flush()
    assert refused.value.status == Status.ERROR_PHASE


def test_errors_travel_between_processes():
    with pytest.raises(Error) as refused:
        Scope(evry=3)
    other = pickle.loads(pickle.dumps(refused.value))
    assert (str(other), other.status) == (str(refused.value), Status.ERROR_INVALID)


def test_disabled_does_nothing(monkeypatch):
    monkeypatch.setenv("FGS_DISABLE", "1")
    with Scope() as scope:
        assert scope.disabled and scope.ring_path is None
        with scope.task("a"):
            scope.step_begin(0)
            assert not scope.sampled
            scope.gradients_ready()
            scope.step_end()


def test_a_library_that_is_not_there_is_named(tmp_path: Path):
    import subprocess

    environment = {**os.environ, "FGS_LIB": str(tmp_path / "nowhere.so")}
    code = "import forgetscope; forgetscope.Scope()"
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "FGS_LIB: there is no file" in ended.stderr


def test_feeding_curvature_and_probes_by_hand():
    """A quadratic: its Hessian is the diagonal, its gradient at the weights is known."""
    curvatures = np.array([4.0, 1.0, 0.5, 0.25], np.float32)
    weights, gradient = np.ones(4, np.float32), np.zeros(4, np.float32)
    with Scope(every=1) as scope:
        number = scope.register("w", 4)
        scope.bind(number, "param", weights)
        scope.bind(number, "grad", gradient)

        def answer(with_gradient: bool) -> float:
            gradient[:] = curvatures * weights
            return float(0.5 * (curvatures * weights**2).sum())

        with scope.task("a"):
            scope.curvature("a", answer, lanczos_steps=4, trace_vectors=4, eigenvectors=2)
            assert (weights == 1).all()
            rows = np.random.default_rng(1).standard_normal((32, 3, 8)).astype(np.float32)
            with scope.probe("a") as probe:
                probe.batch(32, 3)
                probe.hidden(0, rows)
            with pytest.raises(ZeroDivisionError), scope.probe("a"):
                raise ZeroDivisionError
            scope.step_begin(0)
            scope.gradient_feed(number, np.full(4, 2.0, np.float32), scale=0.5)
            scope.gradients_ready(scale=0.5)
            scope.step_end()
            scope.record_loss("a", 1.5)
            scope.record_eval("a", "accuracy", 0.5, higher_is_better=True)
        scope.flush()
        reader = forgetscope.Reader(scope.ring_path)
        found = reader.frame("eigenvalue").sort_values("index")["value"].tolist()
        assert found == pytest.approx([4.0, 1.0], rel=1e-3)
        model = reader.frame("gradient").query("level == 'model'")
        assert model.norm.tolist() == pytest.approx([2.0])
        assert reader.frame("evaluation").value.tolist() == [1.5, 0.5]


def test_a_probe_that_an_exception_leaves_is_given_up():
    """All batches that it had begun were complete: they are no pass all the same."""
    rng = np.random.default_rng(0)
    first, second, third = (rng.standard_normal((8, 16, 32)).astype(np.float32) for _ in range(3))
    with Scope(every=1) as scope:
        with pytest.raises(ZeroDivisionError), scope.probe("a") as probe:
            probe.batch(8, 16)
            probe.hidden(0, first)
            raise ZeroDivisionError
        for _ in range(2):
            with scope.probe("a") as probe:
                for states in (second, third):
                    probe.batch(8, 16)
                    probe.hidden(0, states)
        scope.flush()
        reader = forgetscope.Reader(scope.ring_path)
        frame = reader.frame("representation")
        assert frame.batches.tolist() == [2, 2] and frame.cka.iloc[-1] == pytest.approx(1.0)
        assert len(reader.frame("fault")) == 1
