"""What every instrument offers that is attached to a trainer, whichever trainer it is."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from .scope import Scope
from .session import Session
from .watch import Watch


class Attached(Session):
    """A scope whose tensors are bound and whose steps are hooked by the package."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        """The scope below, for what only it can do."""
        self._watch = Watch()

    @abstractmethod
    def _settle(self) -> None:
        """Ends a step that an exception has left open: what is not part of a step is refused within one."""

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self.scope.is_closed

    @property
    def ring_path(self) -> Path | None:
        """File of the ring, for `Reader`; None if the instrument is disabled."""
        return self.scope.ring_path

    def record_loss(self, task: str, value: float) -> None:
        """The loss of a task on held-out data, at the weights of now."""
        self.scope.record_loss(task, value)

    def record_eval(self, task: str, metric: str, value: float, *, higher_is_better: bool) -> None:
        """Another metric of a task on held-out data."""
        self.scope.record_eval(task, metric, value, higher_is_better=higher_is_better)

    def every(self, steps: int) -> None:
        """Samples every so many steps from now on; 0: none."""
        self._settle()
        self.scope.every(steps)

    def flush(self) -> None:
        """Waits until everything handed over so far is in the ring."""
        self.scope.flush()
