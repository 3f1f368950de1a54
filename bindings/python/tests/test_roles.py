"""Role, layer, expert and heads of every parameter of the models that transformers and PyTorch build themselves."""

import logging
from pathlib import Path

import forgetscope
import pytest
import torch
import transformers
from conftest import batches, records_of
from forgetscope import Error, HeadLayout, Role, Rule
from forgetscope.torch import load_rules, measured_parameters
from forgetscope.torch.heads import WHOLE, head_map
from torch import nn

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 32,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}

# What a parameter is called behind its layer → role, and heads/key heads, layout and axis where it is split.
ROWS, COLUMNS = 0, 1
LLAMA = {
    "model.embed_tokens.weight": "embedding",
    "self_attn.q_proj.weight": "query 4/2 separate rows",
    "self_attn.k_proj.weight": "key 4/2 separate rows",
    "self_attn.v_proj.weight": "value 4/2 separate rows",
    "self_attn.o_proj.weight": "output 4/2 separate columns",
    "mlp.gate_proj.weight": "mlp_gate",
    "mlp.up_proj.weight": "mlp_in",
    "mlp.down_proj.weight": "mlp_out",
    "input_layernorm.weight": "norm",
    "post_attention_layernorm.weight": "norm",
    "model.norm.weight": "norm",
    "lm_head.weight": "lm_head",
}
QWEN2 = LLAMA | {
    "self_attn.q_proj.bias": "query 4/2 separate rows",
    "self_attn.k_proj.bias": "key 4/2 separate rows",
    "self_attn.v_proj.bias": "value 4/2 separate rows",
}
QWEN3 = LLAMA | {"self_attn.q_norm.weight": "norm", "self_attn.k_norm.weight": "norm"}
EXPERTS = {name: what for name, what in LLAMA.items() if not name.startswith("mlp.")} | {
    "mlp.gate.weight": "router",
    **{f"mlp.experts.gate_up_proj.{n}": f"mlp_in expert {n}" for n in range(4)},
    **{f"mlp.experts.down_proj.{n}": f"mlp_out expert {n}" for n in range(4)},
}
GPT2 = {
    "transformer.wte.weight": "embedding",
    "transformer.wpe.weight": "position",
    "ln_1.weight": "norm",
    "ln_1.bias": "norm",
    # Conv1D: [in, out].
    "attn.c_attn.weight": "qkv 4/4 concatenated columns",
    "attn.c_attn.bias": "qkv 4/4 concatenated rows",
    "attn.c_proj.weight": "output 4/4 separate rows",
    "attn.c_proj.bias": "bias",
    "ln_2.weight": "norm",
    "ln_2.bias": "norm",
    "mlp.c_fc.weight": "mlp_in",
    "mlp.c_fc.bias": "bias",
    "mlp.c_proj.weight": "mlp_out",
    "mlp.c_proj.bias": "bias",
    "transformer.ln_f.weight": "norm",
    "transformer.ln_f.bias": "norm",
}
BERT = {
    "bert.embeddings.word_embeddings.weight": "embedding",
    "bert.embeddings.position_embeddings.weight": "position",
    "bert.embeddings.token_type_embeddings.weight": "embedding",
    "bert.embeddings.LayerNorm.weight": "norm",
    "bert.embeddings.LayerNorm.bias": "norm",
    "attention.self.query.weight": "query 4/4 separate rows",
    "attention.self.query.bias": "query 4/4 separate rows",
    "attention.self.key.weight": "key 4/4 separate rows",
    "attention.self.key.bias": "key 4/4 separate rows",
    "attention.self.value.weight": "value 4/4 separate rows",
    "attention.self.value.bias": "value 4/4 separate rows",
    "attention.output.dense.weight": "output 4/4 separate columns",
    "attention.output.dense.bias": "bias",
    "attention.output.LayerNorm.weight": "norm",
    "attention.output.LayerNorm.bias": "norm",
    "intermediate.dense.weight": "mlp_in",
    "intermediate.dense.bias": "bias",
    "output.dense.weight": "mlp_out",
    "output.dense.bias": "bias",
    "output.LayerNorm.weight": "norm",
    "output.LayerNorm.bias": "norm",
    "cls.predictions.bias": "bias",
    "cls.predictions.transform.dense.weight": "other",
    "cls.predictions.transform.dense.bias": "bias",
    "cls.predictions.transform.LayerNorm.weight": "norm",
    "cls.predictions.transform.LayerNorm.bias": "norm",
}
NEOX = {
    "gpt_neox.embed_in.weight": "embedding",
    "input_layernorm.weight": "norm",
    "input_layernorm.bias": "norm",
    "post_attention_layernorm.weight": "norm",
    "post_attention_layernorm.bias": "norm",
    "attention.query_key_value.weight": "qkv 4/4 interleaved rows",
    "attention.query_key_value.bias": "qkv 4/4 interleaved rows",
    "attention.dense.weight": "output 4/4 separate columns",
    "attention.dense.bias": "bias",
    "mlp.dense_h_to_4h.weight": "mlp_in",
    "mlp.dense_h_to_4h.bias": "bias",
    "mlp.dense_4h_to_h.weight": "mlp_out",
    "mlp.dense_4h_to_h.bias": "bias",
    "gpt_neox.final_layer_norm.weight": "norm",
    "gpt_neox.final_layer_norm.bias": "norm",
    "lm_head.weight": "lm_head",
}
PHI3 = {name: what for name, what in LLAMA.items() if name.split(".")[1][:2] not in ("q_", "k_", "v_", "ga", "up")} | {
    "self_attn.qkv_proj.weight": "qkv 4/2 concatenated rows",
    "mlp.gate_up_proj.weight": "mlp_in",
}

CAUSAL = {
    "gpt2": (transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32), GPT2),
    "llama": (transformers.LlamaConfig(**GROUPED), LLAMA),
    "mistral": (transformers.MistralConfig(**GROUPED), LLAMA),
    "qwen2": (transformers.Qwen2Config(**GROUPED), QWEN2),
    "qwen3": (transformers.Qwen3Config(**GROUPED, head_dim=16), QWEN3),
    "mixtral": (transformers.MixtralConfig(**GROUPED, num_local_experts=4), EXPERTS),
    "gpt_neox": (transformers.GPTNeoXConfig(**SMALL), NEOX),
    "phi3": (transformers.Phi3Config(**GROUPED, pad_token_id=0), PHI3),
}


def described(entry) -> str:
    words = [entry.role.name.lower()]
    heads = entry.heads
    if heads.layout != HeadLayout.NONE:
        words += [f"{heads.heads}/{heads.kv_heads}", heads.layout.name.lower(), ("rows", "columns")[heads.axis]]
    if entry.expert is not None:
        words += ["expert", str(entry.expert)]
    return " ".join(words)


def check(model: nn.Module, container: str, table: dict[str, str], layers: int) -> None:
    seen = {}
    for entry in measured_parameters(model):
        assert entry.is_known, entry.name
        assert tuple(entry.shape) == tuple(entry.parameter.shape[1:] if entry.is_slice else entry.parameter.shape)
        if entry.name.startswith(f"{container}."):
            number, _, name = entry.name.removeprefix(f"{container}.").partition(".")
            assert entry.layer == int(number), entry.name
        else:
            number, name = "", entry.name
            assert entry.layer is None, entry.name
        seen[number, name] = described(entry)
    # Tied embeddings come once.
    tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
    expected = {name: what for name, what in table.items() if not (tied and name == "lm_head.weight")}
    found = {name: what for (number, name), what in seen.items() if number in ("", "0")}
    assert found == expected
    for number in range(1, layers):
        for (layer, name), what in seen.items():
            assert layer != "0" or seen[str(number), name] == what


@pytest.mark.parametrize("name", CAUSAL)
def test_models_of_transformers(name, caplog):
    caplog.set_level(logging.ERROR)
    config, table = CAUSAL[name]
    model = transformers.AutoModelForCausalLM.from_config(config)
    container = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}.get(name, "model.layers")
    check(model, container, table, 2)
    for wrap in (torch.compile, nn.DataParallel):
        wrapped = measured_parameters(wrap(model))
        assert [entry.name for entry in wrapped] == [entry.name for entry in measured_parameters(model)]


def qkv_of(config) -> str:
    model = transformers.AutoModelForCausalLM.from_config(config)
    (found,) = [
        one for one in measured_parameters(model) if one.role == Role.QKV and one.layer == 0 and len(one.shape) > 1
    ]
    return described(found)


def test_joint_projections_that_lie_otherwise_than_their_names_say():
    gpt = {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 64, "n_positions": 32}
    bigcode, falcon = transformers.GPTBigCodeConfig, transformers.FalconConfig
    assert qkv_of(bigcode(**gpt, multi_query=True)) == "qkv 4/1 interleaved rows"
    assert qkv_of(bigcode(**gpt, multi_query=False)) == "qkv 4/4 interleaved rows"
    few = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
    assert qkv_of(falcon(**few, multi_query=True)) == "qkv 4/1 interleaved rows"
    assert qkv_of(falcon(**few, multi_query=False)) == "qkv 4/4 interleaved rows"
    assert qkv_of(falcon(**few, new_decoder_architecture=True, num_kv_heads=2)) == "qkv 4/2 interleaved rows"
    # Four blocks of queries, values and keys: the library has no word for it.
    assert qkv_of(transformers.CodeGenConfig(**gpt | {"n_ctx": 32, "rotary_dim": 4})) == "qkv"


def test_linear_attention_has_heads_that_the_config_does_not_count():
    config = transformers.Qwen3NextConfig(
        **GROUPED,
        head_dim=8,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=16,
        num_experts=0,
        layer_types=["linear_attention", "full_attention"],
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    found = {entry.name: described(entry) for entry in measured_parameters(model)}
    assert found["model.layers.0.linear_attn.out_proj.weight"] == "output"
    assert found["model.layers.1.self_attn.o_proj.weight"] == "output 4/2 separate columns"


def gradients_of_heads(model: nn.Module, batch: dict[str, torch.Tensor], **axes: int) -> None:
    """What is recorded of each head, against PyTorch. `axes`: ends of parameters' names, and where their heads lie."""
    rules = [{"match": "conv|position|mask_emb|bias|seg_embed|rel_attn.r|layer_[12]", "role": "other"}]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = forgetscope.attach(model, optimizer, every=1, rules=rules)
    model.eval()(**batch)[0].square().sum().backward()
    optimizer.step()
    frame = records_of(scope, "gradient").query("level == 'head'").set_index(["tensor", "head"])
    for end, axis in axes.items():
        (name,) = [name for name, _ in model.named_parameters() if name.endswith(end.replace("__", "."))]
        found = frame.loc[name].sort_index().squares
        heads = model.get_parameter(name).grad.double().movedim(axis, 0).reshape(4, -1)
        # Sums in fp32 of up to 64 terms and in fp64 above: docs/statistics/README.md.
        assert found.tolist() == pytest.approx(heads.square().sum(1).tolist(), rel=1e-5), name
        assert found.nunique() == 4, name
    scope.close()


def test_heads_that_are_a_dimension():
    """XLNet's are [width, heads, head width]."""
    torch.manual_seed(1)
    config = transformers.XLNetConfig(d_model=32, n_layer=1, n_head=4, d_inner=48, vocab_size=64)
    batch = {"input_ids": batches(1, 3, vocabulary=64)[0]}
    gradients_of_heads(transformers.XLNetModel(config), batch, rel_attn__q=1, rel_attn__v=1, rel_attn__o=1)
    shape = head_map(Role.QUERY, HeadLayout.AUTO, (4, 32, 8), 4, 4, False)
    assert (shape.heads, shape.axis) == (4, 0)
    for shape in ((32, 32, 8), (4, 4, 8), (32, 3, 3)):
        assert head_map(Role.QUERY, HeadLayout.AUTO, shape, 4, 4, False) is WHOLE


def test_encoder_and_decoder_have_heads_of_their_own():
    torch.manual_seed(1)
    small = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 48))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 4}
    config = transformers.WhisperConfig(
        vocab_size=64, num_mel_bins=8, d_model=32, pad_token_id=0, max_source_positions=8, **small, **heads
    )
    model = transformers.WhisperForConditionalGeneration(config)
    found = {entry.name: described(entry) for entry in measured_parameters(model)}
    assert found["model.encoder.layers.0.self_attn.k_proj.weight"] == "key 2/2 separate rows"
    assert found["model.decoder.layers.0.self_attn.k_proj.weight"] == "key 4/4 separate rows"
    batch = {"input_features": torch.randn(4, 8, 16), "decoder_input_ids": batches(1, 3, vocabulary=64)[0]}
    names = {f"decoder__layers__0__self_attn__{name}_proj__weight": 0 for name in "qkv"}
    gradients_of_heads(model, batch, **names, decoder__layers__0__self_attn__out_proj__weight=1)


def test_the_joint_projection_of_cross_attention_has_no_queries():
    config = transformers.GPT2Config(
        n_embd=48, n_layer=1, n_head=4, vocab_size=64, n_positions=32, add_cross_attention=True
    )
    found = {entry.name: described(entry) for entry in measured_parameters(transformers.GPT2LMHeadModel(config))}
    assert found["transformer.h.0.attn.c_attn.weight"] == "qkv 4/4 concatenated columns"
    # 96 columns could be cut into twelve bands, which are no heads.
    assert found["transformer.h.0.crossattention.c_attn.weight"] == "qkv"
    assert found["transformer.h.0.crossattention.q_attn.weight"] == "query 4/4 separate columns"


def test_names_that_wrappers_would_have():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.module = nn.Linear(3, 2)

    model = nn.ModuleDict({"a": Named()})
    names = [entry.name for entry in measured_parameters(model)]
    assert names == ["a.weight", "a.module.weight", "a.bias"]
    assert [entry.name for entry in measured_parameters(nn.DataParallel(model))] == names
    assert [entry.shape for entry in measured_parameters(model)] == [(3,), (2, 3), (2,)]


def test_bert():
    config = transformers.BertConfig(**SMALL)
    check(transformers.AutoModelForMaskedLM.from_config(config), "bert.encoder.layer", BERT, 2)
    pooled = measured_parameters(transformers.BertModel(config))
    assert {entry.name: described(entry) for entry in pooled if "pooler" in entry.name} == {
        "pooler.dense.weight": "other",
        "pooler.dense.bias": "bias",
    }


def test_experts_that_are_modules_of_their_own():
    """The naming of transformers below 5."""
    model = nn.Module()
    model.config = transformers.MixtralConfig(**GROUPED)
    layer = nn.Module()
    layer.block_sparse_moe = nn.Module()
    layer.block_sparse_moe.gate = nn.Linear(32, 4, bias=False)
    experts = [nn.ModuleDict({name: nn.Linear(8, 8, bias=False) for name in ("w1", "w2", "w3")}) for _ in range(4)]
    layer.block_sparse_moe.experts = nn.ModuleList(experts)
    model.layers = nn.ModuleList([layer])
    moe = "block_sparse_moe"
    table = {f"{moe}.gate.weight": "router"}
    for n in range(4):
        for name, role in (("w1", "mlp_gate"), ("w2", "mlp_out"), ("w3", "mlp_in")):
            table[f"{moe}.experts.{n}.{name}.weight"] = f"{role} expert {n}"
    check(model, "layers", table, 1)


def test_layers_of_pytorch():
    table = {
        "self_attn.in_proj_weight": "qkv 4/4 concatenated rows",
        "self_attn.in_proj_bias": "qkv 4/4 concatenated rows",
        "self_attn.out_proj.weight": "output 4/4 separate columns",
        "self_attn.out_proj.bias": "bias",
        "linear1.weight": "mlp_in",
        "linear1.bias": "bias",
        "linear2.weight": "mlp_out",
        "linear2.bias": "bias",
        "norm1.weight": "norm",
        "norm1.bias": "norm",
        "norm2.weight": "norm",
        "norm2.bias": "norm",
    }
    check(nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48, batch_first=True), 2), "layers", table, 2)
    separate = measured_parameters(nn.MultiheadAttention(32, 4, kdim=16, vdim=8))
    assert {entry.name: described(entry) for entry in separate if entry.name.endswith("proj_weight")} == {
        "q_proj_weight": "query 4/4 separate rows",
        "k_proj_weight": "key 4/4 separate rows",
        "v_proj_weight": "value 4/4 separate rows",
    }


def test_encoder_and_decoder_have_layers_of_their_own():
    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4, vocab_size=64
    )
    found = {entry.name: entry for entry in measured_parameters(transformers.T5ForConditionalGeneration(config))}
    assert all(entry.is_known for entry in found.values())
    assert found["encoder.block.1.layer.0.SelfAttention.q.weight"].layer == 1
    cross = found["decoder.block.1.layer.1.EncDecAttention.o.weight"]
    assert (cross.layer, described(cross)) == (3, "output 4/4 separate columns")
    assert described(found["decoder.block.0.layer.2.DenseReluDense.wo.weight"]) == "mlp_out"


def test_adapters_keep_the_role_and_the_side_of_the_heads():
    """Named as PEFT names them: A is [rank, in], B is [out, rank]."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED))
    for name, module in list(model.named_modules()):
        if name.endswith(("q_proj", "o_proj")):
            module.weight.requires_grad_(False)
            module.lora_A = nn.ModuleDict({"default": nn.Linear(32, 2, bias=False)})
            module.lora_B = nn.ModuleDict({"default": nn.Linear(2, 32, bias=False)})
    found = {entry.name: described(entry) for entry in measured_parameters(model) if ".layers.0." in entry.name}
    path = "model.layers.0.self_attn"
    assert f"{path}.q_proj.weight" not in found  # frozen: nothing changes
    assert found[f"{path}.q_proj.lora_A.default.weight"] == "query"
    assert found[f"{path}.q_proj.lora_B.default.weight"] == "query 4/2 separate rows"
    assert found[f"{path}.o_proj.lora_A.default.weight"] == "output 4/2 separate columns"
    assert found[f"{path}.o_proj.lora_B.default.weight"] == "output"


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.ModuleList(
            nn.ModuleDict({"mixer": nn.Linear(16, 32), "other": nn.Linear(16, 16)}) for _ in range(2)
        )


def test_rules_come_first(tmp_path: Path):
    assert not any(entry.is_known for entry in measured_parameters(Odd()) if entry.name.endswith("weight"))
    path = tmp_path / "rules.toml"
    path.write_text(
        r"""
        [[tensor]]
        match = 'stack\.(?P<layer>\d+)\.mixer\.(weight|bias)$'
        role = "qkv"
        heads = 2
        kv_heads = 1
        layout = "interleaved"

        [[tensor]]
        match = 'other\.weight'
        role = "o"
        heads = 4
        axis = 0

        [[tensor]]
        match = 'other\.bias'
        role = "q"
        heads = 0
        """
    )
    found = {entry.name: entry for entry in measured_parameters(Odd(), load_rules(path))}
    assert {name.removeprefix("stack.1."): described(entry) for name, entry in found.items() if "1" in name} == {
        "mixer.weight": "qkv 2/1 interleaved rows",
        "mixer.bias": "qkv 2/1 interleaved rows",
        "other.weight": "output 4/4 separate rows",
        "other.bias": "query",
    }
    assert {entry.layer for entry in found.values()} == {0, 1}
    assert load_rules([{"match": "x", "role": "q"}]) == [Rule("x", Role.QUERY)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[tensor]]\nmatch = 'a'\nrole = 'quary'", "role: 'quary' is none of other"),
        ("[[tensor]]\nmatch = '('\nrole = 'q'", r"match: '\(' is no regular expression"),
        ("[[tensor]]\nrole = 'q'", r"\[\[tensor\]\] 1: 'match' is missing"),
        ("[[tensor]]\nmatch = 'a'\nrole = 'q'\nhead = 1", "there is no key 'head'"),
        ("[[tensors]]\n", "'tensors'; rules are tables"),
        ("", "rules.toml has none; rules are tables"),
        ("tensor = 3\n", "rules.toml has none; rules are tables"),
        ("tensor = [3]\n", "3 is no table with match and role"),
        ("[[tensor]]\nmatch = 3\nrole = 'q'\n", "match: 3 is no text"),
        ("[[tensor]]\nmatch = 'x'\nrole = 'q'\nheads = '16'\n", "heads: '16' is no whole number"),
        ("[[tensor]]\nmatch = 'x'\nrole = 'q'\nheads = -2\n", "heads: -2 is not"),
        ("tensor", "is no TOML"),
        ("[[tensor]]\nmatch = 'mixer.weight'\nrole = 'q'\nheads = 5", "cannot be split evenly into 5 heads"),
        ("[[tensor]]\nmatch = 'a'\nrole = 'q'\naxis = 2", "axis: 2"),
    ],
)
def test_wrong_rules_are_errors_that_say_where(tmp_path: Path, text: str, sentence: str):
    path = tmp_path / "rules.toml"
    path.write_text(text)
    with pytest.raises(Error, match=sentence):
        measured_parameters(Odd(), load_rules(path))


def test_models_that_have_nothing_to_measure():
    with pytest.raises(Error, match="it has no parameters"):
        measured_parameters(nn.ReLU())
    with pytest.raises(Error, match="none of its parameters is trainable"):
        measured_parameters(nn.Linear(2, 2).requires_grad_(False))
