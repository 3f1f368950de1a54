"""Parameters as a rank has them: what they are in the whole model, and which of their elements are this rank's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .._abi import Data, Role, Shard
from .._library import invalid
from .heads import head_map
from .names import is_of_expert, names_and_layers, role_of, with_expert
from .parallel import Ownership, Parallel


def is_chunk(model: Any) -> bool:
    """Whether it is wrapped in Megatron's DistributedDataParallel. Every module of PyTorch has a method `buffers`."""
    return isinstance(getattr(model, "buffers", None), list)


@dataclass(frozen=True)
class Description:
    """What a parameter of this rank is in the whole model."""

    name: str
    role: Role | None
    layer: int | None
    expert: int | None
    heads: dict[str, Any]
    copies: tuple[int, ...]
    """Of each group of ranks that have it alike: which of them this is."""


def descriptions(chunk: Any, config: Any, parallel: Parallel) -> dict[torch.Tensor, Description]:
    """Of every parameter of a chunk."""
    names, layers = names_and_layers(chunk)
    return {
        parameter: _described(name, layers.get(parameter), parameter, config, parallel)
        for parameter, name in names.items()
    }


def _described(name: str, layer: int | None, parameter: torch.Tensor, config: Any, parallel: Parallel) -> Description:
    expert, copies = None, []
    # Not by the buffer: without expert parallelism they are in that of everything else.
    if is_expert := is_of_expert(name):
        name, expert = with_expert(name, int(config.num_moe_experts), parallel.expert)
    if getattr(parameter, "shared_embedding", False) and parallel.is_last_of_several_stages:
        # The first stage has the same weights, and the same gradient after it was reduced.
        name = name.replace("output_layer", "embedding.word_embeddings")
        copies.append(1)
    role = role_of(name)
    rank, size = parallel.expert_tensor if is_expert else parallel.tensor
    is_split = bool(getattr(parameter, "tensor_model_parallel", False)) and size > 1
    if is_split:
        name = f"{name}@tp{rank}"
    elif size > 1:
        copies.append(rank)
    heads = head_map(role, parameter, config, (rank, size) if is_split else (0, 1))
    return Description(name, role, layer, expert, heads, tuple(copies))


@dataclass(frozen=True)
class LocalParameter:
    """A tensor of the catalog, with the flat memory of this rank that is bound to it."""

    described: Description
    shape: tuple[int, ...]
    replica: int | None
    """Not 0: another rank has the same, and measures it. None: only this one has it."""
    shard: Shard | None
    """Where the memory begins in the parameter; None: it is all of it."""
    data: dict[Data, torch.Tensor]
    """The reduced gradient, and the fp32 master copy or else the values; empty: nothing is this rank's."""


def local_parameters(chunk: Any, config: Any, parallel: Parallel) -> Iterator[LocalParameter]:
    """All that Megatron's DistributedDataParallel `chunk` has a gradient of."""
    described = descriptions(chunk, config, parallel)
    for buffer in [*chunk.buffers, *getattr(chunk, "expert_parallel_buffers", [])]:
        owner = Ownership.of(chunk, buffer)
        for parameter, (start, end, bucket) in buffer.param_index_map.items():
            low, high = owner.within(buffer, start, end, bucket)
            one = described[parameter]
            # Ranks with an equal copy: the first of them measures it.
            copies = [*one.copies, *([] if owner.copy is None else [owner.copy])]
            yield LocalParameter(
                described=one,
                shape=tuple(parameter.shape),
                replica=int(any(copies)) if copies else None,
                shard=None if high - low == parameter.numel() else Shard(offset=low - start),
                data=_data(one.name, parameter, buffer.grad_data[low:high], low - start) if low < high else {},
            )


def _data(name: str, parameter: torch.Tensor, gradient: torch.Tensor, offset: int) -> dict[Data, torch.Tensor]:
    """`gradient` begins `offset` elements into the parameter."""
    length = gradient.numel()
    values = parameter.detach().view(-1)[offset : offset + length]
    master = getattr(parameter, "main_param", None)
    if not isinstance(master, torch.Tensor) or master is parameter:
        return {Data.GRAD: gradient, Data.PARAM: values}
    master = master.detach().view(-1)
    if not getattr(parameter, "main_param_sharded", master.numel() != parameter.numel()):
        master = master[offset : offset + length]
    if master.numel() != length:
        raise invalid(f"optimizer: the master copy of {name} has {master.numel()} elements, {length} are owned")
    return {Data.GRAD: gradient, Data.MASTER: master}


__all__ = ["Description", "LocalParameter", "descriptions", "is_chunk", "local_parameters"]
