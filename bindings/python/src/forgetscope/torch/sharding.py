"""Which part of a parameter is here: DTensors (FSDP2, tensor parallelism, HSDP) and replicas (DDP).

The library is told which elements of the unsharded tensor the local data is, so that sums over ranks are those of one
process. Nothing is gathered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn

from .._abi import Shard, Status
from .._library import Error

if distributed.is_available():
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def is_sharded(tensor: torch.Tensor) -> bool:
    return distributed.is_available() and isinstance(tensor, DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's data of a tensor, as it lies."""
    # `to_local()` does the same through autograd, a hundred times slower.
    return tensor._local_tensor if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def is_fully_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 reduces gradients: in hooks of its own, inside of `backward()`."""
    return distributed.is_available() and any(isinstance(module, FSDPModule) for module in model.modules())


def is_flat(model: nn.Module) -> bool:
    """Whether FSDP of the first version has flattened parameters, also if it shows them as views."""
    return distributed.is_available() and any(isinstance(m, FullyShardedDataParallel) for m in model.modules())


def reshard(model: nn.Module) -> None:
    """Puts parameters that FSDP2 gathered for a forward pass, and kept for the backward pass, back into their parts."""
    if distributed.is_available():
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


@dataclass(frozen=True)
class Part:
    """A box of the unsharded tensor: where it begins and how long it is in every dimension."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    replica: int | None
    """Which of several equal copies it is; None: there is one."""

    @property
    def is_empty(self) -> bool:
        return 0 in self.shape

    def slice(self, number: int) -> Part | None:
        """The part of `tensor[number]`; None if it is elsewhere."""
        if not self.offset[0] <= number < self.offset[0] + self.shape[0]:
            return None
        return Part(self.offset[1:], self.shape[1:], self.replica)

    def shard(self, whole: tuple[int, ...], name: str) -> Shard | None:
        """The box as the library takes it; None: all of the tensor `whole`."""
        if self.shape == whole:
            return None
        cut = [k for k, length in enumerate(self.shape) if length != whole[k]]
        first, last = cut[0], cut[-1]
        # Runs lie at equal distances if they are counted by one dimension: by the one before the last that is cut.
        if last - first > 1 or (last > first and math.prod(whole[:first]) > 1):
            raise Error(
                Status.ERROR_UNSUPPORTED,
                f"{name}: its part {self.shape} at {self.offset} of {whole} is cut in dimensions far apart",
            )
        inner = [math.prod(whole[k + 1 :]) for k in range(len(whole))]
        start = sum(offset * step for offset, step in zip(self.offset, inner, strict=True))
        length = self.shape[last] * inner[last]
        if last == 0:
            return Shard(offset=start)
        counted = range(first if last > first else 0, last)
        runs = math.prod(self.shape[k] for k in counted)
        return Shard(offset=start, run_length=length, run_step=whole[last] * inner[last], run_count=runs)


def part_of(parameter: torch.Tensor, copies: Copies | None = None) -> Part:
    """What of a parameter is here."""
    shape = tuple(parameter.shape)
    replica = None if copies is None else copies.number(parameter)
    if not is_sharded(parameter):
        return Part((0,) * len(shape), shape, replica)
    tensor: Any = parameter
    here, offset = compute_local_shape_and_global_offset(shape, tensor.device_mesh, tensor.placements)
    part = Part(tuple(offset), tuple(here), replica)
    if not part.is_empty and tuple(local(parameter).shape) != part.shape:
        raise Error(
            Status.ERROR_UNSUPPORTED,
            f"parameter: the local part {tuple(local(parameter).shape)} of {shape} is not where {tensor.placements} "
            "say; such placements are not measured",
        )
    return part


class Copies:
    """Which of several equal copies of a parameter this process has, so that each counts once.

    There is a copy for each place along the dimensions of its mesh that replicate it (HSDP), along those dimensions of
    the model's other meshes that it is not on (a norm beside tensor-parallel matrices), and for each process of
    `outer`.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], outer: tuple[int, int] | None) -> None:
        """`outer`: rank and size of the group of processes that have copies of the whole model."""
        self._outer = outer
        self._dimensions: dict[Any, tuple[int, int]] = {}
        for parameter in parameters:
            if is_sharded(parameter):
                mesh = parameter.device_mesh  # type: ignore[attr-defined]
                here = zip(_dimensions(mesh), mesh.get_coordinate(), mesh.shape, strict=True)
                self._dimensions |= {key: (coordinate, size) for key, coordinate, size in here}

    def number(self, parameter: torch.Tensor) -> int | None:
        """None: there is one only."""
        cut = set()
        if is_sharded(parameter):
            tensor: Any = parameter
            keys = _dimensions(tensor.device_mesh)
            cut = {key for key, place in zip(keys, tensor.placements, strict=True) if not isinstance(place, Replicate)}
        places = [place for key, place in self._dimensions.items() if key not in cut]
        number, copies = 0, 1
        for coordinate, size in [*places, self._outer] if self._outer else places:
            number, copies = number * size + coordinate, copies * size
        return number if copies > 1 else None


def _dimensions(mesh: Any) -> list[Any]:
    """What tells the dimensions of meshes apart: their names, or which ranks they are of."""
    return list(mesh.mesh_dim_names or ((str(mesh.mesh.tolist()), number) for number in range(mesh.ndim)))


def process_rank() -> tuple[int, int] | None:
    """Rank and number of processes; None outside torch.distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return None
