"""`Watch`: says a fault once.

Inside a step nothing may raise, and a fault that comes with every step should not fill a log.
"""

from __future__ import annotations

import threading
import warnings


class Watch:
    """The first refusal of a sort is a `RuntimeWarning`, later ones are silent."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def say(self, what: str, sentence: str) -> None:
        with self._lock:
            if what in self._said:
                return
            self._said.add(what)
        warnings.warn(f"forgetscope: {what}: {sentence}", RuntimeWarning, stacklevel=3)
