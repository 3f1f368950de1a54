"""`forgetscope.megatron`, on objects of the shape of Megatron-Core's: flat gradient buffers with their index maps and
padded buckets, the distributed optimizer's shards with fp32 master copies, tensor-parallel parts, experts, pipeline
stages.

Ranks live side by side in one process: each has its own objects and its own scope, and a reduced gradient. What must
hold: sums over ranks are those of one rank that has everything.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import dataclass, field
from typing import Any

import forgetscope
import numpy as np
import pytest
import torch
from conftest import records_of
from forgetscope import megatron
from forgetscope.megatron import Parallel
from torch import nn

WIDTH, HEADS, GROUPS, FFN, VOCABULARY, LAYERS, EXPERTS = 16, 4, 2, 24, 20, 2, 4
HEAD = WIDTH // HEADS
RATE = 0.125
# Sums in fp32 of up to 64 terms and in fp64 above: docs/statistics/README.md.
RELATIVE = 1e-5


@dataclass
class Config:
    num_attention_heads: int = HEADS
    num_query_groups: int = GROUPS
    num_moe_experts: int | None = None
    fp16: bool = False
    finalize_model_grads_func: Any = None


class Layer(nn.Module):
    def __init__(self, number: int, experts: int) -> None:
        super().__init__()
        self.layer_number = number + 1
        self.input_layernorm = nn.LayerNorm(WIDTH)
        self.self_attention = nn.Module()
        self.self_attention.linear_qkv = nn.Linear(WIDTH, WIDTH + 2 * GROUPS * HEAD)
        self.self_attention.linear_proj = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Module()
        if experts:
            self.mlp.router = nn.Linear(WIDTH, experts, bias=False)
            self.mlp.experts = nn.Module()
            self.mlp.experts.local_experts = nn.ModuleList(nn.Linear(WIDTH, FFN, bias=False) for _ in range(experts))
        else:
            self.mlp.linear_fc1, self.mlp.linear_fc2 = nn.Linear(WIDTH, FFN), nn.Linear(FFN, WIDTH)


class Model(nn.Module):
    """A stage: which layers of the model it has, and whether the word embeddings are its input, its output, or both."""

    def __init__(self, layers: range, experts: int = 0, first: bool = True, last: bool = True) -> None:
        super().__init__()
        if first:
            self.embedding = nn.Module()
            self.embedding.word_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(Layer(number, experts) for number in layers)
        if last and not first:
            self.output_layer = nn.Linear(WIDTH, VOCABULARY, bias=False)
            self.output_layer.weight.shared_embedding = True


@dataclass
class Bucket:
    grad_data: torch.Tensor
    offset: int


@dataclass
class DdpConfig:
    use_distributed_optimizer: bool


class Buffer:
    """Parameters in reverse order, cut into buckets that are padded to be even over the data-parallel ranks."""

    def __init__(self, parameters: list[nn.Parameter], ranks: int, distributed: bool) -> None:
        self.ddp_config = DdpConfig(distributed)
        self.param_index_map: dict[nn.Parameter, tuple[int, int, int]] = {}
        self.bounds, position, bucket, begun = [], 0, 0, 0
        for parameter in reversed(parameters):
            self.param_index_map[parameter] = (position, position + parameter.numel(), bucket)
            position += parameter.numel()
            if position - begun > 400:
                position = begun + -(-(position - begun) // (8 * ranks)) * 8 * ranks
                self.bounds.append((begun, position))
                bucket, begun = bucket + 1, position
        if position > begun:
            position = begun + -(-(position - begun) // (8 * ranks)) * 8 * ranks
            self.bounds.append((begun, position))
        self.grad_data = torch.zeros(position)
        self.buckets = [Bucket(self.grad_data[low:high], low) for low, high in self.bounds]
        for parameter, (start, end, _) in self.param_index_map.items():
            parameter.main_grad = self.grad_data[start:end].view(parameter.shape)


class Chunk:
    """Megatron's DistributedDataParallel."""

    def __init__(self, module: nn.Module, config: Config, ranks: int = 1, distributed: bool = False) -> None:
        self.module, self.config = module, config
        parameters = list(module.named_parameters())
        dense = [p for name, p in parameters if "experts" not in name]
        experts = [p for name, p in parameters if "experts" in name]
        self.buffers = [Buffer(dense, ranks, distributed)]
        self.expert_parallel_buffers = [Buffer(experts, ranks, distributed)] if experts else []

    def parts(self) -> list[tuple[Buffer, nn.Parameter, int, int, int]]:
        return [(buffer, parameter, *place) for buffer in self.buffers + self.expert_parallel_buffers
                for parameter, place in buffer.param_index_map.items()]  # fmt: skip


class Optimizer:
    """Plain descent. With `rank` the distributed optimizer: it updates the fp32 master copy of what the rank owns."""

    def __init__(self, chunk: Chunk, rank: int | None = None, ranks: int = 1) -> None:
        self.chunk, self.rank, self.applied = chunk, rank, True
        self.owned: list[tuple[nn.Parameter, int, int]] = []
        for buffer, parameter, start, end, bucket in chunk.parts():
            low, high = start, end
            if rank is not None:
                first, last = buffer.bounds[bucket]
                share = (last - first) // ranks
                low, high = max(start, first + rank * share), min(end, first + (rank + 1) * share)
            if low < high:
                self.owned.append((parameter, low - start, high - start))
                if rank is not None:
                    parameter.main_param = parameter.detach().view(-1)[low - start : high - start].clone()
                    parameter.main_param_sharded = True

    @torch.no_grad()
    def step(self) -> tuple[bool, float | None, int | None]:
        if self.applied:
            for parameter, low, high in self.owned:
                update = RATE * parameter.main_grad.view(-1)[low:high]
                if self.rank is not None:
                    parameter.main_param -= update
                parameter.view(-1)[low:high] -= update
        return self.applied, 1.0, None

    def get_loss_scale(self) -> torch.Tensor:
        return torch.tensor([4.0])


@dataclass
class Rank:
    """One rank: its chunks, optimizer and scope, and from which elements of the whole model its parameters come."""

    parallel: Parallel
    chunk: Chunk
    optimizer: Optimizer
    scope: megatron.MegatronScope
    sources: dict[nn.Parameter, Any] = field(default_factory=dict)


def whole_model(experts: int = 0) -> Model:
    torch.manual_seed(5)
    return Model(range(LAYERS), experts)


def gradients_of(model: Model, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


def start(chunk: Chunk, parallel: Parallel, rank: int | None = None, ranks: int = 1) -> Rank:
    optimizer = Optimizer(chunk, rank, ranks)
    chunk.config.finalize_model_grads_func = lambda model, tokens=None: "finalized"
    scope = megatron.attach([chunk], optimizer, parallel=parallel, every=1, threads=1)
    return Rank(parallel, chunk, optimizer, scope)


def train(rank: Rank, gradient_of: Any, steps: int = 3) -> None:
    """Two tasks. `gradient_of(name, seed)`: the reduced gradient of a parameter of this rank."""
    names = {parameter: name for name, parameter in rank.chunk.module.named_parameters()}

    def backward(seed: int) -> None:
        for _, parameter, *_ in rank.chunk.parts():
            parameter.main_grad.copy_(gradient_of(names[parameter], seed))
        assert rank.chunk.config.finalize_model_grads_func([rank.chunk]) == "finalized"

    for task, name in enumerate(("prose", "code")):
        with rank.scope.task(name):
            for step in range(steps):
                backward(100 * task + step)
                assert rank.optimizer.step() == (True, 1.0, None)
                rank.scope.flush()
            with rank.scope.reference(name, examples=8):
                for batch in range(4):
                    backward(1000 + 100 * task + batch)


def sums(rank: Rank, kind: str, columns: list[str], level: str) -> Any:
    found = records_of(rank.scope, kind)
    return found[found.level == level][["step", "tensor", "layer", "expert", "role", "head", *columns]]


def added(ranks: list[Rank], kind: str, columns: list[str], level: str, by: list[str]) -> Any:
    import pandas

    table = pandas.concat([sums(rank, kind, columns, level) for rank in ranks])
    return table.groupby(["step", *by], dropna=False)[columns].sum()


def check_added(ranks: list[Rank], alone: Rank, by: dict[str, list[str]]) -> None:
    """Sums of every kind and level over ranks are those of one rank."""
    for kind, columns in {
        "gradient": ["squares", "elements"],
        "interference": ["dot", "squares", "reference_squares"],
        "update": ["updates", "weights"],
        "drift": ["drift", "snapshot"],
    }.items():
        for level, keys in by.items():
            expected, found = (added(side, kind, columns, level, keys) for side in ([alone], ranks))
            assert len(expected) > 0 and expected.index.equals(found.index), (kind, level, expected, found)
            # Dots are small differences of larger terms: they are held to the size of the norms beside them.
            size = np.abs(expected.to_numpy()).max(axis=0)
            assert (np.abs(found.to_numpy() - expected.to_numpy()) <= RELATIVE * size).all(), (kind, level)


def test_one_rank_is_measured_as_it_is():
    model = whole_model()
    alone = start(Chunk(model, Config()), Parallel())
    train(alone, lambda name, seed: gradients_of(model, seed)[name])
    found = records_of(alone.scope, "gradient")
    for step, seed in ((0, 0), (4, 101)):
        gradients = gradients_of(model, seed)
        tensors = found[(found.level == "tensor") & (found.step == step)].set_index("tensor")
        assert set(tensors.index) == set(gradients)
        for name, gradient in gradients.items():
            assert tensors.squares[name] == pytest.approx(float((gradient.double() ** 2).sum()), rel=RELATIVE)
        # Per group: its query heads, its key head, its value head.
        qkv = gradients["decoder.layers.1.self_attention.linear_qkv.weight"].double()
        per_group = qkv.view(GROUPS, HEADS // GROUPS + 2, HEAD, WIDTH).square().sum((2, 3))
        heads = found[(found.level == "head") & (found.step == step)]
        heads = heads[heads.tensor == "decoder.layers.1.self_attention.linear_qkv.weight"].set_index(["role", "head"])
        for head in range(HEADS):
            group, place = divmod(head, HEADS // GROUPS)
            assert heads.squares["q", head] == pytest.approx(float(per_group[group, place]), rel=RELATIVE)
        for group in range(GROUPS):
            assert heads.squares["v", group] == pytest.approx(float(per_group[group, -1]), rel=RELATIVE)
    assert alone.scope.unclassified == []
    assert alone.scope.step == 6


def test_distributed_optimizer():
    """Every rank owns a part of each bucket, cut anywhere, and its fp32 master copy."""
    model, ranks = whole_model(), 3
    alone = start(Chunk(whole_model(), Config()), Parallel())
    train(alone, lambda name, seed: gradients_of(model, seed)[name])
    shards = []
    for rank in range(ranks):
        chunk = Chunk(whole_model(), Config(), ranks, distributed=True)
        shards.append(start(chunk, Parallel(rank, ranks, data=(rank, ranks)), rank, ranks))
        # What a rank does not own is another rank's, and was not reduced here: it must not be read.
        owned = {(id(p), low, high) for p, low, high in shards[-1].optimizer.owned}

        def local(name: str, seed: int, chunk: Chunk = chunk, owned: set = owned) -> torch.Tensor:
            gradient = torch.full_like(gradients_of(model, seed)[name], float("nan")).view(-1)
            parameter = dict(chunk.module.named_parameters())[name]
            for key, low, high in owned:
                if key == id(parameter):
                    gradient[low:high] = gradients_of(model, seed)[name].view(-1)[low:high]
            return gradient.view(parameter.shape)

        train(shards[-1], local)
    for shard in shards:
        shard.scope.flush()
    check_added(
        shards, alone, {"tensor": ["tensor"], "head": ["tensor", "role", "head"], "role": ["role"], "model": []}
    )


def test_data_parallel_copies_count_once():
    model = whole_model()
    copies = [start(Chunk(whole_model(), Config()), Parallel(rank, 2, data=(rank, 2))) for rank in range(2)]
    alone = start(Chunk(whole_model(), Config()), Parallel())
    for rank in [*copies, alone]:
        train(rank, lambda name, seed: gradients_of(model, seed)[name])
    assert len(sums(copies[1], "gradient", ["squares"], "tensor")) == 0
    check_added(copies, alone, {"tensor": ["tensor"], "model": []})


def split(name: str, value: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """A rank's part under tensor parallelism, and whether it is one."""
    if "linear_proj.weight" in name or "linear_fc2.weight" in name:
        return value.chunk(size, 1)[rank]
    if "linear_qkv" in name or "linear_fc1" in name or "embedding" in name:
        return value.chunk(size, 0)[rank]
    return value


def tensor_parallel(rank: int, size: int) -> Rank:
    model = whole_model()
    for name, parameter in list(model.named_parameters()):
        owner = model.get_submodule(name.rpartition(".")[0])
        part = nn.Parameter(split(name, parameter.detach(), rank, size).clone())
        part.tensor_model_parallel = part.shape != parameter.shape
        setattr(owner, name.rpartition(".")[2], part)
    return start(Chunk(model, Config()), Parallel(rank, size, tensor=(rank, size)))


def test_tensor_parallel_parts_add_up():
    model, size = whole_model(), 2
    alone = start(Chunk(whole_model(), Config()), Parallel())
    train(alone, lambda name, seed: gradients_of(model, seed)[name])
    parts = []
    for rank in range(size):
        parts.append(tensor_parallel(rank, size))
        train(parts[-1], lambda name, seed, rank=rank: split(name, gradients_of(model, seed)[name], rank, size))
    # Heads have the numbers that they have in the whole model.
    check_added(parts, alone, {"head": ["layer", "role", "head"], "role": ["role"], "layer": ["layer"], "model": []})
    names = set(sums(parts[1], "gradient", ["squares"], "tensor").tensor)
    assert "decoder.layers.0.self_attention.linear_proj.weight@tp1" in names
    assert "decoder.layers.0.input_layernorm.weight" not in names, "a copy, measured by rank 0"


def test_pipeline_stages_and_shared_embedding():
    model = whole_model()
    config = [Config(), Config()]
    first = start(Chunk(Model(range(1)), config[0]), Parallel(0, 2))
    last = start(Chunk(Model(range(1, 2), first=False), config[1]), Parallel(1, 2, is_last_of_several_stages=True))
    for rank, layer in ((first, 0), (last, 1)):

        def gradient(name: str, seed: int, layer: int = layer) -> torch.Tensor:
            name = name.replace("layers.0.", f"layers.{layer}.").replace("output_layer", "embedding.word_embeddings")
            return gradients_of(model, seed)[name]

        train(rank, gradient)
    tensors = {name for rank in (first, last) for name in sums(rank, "gradient", ["squares"], "tensor").tensor}
    assert tensors == {name for name, _ in model.named_parameters()}
    assert "embedding.word_embeddings.weight" not in set(sums(last, "gradient", ["squares"], "tensor").tensor)
    assert set(sums(last, "gradient", ["squares"], "layer").layer) == {1}


def test_experts_have_their_number_in_the_whole_model():
    local, ranks = EXPERTS // 2, 2
    found = set()
    for rank in range(ranks):
        torch.manual_seed(5)
        chunk = Chunk(Model(range(1), experts=local), Config(num_moe_experts=EXPERTS))
        # Dense parameters are copies on the ranks of the expert-parallel group; experts are not.
        one = start(chunk, Parallel(rank, ranks, data=(rank, ranks), expert=(rank, ranks)))
        train(one, lambda name, seed, model=chunk.module: gradients_of(model, seed)[name])
        table = sums(one, "gradient", ["squares"], "tensor")
        found |= {(row.tensor, row.expert) for row in table.itertuples() if "experts" in row.tensor}
    assert found == {(f"decoder.layers.0.mlp.experts.local_experts.{n}.weight", n) for n in range(EXPERTS)}


def finalized(model: Any, tokens: Any = None) -> str:
    return "finalized"


def test_hooks_are_taken_out_and_survive_a_trainer_that_sets_its_own():
    chunk = Chunk(whole_model(), Config())
    optimizer = Optimizer(chunk)
    plain = type(chunk.config)
    scope = megatron.attach(chunk, optimizer, parallel=Parallel(), every=1)
    assert chunk.config.finalize_model_grads_func is None
    calls = []
    chunk.config.finalize_model_grads_func = lambda model: calls.append(model)  # as Megatron's train() does
    with scope.task("prose"):
        chunk.config.finalize_model_grads_func("a")
        optimizer.step()
        optimizer.applied = False
        chunk.config.finalize_model_grads_func("b")
        optimizer.step()
    assert calls == ["a", "b"] and scope.step == 2
    steps = records_of(scope, "step").set_index("step")
    assert list(steps.applied) == [1, 0]
    scope.close()
    assert type(chunk.config) is plain
    chunk.config.finalize_model_grads_func("c")
    assert calls == ["a", "b", "c"] and "step" not in vars(optimizer)


def test_what_others_put_around_the_update_stays():
    chunk = Chunk(whole_model(), Config())
    optimizer = Optimizer(chunk)
    scope = megatron.attach(chunk, optimizer, parallel=Parallel(), every=1)
    inner, seen = optimizer.step, []

    def timed():
        seen.append("timed")
        return inner()

    optimizer.step = timed
    scope.close()
    assert optimizer.step() == (True, 1.0, None) and seen == ["timed"] and scope.step == 0


def test_copies_of_the_config_are_plain():
    chunk = Chunk(whole_model(), Config(finalize_model_grads_func=finalized))
    scope = megatron.attach(chunk, Optimizer(chunk), parallel=Parallel(), every=1)
    config = chunk.config
    assert config == config and "finalize_model_grads_func" in repr(config)
    copies = [
        dataclasses.replace(config, num_attention_heads=2),
        copy.copy(config),
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
    ]
    for other in copies:
        assert other.finalize_model_grads_func([chunk]) == "finalized"
        other.finalize_model_grads_func = None
    assert not scope._is_open, "none of them was seen"
    assert [type(other) for other in copies[1:]] == [Config] * 3 and copies[0].num_attention_heads == 2
    assert config.finalize_model_grads_func([chunk]) == "finalized"
    assert type(config) is not Config and scope._is_open
    scope.close()
    assert type(config) is Config and config.finalize_model_grads_func is finalized


def test_an_exception_of_the_optimizer_is_the_one_that_is_seen():
    model = whole_model()
    chunk = Chunk(model, Config())
    optimizer = Optimizer(chunk)
    chunk.config.finalize_model_grads_func = lambda model: None
    scope = megatron.attach(chunk, optimizer, parallel=Parallel(), every=1)
    optimizer.owned, owned = [()], optimizer.owned
    with pytest.raises(ValueError, match="unpack"), scope.task("prose"):
        chunk.config.finalize_model_grads_func(chunk)
        optimizer.step()
    optimizer.owned = owned
    with scope.task("code"):
        chunk.config.finalize_model_grads_func(chunk)
        optimizer.step()
    steps = records_of(scope, "step")
    assert steps.task.tolist() == ["prose", "code"] and steps.applied.tolist() == [0, 1] and scope.step == 2
    scope.close()


def test_fp16_gradients_are_freed_of_the_loss_scale():
    model = whole_model()
    rank = start(Chunk(model, Config(fp16=True)), Parallel())
    train(rank, lambda name, seed: gradients_of(model, seed)[name])
    found = sums(rank, "gradient", ["squares"], "model").set_index("step")
    expected = sum(float((g.double() ** 2).sum()) for g in gradients_of(model, 0).values()) / 16
    assert found.squares[0] == pytest.approx(expected, rel=RELATIVE)


def test_what_cannot_be_measured_is_said():
    with pytest.raises(forgetscope.Error, match="DistributedDataParallel"):
        megatron.attach(nn.Linear(2, 2), None, parallel=Parallel())
    with pytest.raises(forgetscope.Error, match="Megatron-Core is not installed"):
        megatron.attach(Chunk(whole_model(), Config()), None)
    chunk = Chunk(whole_model(), Config(), ranks=2, distributed=True)
    with pytest.raises(forgetscope.Error, match="not even over 7"):
        megatron.attach(chunk, Optimizer(chunk), parallel=Parallel(data=(0, 7)))
