"""The real Trainer of transformers and of Lightning, with a small model."""

import logging

import forgetscope
import lightning
import pytest
import torch
import transformers
from conftest import RULES, Tiny, batches, loss_of, records_of
from forgetscope import Error
from forgetscope.callbacks import HuggingFaceCallback, LightningCallback
from test_probes import MODELS
from torch.utils.data import DataLoader


class Waiting:
    """A callback that leaves no step out, however busy the machine is: it waits for what was handed over."""

    def on_step_end(self, *_: object, **__: object) -> None:
        self.scope.flush()

    def on_train_batch_end(self, *_: object, **__: object) -> None:
        self.scope.flush()


class WaitingHuggingFace(Waiting, HuggingFaceCallback):
    pass


class WaitingLightning(Waiting, LightningCallback):
    pass


class Texts(torch.utils.data.Dataset):
    def __init__(self, seed: int) -> None:
        self.rows = batches(1, seed, sequences=16, length=10, vocabulary=64)[0]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[number], "labels": self.rows[number]}


def trainer_of(model, directory, seed: int, callbacks) -> transformers.Trainer:
    arguments = transformers.TrainingArguments(
        str(directory),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=4,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
    )
    data = {"prose": Texts(0), "code": Texts(1)}
    return transformers.Trainer(model, arguments, train_dataset=Texts(seed), eval_dataset=data, callbacks=callbacks)


def test_trainer_of_transformers(tmp_path):
    logging.disable(logging.WARNING)
    model, alone = (transformers.LlamaForCausalLM(MODELS["llama"]) for _ in range(2))
    alone.load_state_dict(model.state_dict())
    batch = {"input_ids": Texts(0).rows, "labels": Texts(0).rows}
    first = WaitingHuggingFace("prose", reference=[batch] * 3, every=1, probes={"prose": [batch]}, probe_every=2)
    trainer_of(model, tmp_path / "0", 0, [first]).train()
    second = WaitingHuggingFace("code", scope=first.scope)
    trainer_of(model, tmp_path / "1", 1, [second]).train()
    scope = second.scope
    steps = records_of(scope, "step")
    assert steps.step.tolist() == list(range(8)) and steps.task.tolist() == ["prose"] * 4 + ["code"] * 4
    # A step is measured as it is applied: behind accumulation and clipping.
    assert (steps.gradient_norm <= 1.0 + 1e-5).all()
    found = records_of(scope, "interference").query("level == 'model'")
    assert found.reference.tolist() == ["prose"] * 4 and found["flags"].str.contains("frozen").all()
    losses = records_of(scope, "evaluation")
    assert losses[["task", "reference"]].drop_duplicates().values.tolist() == [
        ["prose", "prose"],
        ["prose", "code"],
        ["code", "prose"],
        ["code", "code"],
    ]
    assert not records_of(scope, "representation").query("task == 'code'").empty
    scope.close()
    for seed in range(2):
        trainer_of(alone, tmp_path / f"alone{seed}", seed, []).train()
    for name, value in alone.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


class Lit(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.model = Tiny()
        self.seen: list[float] = []

    def training_step(self, tokens: torch.Tensor, _: int) -> torch.Tensor:
        return loss_of(self.model, tokens)

    def validation_step(self, tokens: torch.Tensor, _: int) -> None:
        self.log("val_loss", loss_of(self.model, tokens))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)

        def tap(*_: object) -> None:
            self.seen.append(sum(float((p.grad.double() ** 2).sum()) for p in self.parameters()))

        optimizer.register_step_post_hook(tap)
        return optimizer


def lightning_trainer(directory, callbacks) -> lightning.Trainer:
    return lightning.Trainer(
        max_steps=4,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
        val_check_interval=4,
        num_sanity_val_steps=1,
    )


@pytest.mark.filterwarnings("ignore")
def test_trainer_of_lightning(tmp_path):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module, alone = Lit(), Lit()
    data = [DataLoader(batches(1, seed, sequences=32)[0], batch_size=4) for seed in range(2)]
    callback, scope = None, None
    for seed, task in enumerate(("prose", "code")):
        callback = WaitingLightning(
            task,
            scope=scope,
            monitor="val_loss",
            reference=lambda seed=seed: batches(3, 5 + seed),
            loss_fn=lambda model, tokens: loss_of(model.model, tokens),
            **({} if scope else {"every": 1, "rules": RULES}),
        )
        for trained, callbacks in ((module, [callback]), (alone, [])):
            torch.manual_seed(4)  # of dropout
            lightning_trainer(tmp_path, callbacks).fit(trained, data[seed], data[seed])
        scope = callback.scope
    steps = records_of(scope, "step")
    assert steps.step.tolist() == list(range(8)) and steps.task.tolist() == ["prose"] * 4 + ["code"] * 4
    # Lightning clips inside the closure that it gives to the optimizer.
    assert steps.gradient_squares.tolist() == pytest.approx(module.seen, rel=1e-5)
    assert (steps.gradient_norm <= 0.5 + 1e-5).all()
    assert records_of(scope, "interference").query("level == 'model'").reference.tolist() == ["prose"] * 4
    assert len(records_of(scope, "evaluation")) == 4
    scope.close()
    for name, value in alone.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name


class Interrupted(Exception):
    """Stands for a bad batch, or for Ctrl-C."""


class Interrupting(transformers.TrainerCallback, lightning.Callback):
    """Raises once, in the second step."""

    calls = 0

    def on_step_end(self, *_: object, **__: object) -> None:
        self.calls += 1
        if self.calls == 2:
            raise Interrupted

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.global_step == 1 and not self.calls:
            self.calls = 1
            self.on_step_end()


def test_a_training_of_transformers_that_was_interrupted_is_run_again(tmp_path):
    logging.disable(logging.WARNING)
    model = transformers.LlamaForCausalLM(MODELS["llama"])
    batch = {"input_ids": Texts(0).rows, "labels": Texts(0).rows}
    callback = WaitingHuggingFace("prose", reference=[batch] * 2, every=1)
    trainer = trainer_of(model, tmp_path, 0, [callback, Interrupting()])
    with pytest.raises(Interrupted):
        trainer.train()
    trainer.train()
    steps = records_of(callback.scope, "step")
    assert steps.step.tolist() == list(range(6)) and set(steps.task) == {"prose"}
    assert records_of(callback.scope, "task").batches.max() == 2
    callback.scope.close()


@pytest.mark.filterwarnings("ignore")
def test_a_training_of_lightning_that_was_interrupted_is_run_again(tmp_path):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module, data = Lit(), DataLoader(batches(1, 0, sequences=32)[0], batch_size=4)
    callback = WaitingLightning("prose", every=1, rules=RULES)
    with pytest.raises(Interrupted):
        lightning_trainer(tmp_path, [callback, Interrupting()]).fit(module, data, data)
    # The task has ended with the training.
    with callback.scope.task("code"):
        pass
    lightning_trainer(tmp_path, [callback]).fit(module, data, data)
    steps = records_of(callback.scope, "step")
    assert steps.step.tolist() == list(range(5)) and set(steps.task) == {"prose"}
    callback.scope.close()


def test_a_callback_that_never_began_ends_quietly():
    callback = HuggingFaceCallback("prose")
    callback.on_train_end(None, None, None)
    assert callback.scope is None and forgetscope.runs() == []


def test_what_goes_wrong_at_the_end_does_not_end_the_training(tmp_path):
    """A reference that cannot be taken is said; the model can be saved, and evaluated after the scope was closed."""
    logging.disable(logging.WARNING)
    model = transformers.LlamaForCausalLM(MODELS["llama"])
    callback = WaitingHuggingFace("prose", reference=[torch.zeros(2, 4, dtype=torch.long)], every=1)
    trainer = trainer_of(model, tmp_path, 0, [callback])
    with pytest.warns(RuntimeWarning, match="there is no reference: loss_fn: the model computes no loss"):
        trainer.train()
    callback.scope.close()
    with pytest.warns(RuntimeWarning, match="a loss was not recorded: the scope was closed"):
        trainer.evaluate()
    with pytest.raises(Error, match="every: is for a new scope"):
        HuggingFaceCallback("code", scope=callback.scope, every=3)


def test_steps_have_the_trainers_numbers():
    """Also behind one that `GradScaler` has skipped, in which the optimizer is not called."""
    model = Tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    callback, state = HuggingFaceCallback("prose", every=1, rules=RULES), transformers.TrainerState(global_step=7)
    callback.on_train_begin(None, state, None, model=model, optimizer=optimizer)
    for tokens in batches(3, 0):
        callback.on_step_begin(None, state, None)
        loss_of(model, tokens).backward()
        if state.global_step != 8:
            optimizer.step()
            callback.scope.flush()
        state.global_step += 1
    assert records_of(callback.scope, "step").step.tolist() == [7, 9]
    callback.scope.close()
