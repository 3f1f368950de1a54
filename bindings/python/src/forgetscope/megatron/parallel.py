"""Where a process stands in Megatron's groups, and which part of a gradient buffer is its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .._library import invalid


@dataclass(frozen=True)
class Parallel:
    """Ranks and sizes of the groups that a parameter's name, heads and number of experts depend on.

    Default: what `megatron.core.parallel_state` says. To be given where groups of one's own are used instead.
    """

    rank: int = 0
    world: int = 1
    tensor: tuple[int, int] = (0, 1)
    """Rank and size, as below."""
    expert_tensor: tuple[int, int] = (0, 1)
    expert: tuple[int, int] = (0, 1)
    is_last_of_several_stages: bool = False

    @classmethod
    def of_megatron(cls) -> Parallel:
        try:
            from megatron.core import parallel_state as state
        except ImportError as error:
            raise invalid("parallel: Megatron-Core is not installed here; say where this process stands") from error

        def of(name: str) -> tuple[int, int]:
            rank = getattr(state, f"get_{name}_rank", None)
            size = getattr(state, f"get_{name}_world_size", None)
            return (rank(), size()) if rank and size else (0, 1)

        stages = state.get_pipeline_model_parallel_world_size()
        return cls(
            rank=torch.distributed.get_rank(),
            world=torch.distributed.get_world_size(),
            tensor=of("tensor_model_parallel"),
            expert_tensor=of("expert_tensor_parallel"),
            expert=of("expert_model_parallel"),
            is_last_of_several_stages=stages > 1 and state.is_pipeline_last_stage(ignore_virtual=True),
        )


@dataclass(frozen=True)
class Ownership:
    """What of a gradient buffer is final on this rank after the reduction, and whether others have the same."""

    is_sharded: bool
    """The distributed optimizer's: a rank has the reduced gradient of its share of each bucket only."""
    share: tuple[int, int]
    """Which share, of how many."""
    copy: int | None
    """Which of several equal copies this rank has; None: there is one."""

    @classmethod
    def of(cls, chunk: Any, buffer: Any) -> Ownership:
        """`buffer` is one of the DistributedDataParallel `chunk`."""
        group = buffer.data_parallel_group
        rank, size = group.rank(), group.size()
        if not buffer.ddp_config.use_distributed_optimizer:
            return cls(False, (0, 1), rank)
        if getattr(buffer.ddp_config, "num_distributed_optimizer_instances", 1) == 1:
            return cls(True, (rank, size), None)
        # The group is that of one instance of the optimizer; the instances have copies.
        instances = getattr(chunk, "inter_dist_opt_group", None)
        if instances is None:
            raise invalid("model: several instances of the distributed optimizer need Megatron-Core 0.13 or later")
        return cls(True, (rank, size), instances.rank())

    def within(self, buffer: Any, start: int, end: int, bucket: int) -> tuple[int, int]:
        """The part of the elements from `start` to `end`, all in one bucket, that is this rank's; empty if none is."""
        if not self.is_sharded:
            return start, end
        share, shares = self.share
        found = buffer.buckets[bucket]
        # Megatron pads buckets to be even.
        length = found.grad_data.numel() // shares
        first = found.offset + share * length
        low, high = max(start, first), min(end, first + length)
        return (low, high) if low < high else (start, start)


__all__ = ["Ownership", "Parallel"]
