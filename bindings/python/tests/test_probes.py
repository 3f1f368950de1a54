"""Probes: what hooks take from a model is what the model itself returns, and training does not notice."""

import copy
import logging
import random

import forgetscope
import numpy as np
import pytest
import torch
import transformers
from conftest import RULES, batches, loss_of, records_of
from forgetscope import Scope
from test_roles import GROUPED, SMALL
from torch import nn

MODELS = {
    "gpt2": transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32),
    "llama": transformers.LlamaConfig(**GROUPED),
    "qwen3": transformers.Qwen3Config(**GROUPED, head_dim=16),
    "gemma2": transformers.Gemma2Config(**GROUPED, head_dim=8, sliding_window=5, query_pre_attn_scalar=8),
    "mixtral": transformers.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "bert": transformers.BertConfig(**SMALL),
}


def model_of(name: str, implementation: str) -> nn.Module:
    logging.disable(logging.WARNING)
    config = copy.deepcopy(MODELS[name])
    config._attn_implementation = implementation
    torch.manual_seed(5)
    kind = transformers.AutoModelForMaskedLM if name == "bert" else transformers.AutoModelForCausalLM
    model = kind.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # As they are initialised, all heads attend alike.
            parameter += 0.3 * torch.randn_like(parameter)
    return model.train()


def probe_batches(padded: bool = False) -> list[dict[str, torch.Tensor]]:
    found = []
    for tokens in batches(2, 11, sequences=16, length=12, vocabulary=64):
        mask = torch.ones_like(tokens)
        if padded:
            mask[::2, 9:] = 0
        found.append({"input_ids": tokens, "attention_mask": mask} if padded else {"input_ids": tokens})
    return found


def moved(model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))


def passes(name: str, implementation: str, padded: bool):
    """Two passes at different weights, by `TorchScope.probe` and by hand from what an eager model returns."""
    model, eager = model_of(name, implementation), model_of(name, "eager")
    attached = forgetscope.attach(model, budget_bytes=0)
    hand = Scope()
    for _ in range(2):
        attached.probe("a", probe_batches(padded))
        with hand.probe("a") as probe, torch.no_grad():
            for batch in probe_batches(padded):
                output = eager.eval()(**batch, output_hidden_states=True, output_attentions=True)
                probe.batch(16, 12)
                # The last of the hidden states is behind the final normalisation.
                probe.hidden(0, output.hidden_states[1])
                for layer, probabilities in enumerate(output.attentions):
                    mask = "none" if name == "bert" else "causal"
                    kinds = getattr(eager.config, "layer_types", None) or ["full_attention"] * 2
                    window = eager.config.sliding_window if kinds[layer] == "sliding_attention" else 0
                    probe.attention(layer, probabilities=probabilities.contiguous(), mask=mask, window=window)
        for one in (model, eager):
            moved(one)
    return attached, hand


CASES = [(name, kind) for name in MODELS for kind in ("sdpa", "eager") if (name, kind) != ("gemma2", "sdpa")]


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_what_is_taken_is_what_the_model_returns(name, implementation, padded):
    attached, hand = passes(name, implementation, padded)
    found, expected = records_of(attached, "attention"), records_of(hand, "attention")
    assert len(found) == len(expected) == 2 * 2 * 4
    for column in ("entropy", "sink", "divergence"):
        assert found[column].tolist() == pytest.approx(expected[column].tolist(), abs=2e-5, nan_ok=True), column
    assert found.entropy.min() > 0 and found.entropy.nunique() > 8
    found, expected = (records_of(scope, "representation").query("layer == 0") for scope in (attached, hand))
    assert found.cka.tolist() == pytest.approx(expected.cka.tolist(), abs=1e-5, nan_ok=True)
    assert 0.5 < found.cka.iloc[-1] < 0.99999
    assert found.mean_shift.tolist() == pytest.approx(expected.mean_shift.tolist(), rel=1e-3, nan_ok=True)
    attached.close()
    hand.close()


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_contributions_of_heads(name, monkeypatch):
    """‖Δ(o_h W_O)‖ of each head in units of the residual stream, from the inputs of the output projection."""
    monkeypatch.setenv("FGS_PROBE_TOKENS_PER_SEQUENCE", "12")  # all of them
    model = model_of(name, "sdpa")
    scope = forgetscope.attach(model, budget_bytes=0)
    outputs: list[dict[int, torch.Tensor]] = []
    added: list[dict[int, torch.Tensor]] = []
    residual: dict[int, float] = {}

    def watch(layer: int, module: nn.Module) -> None:
        matrix = module.weight.detach().double()
        matrix = (matrix.t() if type(module).__name__ == "Conv1D" else matrix).clone()

        def hook(_, inputs) -> None:
            o = inputs[0].detach().double().view(*inputs[0].shape[:2], 4, -1)
            outputs[-1][layer] = o
            added[-1][layer] = torch.einsum("nthw,dhw->nthd", o, matrix.view(len(matrix), 4, -1))

        hooks.append(module.register_forward_pre_hook(hook))

    def watch_stream(layer: int, module: nn.Module) -> None:
        def hook(_, __, output) -> None:
            states = output[0] if isinstance(output, tuple) else output
            residual.setdefault(layer, float(states.double().norm()))

        hooks.append(module.register_forward_hook(hook))

    for _ in range(2):
        hooks: list = []
        outputs.append({})
        added.append({})
        for layer, (module, _heads) in scope._probing.points.outputs.items():
            watch(layer, module)
        for layer, module in scope._probing.points.layers.items():
            watch_stream(layer, module)
        scope.probe("a", probe_batches()[:1])
        for hook in hooks:
            hook.remove()
        moved(model)
    frame = records_of(scope, "head").set_index(["layer", "head"])
    assert len(frame) == 8 and frame.contribution_change.nunique() == 8
    for layer in range(2):
        for head in range(4):
            row = frame.loc[layer, head]
            then, now = (pass_[layer][:, :, head] for pass_ in added)
            assert row.contribution_change == pytest.approx(float((now - then).norm()) / residual[layer], rel=1e-4)
            then, now = (pass_[layer][:, :, head] for pass_ in outputs)
            cosine = float((now * then).sum() / now.norm() / then.norm())
            assert row.output_cosine == pytest.approx(cosine, abs=1e-5)
    scope.close()


@pytest.mark.parametrize("puts_out", ["logits", "probabilities", "scores"])
def test_routers_of_experts(puts_out, monkeypatch):
    """Against PyTorch, whatever a version of transformers returns from its routers."""
    monkeypatch.setenv("FGS_PROBE_TOKENS_PER_SEQUENCE", "12")  # all of them
    model = model_of("mixtral", "sdpa")
    routers = [layer.mlp.gate for layer in model.model.layers]
    if puts_out != "logits":
        whole = type(routers[0]).forward

        def forward(self, states):
            logits, *rest = whole(self, states)
            return logits.softmax(-1) if puts_out == "probabilities" else logits.sigmoid(), *rest

        monkeypatch.setattr(type(routers[0]), "forward", forward)
    scope = forgetscope.attach(model, budget_bytes=0)
    seen: list[list[torch.Tensor]] = []
    for _ in range(2):
        seen.append([])
        hooks = [
            router.register_forward_pre_hook(
                lambda module, inputs: seen[-1].append(inputs[0].flatten(0, -2).double() @ module.weight.double().t())
            )
            for router in routers
        ]
        scope.probe("a", probe_batches()[:1])
        for hook in hooks:
            hook.remove()
        moved(model)
    frame = records_of(scope, "router")
    assert frame.experts.unique().tolist() == [4] and set(frame.layer) == {0, 1}
    for layer in range(2):
        row = frame.query(f"layer == {layer}").iloc[-1]
        before, now = (logits[layer].log_softmax(-1) for logits in seen)
        between = torch.logaddexp(before, now) - np.log(2)
        halves = [(p.exp() * (p - between)).sum(-1).mean() / 2 for p in (before, now)]
        # Logits are in fp32; a divergence is quadratic in what they differ by.
        assert row.js_divergence == pytest.approx(float(sum(halves)), rel=1e-4) and row.js_divergence > 1e-4
        assert row.divergence == pytest.approx(float((before.exp() * (before - now)).sum(-1).mean()), rel=1e-4)
    # Two of four experts a token: the overlap that chance gives is that of pairs.
    assert row.jaccard_null == pytest.approx((1 / 6) * 1 + (4 / 6) * (1 / 3), abs=0.05)
    scope.close()


def bart() -> nn.Module:
    logging.disable(logging.WARNING)
    torch.manual_seed(5)
    small = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 2), ("ffn_dim", 48))}
    config = transformers.BartConfig(
        vocab_size=64, d_model=32, encoder_attention_heads=2, decoder_attention_heads=4, pad_token_id=0, **small
    )
    model = transformers.BartForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def test_of_a_decoder_it_is_the_attention_to_itself():
    """Attention, and outputs of heads, of one and the same; that to the encoder comes behind it."""
    model = bart()
    model.set_attn_implementation("eager")
    scope = forgetscope.attach(model, budget_bytes=0)
    outputs = scope._probing.points.outputs
    assert [outputs[layer][0] for layer in (2, 3)] == [layer.self_attn.out_proj for layer in model.model.decoder.layers]
    tokens = batches(1, 11, sequences=16, length=12, vocabulary=64)[0]
    batch = {"input_ids": tokens, "decoder_input_ids": tokens.flip(1)}
    with torch.no_grad():
        expected = model.eval()(**batch, output_attentions=True)
    scope.probe("a", [batch])
    with Scope() as hand:
        with hand.probe("a") as probe:
            probe.batch(16, 12)
            for layer, given in enumerate([*expected.encoder_attentions, *expected.decoder_attentions]):
                probe.attention(layer, probabilities=given.contiguous(), mask="none" if layer < 2 else "causal")
        found, by_hand = records_of(scope, "attention"), records_of(hand, "attention")
        assert len(found) == len(by_hand) == 2 * 2 + 2 * 4
        assert found.entropy.tolist() == pytest.approx(by_hand.entropy.tolist(), abs=2e-5)
    scope.close()


def test_a_decoder_of_another_length_than_the_encoder_is_left_out():
    scope = forgetscope.attach(bart(), budget_bytes=0)
    source, target = (batches(1, 11, sequences=16, length=n, vocabulary=64)[0] for n in (12, 7))
    with pytest.warns(RuntimeWarning) as said:
        scope.probe("a", [{"input_ids": source, "decoder_input_ids": target}])
    assert len([one for one in said if "probes leave out" in str(one.message)]) == 3
    assert set(records_of(scope, "representation").layer) == {0, 1} == set(records_of(scope, "attention").layer)
    scope.close()


class Adapted(nn.Module):
    """As PEFT wraps a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def test_heads_of_an_adapted_projection_are_those_of_the_projection():
    model = model_of("llama", "sdpa").requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.o_proj = Adapted(layer.self_attn.o_proj)
    scope = forgetscope.attach(model, budget_bytes=0)
    for _ in range(2):
        scope.probe("a", probe_batches())
        moved(model)
    frame = records_of(scope, "head")
    assert len(frame) == 8 and frame.contribution_change.nunique() == 8
    scope.close()


def test_layers_of_pytorch_and_what_they_attend_to():
    for batch_first in (True, False):
        torch.manual_seed(2)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        rows = torch.randn(12, 7, 16) if batch_first else torch.randn(7, 12, 16)
        scope = forgetscope.attach(model, budget_bytes=0)
        expected = model.eval()(rows)
        model.train()
        outputs = []
        scope.probe("a", [rows], forward=lambda m, x, outputs=outputs: outputs.append(m(x)))
        assert torch.allclose(outputs[0], expected, atol=1e-5)
        frame = records_of(scope, "attention")
        assert len(frame) == 8 and (frame.entropy > 0).all() and (frame.entropy <= np.log(7) + 1e-6).all()
        assert len(records_of(scope, "representation")) == 2
        assert torch.backends.mha.get_fastpath_enabled()
        scope.close()


class Calling(nn.Module):
    """Calls attention in every way there is, and uses what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"attn": nn.MultiheadAttention(16, 4)}) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attentions = [layer["attn"] for layer in self.layers]
        y, averaged = attentions[0](x, x, x)
        y, none = attentions[1](y, y, y, None, False)
        assert none is None
        y, of_heads = attentions[2](y, y, value=y, average_attn_weights=False)
        y, again = attentions[3](y, y, y, None, True, None, True)
        assert averaged.shape == again.shape == (len(x[0]), len(x), len(x)) and of_heads.shape[1] == 4
        return y * (averaged + again + of_heads.sum(1)).diagonal(dim1=1, dim2=2).sum()


def test_attention_gives_the_model_what_it_asks_for():
    torch.manual_seed(2)
    model, rows = Calling(), torch.randn(7, 12, 16)
    expected = model(rows)
    scope = forgetscope.attach(model, budget_bytes=0)
    outputs = []
    scope.probe("a", [rows], forward=lambda m, x: outputs.append(m(x)))
    assert torch.allclose(outputs[0], expected, rtol=1e-4)
    frame = records_of(scope, "attention")
    assert len(frame) == 16 and set(frame.layer) == {0, 1, 2, 3} and frame.entropy.nunique() > 8
    assert torch.equal(model(rows), expected)
    scope.close()


def test_what_packed_sequences_attend_to_is_left_out():
    """Two sequences in one: what hooks see of the mask is a plain causal one, or none."""
    from torch.nn.attention.flex_attention import create_block_mask

    tokens = batches(1, 11, sequences=1, length=12, vocabulary=64)[0]
    lengths = torch.tensor([0, 5, 12], dtype=torch.int32)
    block = create_block_mask(lambda b, h, q, k: (q >= k) & ((q < 5) == (k < 5)), 1, None, 12, 12, device="cpu")
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    for implementation, extra in (
        ("flex_attention", {"attention_mask": block}),
        ("sdpa", {"cu_seq_lens_q": lengths, "cu_seq_lens_k": lengths, "max_length_q": 7, "max_length_k": 7}),
        ("flash", {"position_ids": positions}),
    ):
        model = model_of("llama", "sdpa" if implementation == "flash" else implementation)
        if implementation == "flash":
            # As flash attention is called, which needs a GPU.
            from transformers import masking_utils

            mask_function = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS._local_mapping
            mask_function["sdpa"] = lambda *_, **__: None
        scope = forgetscope.attach(model, budget_bytes=0)
        try:
            with pytest.warns(RuntimeWarning, match="attention of probes is not measured: only the") as said:
                scope.probe("a", [{"input_ids": tokens, **extra}])
        finally:
            if implementation == "flash":
                del mask_function["sdpa"]
        assert len([one for one in said if "forgetscope" in str(one.message)]) == 1
        assert records_of(scope, "attention").empty and len(records_of(scope, "representation")) == 2, implementation
        scope.close()


def test_a_pass_leaves_no_trace(tiny):
    tiny.layers[0].mlp.eval()  # a module whose mode is its own
    loss_of(tiny, batches(1, 0)[0]).backward()
    gradients = {name: p.grad for name, p in tiny.named_parameters()}
    modes = [module.training for module in tiny.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny.modules()]
    scope = forgetscope.attach(tiny, rules=RULES)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(3)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)

    def noisy():
        for tokens in batches(2, 3, sequences=8):
            yield tokens[torch.randperm(8)]
            random.random(), np.random.rand()

    scope.probe("a", noisy())
    scope.reference("a", noisy(), loss_of)
    with pytest.raises(ZeroDivisionError):
        scope.probe("a", noisy(), forward=lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scope.reference("a", noisy(), lambda *_: 1 / 0)
    assert (random.random(), np.random.rand()) == expected[:2] and torch.equal(torch.rand(3), expected[2])
    assert modes == [module.training for module in tiny.modules()]
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny.modules()]
    assert all(p.grad is gradients[name] for name, p in tiny.named_parameters())
    scope.close()


class Folding(nn.Linear):
    """An adapter that is folded into the weights in evaluation mode, as in loralib."""

    is_folded = False

    def train(self, mode: bool = True):
        if self.is_folded != (not mode):
            with torch.no_grad():
                self.weight += -1.0 if mode else 1.0
            self.is_folded = not mode
        return super().train(mode)


def test_weights_that_depend_on_the_mode_stay(tiny):
    tiny.lm_head = Folding(16, 32, bias=False)
    tiny.train()
    before = tiny.lm_head.weight.detach().clone()
    scope = forgetscope.attach(tiny, rules=RULES)
    modes = []
    for look in (
        lambda: scope.probe("a", batches(2, 5, sequences=16)),
        lambda: scope.reference("a", batches(1, 1), lambda m, x: (modes.append(m.lm_head.training), loss_of(m, x))[1]),
    ):
        look()
        assert torch.equal(tiny.lm_head.weight, before) and not tiny.lm_head.is_folded and tiny.lm_head.training
    assert modes == [False]
    scope.close()


def test_tables_of_attention_functions_are_put_back():
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = {name: ALL_ATTENTION_FUNCTIONS.get(name) for name in [*ALL_ATTENTION_FUNCTIONS, "eager"]}
    scope = forgetscope.attach(model_of("llama", "sdpa"), budget_bytes=0)
    scope.probe("a", probe_batches())
    assert before == {name: ALL_ATTENTION_FUNCTIONS.get(name) for name in [*ALL_ATTENTION_FUNCTIONS, "eager"]}
    scope.close()


def test_probes_are_made_while_training(tiny):
    """Of tasks other than the one in training; that one's base when it ends."""
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
    probes = {"a": batches(2, 5, sequences=16), "b": batches(2, 6, sequences=16)}
    scope = forgetscope.attach(tiny, optimizer, rules=RULES, probes=probes, probe_every=2)
    for task in ("a", "b"):
        with scope.task(task):
            for tokens in batches(4, 0):
                loss_of(tiny, tokens).backward()
                optimizer.step()
                optimizer.zero_grad()
    frame = records_of(scope, "representation").query("layer == 0")
    found = frame[["task", "reference", "step"]].values.tolist()
    assert [entry for entry in found if entry[:2] == ["b", "a"]] == [["b", "a", 5], ["b", "a", 7]]
    assert frame["flags"].str.contains("base").any()
    scope.close()


def test_classes_give_neural_collapse(tiny):
    scope = forgetscope.attach(tiny, rules=RULES)
    for _ in range(2):
        scope.probe("a", batches(2, 5, sequences=16), labels=lambda tokens: tokens[:, 0] % 3)
    assert records_of(scope, "collapse").classes.unique().tolist() == [3]
    scope.close()


def test_a_pass_that_raises_is_no_pass(tiny):
    """Neither a base nor one with fewer batches."""
    scope = forgetscope.attach(tiny, rules=RULES)
    data = batches(3, 5, sequences=16)

    def failing():
        yield data[0]
        raise OSError("disk")

    for task in ("a", "b"):
        with pytest.raises(OSError, match="disk"):
            scope.probe(task, failing())
    for _ in range(2):
        scope.probe("a", data)
    scope.flush()
    found = forgetscope.Reader(scope.ring_path).frame("representation").query("layer == 0")
    assert found.reference.tolist() == ["a", "a"] and found.batches.tolist() == [3, 3]
    assert found.cka.iloc[-1] == pytest.approx(1.0)
    scope.close()


def test_a_reference_is_the_mean_of_its_batches(tiny):
    """Frozen at the task's final weights."""
    scope = forgetscope.attach(tiny, every=1, rules=RULES)
    with scope.task("a"):
        assert scope.reference("a", iter(batches(9, 1)), loss_of, limit=5, examples=lambda tokens: tokens.numel()) == 5
    frame = records_of(scope, "task")
    assert frame.batches.max() == 5
    scope.close()


def test_terms_of_a_loss_are_counted_from_labels():
    from forgetscope.torch.references import terms_of

    labels = torch.tensor([[1, 2, -100, 4], [1, -100, -100, -100]])
    of = transformers
    bart = of.BartConfig(vocab_size=64, d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8)
    bart.decoder_ffn_dim = bart.encoder_attention_heads = bart.decoder_attention_heads = 8
    vit = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 32}
    llava = of.LlavaConfig(
        vision_config=of.CLIPVisionConfig(**vit, patch_size=16, projection_dim=8), text_config=of.LlamaConfig(**GROUPED)
    )
    # Causal models predict from the second token on.
    for model, terms in (
        (of.LlamaForCausalLM(of.LlamaConfig(**GROUPED)), 2),
        (of.GPT2LMHeadModel(MODELS["gpt2"]), 2),
        (of.LlavaForConditionalGeneration(llava), 2),
        (of.BertForMaskedLM(of.BertConfig(**SMALL)), 4),
        (of.BertForTokenClassification(of.BertConfig(**SMALL)), 4),
        (of.BartForConditionalGeneration(bart), 4),
        (nn.Linear(2, 2), 4),
    ):
        assert terms_of(model, {"labels": labels}) == terms, type(model).__name__
        assert terms_of(model, {"labels": torch.tensor([1, 0])}) == 2
        # A regression, or shares of classes.
        assert terms_of(model, {"labels": torch.rand(4, 2)}) == 0 == terms_of(model, labels)
