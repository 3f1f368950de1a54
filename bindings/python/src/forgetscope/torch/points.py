"""Points of a model that a probe looks at; found once, when it is attached."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from .._abi import Role
from .parameters import Measured
from .wrappers import module_paths


@dataclass(frozen=True)
class Points:
    """Layers by their numbers, and what is in them."""

    layers: dict[int, nn.Module]
    outputs: dict[int, tuple[nn.Module, int]]
    """Output projection of a layer's attention, and the number of heads. Of a decoder's layer with cross-attention: of
    its self-attention, which comes first."""
    routers: dict[int, tuple[nn.Module, int]]
    """Router of a layer, and how many experts a token goes to."""
    attentions: dict[nn.MultiheadAttention, int]
    """Layer of each `nn.MultiheadAttention`."""
    owners: dict[nn.Module, int]
    """Layer of every module that is in one: attention functions are called with a module."""

    @classmethod
    def of(cls, model: nn.Module, measured: Iterable[Measured]) -> Points:
        paths = module_paths(model)
        points = cls({}, {}, {}, {}, {})
        for entry in measured:
            if entry.layer is None:
                continue
            if entry.layer_path in paths and entry.layer not in points.layers:
                points.layers[entry.layer] = paths[entry.layer_path][-1]
                points.owners.update(dict.fromkeys(paths[entry.layer_path][-1].modules(), entry.layer))
            # Adapters are modules in the one that they adapt, which may have the adapted one inside.
            owner, is_adapter, _ = entry.name.rpartition(".")[0].partition(".lora_")
            if owner not in paths:
                continue
            module = getattr(paths[owner][-1], "base_layer", paths[owner][-1])
            if entry.role == Role.OUTPUT and entry.heads.heads and len(entry.shape) == 2:
                points.outputs.setdefault(entry.layer, (module, entry.heads.heads))
            if entry.role == Role.ROUTER and len(entry.shape) == 2 and entry.shape[0] > 1 and not is_adapter:
                points.routers.setdefault(entry.layer, (module, _top_k(paths[owner])))
            if isinstance(module, nn.MultiheadAttention):
                points.attentions[module] = entry.layer
        return points


def _top_k(around: list[nn.Module]) -> int:
    for module in reversed(around):
        for source in (module, getattr(module, "config", None)):
            for name in ("top_k", "num_experts_per_tok", "num_selected_experts", "moe_topk"):
                if isinstance(value := getattr(source, name, None), int):
                    return value
    return 1


__all__ = ["Points"]
