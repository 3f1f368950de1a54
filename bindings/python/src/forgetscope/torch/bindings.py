"""What of a model is registered, and what the library knows of where its gradients and parameters lie.

`zero_grad(set_to_none=True)`, the default, gives gradients new memory in every step, and parameters may move too, in an
update or between two (offloading, averaged weights). So in a sampled step both are looked for before the library reads
them, parameters again after the update. In a step that is not sampled nothing is looked at.

Costs about 0.4 µs for each tensor of a sampled step (`make bench-python`).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch

from .._abi import Data
from ..scope import Scope
from ..watch import Watch
from .addresses import Addresses, Place
from .parameters import Measured
from .sharding import Copies, Part, is_sharded, local, part_of

# Called through `map`, which takes half as long as a loop.
_gradient = operator.attrgetter("grad")


class Bindings:
    """Registers what is measured and keeps the library's addresses up to date."""

    def __init__(
        self, scope: Scope, measured: Sequence[Measured], groups: dict[int, int], copies: Copies, watch: Watch
    ) -> None:
        self._scope, self._watch = scope, watch
        self.ids: dict[str, int] = {}
        """Id of every measured tensor by its name."""
        places: dict[int, Place] = {}
        parts: dict[int, Part] = {}
        for entry in measured:
            key = id(entry.parameter)
            if key not in places:
                places[key] = Place(entry.name, entry.parameter)
                parts[key] = part_of(entry.parameter, copies)
            self._register(entry, parts[key], places[key], groups.get(key, 0))
        self._places = [place for place in places.values() if place.ids]
        self.parameters = [place.parameter for place in self._places]
        self._distributed = any(is_sharded(parameter) for parameter in self.parameters)
        self._gradients = Addresses(scope, Data.GRAD, self._places, watch)
        self._parameters = Addresses(scope, Data.PARAM, self._places, watch)
        self.update_parameters()

    def _register(self, entry: Measured, part: Part, place: Place, group: int) -> None:
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
        if self._gradients.is_empty:
            self._watch.say(
                "no gradient was found",
                "no measured parameter has one at optimizer.step(); does this optimizer train them, and are gradients "
                "kept until then?",
            )

    def update_parameters(self) -> None:
        """The same for parameters, which rarely move."""
        parameters: Sequence[torch.Tensor] = self.parameters
        if self._distributed:
            parameters = [local(parameter) for parameter in self.parameters]
        if self._parameters.update(parameters):
            self._gradients.forget()


__all__ = ["Bindings"]
