"""A pass over a probe: one forward run of fixed batches, and what appears on the way (capture.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..scope import Scope
from ..watch import Watch
from .aside import aside
from .batches import forward_of
from .capture import Capture
from .points import Points

Forward = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class ProbePasses:
    """Passes of a model over the probes of tasks."""

    scope: Scope
    model: nn.Module
    points: Points
    stream: Callable[[], int | None]
    watch: Watch

    def run(
        self,
        task: str,
        batches: Iterable[Any],
        forward: Forward | None,
        labels: Callable[[Any], Any] | None,
        **options: Any,
    ) -> None:
        """One pass. `labels(batch)`: a class per sequence or token, for collapse. `options`: of `Scope.probe`."""
        model, scope = self.model, self.scope
        with aside(model, batches), torch.no_grad(), scope.probe(task, stream=self.stream(), **options) as probe:
            capture = Capture(probe, self.points, self.watch)
            with capture.hooks(model):
                for batch in batches:
                    capture.new_batch(None if labels is None else labels(batch))
                    capture.returned((forward or forward_of)(model, batch))


__all__ = ["Forward", "ProbePasses"]
