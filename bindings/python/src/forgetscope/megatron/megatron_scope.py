"""`attach`: the instrument on the chunks of a pipeline stage, and the life of Megatron's steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .._abi import Role
from .._library import invalid
from ..attached import Attached
from ..intercept import call_after_field, call_around
from ..scope import Scope
from .parallel import Parallel
from .parameters import LocalParameter, is_chunk, local_parameters

_FINALIZE = "finalize_model_grads_func"


def attach(
    model: Any,
    optimizer: Any,
    *,
    config: Any = None,
    parallel: Parallel | None = None,
    **options: Any,
) -> MegatronScope:
    """Measures the model chunks of this pipeline stage.

    model:      chunk, or list of chunks, wrapped in Megatron's DistributedDataParallel
    optimizer:  what `get_megatron_optimizer` returned
    config:     the TransformerConfig whose `finalize_model_grads_func` is called. Default: that of the first chunk
    parallel:   where this process stands. Default: what Megatron says
    options:    fields of `fgs_options`: run, every, include, exclude, ring_path, …
    """
    return MegatronScope(model, optimizer, config, parallel or Parallel.of_megatron(), options)


class MegatronScope(Attached):
    """What `attach` gives. Close it before the buffers are freed."""

    def __init__(self, model: Any, optimizer: Any, config: Any, parallel: Parallel, options: dict[str, Any]) -> None:
        chunks = list(model) if isinstance(model, (list, tuple)) else [model]
        if not chunks or not all(map(is_chunk, chunks)):
            raise invalid("model: pass the chunks that are wrapped in Megatron's DistributedDataParallel")
        self._config = config or _config(chunks[0])
        self._optimizer = optimizer
        super().__init__(Scope(**{"rank": parallel.rank, "world_size": parallel.world, **options}))
        self.step = 0
        """Number of the next step. Set it to go on where a checkpoint was made."""
        self.unclassified: list[str] = []
        """Parameters that nothing says the role of; measured as role "other"."""
        self._reference: tuple[str, int] | None = None
        self._is_open = False
        self._is_measured = False  # a rank may have copies of others' data only
        self._cuda: torch.device | None = None
        try:
            for chunk in chunks:
                for parameter in local_parameters(chunk, self._config, parallel):
                    self._bind(parameter)
        except BaseException:
            self.scope.close()
            raise
        self._unhook = [
            call_after_field(self._config, _FINALIZE, self._finalized),
            call_around(optimizer, "step", self._updated),
        ]

    def close(self) -> None:
        """Takes the hooks out and closes the scope; the ring stays."""
        for unhook in self._unhook:
            unhook()
        self._unhook = []
        self.scope.close()

    def task_begin(self, name: str) -> None:
        self._settle()
        self.scope.task_begin(name)

    def task_end(self) -> None:
        self._settle()
        with self._watch.guard("the snapshot at the end of a task was not kept"):
            self.scope.snapshot(stream=self._stream())
        self.scope.task_end()

    def _task_failed(self) -> None:
        self._settle()
        self.scope.task_end()

    @contextmanager
    def reference(self, task: str, *, examples: int = 0) -> Iterator[None]:
        """Gradients that are finalized within are batches of a task's reference, at the weights of now: no step.

        `examples`: loss terms that a global batch's loss is a mean over.
        """
        self._settle()
        self._reference = task, examples
        try:
            yield
        finally:
            self._reference = None

    def _bind(self, parameter: LocalParameter) -> None:
        one = parameter.described
        if one.role is None:
            self.unclassified.append(one.name)
        number = self.scope.register(
            one.name,
            shape=parameter.shape,
            role=one.role or Role.OTHER,
            layer=one.layer,
            expert=one.expert,
            replica=parameter.replica,
            **one.heads,
        )
        if parameter.replica:
            return
        for what, memory in parameter.data.items():
            self._is_measured = True
            self.scope.bind(number, what, memory, parameter.shard)
            if memory.is_cuda:
                self._cuda = memory.device

    def _stream(self) -> int | None:
        return None if self._cuda is None else torch.cuda.current_stream(self._cuda).cuda_stream

    # Within a step nothing raises.

    def _updated(self, update: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = update(*args, **kwargs)
        # (update_successful, grad_norm, num_zeros_in_grad)
        applied = bool(result[0]) if isinstance(result, tuple) and result else True
        self._parameters_are_updated(applied)
        return result

    def _finalized(self) -> None:
        with self._watch.guard("a step was not measured"):
            self._gradients_are_final()

    def _gradients_are_final(self) -> None:
        scale = 1.0 / self._loss_scale()
        stream = self._stream()
        if self._reference is not None:
            task, examples = self._reference
            if self._is_measured:
                self.scope.reference_add(task, examples=examples, scale=scale, stream=stream)
            return
        self._settle()
        self._is_open = True
        self.scope.step_begin(self.step)
        self.scope.gradients_ready(scale, stream=stream)

    def _parameters_are_updated(self, applied: bool) -> None:
        if self._is_open:
            self._is_open = False
            self.step += 1
            with self._watch.guard("a step was not measured"):
                self.scope.step_end(applied, stream=self._stream())

    def _settle(self) -> None:
        # `optimizer.step()` has raised, or was left out.
        self._parameters_are_updated(False)

    def _loss_scale(self) -> float:
        # In fp16 only: the scale is on the device, and Megatron itself waits for it in the update that comes now.
        if not getattr(self._config, "fp16", False):
            return 1.0
        scale = self._optimizer.get_loss_scale()
        return float(scale.item() if isinstance(scale, torch.Tensor) else scale)


def _config(chunk: Any) -> Any:
    while chunk is not None:
        config = getattr(chunk, "config", None)
        if hasattr(config, "finalize_model_grads_func"):
            return config
        chunk = getattr(chunk, "module", None)
    raise invalid("config: the model has none with a finalize_model_grads_func; pass it")


__all__ = ["MegatronScope", "attach"]
