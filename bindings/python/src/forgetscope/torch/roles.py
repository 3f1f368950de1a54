"""Roles by name: what a parameter does, from how libraries call their modules.

The table knows transformers' models (GPT-2, GPT-NeoX, GPT-J, OPT, Llama, Mistral, Qwen, Phi, Gemma, Mixtral and other
mixtures of experts, BERT, DistilBERT, ViT, BART, T5, …), `torch.nn.MultiheadAttention` and `nn.Transformer…`, nanoGPT,
and adapters of PEFT. What no name says may still be said by the type of the module: embeddings and normalisations.
"""

from __future__ import annotations

import re

from torch import nn

from .._abi import HeadLayout, Role

_Entry = tuple[re.Pattern[str], Role, HeadLayout]


def _entry(pattern: str, role: Role, layout: HeadLayout = HeadLayout.AUTO) -> _Entry:
    """`pattern` is what a name without its last part (weight, bias) ends with, from the beginning of a part on."""
    return re.compile(rf"(?:^|\.)(?:{pattern})$"), role, layout


_ATTENTION = r"\w*(?:attn|[aA]ttention)\w*(?:\.\w+)?"
_MLP = r"(?:mlp|feed_forward|ffn|moe|block_sparse_moe|experts(?:\.\d+)?|DenseReluDense)"

# The first match decides, so what is special comes first.
_TABLE: tuple[_Entry, ...] = (
    # Normalisations, wherever they are: q_norm and k_norm too, which all heads share.
    _entry(r"\w*[nN]orm\w*|ln_\w+|ln\d*", Role.NORM),
    # Attention, all in one.
    _entry(r"query_key_value|linear_qkv", Role.QKV, HeadLayout.INTERLEAVED),
    _entry(
        r"c_attn|qkv_proj|Wqkv|\w*attn\w*\.(?:qkv|in_proj|to_qkv)|attention\.qkv", Role.QKV, HeadLayout.CONCATENATED
    ),
    # Attention, one by one.
    _entry(rf"q_proj|q_attn|q_lin|query_proj|to_q|wq|linear_q|{_ATTENTION}\.(?:query|q)|self\.query", Role.QUERY),
    _entry(rf"k_proj|k_lin|key_proj|to_k|wk|linear_k|{_ATTENTION}\.(?:key|k)|self\.key", Role.KEY),
    _entry(rf"v_proj|v_lin|value_proj|to_v|wv|linear_v|{_ATTENTION}\.(?:value|v)|self\.value", Role.VALUE),
    _entry(
        rf"o_proj|out_lin|to_out\.0|linear_proj|{_ATTENTION}\.(?:c_proj|out_proj|proj|output\.dense|dense|wo|o)",
        Role.OUTPUT,
    ),
    # Mixtures of experts.
    _entry(rf"{_MLP}\.(?:gate|router|shared_expert_gate)|router(?:\.\w+)?", Role.ROUTER),
    # The MLP. A gate and an input in one tensor count as its input.
    _entry(r"gate_proj|wi_0|w1|gate_linear", Role.MLP_GATE),
    _entry(
        r"up_proj|gate_up_proj|c_fc|fc1|fc_in|wi|wi_1|w3|dense_h_to_4h|intermediate\.dense|linear1|linear_fc1|lin1",
        Role.MLP_IN,
    ),
    _entry(
        rf"down_proj|{_MLP}\.(?:c_proj|wo|proj)|fc2|fc_out|w2|dense_4h_to_h|output\.dense|linear2|linear_fc2|lin2",
        Role.MLP_OUT,
    ),
    # Beginning and end.
    _entry(r"wpe|\w*position\w*|pos_embed\w*|relative_attention_bias", Role.POSITION),
    _entry(r"wte|embed_tokens|embed_in|\w*embedding\w*|shared", Role.EMBEDDING),
    _entry(r"lm_head|embed_out|score|classifier|qa_outputs|seq_relationship|predictions\.decoder", Role.LM_HEAD),
    # Known, and none of these.
    _entry(r"pooler\.dense|predictions(?:\.transform\.dense)?|pre_classifier", Role.OTHER),
)

# Names that end with the parameter itself.
_JOINT = re.compile(r"(?:^|\.)in_proj_(?:weight|bias)$")
_SEPARATE = {"q_proj_weight": Role.QUERY, "k_proj_weight": Role.KEY, "v_proj_weight": Role.VALUE}
_FUSED_EXPERTS = {"gate_up_proj": Role.MLP_IN, "up_proj": Role.MLP_IN, "down_proj": Role.MLP_OUT}

# Roles whose biases are split into heads, or are the thing itself.
_WITH_BIAS = {Role.QUERY, Role.KEY, Role.VALUE, Role.QKV, Role.GATE, Role.NORM}

# Adapters and wrappers sit between the name of a layer and "weight".
_ADAPTER = re.compile(r"\.(?:base_layer|lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)(?:\.\w+)?)(?=\.|$)")


def role_of(name: str, module: nn.Module) -> tuple[Role, HeadLayout] | None:
    """Role and layout of a parameter of `module`; None if nothing says what it is."""
    path, _, last = _ADAPTER.sub("", name).rpartition(".")
    if _JOINT.search(name):
        return Role.QKV, HeadLayout.CONCATENATED
    if last in _SEPARATE:
        return _SEPARATE[last], HeadLayout.AUTO
    stem = last.removesuffix("_bias")
    if path.endswith("experts") and stem in _FUSED_EXPERTS:
        return (_FUSED_EXPERTS[stem] if stem == last else Role.BIAS), HeadLayout.AUTO
    is_bias = last == "bias" or last.startswith("bias_")
    # A parameter that is no weight of a module, such as PEFT's, is called like one.
    where = path if last in ("weight", "bias") else f"{path}.{last}"
    for pattern, role, layout in _TABLE:
        if pattern.search(where):
            return (role if not is_bias or role in _WITH_BIAS else Role.BIAS), layout
    if isinstance(module, nn.Embedding):
        return Role.EMBEDDING, HeadLayout.AUTO
    if "Norm" in type(module).__name__:
        return Role.NORM, HeadLayout.AUTO
    if is_bias and isinstance(module, nn.Linear):
        return Role.BIAS, HeadLayout.AUTO
    return None
