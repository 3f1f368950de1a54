"""Head maps: Megatron keeps queries, keys and values interleaved by query group, and cuts groups over ranks."""

from __future__ import annotations

from typing import Any

import torch

from .._abi import HeadLayout, Role


def head_map(role: Role | None, parameter: torch.Tensor, config: Any, tensor: tuple[int, int]) -> dict[str, Any]:
    """Heads of this rank's part, as `Scope.register` takes them, with their numbers in the whole model.

    `tensor`: rank and size of the group that the parameter is split over. Empty if it cannot be cut evenly.
    """
    if role not in (Role.QKV, Role.QUERY, Role.OUTPUT):
        return {}
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_query_groups", None) or heads)
    rank, size = tensor
    if heads % size or groups % size:
        return {}  # fewer groups than ranks: Megatron gives several ranks the same keys
    here, groups_here = heads // size, groups // size
    gate = role == Role.QKV and bool(getattr(config, "attention_output_gate", False))
    layout = {Role.QKV: HeadLayout.INTERLEAVED_GATED if gate else HeadLayout.INTERLEAVED}.get(role, HeadLayout.SEPARATE)
    bands = here * (2 if gate else 1) + 2 * groups_here if role == Role.QKV else here
    extent = parameter.shape[1] if role == Role.OUTPUT and parameter.ndim > 1 else parameter.shape[0]
    if extent % bands:
        return {}
    return {
        "heads": here,
        "kv_heads": groups_here,
        "head_layout": layout,
        "head_offset": rank * here,
        "kv_head_offset": rank * groups_here,
    }


__all__ = ["head_map"]
