"""Where gradients and parameters lie at present, told to the library in one call.

`zero_grad(set_to_none=True)`, the default, gives gradients new memory in every step. In a sampled step their addresses
are collected and handed over by `fgs_rebind`; a gradient that came, went or changed its strides is bound anew. In a
step that is not sampled nothing is looked at.

Costs about 0.3 µs for each tensor of a sampled step (`make bench-python`).
"""

from __future__ import annotations

import ctypes
import operator
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
from .parameters import Measured
from .sharding import Copies, Part, is_sharded, local, part_of

# Of a list of tensors at once: called through `map`, half as long as method calls in a loop take.
_gradient = operator.attrgetter("grad")
_address: Callable[[Any], int] = torch.Tensor.data_ptr
_is_dense: Callable[[Any], bool] = torch.Tensor.is_contiguous


class _Place:
    """A parameter with the tensors of the catalog that it is: one, or one for each expert that is here."""

    def __init__(self, name: str, parameter: nn.Parameter) -> None:
        self.name, self.parameter = name, parameter
        self.ids: list[int] = []
        self.shards: list[Shard | None] = []
        self.slices: list[int | None] = []
        """Index along the local first dimension; None: all of it."""

    def views(self, data: torch.Tensor) -> list[torch.Tensor]:
        return [data if index is None else data[index] for index in self.slices]


class Bindings:
    """Registers what is measured and keeps the library's addresses up to date."""

    def __init__(
        self, scope: Scope, measured: Sequence[Measured], groups: dict[int, int], copies: Copies, watch: Watch
    ) -> None:
        self._scope = scope
        self.ids: dict[str, int] = {}
        """Id of every measured tensor by its name."""
        places: dict[int, _Place] = {}
        parts: dict[int, Part] = {}
        for entry in measured:
            key = id(entry.parameter)
            if key not in places:
                places[key] = _Place(entry.name, entry.parameter)
                parts[key] = part_of(entry.parameter, copies)
            self._register(entry, parts[key], places[key], groups.get(key, 0))
        self._places = [place for place in places.values() if place.ids]
        self.parameters = [place.parameter for place in self._places]
        self._distributed = any(is_sharded(parameter) for parameter in self.parameters)
        self._gradients = _Source(scope, Data.GRAD, self._places, watch)
        self._parameters = _Source(scope, Data.PARAM, self._places, watch)
        self.update_parameters()

    def _register(self, entry: Measured, part: Part, place: _Place, group: int) -> None:
        heads = entry.heads
        number = self._scope.register(
            entry.name,
            shape=entry.shape,
            role=entry.role,
            layer=entry.layer,
            expert=entry.expert,
            group=group,
            heads=heads.heads,
            kv_heads=heads.kv_heads,
            head_layout=heads.layout,
            head_axis=heads.axis,
            replica=part.replica,
        )
        self.ids[entry.name] = number
        index = None
        if entry.is_slice:
            assert entry.expert is not None
            whole, index = part, entry.expert - part.offset[0]
            here = whole.slice(entry.expert)
        else:
            here = part
        if here is not None and not here.is_empty and not (part.replica or 0):
            place.ids.append(number)
            place.shards.append(here.shard(entry.shape, entry.name))
            place.slices.append(index)

    def update_gradients(self) -> None:
        """Looks where the gradients of now lie."""
        gradients = list(map(_gradient, self.parameters))
        if self._distributed:
            gradients = [None if gradient is None else local(gradient) for gradient in gradients]
        self._gradients.update(gradients)

    def update_parameters(self) -> None:
        """The same for parameters, which rarely move."""
        parameters: Sequence[torch.Tensor] = self.parameters
        if self._distributed:
            parameters = [local(parameter) for parameter in self.parameters]
        if self._parameters.update(parameters):
            self._gradients.forget()


class _Source:
    """The gradients, or the parameters, of all places: what is bound, and how it lay when it was."""

    def __init__(self, scope: Scope, source: Data, places: Sequence[_Place], watch: Watch) -> None:
        self._scope, self._source, self._places, self._watch = scope, source, places, watch
        # Of the places that have data, in order: which they are, and what was seen of them last.
        self._present: list[int] = []
        self._addresses: list[int] = []
        self._is_current = True
        # Those that have none, or none that can be bound.
        self._absent = list(range(len(places)))
        self._ids = np.zeros(0, np.uint32)
        self._ids_address = 0
        # Of each bound tensor: which of the present places it is in, and how many bytes behind its beginning.
        self._owners: np.ndarray | None = None
        self._offsets = np.zeros(0, np.uint64)

    def update(self, tensors: Sequence[torch.Tensor | None]) -> bool:
        """`tensors`: local data of each place now; None: there is none. Returns whether any was bound anew."""
        found = tensors
        if self._absent:
            if any(tensors[place] is not None for place in self._absent):
                return self._bind_all(tensors)
            found = [tensors[place] for place in self._present]
        try:
            addresses = list(map(_address, found))
            if self._source == Data.PARAM:
                # A parameter has one layout until it moves; then it may have got another type with it.
                return addresses != self._addresses and self._bind_all(tensors)
            # Gradients that autograd makes are laid out like their parameters; what is assigned need not be.
            is_dense = False not in map(_is_dense, found)
        except TypeError:
            # One that was there is None.
            return self._bind_all(tensors)
        if not is_dense or not self._is_current:
            return self._bind_all(tensors)
        if addresses != self._addresses:
            self._rebind(addresses)
        return False

    def forget(self) -> None:
        """Binds everything anew the next time."""
        self._is_current, self._addresses = False, []

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

    def _bind_all(self, tensors: Sequence[torch.Tensor | None]) -> bool:
        self._present, self._absent, self._addresses = [], [], []
        self._is_current = True
        owners: list[int] = []
        offsets: list[int] = []
        ids: list[int] = []
        for number, (place, tensor) in enumerate(zip(self._places, tensors, strict=True)):
            if tensor is None or not self._bind(place, tensor.detach()):
                self._absent.append(number)
                for tensor_id in place.ids:
                    self._scope.raw.fgs_bind(self._scope.handle, tensor_id, self._source, None)
                continue
            owners += [len(self._present)] * len(place.ids)
            offsets += [view.data_ptr() - tensor.data_ptr() for view in place.views(tensor.detach())]
            ids += place.ids
            self._present.append(number)
            self._addresses.append(tensor.data_ptr())
        self._ids = np.array(ids, np.uint32)
        self._ids_address = self._ids.ctypes.data
        self._owners = None if len(ids) == len(self._present) else np.array(owners)
        self._offsets = np.array(offsets, np.uint64)
        return True

    def _bind(self, place: _Place, tensor: torch.Tensor) -> bool:
        """Binds the tensors of a place; False if the library cannot read them, which is said once."""
        for tensor_id, shard, view in zip(place.ids, place.shards, place.views(tensor), strict=True):
            part = None if shard is None else ctypes.byref(shard)
            status = self._scope.raw.fgs_bind_shard(
                self._scope.handle, tensor_id, self._source, ctypes.byref(View.of(view)), part
            )
            if status < 0:
                self._watch.say(f"{place.name} is not measured", self._scope.raw.fgs_last_error().decode())
                return False
        return True
