"""Which keys a query sees: by name where the mask is plain, in full where it is not, unknown where nothing tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .._abi import Mask


def is_unknown(mask: Any, sequences: int, kwargs: Mapping[str, Any]) -> bool:
    """Whether only the attention function itself knows what it leaves out: block masks of flex attention, and sequences
    that are packed into one for flash attention, by their lengths or by positions that begin again."""
    if mask is not None:
        return not isinstance(mask, torch.Tensor)
    if kwargs.get("cu_seq_lens_q") is not None or kwargs.get("cu_seqlens_q") is not None:
        return True
    positions = kwargs.get("position_ids")
    if sequences != 1 or not isinstance(positions, torch.Tensor) or positions.ndim != 2:
        return False
    return bool((positions.diff(dim=-1) != 1).any())


def visible_keys(mask: torch.Tensor | None, queries: int, keys: int) -> torch.Tensor | None:
    """Which keys each query sees, [sequences or 1, heads or 1, queries, keys]; None: the mask says nothing."""
    if mask is None:
        return None
    if mask.ndim == 2:
        # Flash attention: which keys are not padding.
        return None if bool(mask.bool().all()) else mask.bool()[:, None, None, :].expand(-1, 1, queries, keys)
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def plain_mask(
    visible: torch.Tensor | None, causal: bool, window: int, queries: int, keys: int, device: torch.device
) -> Mask | None:
    """The mask by its name; None if it is another one."""
    if visible is None:
        return Mask.CAUSAL if causal and queries > 1 else Mask.NONE
    if bool(visible.all()):
        return Mask.NONE
    behind = torch.arange(queries, device=device)[:, None] - torch.arange(keys, device=device)[None, :]
    expected = (behind >= 0) & (behind < window) if window else behind >= 0
    return Mask.CAUSAL if queries == keys and bool((visible == expected).all()) else None


def probabilities(
    query: torch.Tensor, key: torch.Tensor, visible: torch.Tensor | None, scale: float, softcap: float
) -> torch.Tensor:
    """Of every query over all keys, for masks that have no name."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = query.float() @ key.float().transpose(2, 3) * scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    if visible is not None:
        # A row that sees nothing, as padding does, stays a row of probabilities.
        blind = ~visible.any(-1, keepdim=True)
        logits = logits.masked_fill(~(visible | blind), -torch.inf)
    return logits.softmax(-1)


__all__ = ["is_unknown", "plain_mask", "probabilities", "visible_keys"]
