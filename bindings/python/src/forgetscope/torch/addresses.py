"""Where the gradients, or the parameters, of all places lie: seen by PyTorch, told to the library in one call.

Most steps change addresses and nothing else: they are collected, compared, and handed over by `fgs_rebind`. A place
whose data came, went, or is laid out otherwise than before is bound anew, and only that one. What cannot be read at all
(sparse gradients) is said once and left alone.

Costs about 0.06 µs for each place and each thing that is looked at: address, and, of gradients, whether it is dense.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from .._abi import Data, Shard
from ..dlpack import View
from ..scope import Scope
from ..watch import Watch

# Called through `map`, which takes half as long as method calls in a loop.
_address: Callable[[Any], int] = torch.Tensor.data_ptr
_is_dense: Callable[[Any], bool] = torch.Tensor.is_contiguous

# What the library is told of a tensor besides its address.
_Layout = tuple[torch.layout, torch.dtype, torch.device, torch.Size, tuple[int, ...]]


class Place:
    """A parameter with the tensors of the catalog that it is: one, or one for each expert that is here."""

    def __init__(self, name: str, parameter: nn.Parameter) -> None:
        self.name, self.parameter = name, parameter
        self.ids: list[int] = []
        self.shards: list[Shard | None] = []
        self.slices: list[int | None] = []
        """Index along the local first dimension; None: all of it."""

    def views(self, data: torch.Tensor) -> list[torch.Tensor]:
        return [data if index is None else data[index] for index in self.slices]


class Addresses:
    """One kind of data of all places, as it is bound."""

    def __init__(self, scope: Scope, source: Data, places: Sequence[Place], watch: Watch) -> None:
        self._scope, self._source, self._places, self._watch = scope, source, places, watch
        self._what = {Data.GRAD: "the gradient", Data.PARAM: "the value"}[source]
        # Of each place: how its data was laid out when it was last looked at in full; None: there was none.
        self._layouts: list[_Layout | None] = [None] * len(places)
        # Places by number: with data that is bound, with data that cannot be, and without.
        self._bound: list[int] = []
        self._refused: set[int] = set()
        self._absent = list(range(len(places)))
        # Of the bound places: addresses, which are dense, and the strides of those that are not.
        self._addresses: list[int] = []
        self._dense: list[bool] = []
        self._strides: dict[int, tuple[int, ...]] = {}
        # Of the bound tensors of the catalog: ids, which of the bound places each is in, and how many bytes behind its
        # beginning. None: each place is one tensor.
        self._ids = np.zeros(0, np.uint32)
        self._ids_address = 0
        self._owners: np.ndarray | None = None
        self._offsets = np.zeros(0, np.uint64)
        self._is_current = True
        # Places that were said to be left out.
        self._said: set[int] = set()

    @property
    def is_empty(self) -> bool:
        """There are places, and none of them has data."""
        return len(self._absent) == len(self._places) > 0

    def forget(self) -> None:
        """Looks at everything in full the next time."""
        self._is_current = False

    def update(self, tensors: Sequence[torch.Tensor | None]) -> bool:
        """`tensors`: local data of each place now; None: there is none. Returns whether any was bound anew."""
        addresses = self._only_moved(tensors)
        if addresses is None:
            return self._look_in_full(tensors)
        if addresses is not self._addresses:
            self._rebind(addresses)
        return False

    def _only_moved(self, tensors: Sequence[torch.Tensor | None]) -> list[int] | None:
        """Addresses of the bound places; None if more than these may have changed."""
        if not self._is_current:
            return None
        found: Sequence[Any] = tensors
        if self._absent or self._refused:
            if any(tensors[place] is not None for place in self._absent):
                return None
            found = [tensors[place] for place in self._bound]
        try:
            addresses = list(map(_address, found))
            is_same = addresses == self._addresses
            if not self._is_laid_out_as_before(is_same, found):
                return None
        except (TypeError, RuntimeError):
            # One that was there is None, or sparse now.
            return None
        if is_same:
            return self._addresses
        # Memory that was given back has the address 0.
        return addresses if all(addresses) else None

    def _is_laid_out_as_before(self, is_where_it_was: bool, found: Sequence[torch.Tensor]) -> bool:
        if self._source == Data.PARAM:
            # As long as parameters do not move they are laid out as they were; when they move, anything may be new.
            layouts = self._layouts
            return is_where_it_was or all(
                _layout(tensor) == layouts[place] for place, tensor in zip(self._bound, found, strict=True)
            )
        # A gradient has its parameter's shape, type and device, but strides of its own.
        return list(map(_is_dense, found)) == self._dense and all(
            found[number].stride() == strides for number, strides in self._strides.items()
        )

    def _rebind(self, addresses: list[int]) -> None:
        places = array("Q", addresses)
        if self._owners is None:
            pointer, count = places.buffer_info()
        else:
            spread = np.frombuffer(places, np.uint64)[self._owners] + self._offsets
            pointer, count = spread.ctypes.data, len(spread)
        scope = self._scope
        scope.check(scope.raw.fgs_rebind(scope.handle, self._source, self._ids_address, pointer, count))
        self._addresses = addresses

    def _look_in_full(self, tensors: Sequence[torch.Tensor | None]) -> bool:
        """Binds what has come or is laid out anew, unbinds what has gone."""
        bound, refused, before = set(self._bound), self._refused, self._layouts
        # If anything fails on the way, nothing is known of any place.
        everything = range(len(self._places))
        self._bound, self._refused, self._absent, self._is_current = list(everything), set(), [], False
        self._layouts = [None] * len(everything)

        layouts = [None if tensor is None else _layout(tensor) for tensor in tensors]
        fresh = {number for number in everything if layouts[number] != before[number]}
        present = [number for number in everything if layouts[number] is not None]
        anew = [number for number in present if number in fresh or number not in bound | refused]
        reasons = {number: reason for number in anew if (reason := self._bind(number, tensors[number]))}
        refused = (refused - fresh).union(reasons)
        now_bound = [number for number in present if number not in refused]
        for number in bound.union(anew).difference(now_bound):
            self._unbind(number)

        self._bound, self._refused = now_bound, refused.intersection(present)
        self._absent = [number for number in everything if layouts[number] is None]
        self._layouts = layouts
        found: list[Any] = [tensors[number] for number in now_bound]
        self._describe(found)
        self._rebind(list(map(_address, found)))
        self._is_current = True
        self._say(reasons)
        return bool(anew)

    def _say(self, reasons: dict[int, str]) -> None:
        """Once for each place."""
        new = sorted(reasons.keys() - self._said)
        if new:
            self._said.update(new)
            names = ", ".join(self._places[number].name for number in new[:8]) + (" …" if len(new) > 8 else "")
            self._watch.say(f"{self._what} of {names} is not measured", reasons[new[0]])

    def _describe(self, tensors: Sequence[torch.Tensor]) -> None:
        """Keeps what later looks compare with."""
        self._dense = list(map(_is_dense, tensors))
        self._strides = {n: tensor.stride() for n, tensor in enumerate(tensors) if not self._dense[n]}
        places = [self._places[number] for number in self._bound]
        ids = [tensor_id for place in places for tensor_id in place.ids]
        self._ids = np.array(ids, np.uint32)
        self._ids_address = self._ids.ctypes.data
        self._owners = None
        if len(ids) != len(places):
            self._owners = np.array([n for n, place in enumerate(places) for _ in place.ids])
            offsets = [
                view.data_ptr() - tensor.data_ptr()
                for place, tensor in zip(places, tensors, strict=True)
                for view in place.views(tensor.detach())
            ]
            self._offsets = np.array(offsets, np.uint64)

    def _bind(self, number: int, tensor: Any) -> str | None:
        """Binds the tensors of a place. Returns why the library cannot read them, or None if it can."""
        place, scope = self._places[number], self._scope
        try:
            for tensor_id, shard, view in zip(place.ids, place.shards, place.views(tensor.detach()), strict=True):
                part = None if shard is None else ctypes.byref(shard)
                described = ctypes.byref(View.of(view))
                scope.check(scope.raw.fgs_bind_shard(scope.handle, tensor_id, self._source, described, part))
        except Exception as error:
            return str(error) or type(error).__name__
        return None

    def _unbind(self, number: int) -> None:
        for tensor_id in self._places[number].ids:
            self._scope.raw.fgs_bind(self._scope.handle, tensor_id, self._source, None)


def _layout(tensor: torch.Tensor) -> _Layout | None:
    """None: its memory was given back."""
    try:
        address, strides = tensor.data_ptr(), tensor.stride()
    except RuntimeError:
        # Sparse, or of a class of its own that has no memory. Binding says so.
        address, strides = -1, ()
    return (tensor.layout, tensor.dtype, tensor.device, tensor.shape, strides) if address else None


__all__ = ["Addresses", "Place"]
