"""Logs of TensorBoard and Weights & Biases, read back from what they wrote."""

import json
import subprocess
import sys

import forgetscope
import pytest
import torch
from conftest import RULES, batches, loss_of, records_of
from forgetscope import Error


def train(scope: forgetscope.TorchScope, model, optimizer) -> None:
    for seed, task in enumerate(("prose", "code")):
        with scope.task(task):
            for tokens in batches(3, seed):
                loss_of(model, tokens).backward()
                optimizer.step()
                optimizer.zero_grad()
                scope.flush()
            scope.reference(task, batches(3, 5), loss_of)
            for other in ("prose", "code"):
                scope.record_loss(other, 1.0 + seed)
            scope.record_eval("prose", "accuracy", 0.5, higher_is_better=True)
    scope.flush()


def expected(scope) -> dict[str, list[tuple[int, float]]]:
    """What has to be there, from the records."""
    found = records_of(scope, "interference").query("level == 'model'")
    drift = records_of(scope, "drift").query("level == 'model'")
    steps = records_of(scope, "step")
    losses = records_of(scope, "evaluation")
    losses = losses[losses.reference == "code"]
    return {
        "interference_cosine/prose": list(zip(found.step, found.cosine, strict=True)),
        "drift/prose": list(zip(drift.step, drift.relative, strict=True)),
        "gradient_norm": list(zip(steps.step, steps.gradient_norm, strict=True)),
        "evaluation_loss/code": list(zip(losses.step, losses.value, strict=True)),
    }


@pytest.fixture
def trained(tiny):
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
    return forgetscope.attach(tiny, optimizer, every=1, rules=RULES), optimizer


def test_tensorboard(trained, tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    scope, optimizer = trained
    with SummaryWriter(tmp_path / "log") as writer, forgetscope.log_to_tensorboard(scope, writer, poll=0.01):
        train(scope, tiny, optimizer)
    events = EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    names = {name.removeprefix("forgetscope/") for name in events.Tags()["scalars"]}
    assert {"predicted_loss_change/prose", "update_cosine/prose", "evaluation_accuracy/prose"} <= names
    for name, values in expected(scope).items():
        found = [(event.step, event.value) for event in events.Scalars(f"forgetscope/{name}")]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in values], name


WANDB = """
import json, sys, wandb
run = wandb.init(mode="offline", dir=sys.argv[2], settings=wandb.Settings(silent=True, console="off"))
import forgetscope
logged = []
log = run.log
run.log = lambda values, **rest: (logged.append(values), log(values, **rest))
forgetscope.log_to_wandb(sys.argv[1]).close()
run.log({"trainer": 1.0}, step=1000)
run.finish()
print(json.dumps(logged))
"""


def test_wandb_offline(trained, tiny, tmp_path):
    scope, optimizer = trained
    train(scope, tiny, optimizer)
    want = expected(scope)
    scope.close()
    # In a process of its own: wandb leaves services behind.
    command = [sys.executable, "-c", WANDB, str(scope.ring_path), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    logged = json.loads(ended.stdout.splitlines()[-1])
    assert [entry["forgetscope/step"] for entry in logged if "trainer" not in entry] == list(range(6))
    for name, values in want.items():
        key = f"forgetscope/{name}"
        found = [(entry["forgetscope/step"], entry[key]) for entry in logged if key in entry]
        assert found == [(step, pytest.approx(value)) for step, value in values][-len(found) :] and found, name
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_wrong_use_is_said(tmp_path):
    with pytest.raises(Error, match="source: a int is neither"):
        forgetscope.log_to_tensorboard(3, None)
    with pytest.raises(Error, match="run: there is none; call"):
        forgetscope.log_to_wandb(tmp_path)
