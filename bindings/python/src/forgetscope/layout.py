"""Layout files: which tensors lie where in the buckets that a data-parallel trainer reduces.

The preload library sees buckets without names; a layout file gives them names, roles and heads.

PyTorch's DistributedDataParallel makes its buckets anew after the first step, so the file is written after two steps or
more of a short run of its own:

    layout = forgetscope.layout.from_ddp(ddp_model)
    ...                                              # two or more steps
    layout.write("layout.json")

It looks through a communication hook, which makes the same mean as DDP does without one, and of which a model can have
only one.

Megatron's has its buckets from the beginning:

    forgetscope.layout.from_megatron(chunk).write(f"layout-{rank}.json")

Ranks of other pipeline stages and other parts of tensors have other layouts; FGS_PRELOAD_LAYOUT names each rank's own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from ._abi import HeadLayout, Status
from ._library import Error, invalid
from .names import ROLE_NAMES
from .torch.parameters import Measured, measured_parameters
from .torch.rules import Rules, load_rules

if TYPE_CHECKING:
    from .megatron.parallel import Parallel


def from_ddp(model: nn.parallel.DistributedDataParallel, *, rules: Rules | None = None) -> DdpLayout:
    """Watches the buckets of a model from now on."""
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        raise invalid(f"model: a {type(model).__name__} is no DistributedDataParallel")
    named: dict[int, list[Measured]] = {}
    for entry in measured_parameters(model, load_rules(rules)):
        named.setdefault(id(entry.parameter), []).append(entry)
    layout = DdpLayout(model.process_group, named)
    model.register_comm_hook(layout, DdpLayout._reduce)
    return layout


@dataclass
class DdpLayout:
    """The buckets of the latest step."""

    _group: distributed.ProcessGroup
    _named: Mapping[int, list[Measured]]
    _steps: int = 0
    _latest: list[list[nn.Parameter]] = field(default_factory=list)
    _coming: list[list[nn.Parameter]] = field(default_factory=list)

    # DistributedDataParallel compares annotations with classes, and these are text.
    @staticmethod
    def _reduce(layout, bucket):  # type: ignore[no-untyped-def]
        layout._coming.append(list(bucket.parameters()))
        if bucket.is_last():
            layout._latest, layout._coming = layout._coming, []
            layout._steps += 1
        return allreduce_hook(layout._group, bucket)

    def as_dict(self) -> dict[str, Any]:
        """The content of the layout file."""
        if self._steps < 2:
            raise Error(
                Status.ERROR_PHASE,
                f"layout: {self._steps} steps were seen; DistributedDataParallel has its final buckets from the second",
            )
        return {"version": 1, "buckets": [self._bucket(parameters) for parameters in self._latest]}

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the layout file."""
        _write(self.as_dict(), path)

    def _bucket(self, parameters: list[nn.Parameter]) -> dict[str, Any]:
        tensors, offset = [], 0
        for parameter in parameters:
            within = offset
            for entry in self._named.get(id(parameter), []):
                tensors.append(_tensor(entry, within))
                within += tensors[-1]["numel"]
            offset += parameter.numel()
        return {"numel": offset, "tensors": tensors}


def from_megatron(chunk: Any, *, parallel: Parallel | None = None, is_of_experts: bool = False) -> MegatronLayout:
    """The buckets of a chunk, a Megatron-Core DistributedDataParallel, in the order in which it reduces them.

    `is_of_experts`: those of the experts instead, which other ranks reduce (FGS_PRELOAD_RANKS tells them apart).
    `parallel`: where this process stands; as Megatron says.
    """
    from .megatron.parallel import Parallel
    from .megatron.parameters import descriptions, is_chunk

    if not is_chunk(chunk):
        raise invalid(f"chunk: a {type(chunk).__name__} is no DistributedDataParallel of Megatron-Core")
    described = descriptions(chunk, chunk.config, Parallel.of_megatron() if parallel is None else parallel)
    buckets = []
    for buffer in chunk.expert_parallel_buffers if is_of_experts else chunk.buffers:
        tensors: list[list[dict[str, Any]]] = [[] for _ in buffer.buckets]
        for parameter, (start, end, number) in buffer.param_index_map.items():
            one = described[parameter]
            tensor: dict[str, Any] = {
                "name": one.name,
                "offset": start - buffer.buckets[number].offset,
                "numel": end - start,
                "shape": list(parameter.shape),
                "role": None if one.role is None else ROLE_NAMES[one.role],
                "layer": one.layer,
                "expert": one.expert,
                **one.heads,
            }
            if one.heads:
                tensor["head_layout"] = one.heads["head_layout"].name.lower()
            tensors[number].append({field: value for field, value in tensor.items() if value is not None})
        for bucket, members in zip(buffer.buckets, tensors, strict=True):
            members.sort(key=lambda tensor: tensor["offset"])
            buckets.append({"numel": bucket.grad_data.numel(), "tensors": members})
    return MegatronLayout({"version": 1, "buckets": buckets})


@dataclass(frozen=True)
class MegatronLayout:
    """The buckets of a chunk."""

    _content: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The content of the layout file."""
        return dict(self._content)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the layout file."""
        _write(self.as_dict(), path)


def _write(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    text = json.dumps(content, indent=1)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text + "\n")


def _tensor(entry: Measured, offset: int) -> dict[str, Any]:
    numel = 1
    for length in entry.shape:
        numel *= length
    tensor: dict[str, Any] = {"name": entry.name, "offset": offset, "numel": numel, "shape": list(entry.shape)}
    tensor["role"] = ROLE_NAMES[entry.role]
    if entry.layer is not None:
        tensor["layer"] = entry.layer
    if entry.expert is not None:
        tensor["expert"] = entry.expert
    if entry.heads.layout != HeadLayout.NONE:
        tensor |= {"heads": entry.heads.heads, "kv_heads": entry.heads.kv_heads}
        tensor |= {"head_layout": entry.heads.layout.name.lower(), "head_axis": ("rows", "columns")[entry.heads.axis]}
    return tensor
