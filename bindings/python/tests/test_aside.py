"""What a forward pass writes to, in passes beside training: nothing of it is seen by training."""

import logging

import forgetscope
import pytest
import torch
import transformers
from conftest import RULES, Tiny, batches, loss_of, records_of
from test_roles import GROUPED
from torch import nn
from torch.utils.data import DataLoader, RandomSampler


def tokens_of(count: int, seed: int, length: int) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": t, "labels": t} for t in batches(count, seed, length=length, vocabulary=64)]


@pytest.mark.parametrize("look", ["reference", "probe", "curvature"])
def test_rotary_embeddings_that_grow_with_sequences(look, caplog):
    """Dynamic scaling keeps a table for the longest sequence that was seen."""
    caplog.set_level(logging.ERROR)

    def losses(is_measured: bool) -> list[float]:
        torch.manual_seed(0)
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED, rope_parameters=rope))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scope = forgetscope.attach(model, optimizer, every=1) if is_measured else None
        found = []
        for number, batch in enumerate(tokens_of(4, 1, length=40)):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
            if number == 1 and scope is not None:
                longer = tokens_of(2, 9, length=60)
                if look == "curvature":
                    scope.curvature("a", longer[0], lanczos_steps=2, trace_vectors=1)
                else:
                    getattr(scope, look)("a", longer)
        if scope is not None:
            scope.close()
        return found

    assert losses(False) == losses(True)


class Counting(Tiny):
    """Keeps counts, scales by one of them, and has buffers and attributes that come with the first pass."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.register_buffer("passes", torch.ones(()))
        self.register_buffer("packed", torch.ones(3, 3, dtype=torch.int32))
        self.shared = nn.Module()
        self.shared.register_buffer("passes", self.passes)
        self.last, self.absent = None, "here"

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        output = super().forward(tokens) * self.passes.clone()
        self.last = int(tokens.shape[0])
        self.__dict__.pop("absent", None)
        self.register_buffer("table", torch.arange(tokens.shape[1]))
        self.passes += 1
        assert self.shared.passes is self.passes
        return output


def test_counts_that_a_forward_pass_keeps():
    model = Counting()
    scope = forgetscope.attach(model, every=1, rules=RULES)
    passes, names = model.passes, set(vars(model))
    scope.reference("a", batches(2, 1), loss_of)
    scope.probe("a", batches(2, 5, sequences=16))
    scope.curvature("a", batches(1, 1)[0], loss_of, lanczos_steps=2, trace_vectors=1)
    with pytest.raises(ZeroDivisionError):
        scope.reference("a", batches(2, 1), lambda m, tokens: m(tokens)[1 / 0])
    assert model.passes is passes is model.shared.passes and passes.item() == 1 and model.last is None
    assert set(vars(model)) == names and "table" not in model._buffers and model.absent == "here"
    assert len(records_of(scope, "representation")) == 2
    scope.close()


class Scaling(nn.Linear):
    """What waits for its backward pass has kept a buffer that each pass writes to."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.scale.mul_(0.5)
        return super().forward(x) * self.scale


def test_a_backward_pass_that_waits_is_not_disturbed():
    model = Scaling()
    scope = forgetscope.attach(model, rules=[{"match": ".", "role": "other"}])
    loss = model(torch.ones(2, 4)).sum()
    expected = torch.autograd.grad(loss, model.bias, retain_graph=True)[0]
    scope.reference("a", [torch.ones(2, 4)], lambda m, x: m(x).sum())
    loss.backward()
    assert torch.equal(model.bias.grad, expected) and model.scale.tolist() == [0.5] * 4
    scope.close()


@pytest.mark.parametrize("where", ["loader", "sampler"])
def test_the_order_of_a_loader_is_what_it_would_have_been(tiny, where):
    def orders(is_measured: bool) -> list[list[int]]:
        generator = torch.Generator().manual_seed(1)
        data = [torch.full((9,), number) for number in range(16)]
        if where == "loader":
            loader = DataLoader(data, 4, shuffle=True, generator=generator)
        else:
            loader = DataLoader(data, 4, sampler=RandomSampler(data, generator=generator))
        scope = forgetscope.attach(tiny, rules=RULES) if is_measured else None
        found = []
        for epoch in range(2):
            found.append([int(row[0]) for tokens in loader for row in tokens])
            if scope is not None:
                scope.reference(f"{epoch}", loader, loss_of)
                scope.probe("p", loader)
        if scope is not None:
            scope.close()
        return found

    assert orders(True) == orders(False)
