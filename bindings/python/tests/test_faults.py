"""What goes wrong in training is seen as it is, and measuring goes on behind it."""

import copy
import warnings

import forgetscope
import pytest
import torch
from conftest import RULES, batches, loss_of, records_of
from forgetscope import Error


class OutOfMemory(RuntimeError):
    """What an update may raise at any moment."""


class Failing(torch.optim.SGD):
    """Raises in the update that it is told to, before anything is changed.

    PyTorch calls the hooks of `step()` here and, if an SGD was made before, in `super().step()` too.
    """

    fails_in = -1
    steps = 0

    def step(self, closure=None):
        self.steps += 1
        if self.steps - 1 == self.fails_in:
            raise OutOfMemory("no more memory")
        return super().step(closure)


class Calling(torch.optim.SGD):
    """Does more than its base does."""

    share = 1.5

    def step(self, closure=None):
        result = super().step(closure)
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter -= (self.share - 1) * self.param_groups[0]["lr"] * parameter.grad
        return result


def squares(model) -> float:
    return sum(float((p.grad.double() ** 2).sum()) for p in model.parameters() if p.grad is not None)


def backward(model, tokens) -> float:
    model.zero_grad()
    loss_of(model, tokens).backward()
    return squares(model)


def frame(scope, kind):
    """Also of runs with faults, which are meant here."""
    scope.flush()
    return forgetscope.Reader(scope.ring_path).frame(kind)


@pytest.fixture(params=[False, True], ids=["once", "twice"], autouse=True)
def hooks_are_called(request, tiny):
    hooked = torch.optim.SGD.step
    torch.optim.SGD.step = hooked.__wrapped__ if getattr(hooked, "hooked", False) else hooked
    if request.param:
        torch.optim.SGD(tiny.parameters())
    yield
    torch.optim.SGD.step = hooked


def test_an_exception_of_the_optimizer_is_the_one_that_is_seen(tiny):
    optimizer = Failing(tiny.parameters(), lr=0.1)
    optimizer.fails_in = 1
    scope = forgetscope.attach(tiny, optimizer, every=1, rules=RULES)
    with pytest.raises(OutOfMemory), scope.task("a"):
        for tokens in batches(3, 0):
            backward(tiny, tokens)
            optimizer.step()
            scope.flush()
    with scope.task("b"):
        backward(tiny, batches(1, 1)[0])
        optimizer.step()
        assert scope.reference("b", batches(2, 2), loss_of) == 2
    steps = records_of(scope, "step")
    assert steps.task.tolist() == ["a", "a", "b"] and steps.applied.tolist() == [1, 0, 1]
    scope.close()


def test_a_step_after_an_exception_is_a_step_of_its_own(tiny):
    """A trainer that leaves out the batch for which there was no memory."""
    optimizer = Failing(tiny.parameters(), lr=0.1)
    optimizer.fails_in = 1
    scope = forgetscope.attach(tiny, optimizer, every=1, rules=RULES)
    expected = []
    for tokens in batches(3, 0):
        expected.append(backward(tiny, tokens))
        try:
            optimizer.step()
        except OutOfMemory:
            continue
        scope.flush()
    steps = records_of(scope, "step")
    assert steps.step.tolist() == [0, 1, 2] and steps.applied.tolist() == [1, 0, 1] and scope.step == 3
    assert steps.gradient_squares.tolist() == pytest.approx(expected, rel=1e-5)
    assert records_of(scope, "update").query("level == 'model'").step.tolist() == [0, 2]
    scope.close()


@pytest.mark.parametrize(
    "then",
    [
        lambda scope: scope.task_begin("b"),
        lambda scope: scope.snapshot("a"),
        lambda scope: scope.reference("a", batches(1, 1), loss_of),
        lambda scope: scope.probe("a", batches(2, 5, sequences=16)),
        lambda scope: scope.curvature("a", batches(1, 1)[0], loss_of, lanczos_steps=2, trace_vectors=1),
        lambda scope: scope.every(2),
    ],
    ids=["task_begin", "snapshot", "reference", "probe", "curvature", "every"],
)
def test_a_step_that_was_left_open_is_in_nobodys_way(tiny, then):
    optimizer = Failing(tiny.parameters(), lr=0.1)
    optimizer.fails_in = 0
    scope = forgetscope.attach(tiny.eval(), optimizer, every=1, rules=RULES)
    backward(tiny, batches(1, 0)[0])
    with pytest.raises(OutOfMemory):
        optimizer.step()
    then(scope)
    assert records_of(scope, "step").applied.tolist() == [0]
    scope.close()


def test_one_of_several_optimizers_fails(tiny):
    layers = torch.optim.SGD(tiny.layers.parameters(), lr=0.1)
    rest = Failing([*tiny.embedding.parameters(), *tiny.lm_head.parameters()], lr=0.1)
    rest.fails_in = 1
    scope = forgetscope.attach(tiny, [layers, rest], every=1, rules=RULES)
    with scope.task("a"):
        for tokens in batches(4, 0):
            backward(tiny, tokens)
            layers.step()
            try:
                rest.step()
            except OutOfMemory:
                continue
            scope.flush()
        # The last step of a task ends with the task, though one of the optimizers had no turn in it.
        backward(tiny, batches(1, 9)[0])
        layers.step()
    steps = records_of(scope, "step")
    assert steps.step.tolist() == [0, 1, 2, 3, 4] and steps.applied.tolist() == [1, 0, 1, 1, 1]
    scope.close()


def test_a_fault_inside_a_step_is_said_once_and_training_goes_on(tiny, monkeypatch):
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
    scope = forgetscope.attach(tiny, optimizer, every=1, rules=RULES)

    def broken() -> None:
        raise RuntimeError("no more addresses")

    before = tiny.lm_head.weight.detach().clone()
    with pytest.warns(RuntimeWarning, match="a step was not measured: no more addresses") as said:
        with scope.task("a"):
            with monkeypatch.context() as patch:
                patch.setattr(scope._bindings, "update_gradients", broken)
                for tokens in batches(3, 0):
                    backward(tiny, tokens)
                    optimizer.step()
    assert len(said) == 1 and not torch.equal(before, tiny.lm_head.weight)
    assert frame(scope, "gradient").empty and scope.step == 3
    with scope.task("b"):
        backward(tiny, batches(1, 1)[0])
        optimizer.step()
    assert frame(scope, "gradient").step.unique().tolist() == [3]
    scope.close()


@pytest.mark.parametrize("with_closure", [False, True])
def test_an_optimizer_that_calls_its_base_makes_one_step(tiny, with_closure):
    optimizer = Calling(tiny.parameters(), lr=0.1)
    scope = forgetscope.attach(tiny, optimizer, every=1, rules=RULES)
    expected = []
    for tokens in batches(3, 0):

        def closure(tokens=tokens):
            expected.append(backward(tiny, tokens))
            return torch.tensor(0.0)

        if with_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        # What comes behind the update of the base is part of the update.
        scope.flush()
    steps = records_of(scope, "step")
    assert steps.gradient_squares.tolist() == pytest.approx(expected, rel=1e-5)
    updates = records_of(scope, "update").query("level == 'model'").updates
    assert updates.tolist() == pytest.approx([Calling.share**2 * 0.01 * square for square in expected], rel=1e-3)
    scope.close()


def test_a_wrong_probe_is_said_once_and_the_task_ends(tiny):
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
    probes = {"a": ["no tokens"]}
    scope = forgetscope.attach(tiny, optimizer, every=1, rules=RULES, probes=probes, probe_every=1)
    with pytest.warns(RuntimeWarning, match="the probe of 'a' was not looked at") as said:
        with scope.task("a"):
            backward(tiny, batches(1, 0)[0])
            optimizer.step()
        with pytest.raises(OutOfMemory), scope.task("a"):
            raise OutOfMemory
    assert len(said) == 1
    with pytest.warns(RuntimeWarning, match="what was to be done after a step") as said, scope.task("b"):
        for tokens in batches(3, 0):
            backward(tiny, tokens)
            optimizer.step()
    assert len(said) == 1
    # Whoever asks for a probe is told.
    with pytest.raises(Error, match="no pass over the probe of 'a' was kept"):
        scope.probe("a", probes["a"])
    scope.close()


def test_a_task_whose_training_raised_just_ends(tiny):
    """The model may be broken: it is no base of anything. Nor is a task's end the place to be told."""
    passes = []
    probes = {"a": batches(2, 5, sequences=16)}
    scope = forgetscope.attach(
        tiny, every=1, rules=RULES, probes=probes, forward=lambda m, x: (passes.append(x), m(x))[1]
    )
    for error in (OutOfMemory, KeyboardInterrupt):
        with pytest.raises(error), scope.task("a"):
            raise error
    assert not passes and records_of(scope, "representation").empty
    with scope.task("a"):
        pass
    ended = records_of(scope, "task").event == 1
    assert len(passes) == 2 and ended.sum() == 3
    scope.close()


def test_faults_at_the_end_of_a_task_are_said(tiny, monkeypatch):
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
    scope = forgetscope.attach(tiny, optimizer, every=1, rules=RULES)
    with monkeypatch.context() as patch:
        patch.setattr(scope.scope, "snapshot", lambda *_, **__: 1 / 0)
        with pytest.warns(RuntimeWarning, match="the snapshot at the end of a task was not kept: division") as said:
            for task in ("a", "b"):
                with scope.task(task):
                    backward(tiny, batches(1, 0)[0])
                    optimizer.step()
        patch.setattr(scope._bindings, "update_parameters", lambda: 1 / 0)
        with pytest.warns(RuntimeWarning, match="a task was not ended: division"), scope.task("c"):
            pass
    assert len([one for one in said if "forgetscope" in str(one.message)]) == 1
    scope.close()


def test_a_scope_that_is_closed_within_a_task(tiny):
    for scope in (forgetscope.attach(tiny, rules=RULES), forgetscope.Scope()):
        with scope.task("a"):
            scope.close()
        with pytest.raises(OutOfMemory), forgetscope.Scope() as other, other.task("a"):
            other.close()
            raise OutOfMemory


def test_an_exception_within_a_task_is_not_replaced(tiny):
    scope = forgetscope.attach(tiny, rules=RULES)
    with pytest.raises(OutOfMemory), scope.task("a"):
        scope.task_end()  # the end of the block is a second one
        raise OutOfMemory
    with pytest.raises(Error, match="task"), scope.task("b"):
        scope.task_end()
    scope.close()


def test_warnings_that_are_errors_do_not_reach_the_trainer(tiny, capfd, monkeypatch):
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with forgetscope.attach(tiny, optimizer, every=1) as scope, scope.task("a"):
            monkeypatch.setattr(scope._bindings, "update_gradients", lambda: 1 / 0)
            for tokens in batches(3, 0):
                backward(tiny, tokens)
                optimizer.step()
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("forgetscope")]
    assert len(said) == 2 and "of no known role" in said[0] and "division by zero" in said[1]


def test_an_optimizer_of_another_model_is_pointed_out(tiny):
    other = torch.optim.SGD(copy.deepcopy(tiny).parameters(), lr=0.1)
    with pytest.warns(RuntimeWarning) as said:
        scope = forgetscope.attach(tiny, other, every=1, rules=RULES)
        for _ in range(2):
            other.step()
    assert [str(one.message).split(":")[1] for one in said] == [
        " the optimizer has none of the parameters that are measured",
        " no gradient was found",
    ]
    scope.close()


def test_a_second_scope_on_an_optimizer_is_pointed_out(tiny):
    """As when a cell of a notebook is run again."""
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
    first = forgetscope.attach(tiny, optimizer, rules=RULES)
    with pytest.warns(RuntimeWarning, match="an optimizer has the hooks of another scope"):
        second = forgetscope.attach(tiny, optimizer, rules=RULES)
    first.close()
    second.watch(optimizer)
    second.close()


def test_a_compiled_update_is_measured(tiny):
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
    scope = forgetscope.attach(tiny, optimizer, every=1, rules=RULES)

    @torch.compile(backend="eager")
    def update():
        optimizer.step()

    expected = []
    with scope.task("a"):
        for tokens in batches(3, 0):
            expected.append(backward(tiny, tokens))
            update()
            scope.flush()
    steps = records_of(scope, "step")
    assert steps.gradient_squares.tolist() == pytest.approx(expected, rel=1e-5)
    updates = records_of(scope, "update").query("level == 'model'").updates
    assert updates.tolist() == pytest.approx([0.01 * square for square in expected], rel=1e-3)
    scope.close()
