"""The batch of a probe that is in its forward pass, and what of it was seen already."""

from __future__ import annotations

from typing import Any

import torch

from ..scope import ProbePass
from ..watch import Watch


class PassBatch:
    """Begins with the first tensor that shows how large it is; all others have to be of the same tokens."""

    def __init__(self, probe: ProbePass, watch: Watch) -> None:
        self._probe, self._watch = probe, watch
        self._labels: Any = None
        self._tokens: tuple[int, int] | None = None
        self._seen: set[tuple[str, int]] = set()

    def new(self, labels: Any) -> None:
        self._labels, self._tokens = labels, None
        self._seen.clear()

    @property
    def is_begun(self) -> bool:
        return self._tokens is not None

    def begin(self, sequences: int, length: int) -> None:
        if self._tokens is None:
            self._tokens = sequences, length
            self._probe.batch(sequences, length, self._labels)

    def begin_with(self, states: torch.Tensor) -> None:
        """`states`: [sequences, tokens, width], or [sequences, width]."""
        self.begin(states.shape[0], states.shape[1] if states.ndim > 2 else 1)

    def is_first(self, what: str, layer: int) -> bool:
        """Layers that are run twice are looked at once."""
        is_first = (what, layer) not in self._seen
        self._seen.add((what, layer))
        return is_first

    def has(self, what: str, layer: int, *shape: int) -> bool:
        """Whether something is of the batch's tokens, [sequences, tokens] or [sequences · tokens]; said once if not."""
        if self._tokens is None:
            return False
        sequences, length = self._tokens
        if shape in ((sequences, length), (sequences * length,)):
            return True
        self._watch.say(
            f"probes leave out {what} of some layers",
            f"the shape in layer {layer} begins with {list(shape)}, the batch has {sequences} sequences of {length} "
            "tokens (windows, other resolutions, a decoder beside an encoder of another length)",
        )
        return False

    def has_states(self, what: str, layer: int, states: torch.Tensor) -> bool:
        return self.has(what, layer, *states.shape[:-1])


__all__ = ["PassBatch"]
