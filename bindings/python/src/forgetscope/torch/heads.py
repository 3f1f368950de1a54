"""Head maps: how many heads a projection has, and along which axis they lie.

The numbers come from the attention module that the projection is in, or from the `config` of that module or of one
around it. A tensor that cannot be cut evenly, or whose heads lie where nothing tells, stays whole rather than being cut
in the wrong places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .._abi import HeadLayout, Role

_HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "nhead", "encoder_attention_heads")
_KEYS = ("k_proj", "k_lin", "key")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv", "num_query_groups")
# Attention modules whose joint projection lies otherwise than its name says.
_JOINT = {
    # Four blocks of queries, values and keys: there is no word for it, so it stays whole.
    "CodeGenAttention": HeadLayout.NONE,
    # With one key head for all there is one group, and either word is right.
    "GPTBigCodeAttention": HeadLayout.INTERLEAVED,
}
_SPLIT = {Role.QUERY, Role.KEY, Role.VALUE, Role.QKV, Role.OUTPUT, Role.GATE}


@dataclass(frozen=True)
class HeadMap:
    """Heads of one tensor, as `Scope.register` takes them."""

    heads: int = 0
    kv_heads: int = 0
    layout: HeadLayout = HeadLayout.NONE
    axis: int = 0


WHOLE = HeadMap()


def _first(source: Any, names: tuple[str, ...]) -> int | None:
    for name in names:
        value = getattr(source, name, None)
        # Some configs have a list, one number for each layer.
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def head_counts(modules: list[nn.Module]) -> tuple[int, int] | None:
    """Query and key/value heads, from the innermost of `modules` (outermost first) that says so."""
    for module in reversed(modules):
        config = getattr(module, "config", None)
        for source in (module, config):
            if source is not None and (heads := _first(source, _HEADS)):
                kv_heads = _first(source, _KV_HEADS)
                if kv_heads is None and source is module:
                    # An attention module that counts its query heads only. Its config may count those of the encoder.
                    kv_heads = _key_heads(module) or _first(config, _KV_HEADS)
                if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
                    kv_heads = 1
                return heads, kv_heads or heads
    return None


def _key_heads(module: nn.Module) -> int | None:
    """As many as fit into the projection of the keys."""
    width = _first(module, ("head_dim",))
    rows = next((rows for name in _KEYS if (rows := _first(getattr(module, name, None), ("out_features",)))), None)
    return rows // width if rows and width and rows % width == 0 else None


def layout_in(modules: list[nn.Module], role: Role, layout: HeadLayout) -> HeadLayout:
    """The layout of a projection, which its name says, as it is in `modules` (outermost first)."""
    if role == Role.QKV and any(getattr(module, "is_cross_attention", False) for module in modules[-2:]):
        # GPT-2's: keys and values only, which there is no word for either.
        return HeadLayout.NONE
    kinds = {type(module).__name__ for module in modules} & _JOINT.keys()
    return _JOINT[kinds.pop()] if kinds and role == Role.QKV else layout


def head_map(
    role: Role, layout: HeadLayout, shape: tuple[int, ...], heads: int, kv_heads: int, is_transposed: bool
) -> HeadMap:
    """The heads of a tensor of `shape`. `is_transposed`: a weight is [in, out], as in transformers' Conv1D."""
    if role not in _SPLIT or heads == 0 or layout == HeadLayout.NONE:
        return WHOLE
    if layout == HeadLayout.AUTO:
        layout = HeadLayout.CONCATENATED if role == Role.QKV else HeadLayout.SEPARATE
    if len(shape) > 2:
        return _with_heads_of_their_own(role, layout, shape, heads, kv_heads)
    axis = int(role == Role.OUTPUT) ^ int(is_transposed) if len(shape) > 1 else 0
    found = HeadMap(heads, kv_heads, layout, axis)
    return found if fits(role, found, shape) else WHOLE


def _with_heads_of_their_own(
    role: Role, layout: HeadLayout, shape: tuple[int, ...], heads: int, kv_heads: int
) -> HeadMap:
    """Heads that are a dimension: the first, or as in XLNet's [width, heads, head width] the second."""
    count = kv_heads if role in (Role.KEY, Role.VALUE) else heads
    axes = [axis for axis in (0, 1) if shape[axis] == count]
    is_told = layout == HeadLayout.SEPARATE and len(axes) == 1
    return HeadMap(heads, kv_heads, layout, axes[0]) if is_told else WHOLE


def fits(role: Role, map_: HeadMap, shape: tuple[int, ...]) -> bool:
    """Whether the axis can be cut into these heads evenly."""
    bands = {
        HeadLayout.SEPARATE: map_.kv_heads if role in (Role.KEY, Role.VALUE) else map_.heads,
        HeadLayout.CONCATENATED: map_.heads + 2 * map_.kv_heads,
        HeadLayout.INTERLEAVED: map_.heads + 2 * map_.kv_heads,
        HeadLayout.INTERLEAVED_GATED: 2 * map_.heads + 2 * map_.kv_heads,
    }[map_.layout]
    rows, columns = shape[0], 1
    for length in shape[1:]:
        columns *= length
    extent = rows if map_.axis == 0 else columns
    return extent % bands == 0 and map_.heads % map_.kv_heads == 0
