"""`attach`: training is the same bit by bit, and what is measured is what NumPy and the C functions find."""

import copy
import gc
import weakref

import forgetscope
import numpy as np
import pytest
import torch
from conftest import RULES, Tiny, batches, loss_of, raw_records, records_of
from forgetscope import Error, Scope
from torch import nn

# Sums in fp32 of up to 64 terms and in fp64 above: docs/statistics/README.md.
RELATIVE = 1e-5


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: list[torch.Tensor],
    accumulate: int = 1,
    scope: forgetscope.TorchScope | None = None,
) -> list[float]:
    """With `scope` no step is left out, however busy the machine is: each waits until it is in the ring."""
    losses = []
    for number, tokens in enumerate(data):
        loss = loss_of(model, tokens) / accumulate
        loss.backward()
        losses.append(loss.item())
        if (number + 1) % accumulate == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if scope is not None:
                scope.flush()
    return losses


def two_tasks(model: nn.Module, scope: forgetscope.TorchScope | None, accumulate: int = 1) -> list[float]:
    """Training of two tasks, with every look there is in between."""
    torch.manual_seed(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    if scope is not None:
        scope.watch(optimizer)
    for seed, task in enumerate(("prose", "code")):
        if scope is not None:
            scope.task_begin(task)
        losses += train(model, optimizer, batches(6, seed), accumulate, scope)
        # A gradient that waits for its step must wait on.
        loss_of(model, batches(1, 9)[0]).backward()
        if scope is not None:
            scope.probe(task, batches(2, 5, sequences=8))
            scope.reference(task, batches(5, 10 + seed), loss_of, examples=32)
            scope.curvature(task, batches(1, 20)[0], loss_of, lanczos_steps=3, trace_vectors=1)
            scope.task_end()
        losses += train(model, optimizer, batches(2, 7), accumulate, scope)
    return losses


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_is_the_same_bit_by_bit(tiny, monkeypatch, accumulate):
    alone = copy.deepcopy(tiny)
    disabled = copy.deepcopy(tiny)
    with forgetscope.attach(tiny, every=1, rules=RULES) as scope:
        measured = two_tasks(tiny, scope, accumulate)
        assert len(records_of(scope, "step")) == 16 / accumulate
        assert not records_of(scope, "interference").empty and not records_of(scope, "curvature").empty
    monkeypatch.setenv("FGS_DISABLE", "1")
    with forgetscope.attach(disabled, rules=RULES) as off:
        assert off.ring_path is None
        assert two_tasks(alone, None, accumulate) == measured == two_tasks(disabled, off, accumulate)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, tiny.state_dict()[name]) and torch.equal(value, disabled.state_dict()[name]), name


class Tap:
    """Gradients before, and parameters before and after each step, in fp64, by hooks around those of the scope."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.gradients, self.before, self.after = model, [], [], []
        optimizer.register_step_pre_hook(self._pre)
        optimizer.register_step_post_hook(lambda *_: self.after.append(self._now()))

    def _now(self) -> dict[str, np.ndarray]:
        return {n: p.detach().double().numpy().copy() for n, p in self.model.named_parameters()}

    def _pre(self, *_: object) -> None:
        self.before.append(self._now())
        self.gradients.append({n: p.grad.double().numpy().copy() for n, p in self.model.named_parameters()})


def whole(values: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([value.ravel() for value in values.values()])


def test_statistics_are_those_of_numpy(tiny):
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1, momentum=0.9)
    scope = forgetscope.attach(tiny, optimizer, every=1, rules=RULES)
    tap = Tap(tiny, optimizer)
    taken = []

    def seen(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        loss = loss_of(model, tokens)
        names = [n for n, _ in model.named_parameters()]
        found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        taken.append({n: g.double().numpy() for n, g in zip(names, found, strict=True)})
        return loss

    with scope.task("prose"):
        train(tiny, optimizer, batches(3, 0), scope=scope)
        assert scope.reference("prose", batches(6, 1), seen) == 6
        snapshot = tap._now()
    with scope.task("code"):
        train(tiny, optimizer, batches(4, 2), scope=scope)
    reference = {n: np.mean([batch[n] for batch in taken], axis=0) for n in taken[0]}
    frame = records_of(scope, "interference")
    heads = 4
    for row in frame.itertuples():
        gradient = tap.gradients[row.step]
        if row.level == "model":
            x, r = whole(gradient), whole(reference)
        elif row.level == "tensor":
            x, r = gradient[row.tensor].ravel(), reference[row.tensor].ravel()
        elif row.level == "head":
            # Heads are columns of the output projection and rows of the others.
            cut = [
                v[row.tensor].T if row.tensor.endswith("o_proj.weight") else v[row.tensor]
                for v in (gradient, reference)
            ]
            x, r = (v.reshape(heads, -1)[row.head] for v in cut)
        else:
            continue
        if np.linalg.norm(x) * np.linalg.norm(r) > 1e-9:
            assert row.cosine == pytest.approx(x @ r / np.linalg.norm(x) / np.linalg.norm(r), abs=RELATIVE), row
    assert set(frame.level) == {"head", "tensor", "role", "layer", "model"} and set(frame.step) == {3, 4, 5, 6}
    for row in records_of(scope, "update").query("level == 'model'").itertuples():
        step = whole(tap.after[row.step]) - whole(tap.before[row.step])
        assert row.updates == pytest.approx(step @ step, rel=2 * RELATIVE)
    for row in records_of(scope, "drift").query("level == 'model'").itertuples():
        moved = np.linalg.norm(whole(tap.after[row.step]) - whole(snapshot))
        assert row.relative == pytest.approx(moved / np.linalg.norm(whole(snapshot)), rel=RELATIVE)


def by_hand(model: Tiny, data: list[torch.Tensor], scope: Scope) -> None:
    """The same training with the C functions, tensor by tensor."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    roles = {
        "embedding": 1,
        "q_proj": 3,
        "k_proj": 4,
        "v_proj": 5,
        "o_proj": 7,
        "norm1": 12,
        "norm2": 12,
        "lm_head": 14,
    }
    ids = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        role = roles.get(parts[-2], {"0": 9, "3": 10}.get(parts[-2], 0))
        heads = 4 if role in (3, 4, 5, 7) and (parts[-1] == "weight" or role != 7) else 0
        if parts[-1] == "bias" and role in (0, 7, 9, 10):
            role = 15
        layer = int(parts[1]) if parts[0] == "layers" else None
        ids[name] = scope.register(name, shape=parameter.shape, role=role, heads=heads, kv_heads=heads, layer=layer)
        scope.bind(ids[name], "param", parameter)
    for number, tokens in enumerate(data):
        loss_of(model, tokens).backward()
        for name, parameter in model.named_parameters():
            scope.bind(ids[name], "grad", parameter.grad)
        scope.step_begin(number)
        scope.gradients_ready()
        optimizer.step()
        scope.step_end()
        scope.flush()
        optimizer.zero_grad()


def test_records_are_those_of_the_c_functions_bit_by_bit(tiny):
    other = copy.deepcopy(tiny)
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(tiny.parameters(), lr=1e-2)
    with forgetscope.attach(tiny, optimizer, every=1, threads=2, rules=RULES) as scope:
        scope._hooks.after_step(lambda _: scope.flush())
        scope.task_begin("a")
        for tokens in batches(4, 0):
            loss_of(tiny, tokens).backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.manual_seed(1)
    with Scope(every=1, threads=2) as hand:
        hand.task_begin("a")
        by_hand(other, batches(4, 0), hand)
    attached, called = raw_records(scope.ring_path), raw_records(hand.ring_path)
    assert len(attached) == len(called) > 100
    assert attached.tobytes() == called.tobytes()


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.SGD])
def test_a_closure_is_measured_after_its_first_evaluation(tiny, kind):
    optimizer = kind(tiny.parameters(), lr=0.1)
    scope = forgetscope.attach(tiny, optimizer, every=1, rules=RULES)
    evaluations: list[list[float]] = []
    for tokens in batches(3, 0):
        evaluations.append([])

        def closure(tokens=tokens) -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(tiny, tokens)
            loss.backward()
            evaluations[-1].append(sum(float((p.grad.double() ** 2).sum()) for p in tiny.parameters()))
            return loss

        assert isinstance(optimizer.step(closure), torch.Tensor)
        scope.flush()
    found = records_of(scope, "gradient").query("level == 'model'")
    assert found.squares.tolist() == pytest.approx([step[0] for step in evaluations], rel=RELATIVE)
    assert all((len(step) > 1) == (kind is torch.optim.LBFGS) for step in evaluations)


def test_several_optimizers_make_one_step(tiny):
    layers = torch.optim.SGD([{"params": layer.parameters()} for layer in tiny.layers], lr=0.1)
    rest = torch.optim.Adam([*tiny.embedding.parameters(), *tiny.lm_head.parameters()])
    scope = forgetscope.attach(tiny, [layers, rest], every=1, rules=RULES)
    for number, tokens in enumerate(batches(4, 0)):
        loss_of(tiny, tokens).backward()
        layers.step()
        if number != 2:  # one may be left out
            rest.step()
        tiny.zero_grad()
        scope.flush()
    assert records_of(scope, "step").step.tolist() == [0, 1, 2, 3]
    groups = {entry.name: entry.group for entry in forgetscope.Reader(scope.ring_path).catalog.tensors.values()}
    assert [groups[f"layers.{n}.norm1.weight"] for n in range(2)] == [0, 1] and groups["lm_head.weight"] == 2


def test_steps_are_numbered_on(tiny):
    scope = forgetscope.attach(tiny, torch.optim.SGD(tiny.parameters(), lr=0.1), every=2, rules=RULES)
    scope.step = 100
    for _ in range(2):
        optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
        scope.watch(optimizer)
        train(tiny, optimizer, batches(3, 0), scope=scope)
    assert records_of(scope, "step").step.tolist() == [100, 102, 104] and scope.step == 106
    scope.every(0)
    train(tiny, optimizer, batches(3, 0), scope=scope)
    assert len(records_of(scope, "step")) == 3


def test_the_loss_of_a_task_and_its_metrics_are_recorded(tiny):
    with forgetscope.attach(tiny, rules=RULES) as scope:
        with scope.task("a"):
            scope.record_loss("a", torch.tensor(2.0))
            scope.record_eval("a", "accuracy", 0.25, higher_is_better=True)
        assert records_of(scope, "evaluation").value.tolist() == [2.0, 0.25]


def test_what_has_no_known_role_is_said_once(tiny):
    with pytest.warns(RuntimeWarning, match=r"4 parameters are of no known role.*layers\.0\.mlp\.0\.weight"):
        scope = forgetscope.attach(tiny)
    assert scope.unclassified == [f"layers.{n}.mlp.{k}.weight" for n in range(2) for k in (0, 3)]
    scope.close()


def test_wrong_use_is_refused_with_the_argument(tiny):
    with pytest.raises(Error, match="model: a dict is no"):
        forgetscope.attach({}, None)
    with pytest.raises(Error, match="optimizer: a str is no"):
        forgetscope.attach(tiny, "adam", rules=RULES)
    with pytest.raises(Error, match="probe_every: 0"):
        forgetscope.attach(tiny, probe_every=0)
    with pytest.raises(Error, match="probes: a list is no mapping"):
        forgetscope.attach(tiny, probes=[1])
    with pytest.raises(Error, match="evry: there is no such option"):
        forgetscope.attach(tiny, rules=RULES, evry=3)
    with forgetscope.attach(tiny, rules=RULES) as scope:
        with pytest.raises(Error, match="batches: there are none"):
            scope.reference("a", iter([]), loss_of)
        with pytest.raises(Error, match="loss_fn: it returned a tensor of shape"):
            scope.reference("a", batches(1, 0), lambda model, tokens: model(tokens))
        with pytest.raises(Error, match="loss_fn: the model computes no loss"):
            scope.reference("a", batches(1, 0))
        with pytest.raises(Error, match="loss_fn: what of this tuple is the input"):
            scope.reference("a", [(batches(1, 0)[0], 0)])
        with pytest.raises(Error, match="loss_fn: it returned a float; a tensor"):
            scope.reference("a", batches(1, 0), lambda model, tokens: 1.0)
        with pytest.raises(Error, match="blocks: there is no tensor 'x'"):
            scope.curvature("a", batches(1, 0)[0], loss_of, blocks=["x"])
        assert all(parameter.grad is None for parameter in tiny.parameters()) and tiny.training


def test_named_tuples_go_to_the_device_of_the_model(tiny):
    from collections import namedtuple

    from forgetscope.torch.batches import on_device

    batch = namedtuple("Batch", "tokens count")(batches(1, 0)[0], 3)
    moved = on_device({"inner": [batch, "text"]}, tiny.to("meta"))
    assert type(moved["inner"][0]) is type(batch) and moved["inner"][0].tokens.is_meta and moved["inner"][0].count == 3


def test_optimizers_that_step_inside_the_backward_pass_are_refused(tiny):
    """PyTorch's recipe: gradients are gone before they could be read, and a reference would train."""
    scope = forgetscope.attach(tiny, rules=RULES)
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in tiny.parameters()}

    def update(parameter: nn.Parameter) -> None:
        optimizers[parameter].step()
        parameter.grad = None

    hooks = [parameter.register_post_accumulate_grad_hook(update) for parameter in tiny.parameters()]
    before = copy.deepcopy(tiny.state_dict())
    for call in (
        lambda: scope.reference("a", batches(1, 0), loss_of),
        lambda: scope.curvature("a", batches(1, 0)[0], loss_of),
        lambda: forgetscope.attach(tiny, rules=RULES),
    ):
        with pytest.raises(Error, match=r"model: embedding\.weight has a hook behind the accumulation"):
            call()
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    for hook in hooks:
        hook.remove()
    assert scope.reference("a", batches(1, 0), loss_of) == 1
    scope.close()


class Lookahead(torch.optim.Optimizer):
    """Makes steps of another optimizer, and every second time half of the way back."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer.param_groups, {})
        self.optimizer, self.steps = optimizer, 0
        self.slow = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self, closure=None) -> None:
        self.optimizer.step()
        self.steps += 1
        if self.steps % 2 == 0:
            for slow, parameter in zip(self.slow, self.param_groups[0]["params"], strict=True):
                parameter.copy_(slow.lerp_(parameter, 0.5))


def test_an_optimizer_that_calls_another_one_is_measured_with_its_own_part(tiny):
    optimizer = Lookahead(torch.optim.SGD(tiny.parameters(), lr=0.1))
    scope = forgetscope.attach(tiny, optimizer, every=1, rules=RULES)
    expected = []
    for tokens in batches(4, 0):
        before = [p.detach().clone() for p in tiny.parameters()]
        train(tiny, optimizer, [tokens], scope=scope)
        after = zip(tiny.parameters(), before, strict=True)
        expected.append(sum(float((p.detach() - old).double().square().sum()) for p, old in after))
    updates = records_of(scope, "update").query("level == 'model'").updates
    # An update is the difference of two fp32 parameters, each a thousand times as large.
    assert updates.tolist() == pytest.approx(expected, rel=1e-3)
    scope.close()


class Wrapping:
    """As Accelerate and Lightning wrap optimizers: nothing to hook, but what it forwards."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> object:
        return getattr(self.optimizer, name)


def test_wrappers_of_optimizers_are_seen_through(tiny):
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
    scope = forgetscope.attach(tiny, Wrapping(Wrapping(optimizer)), every=1, rules=RULES)
    train(tiny, optimizer, batches(2, 0), scope=scope)
    assert len(records_of(scope, "step")) == 2
    scope.close()


def test_nothing_of_a_model_is_kept_after_close(tiny):
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
    scope = forgetscope.attach(tiny, optimizer, rules=RULES)
    scope.close()
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    train(tiny, optimizer, batches(1, 0))

    def unwanted(*_: object) -> torch.Tensor:
        raise AssertionError("a pass for nothing")

    for call in (
        lambda: scope.reference("a", batches(1, 0), unwanted),
        lambda: scope.probe("a", batches(1, 0), forward=unwanted),
        lambda: scope.curvature("a", batches(1, 0)[0], unwanted),
        lambda: scope.watch(optimizer),
        lambda: scope.snapshot("a"),
        lambda: scope.task_begin("a"),
        lambda: scope.task_end(),
    ):
        with pytest.raises(Error, match="the scope was closed"):
            call()
    assert not optimizer._optimizer_step_pre_hooks and "lm_head.weight" in scope.tensors
    scope.close()
    # What is left of the scope does not keep a model alive.
    model = Tiny()
    probes = {"a": batches(1, 0)}
    scope = forgetscope.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), rules=RULES, probes=probes)
    scope.close()
    kept = weakref.ref(model)
    del model
    gc.collect()
    assert kept() is None and scope.is_closed and scope.step == 0
