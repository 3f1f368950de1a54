"""Passes that several ranks make together: they stop together, and they fail together.

Collectives are paired by their order alone. A rank that has a batch less, or whose loss raises, would leave the others
waiting for it, or have its next collective taken for this one. So before and after each batch the ranks agree, which
costs one reduction of a single number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed

from .._abi import Status
from .._library import Error

_FAILED, _OVER, _GOING_ON = -1, 0, 1


class Together:
    """The ranks of `group`; None: this process by itself."""

    def __init__(self, group: distributed.ProcessGroup | None, device: torch.device) -> None:
        self._group, self._device = group, device

    def batches(self, batches: Iterable[Any], limit: int) -> Iterator[Any]:
        """At most `limit` batches, and not more than the rank that has the fewest."""
        source = iter(batches)
        for _ in range(limit):
            with self.in_step() as state:
                batch = next(source, state)
                state.answer = _OVER if batch is state else _GOING_ON
            if state.answer == _OVER:
                return
            yield batch

    @contextmanager
    def in_step(self) -> Iterator[_State]:
        """What is done inside is done by all ranks, or an error on all of them."""
        state = _State()
        try:
            yield state
        except BaseException:
            self._least(_FAILED)
            raise
        state.answer = self._least(state.answer)
        if state.answer == _FAILED:
            raise Error(Status.ERROR_SYSTEM, "batches: another rank has failed; its own error says why")

    def _least(self, answer: int) -> int:
        if self._group is None:
            return answer
        least = torch.tensor([answer], device=self._device)
        distributed.all_reduce(least, distributed.ReduceOp.MIN, self._group)
        return int(least)


class _State:
    """What this rank has to say, then what the least of them said."""

    answer = _GOING_ON


__all__ = ["Together"]
