"""`attach`: the instrument on a PyTorch model and its optimizer, in one line.

    scope = forgetscope.attach(model, optimizer, every=10)
    with scope.task("legal"):
        for batch in legal:
            loss(model, batch).backward()
            optimizer.step(); optimizer.zero_grad()
        scope.reference("legal", legal_batches)
    with scope.task("code"):
        ...

Training is the same, bit by bit, with and without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import distributed, nn

from .._abi import Status
from .._library import Error, invalid
from ..arguments import whole
from ..attached import Attached
from ..scope import Scope
from .backward import expect_plain_backward
from .bindings import Bindings
from .loss_scale import LossScale
from .optimizers import Optimizers, groups_of, is_watched, optimizers_of
from .parameters import measured_parameters
from .points import Points
from .probes import Forward, ProbePasses
from .references import GradientPasses, Loss
from .rules import Rules, load_rules
from .sharding import Copies, is_sharded, process_rank, reshard
from .steps import StepHooks
from .together import Together
from .wrappers import unwrapped


def attach(
    model: nn.Module,
    optimizer: Optimizers | None = None,
    *,
    every: int | None = None,
    run: str | None = None,
    rules: Rules | None = None,
    grad_scaler: Any = None,
    probes: Mapping[str, Iterable[Any]] | None = None,
    probe_every: int = 50,
    forward: Forward | None = None,
    replica: int | None = None,
    **options: Any,
) -> TorchScope:
    """Measures the trainable parameters of `model` at every step of `optimizer`, or of several that make one step.

    every:        sample every so many steps (default 10; docs/configuration.md)
    run:          name of the run, for people
    rules:        what parameters are that the built-in names do not know: a TOML file or a list of `Rule`
    grad_scaler:  the `GradScaler`, needed only for a fused optimizer whose gradients are not unscaled before the step
    probes:       task → its probe batches (a list: the same every time). A pass is made over each every `probe_every`
                  steps, and over that of the task in training when it ends
    forward:      how a probe batch goes through the model, if not `model(**batch)` or `model(batch)`
    replica:      which of several equal copies of the model this process has; only copy 0 is measured. Default: the
                  rank in torch.distributed, if parameters are no DTensors. 0: each process has another part of the
                  model
    options:      fields of `fgs_options`: ring_path, include, exclude, ring_slots, budget_bytes, threads, window, …
    """
    return TorchScope(
        model,
        optimizer,
        every=every,
        run=run,
        rules=rules,
        grad_scaler=grad_scaler,
        probes=probes,
        probe_every=probe_every,
        forward=forward,
        replica=replica,
        **options,
    )


class TorchScope(Attached):
    """What `attach` gives. A context manager; closed with the process at the latest."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers | None,
        *,
        rules: Rules | None,
        grad_scaler: Any,
        probes: Mapping[str, Iterable[Any]] | None,
        probe_every: int,
        forward: Forward | None,
        replica: int | None,
        **options: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise invalid(f"model: a {type(model).__name__} is no torch.nn.Module")
        if not isinstance(probes, Mapping | None):
            raise invalid(f"probes: a {type(probes).__name__} is no mapping; give {{task: batches}}")
        if whole(probe_every, "probe_every") < 1:
            raise invalid(f"probe_every: {probe_every} is not at least 1")
        reshard(model)
        expect_plain_backward(model)
        measured = measured_parameters(model, load_rules(rules))
        self.model = unwrapped(model)
        rank = process_rank()
        if rank is not None:
            options = {"rank": rank[0], "world_size": rank[1], **options}
        # The processes that have copies of the model, and the group over which gradients of references are averaged.
        average = _group_of_copies(model)
        outer = None if average is None else (average.rank(), average.size())
        if replica is not None:
            # Which processes have the other copies is not known.
            outer, average = (whole(replica, "replica"), replica + 1), None
        sharded = any(map(is_sharded, model.parameters()))
        everybody = distributed.group.WORLD if sharded and replica is None else average
        together = Together(everybody, next(model.parameters()).device)
        optimizers = optimizers_of(optimizer)
        # Passes beside training are for the first copy; with sharded parameters all ranks take part in them.
        self._is_looking = outer is None or outer[0] == 0 or sharded
        points = Points.of(self.model, measured)
        self._forward = forward
        self._probes = dict(probes or {})
        self._probe_every = probe_every
        self._task: str | None = None
        self.unclassified = [entry.name for entry in measured if not entry.is_known]
        """Parameters that nothing says the role of. They are measured as role "other"."""
        self._hooks: StepHooks | None = None
        self._first_step = 0
        self._grad_scaler = grad_scaler
        super().__init__(Scope(**options))
        try:
            copies = Copies(model.parameters(), outer)
            self._bindings = Bindings(self.scope, measured, groups_of(optimizers), copies, self._watch)
            self._ids = dict(self._bindings.ids)
            self._gradients = GradientPasses(self.scope, self._bindings, self.model, self._stream, average, together)
            self._probing = ProbePasses(self.scope, self.model, points, self._stream, self._watch)
            self._device = next((p.device for p in self._bindings.parameters if p.is_cuda), None)
            self._check_devices()
            if self.unclassified:
                self._say_unclassified()
            if optimizers:
                self.watch(optimizers)
        except BaseException:
            self.scope.close()
            raise

    # Life

    def watch(self, optimizer: Optimizers) -> None:
        """Measures the steps of another optimizer from now on, as a new one for every task. Step numbers go on."""
        self.scope.expect_open()
        if self._hooks is not None:
            self._hooks.remove()
            self._first_step, self._hooks = self._hooks.step, None
        if self.scope.disabled:
            return
        optimizers = optimizers_of(optimizer)
        self._check_optimizers(optimizers)
        loss_scale = LossScale(self._grad_scaler)
        self._hooks = StepHooks(self.scope, self._bindings, optimizers, self._stream, self._watch, loss_scale)
        self._hooks.step = self._first_step
        self._hooks.after_step(self._probe_after)

    @property
    def step(self) -> int:
        """Number of the next step. Set it to go on where a checkpoint was made."""
        return self._hooks.step if self._hooks is not None else self._first_step

    @step.setter
    def step(self, number: int) -> None:
        number = self._first_step = whole(number, "step")
        if self._hooks is not None:
            self._hooks.step = number

    @property
    def tensors(self) -> dict[str, int]:
        """Ids of what is measured, by name."""
        return dict(self._ids)

    def close(self) -> None:
        """Removes the hooks, closes the scope and lets go of the model; the ring stays."""
        if self._hooks is not None:
            self._hooks.remove()
            self._first_step, self._hooks = self._hooks.step, None
        self.scope.close()
        for name in ("model", "_bindings", "_gradients", "_probing", "_probes", "_forward", "_grad_scaler"):
            vars(self).pop(name, None)

    # Tasks

    def task_begin(self, name: str) -> None:
        self._settle()
        self.scope.task_begin(name)
        self._task = name

    def task_end(self) -> None:
        self._settle()
        task, self._task = self._task, None
        if task is None:
            self.scope.task_end()
            return
        if task in self._probes:
            # The base that later passes are compared with.
            with self._watch.guard(f"the probe of {task!r} was not looked at"):
                self.probe(task, self._probes[task])
        with self._watch.guard("the snapshot at the end of a task was not kept"):
            self.snapshot()
        self._end_task()

    def _task_failed(self) -> None:
        # No probe: the model may be broken, and other ranks, whose training goes on, would not take part in it.
        self._settle()
        task, self._task = self._task, None
        if task is not None:
            self._end_task()

    def _end_task(self) -> None:
        with self._watch.guard("a task was not ended"):
            # The library keeps a snapshot, if there is none.
            self._bindings.update_parameters()
            self.scope.task_end()

    def reference(
        self,
        task: str,
        batches: Iterable[Any],
        loss_fn: Loss | None = None,
        *,
        examples: int | Callable[[Any], int] | None = None,
        limit: int = 64,
    ) -> int:
        """Gradients of a task's data at the weights of now: what later gradients are compared with. 32 to 64 batches.

        `loss_fn(model, batch)`: the mean loss of a batch; default: the one that the model computes. `examples`: loss
        terms of a batch (or a function of it); default: counted from its labels. At most `limit` batches are taken, and
        among ranks no more than the one with the fewest has; returns how many. The model is in evaluation mode, where
        transformers computes without gradient checkpoints, and without the trainer's autocast, unless `loss_fn` enters
        it. Training is as before, also the order of a DataLoader that batches come from. If a batch raises, those
        before it stay: a second call at the same weights adds to them, and the first one after an update begins anew.
        """
        if self.scope.disabled:
            return 0
        self._settle()
        count = self._gradients.reference(task, batches, loss_fn, examples, limit)
        if count == 0:
            raise invalid("batches: there are none; an iterator is empty after its first use")
        return count

    def snapshot(self, task: str | None = None) -> None:
        """Keeps the parameters of now as those of `task` (None: of the current one)."""
        if not self.scope.disabled:
            self._settle()
            self._bindings.update_parameters()
            self.scope.snapshot(task, stream=self._stream())

    # Looks at the model

    def probe(
        self,
        task: str,
        batches: Iterable[Any],
        *,
        forward: Forward | None = None,
        labels: Callable[[Any], Any] | None = None,
        continued: int | None = None,
        run: int = 0,
        base: bool = False,
    ) -> None:
        """A pass over a task's probe (docs/probes.md): the same batches in every pass, about 1,000 tokens looked at in
        all.

        Between steps. `labels(batch)`: a class per sequence or token, for neural collapse. `continued`, `run`, `base`:
        as for `Scope.probe`. Among replicas only the first one makes the pass; with sharded parameters all ranks have
        to call it.
        """
        if self.scope.disabled or not self._is_looking:
            return
        self._settle()
        self._probing.run(task, batches, forward or self._forward, labels, continued=continued, run=run, base=base)

    def curvature(
        self,
        task: str,
        batch: Any,
        loss_fn: Loss | None = None,
        *,
        blocks: Sequence[str] = (),
        **options: int | float,
    ) -> None:
        """The loss landscape of a task around the weights of now, on one batch: about 100 gradients.

        `blocks`: names of tensors that are looked at by themselves as well. `options`: fields of `fgs_curvature`, such
        as lanczos_steps. Parameters are moved meanwhile, and are as they were afterwards, to the last bit. fp32, not
        sharded; among replicas only the first one does it.
        """
        if self.scope.disabled or not self._is_looking:
            return
        self._settle()
        self._gradients.curvature(task, batch, loss_fn, blocks, options)

    # Within

    def _settle(self) -> None:
        self.scope.expect_open()
        if self._hooks is not None:
            self._hooks.settle()

    def _probe_after(self, step: int) -> None:
        if self._probes and (step + 1) % self._probe_every == 0:
            for task, batches in self._probes.items():
                if task != self._task:
                    self.probe(task, batches)

    def _stream(self) -> int | None:
        """PyTorch's current stream; None for host memory."""
        return None if self._device is None else torch.cuda.current_stream(self._device).cuda_stream

    def _check_devices(self) -> None:
        devices = {parameter.device for parameter in self._bindings.parameters if parameter.is_cuda}
        others = {p.device.type for p in self._bindings.parameters} - {"cpu", "cuda"}
        if len(devices) > 1 or others:
            what = ", ".join(sorted(map(str, devices or others)))
            raise Error(
                Status.ERROR_UNSUPPORTED,
                f"model: its parameters are on {what}; one process has them in host memory or on one CUDA device",
            )

    def _check_optimizers(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        parameters = self._bindings.parameters
        if parameters and groups_of(optimizers).keys().isdisjoint(map(id, parameters)):
            self._watch.say(
                "the optimizer has none of the parameters that are measured",
                "pass the model whose parameters the optimizer was made with (an engine that flattens them, as "
                "DeepSpeed's, cannot be measured so)",
                stacklevel=5,
            )
        if any(is_watched(one) for one in optimizers):
            self._watch.say(
                "an optimizer has the hooks of another scope",
                "close that one, or each step is measured twice, at twice the cost",
                stacklevel=5,
            )

    def _say_unclassified(self) -> None:
        names = ", ".join(self.unclassified[:8]) + (" …" if len(self.unclassified) > 8 else "")
        self._watch.say(
            f"{len(self.unclassified)} parameters are of no known role, and measured as 'other'",
            f"{names}. Pass rules=[forgetscope.Rule(match=r'\\.mixer\\.Wqkv\\.weight$', role='qkv')], or a TOML file",
            stacklevel=5,
        )


def _group_of_copies(model: nn.Module) -> distributed.ProcessGroup | None:
    """The processes that train copies of the model: DistributedDataParallel's, or all if nothing says otherwise."""
    if process_rank() is None:
        return None
    wrapped: nn.Module | None = model
    while wrapped is not None:
        if isinstance(wrapped, nn.parallel.DistributedDataParallel):
            return wrapped.process_group
        inner = getattr(wrapped, "_orig_mod", None)
        wrapped = inner if isinstance(inner, nn.Module) else None
    return None if any(map(is_sharded, model.parameters())) else distributed.group.WORLD


__all__ = ["TorchScope", "attach"]
