"""GradScaler and compiled models: gradients are measured as the optimizer applies them."""

import forgetscope
import pytest
import torch
from conftest import RULES, batches, loss_of, records_of


def squares(model: torch.nn.Module) -> float:
    return sum(float((p.grad.double() ** 2).sum()) for p in model.parameters())


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("unscaled", [False, True], ids=["scaled", "unscaled"])
def test_loss_scales_are_taken_out(tiny, fused, unscaled):
    """A fused optimizer gets its gradients scaled, and skips its update by itself."""
    optimizer = torch.optim.AdamW(tiny.parameters(), lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    scope = forgetscope.attach(tiny, optimizer, every=1, rules=RULES, grad_scaler=scaler)
    expected, overflowing = [], 3
    for number, tokens in enumerate(batches(6, 0)):
        scale = scaler.get_scale()
        scaler.scale(loss_of(tiny, tokens)).backward()
        if number == overflowing:
            tiny.lm_head.weight.grad[0, 0] = torch.inf
        else:
            expected.append(squares(tiny) / scale**2)
        if unscaled:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scope.flush()
    steps = records_of_all(scope)
    # Without fusing the scaler does not call the optimizer at all.
    assert steps.step.tolist() == list(range(6 if fused else 5))
    good = steps[~steps["flags"].str.contains("non_finite")]
    assert good.gradient_squares.tolist() == pytest.approx(expected, rel=1e-5)
    if fused:
        assert len(good) == 5
        updates = frame(scope, "update").query("level == 'model'").updates.tolist()
        assert updates[overflowing] == 0 and all(u > 0 for n, u in enumerate(updates) if n != overflowing)


def frame(scope, kind):
    return forgetscope.Reader(scope.ring_path).frame(kind)


def records_of_all(scope):
    """The non-finite step is a fault, and is meant here."""
    scope.flush()
    return frame(scope, "step")


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled_models_have_the_same_names_and_numbers(tiny, backend):
    import copy

    found = {}
    for name, compiled in (("plain", False), ("compiled", True)):
        model = copy.deepcopy(tiny).eval()
        run = torch.compile(model, backend=backend) if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scope = forgetscope.attach(run, optimizer, every=1, rules=RULES)
        with scope.task("a"):
            for tokens in batches(3, 0):
                loss_of(run, tokens).backward()
                optimizer.step()
                optimizer.zero_grad()
                scope.flush()
            scope.probe("a", batches(1, 4, sequences=16))
            scope.reference("a", batches(2, 5), loss_of)
        gradients = records_of(scope, "gradient")
        found[name] = gradients[["step", "level", "tensor", "head"]].astype(str), gradients.norm, scope.tensors
        assert len(records_of(scope, "representation")) == 2
        scope.close()
    assert found["plain"][0].equals(found["compiled"][0]) and found["plain"][2] == found["compiled"][2]
    # Fused kernels round differently.
    assert found["plain"][1].tolist() == pytest.approx(found["compiled"][1].tolist(), rel=1e-4, abs=1e-7)


def test_autocast_measures_what_is_accumulated(tiny):
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
    scope = forgetscope.attach(tiny, optimizer, every=1, rules=RULES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(tiny, batches(1, 0)[0])
    loss.backward()
    expected = squares(tiny)
    optimizer.step()
    assert records_of(scope, "step").gradient_squares.tolist() == pytest.approx([expected], rel=1e-5)


def test_bfloat16_parameters(tiny):
    tiny.bfloat16()
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
    scope = forgetscope.attach(tiny, optimizer, every=1, rules=RULES)
    loss_of(tiny, batches(1, 0)[0]).backward()
    expected = squares(tiny)
    optimizer.step()
    assert records_of(scope, "step").gradient_squares.tolist() == pytest.approx([expected], rel=1e-5)
