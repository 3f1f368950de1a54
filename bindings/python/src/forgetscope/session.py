"""What can be entered: a `with` block for the instrument's life, and one for each task that is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class Session(ABC):
    """A context manager that is closed at its end, with tasks in it."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def task_begin(self, name: str) -> None: ...

    @abstractmethod
    def task_end(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    @abstractmethod
    def is_closed(self) -> bool: ...

    def _task_failed(self) -> None:
        """Ends a task whose training has raised."""
        self.task_end()

    @contextmanager
    def task(self, name: str) -> Iterator[None]:
        """Training of a task: `with scope.task("legal"):`. At the end its snapshot is kept."""
        self.task_begin(name)
        try:
            yield
        except BaseException:
            # What went wrong in training is what has to be seen, not what goes wrong because of it.
            with suppress(Exception):
                self._task_failed()
            raise
        if not self.is_closed:
            self.task_end()
