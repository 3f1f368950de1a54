"""Gradients at fixed weights: the reference of a task, and the answers of a curvature run.

One batch costs a forward and a backward pass. Under DistributedDataParallel the mean over the ranks' batches is taken;
FSDP2 reduces by itself. Ranks take as many batches as the one with the fewest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn

from .._abi import Status
from .._library import Error, invalid
from ..scope import Scope
from .aside import aside, same_random_numbers
from .backward import backward, expect_plain_backward
from .batches import forward_of
from .bindings import Bindings
from .sharding import is_sharded, local
from .together import Together

Loss = Callable[[nn.Module, Any], torch.Tensor]


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    """The loss that the model itself computes, as transformers' models do from `labels`."""
    if isinstance(batch, (list, tuple)):
        kind = type(batch).__name__
        raise invalid(
            f"loss_fn: what of this {kind} is the input and what the target is not known; give loss_fn(model, batch)"
        )
    loss = getattr(forward_of(model, batch), "loss", None)
    if loss is None:
        raise invalid("loss_fn: the model computes no loss from this batch; give loss_fn(model, batch)")
    return loss


# Language models of transformers whose labels are shifted by one, so that the first of a sequence is no target.
_CAUSAL = re.compile(r"CausalLM|^(?:GPT2|OpenAIGPT|Bert)LMHead")


def terms_of(model: nn.Module, batch: Any) -> int:
    """Loss terms that the mean of a batch is over, as far as its labels say; 0: they do not."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point():
        return 0
    return int((labels[..., 1:] if labels.ndim > 1 and _shifts_labels(model) else labels).ne(-100).sum())


def _shifts_labels(model: nn.Module) -> bool:
    # Adapters are around the model.
    models = (one for one in model.modules() if hasattr(one, "config") and not type(one).__module__.startswith("peft."))
    outermost = next(models, model)
    name = type(outermost).__name__
    if "ForConditionalGeneration" in name:
        # Of a decoder only, as in models of images and text.
        return not getattr(outermost.config, "is_encoder_decoder", False)
    return bool(_CAUSAL.search(name))


@dataclass(frozen=True)
class GradientPasses:
    """Forward and backward passes of a model beside training."""

    scope: Scope
    bindings: Bindings
    model: nn.Module
    stream: Callable[[], int | None]
    average: distributed.ProcessGroup | None
    """Over which gradients are averaged, besides what the model does itself."""
    together: Together

    def reference(
        self,
        task: str,
        batches: Iterable[Any],
        loss_fn: Loss | None,
        examples: int | Callable[[Any], int] | None,
        limit: int,
    ) -> int:
        """Hands over the gradient of each batch; returns how many there were."""
        expect_plain_backward(self.model)
        count = 0
        with aside(self.model, batches) as parameters:
            for batch in self.together.batches(batches, limit):
                with self.together.in_step():
                    self._gradients(parameters, (loss_fn or loss_of), batch)
                if self.average is not None:
                    _take_mean(parameters, self.average)
                count += 1
                if not self.bindings.parameters:
                    continue  # all that is here are further copies
                self.bindings.update_parameters()
                self.bindings.update_gradients()
                given = terms_of(self.model, batch) if examples is None else examples
                terms = given(batch) if callable(given) else given
                self.scope.reference_add(task, examples=terms, stream=self.stream())
        return count

    def curvature(
        self,
        task: str,
        batch: Any,
        loss_fn: Loss | None,
        blocks: Sequence[str],
        options: Mapping[str, int | float],
    ) -> None:
        """Answers the requests of a curvature run with the loss and gradients of one batch."""
        bindings, model = self.bindings, self.model
        if any(is_sharded(parameter) for parameter in bindings.parameters):
            raise Error(Status.ERROR_UNSUPPORTED, "model: curvature needs whole parameters, not those that are sharded")
        expect_plain_backward(model)
        if unknown := set(blocks) - set(bindings.ids):
            raise invalid(f"blocks: there is no tensor {sorted(unknown)[0]!r}; scope.tensors has the names")
        with aside(model) as parameters:

            def answer(with_gradient: bool) -> float:
                # The same random numbers every time, if the model draws any.
                with same_random_numbers(model), torch.set_grad_enabled(with_gradient):
                    if not with_gradient:
                        return (loss_fn or loss_of)(model, batch).item()
                    loss = self._gradients(parameters, loss_fn or loss_of, batch)
                bindings.update_gradients()
                return loss.item()

            # The gradients have to be there when the run begins.
            if not math.isfinite(answer(True)):
                raise invalid("batch: its loss is not finite")
            bindings.update_parameters()
            bindings.update_gradients()
            ids = [bindings.ids[name] for name in blocks]
            self.scope.curvature(task, answer, blocks=ids, stream=self.stream(), **options)

    def _gradients(self, parameters: Sequence[nn.Parameter], loss_fn: Loss, batch: Any) -> torch.Tensor:
        """Those of one batch, instead of any others. Returns its loss."""
        # Before the forward pass: during it FSDP2 has other parameters in the model.
        for parameter in parameters:
            parameter.grad = None
        loss: Any = loss_fn(self.model, batch)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            what = f"tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise invalid(f"loss_fn: it returned a {what}; a tensor of a single number is needed")
        backward(self.model, loss, parameters)
        return loss


def _take_mean(parameters: Sequence[nn.Parameter], average: distributed.ProcessGroup) -> None:
    for parameter in parameters:
        if parameter.requires_grad:
            # All ranks take part, also where a parameter had no part in this one's batch.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(local(parameter.grad), group=average)
            parameter.grad /= distributed.get_world_size(average)


__all__ = ["GradientPasses", "Loss", "loss_of", "terms_of"]
