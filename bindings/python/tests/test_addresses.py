"""Gradients and parameters that move, come and go: read where they are, and only what changed is bound anew."""

import ctypes
from collections import Counter
from itertools import pairwise

import forgetscope
import pytest
import torch
from conftest import RULES, batches, loss_of, records_of
from test_training import RELATIVE, Tap, train, whole
from torch import nn


class Counting:
    """The library's functions, and how often each is called."""

    def __init__(self, raw: ctypes.CDLL) -> None:
        self.raw, self.calls = raw, Counter()

    def __getattr__(self, name: str):
        self.calls[name] += 1
        return getattr(self.raw, name)


def counted(scope, monkeypatch) -> Counter:
    counting = Counting(scope.scope.raw)
    monkeypatch.setattr(scope.scope, "raw", counting)
    return counting.calls


def test_gradients_that_move_come_and_go(tiny):
    """Addresses in every step, parameters without a gradient, gradients of another layout, parameters that move."""
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
    scope = forgetscope.attach(tiny, optimizer, every=1, rules=RULES)
    expected, keep = [], []
    head, mlp = tiny.lm_head.weight, tiny.layers[0].mlp[0].weight
    for number, tokens in enumerate(batches(8, 0)):
        keep.append([p.grad for p in tiny.parameters()])  # memory is not used twice
        optimizer.zero_grad()
        loss_of(tiny, tokens).backward()
        if number in (2, 3, 6):
            head.grad = None
        if number in (4, 5):
            mlp.grad = mlp.grad.t().contiguous().t()
        if number == 6:
            for parameter in tiny.parameters():
                parameter.data = parameter.data.clone()
        expected.append(sum(float((p.grad.double() ** 2).sum()) for p in tiny.parameters() if p.grad is not None))
        optimizer.step()
        scope.flush()
    found = records_of(scope, "gradient").query("level == 'model'")
    assert found.squares.tolist() == pytest.approx(expected, rel=RELATIVE)
    assert (records_of(scope, "update").query("level == 'model'").updates > 0).sum() == 8


class Swapping(torch.optim.SGD):
    """Gives every parameter new memory in each update; the old is freed, and handed out again by the next one."""

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data = parameter.data - 0.1 * parameter.grad


# The memory of large tensors is given back to the system, so reading it where it was ends the process.
@pytest.mark.parametrize("width", [64, 2048])
def test_an_update_may_move_the_parameters(width):
    model = nn.Linear(width, width)
    optimizer = Swapping(model.parameters(), lr=0.1)
    scope = forgetscope.attach(model, optimizer, every=2, threads=1, rules=[{"match": "weight", "role": "mlp_in"}])
    tap, keep = Tap(model, optimizer), []
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, width)).square().mean().backward()
        optimizer.step()
        keep.append(torch.randn(width, width))  # what was freed may be someone else's now
        scope.flush()
    found = records_of(scope, "update").query("level == 'model'")
    assert found.step.tolist() == [0, 2, 4]
    for row in found.itertuples():
        update = whole(tap.after[row.step]) - whole(tap.before[row.step])
        assert row.updates == pytest.approx(update @ update, rel=2 * RELATIVE)
        weights = whole(tap.after[row.step])
        assert row.weights == pytest.approx(weights @ weights, rel=2 * RELATIVE)
    scope.close()


def test_a_parameter_may_change_its_type(tiny):
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
    scope = forgetscope.attach(tiny, optimizer, every=1, rules=RULES)
    expected = []
    for number, tokens in enumerate(batches(4, 0)):
        if number == 2:
            tiny.double()
        optimizer.zero_grad()
        loss_of(tiny, tokens).backward()
        expected.append(sum(float((p.grad.double() ** 2).sum()) for p in tiny.parameters()))
        optimizer.step()
        scope.flush()
    found = records_of(scope, "gradient").query("level == 'model'")
    assert found.squares.tolist() == pytest.approx(expected, rel=RELATIVE)


def test_addresses_are_handed_over_in_one_call(tiny, monkeypatch):
    """After the first step only `fgs_rebind` is called, and only where a step is sampled."""
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
    scope = forgetscope.attach(tiny, optimizer, every=2, rules=RULES)
    train(tiny, optimizer, batches(1, 0))
    calls = counted(scope, monkeypatch)
    keep = []
    for tokens in batches(4, 1):
        loss_of(tiny, tokens).backward()
        keep.append([p.grad for p in tiny.parameters()])
        optimizer.step()
        optimizer.zero_grad()
    assert calls == {"fgs_rebind": 2} and all(a is not b for a, b in pairwise(keep))


def test_strided_gradients_are_handed_over_in_one_call(monkeypatch):
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = forgetscope.attach(model, optimizer, every=1, rules=[{"match": "weight", "role": "mlp_in"}])
    expected, keep, seen = [], [], []
    for number in range(6):
        calls = counted(scope, monkeypatch)
        model(torch.randn(2, 8)).square().mean().backward()
        if number < 4:
            for layer in model:
                layer.weight.grad = layer.weight.grad.t().contiguous().t()
        expected.append(sum(float((p.grad.double() ** 2).sum()) for p in model.parameters()))
        keep.append([p.grad for p in model.parameters()])
        optimizer.step()
        optimizer.zero_grad()
        seen.append(dict(calls))
        monkeypatch.undo()
        scope.flush()
    assert seen[1:4] == [{"fgs_rebind": 1}] * 3
    # Of another layout: bound anew, once.
    assert seen[4] == {"fgs_bind_shard": 2, "fgs_rebind": 1} and seen[5] == {"fgs_rebind": 1}
    assert records_of(scope, "step").gradient_squares.tolist() == pytest.approx(expected, rel=RELATIVE)
    scope.close()


def test_what_cannot_be_read_is_said_in_one_sentence_and_costs_nothing(monkeypatch):
    """Kernels in channels-last order, which the library has no description for."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(RuntimeWarning, match=r"is not measured: tensor\.strides") as said:
        scope = forgetscope.attach(model, optimizer, every=1, rules=[{"match": ".", "role": "mlp_in"}])
        for number in range(3):
            if number == 1:
                calls = counted(scope, monkeypatch)
            model(torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert ["of 0.weight, 1.weight is" in str(one.message) for one in said] == [True, True]
    assert ["the value" in str(one.message) for one in said] == [True, False]
    assert set(calls) <= {"fgs_rebind"}
    scope.flush()
    assert set(records_of(scope, "gradient").tensor.dropna()) == {"0.bias", "1.bias"}
    scope.close()


def test_only_what_came_and_went_is_bound(monkeypatch):
    """As experts that no token of a batch went to."""
    model = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = forgetscope.attach(model, optimizer, every=1, rules=[{"match": "weight", "role": "mlp_in"}])
    expected, seen = [], []
    for used in ({0, 1, 2, 3}, {0, 1, 2, 4}, {0, 1, 2, 4}, {0, 1, 5}, {0, 1, 2, 3, 4, 5}):
        calls = counted(scope, monkeypatch)
        optimizer.zero_grad()
        sum(model[n](torch.randn(4, 8)).square().sum() for n in used).backward()
        expected.append(sum(float((p.grad.double() ** 2).sum()) for p in model.parameters() if p.grad is not None))
        optimizer.step()
        seen.append((calls["fgs_bind_shard"], calls["fgs_bind"]))
        monkeypatch.undo()
        scope.flush()
    # Bound, and unbound.
    assert seen == [(4, 0), (1, 1), (0, 0), (1, 2), (3, 0)]
    assert records_of(scope, "step").gradient_squares.tolist() == pytest.approx(expected, rel=RELATIVE)
    scope.close()


def test_a_sparse_gradient_is_left_out_and_said_once():
    model = nn.ModuleDict({"embedding": nn.Embedding(16, 8, sparse=True), "lm_head": nn.Linear(8, 4, bias=False)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = forgetscope.attach(model, optimizer, every=1)
    expected = []
    with pytest.warns(RuntimeWarning, match=r"the gradient of embedding\.weight is not measured") as said:
        for _ in range(3):
            optimizer.zero_grad()
            model["lm_head"](model["embedding"](torch.randint(16, (5,)))).square().sum().backward()
            expected.append(float((model["lm_head"].weight.grad.double() ** 2).sum()))
            optimizer.step()
            scope.flush()
    assert len(said) == 1
    found = records_of(scope, "step")
    assert found.gradient_squares.tolist() == pytest.approx(expected, rel=RELATIVE)
    # Its updates are measured all the same.
    assert "embedding.weight" in set(records_of(scope, "update").tensor)
    scope.close()


def test_memory_that_was_given_back_is_not_read():
    """As offloading does between steps: the parameter is there, its storage is empty."""
    model = nn.ModuleDict({"wte": nn.Embedding(16, 8), "lm_head": nn.Linear(8, 4, bias=False)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = forgetscope.attach(model, optimizer, every=1)

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        scope.flush()

    step()
    storage = model["wte"].weight.untyped_storage()
    size, model["wte"].weight.grad = storage.nbytes(), None
    storage.resize_(0)
    scope.snapshot("offloaded")
    storage.resize_(size)
    model["wte"].weight.data.zero_()
    step()
    updates = records_of(scope, "update").query("level == 'tensor'")
    assert updates[["step", "tensor"]].values.tolist() == [
        [s, f"{n}.weight"] for s in (0, 1) for n in ("wte", "lm_head")
    ]
    assert updates.updates.tolist() == pytest.approx([1.28, 0.32] * 2, rel=1e-5)
    scope.close()
