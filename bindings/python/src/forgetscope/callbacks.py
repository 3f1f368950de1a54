"""Callbacks for transformers' `Trainer` and for Lightning: `attach` when training begins, the task's end when it ends.

    trainer = Trainer(model, args, callbacks=[HuggingFaceCallback("legal", reference=legal_batches)], ...)
    trainer = lightning.Trainer(callbacks=[LightningCallback("legal", reference=legal_batches)], ...)

The next task's callback goes on with the scope of the one before: `HuggingFaceCallback("code", scope=first.scope)`.
The scope stays open until `scope.close()` or the end of the process.

What cannot be measured any more when training has begun is said once, and training, saving and evaluating go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from ._library import invalid
from .torch import TorchScope, attach
from .torch.references import Loss
from .watch import Watch

if TYPE_CHECKING:
    from lightning.pytorch import Callback as _LightningBase
    from transformers import TrainerCallback as _HuggingFaceBase
else:
    # Either is there only where its library is.
    try:
        from transformers import TrainerCallback as _HuggingFaceBase
    except ImportError:
        _HuggingFaceBase = object
    try:
        from lightning.pytorch import Callback as _LightningBase
    except ImportError:
        try:
            from pytorch_lightning import Callback as _LightningBase
        except ImportError:
            _LightningBase = object


class _TaskOfTraining:
    """What both callbacks do: one training is one task.

    task:       name of the task
    scope:      the scope of an earlier callback, to go on with; None: a new one
    reference:  batches of the task's data, for its reference; taken when training ends
    loss_fn:    loss of such a batch, as for `TorchScope.reference`
    options:    arguments of `attach`, for a new scope
    """

    def __init__(
        self,
        task: str,
        *,
        scope: TorchScope | None = None,
        reference: Iterable[Any] | Callable[[], Iterable[Any]] | None = None,
        loss_fn: Loss | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if scope is not None and options:
            raise invalid(f"{next(iter(options))}: is for a new scope; the one that goes on has its options")
        self.task = task
        self.scope = scope
        self._reference, self._loss_fn, self._options = reference, loss_fn, options
        self._is_training = False
        # What a trainer's number of a step is more than the scope's.
        self._ahead = 0
        self._watch = Watch()

    def _begin(self, model: nn.Module, optimizers: list[Any], step: int) -> None:
        self._interrupted()
        if self.scope is None:
            self.scope = attach(model, optimizers, **self._options)
            self.scope.step = step
        else:
            self.scope.watch(optimizers)
        self.scope.task_begin(self.task)
        self._ahead = step - self.scope.step
        self._is_training = True

    def _count(self, step: int) -> None:
        """The trainer's number of the step that comes: it counts those too that `GradScaler` skips."""
        if self._is_training and self.scope is not None:
            self.scope.step = step - self._ahead

    def _end(self) -> None:
        if not self._is_training or self.scope is None:
            return
        self._is_training = False
        with self._watch.guard("there is no reference"):
            if self._reference is not None:
                batches = self._reference() if callable(self._reference) else self._reference
                self.scope.reference(self.task, batches, self._loss_fn)
        with self._watch.guard("a task was not ended"):
            self.scope.task_end()

    def _interrupted(self) -> None:
        """Ends the task of a training that an exception has ended: its weights are no place for a reference."""
        if self._is_training and self.scope is not None:
            self._is_training = False
            with self._watch.guard("a task was not ended"):
                self.scope._task_failed()

    def _record(self, task: str, value: Any) -> None:
        if self.scope is not None:
            with self._watch.guard("a loss was not recorded"):
                self.scope.record_loss(task, value)


class HuggingFaceCallback(_TaskOfTraining, _HuggingFaceBase):
    """For `transformers.Trainer`.

    Losses of evaluations are recorded: `eval_loss` as that of the task in training, `eval_NAME_loss` as that of NAME.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin(kwargs["model"], [kwargs["optimizer"]], state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._count(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        for name, value in (metrics or {}).items():
            if name == "eval_loss":
                self._record(self.task, value)
            elif name.startswith("eval_") and name.endswith("_loss"):
                self._record(name.removeprefix("eval_").removesuffix("_loss"), value)


class LightningCallback(_TaskOfTraining, _LightningBase):
    """For Lightning's `Trainer`. `monitor`: the logged metric that is the task's held-out loss, such as "val_loss"."""

    def __init__(self, task: str, *, monitor: str | None = None, **options: Any) -> None:
        super().__init__(task, **options)
        self._monitor = monitor

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # The strategy's model is what the optimizer has the parameters of, with its wrappers.
        self._begin(trainer.strategy.model, list(trainer.optimizers), trainer.global_step)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        # With several optimizers Lightning counts the steps of each.
        if len(trainer.optimizers) == 1:
            self._count(trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._interrupted()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        value = trainer.callback_metrics.get(self._monitor) if self._monitor else None
        if value is not None and not trainer.sanity_checking:
            self._record(self.task, value)
