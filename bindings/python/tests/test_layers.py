"""Which modules are layers: the items of lists of blocks, wherever in a model these lie."""

import forgetscope
import pytest
import torch
import transformers
from conftest import batches, records_of
from forgetscope.torch import measured_parameters
from test_roles import SMALL
from torch import nn


def paths_of(model: nn.Module) -> list[str]:
    """Paths of the layers, in the order of their numbers."""
    found = {entry.layer: entry.layer_path for entry in measured_parameters(model) if entry.layer is not None}
    assert list(found) == sorted(found) == list(range(len(found)))
    return list(found.values())


class Sentence(nn.Module):
    """As sentence-transformers wraps a model."""

    def __init__(self) -> None:
        super().__init__()
        # Most of a small model is its embeddings.
        self.auto_model = transformers.BertModel(transformers.BertConfig(**SMALL | {"vocab_size": 4096}))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.auto_model(tokens).last_hidden_state


def test_a_backbone_in_a_sequence():
    layers = [f"0.auto_model.encoder.layer.{n}" for n in range(2)]
    for head in (
        [],
        [nn.Identity()],
        [nn.Linear(32, 2)],
        [nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 2))],
    ):
        assert paths_of(nn.Sequential(Sentence(), *head)) == layers
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)
    model = nn.Sequential(nn.Embedding(20, 16), encoder, nn.Linear(16, 20))
    assert paths_of(model) == paths_of(nn.DataParallel(model)) == ["1.layers.0", "1.layers.1"]


def test_blocks_of_stages_are_numbered_one_after_another():
    size = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "image_size": 32, "patch_size": 4, "window_size": 4}
    model = transformers.SwinModel(transformers.SwinConfig(**size))
    assert paths_of(model) == [f"encoder.layers.{stage}.blocks.{n}" for stage in range(2) for n in range(2)]
    between = [entry for entry in measured_parameters(model) if "downsample" in entry.name]
    assert between and all(entry.layer is None for entry in between)
    # The windows that attention sees, and other resolutions, are not the batch's tokens.
    scope = forgetscope.attach(model, rules=[{"match": "embeddings|reduction|bias_table", "role": "other"}])
    images = torch.randn(16, 3, 32, 32)
    with pytest.warns(RuntimeWarning) as said:
        for _ in range(2):
            scope.probe("a", [images], forward=lambda m, x: m(pixel_values=x))
    assert [str(one.message).split(": ")[1] for one in said if "forgetscope" in str(one.message)] == [
        "probes leave out attention of some layers",
        "probes leave out outputs of heads of some layers",
        "probes leave out hidden states of some layers",
    ]
    assert set(records_of(scope, "representation").layer) == {0, 1}
    scope.close()


def test_models_without_names_of_attention():
    resnet = transformers.ResNetConfig(depths=[2, 1], hidden_sizes=[8, 16], embedding_size=8, layer_type="basic")
    assert paths_of(transformers.ResNetModel(resnet)) == [
        f"encoder.stages.{stage}.layers.{n}" for stage, n in ((0, 0), (0, 1), (1, 0))
    ]
    assert paths_of(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))) == ["0", "2"]
    assert paths_of(nn.Linear(4, 4)) == []


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(8, 2)


class Other(Attending):
    pass


def test_layers_that_are_not_all_alike():
    assert paths_of(nn.ModuleDict({"h": nn.ModuleList([Attending(), Other(), Attending()])})) == [
        f"h.{n}" for n in range(3)
    ]
    # What a layer holds in a list is the layer's own.
    parts = nn.ModuleList([nn.Sequential(Attending(), nn.Sequential(nn.Linear(8, 8), nn.ReLU())) for _ in range(2)])
    assert paths_of(parts) == ["0", "1"]
    one = nn.ModuleDict({"heads": nn.ModuleList(Attending() for _ in range(2)), "q_proj": nn.Linear(8, 8)})
    assert paths_of(nn.ModuleList([one])) == ["0"]


def test_a_head_behind_the_layers_is_in_nobodys_way():
    """A classifier in steps puts out one row for each sequence."""

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = transformers.BertModel(transformers.BertConfig(**SMALL))
            self.classifier = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.bert(tokens).pooler_output)

    torch.manual_seed(3)
    model = Classifier()
    rules = [{"match": r"classifier\.\d", "role": "lm_head"}]
    assert paths_of(model) == ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    scope = forgetscope.attach(model, rules=rules, budget_bytes=0)
    for _ in range(2):
        scope.probe("a", batches(2, 5, sequences=16, vocabulary=64))
    assert set(records_of(scope, "representation").layer) == {0, 1} and not records_of(scope, "attention").empty
    scope.close()
    # Who calls one of its steps a layer is told once that it is not of the probe's tokens.
    scope = forgetscope.attach(model, rules=[{"match": r"classifier\.(?P<layer>2)", "role": "lm_head"}, *rules])
    with pytest.warns(RuntimeWarning, match=r"probes leave out hidden states of some layers.*16 sequences of 9"):
        scope.probe("a", batches(2, 5, sequences=16, vocabulary=64))
    scope.close()
