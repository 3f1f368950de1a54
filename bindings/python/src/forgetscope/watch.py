"""`Watch`: says a fault once.

Inside a step nothing may raise, and a fault that comes with every step should not fill a log.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class Watch:
    """The first refusal of a sort is a `RuntimeWarning`, later ones are silent. Never raises."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def say(self, what: str, sentence: str, stacklevel: int = 3) -> None:
        """`what` is the sort: without numbers that change from step to step."""
        with self._lock:
            if what in self._said:
                return
            self._said.add(what)
        try:
            warnings.warn(f"forgetscope: {what}: {sentence}", RuntimeWarning, stacklevel)
        except RuntimeWarning as warning:
            # Where warnings are errors. Those are for the trainer's own mistakes: this one must not end a training.
            print(warning, file=sys.stderr)

    @contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """An error inside is said, and goes no further."""
        try:
            yield
        except Exception as error:
            self.say(what, str(error), stacklevel=5)
