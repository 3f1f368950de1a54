"""`forgetscope.megatron` on Megatron-Core itself, in processes without a GPU (megatron_on_cpu.py).

Training is the same, bit by bit, without and with the instrument. Norms of gradients, and how far the optimizer's own
copies of parameters have moved, are those that Megatron says; and sums over ranks are those of one process that has
everything, however the model is spread.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forgetscope
import numpy as np
import pandas
import pytest
import torch
import torch.distributed as dist
from conftest import records_of, spawn
from forgetscope import layout, megatron
from forgetscope.megatron.names import role_of, with_expert
from forgetscope.megatron.parallel import Parallel
from megatron_on_cpu import STEPS, Job, Layout, train_twice, without_cuda
from torch import nn

# Relative to the norms: the gradient of a process differs from another's by the order of sums in fp32, of at most 64
# terms with 2⁻²⁴ each, in each of the 20 products that a gradient has come through.
RELATIVE = 20 * 64 * 2.0**-24

LAYOUTS = {
    "tensor": Layout(world=2, tensor=2),
    "pipeline": Layout(world=2, pipeline=2),
    "data": Layout(world=2),
    "distributed optimizer": Layout(world=2, is_distributed=True),
    "two distributed optimizers": Layout(world=4, is_distributed=True, instances=2),
    "experts": Layout(world=2, experts=2, is_mixture=True),
    "experts, distributed optimizer": Layout(world=2, experts=2, is_mixture=True, is_distributed=True),
    "bf16, distributed optimizer": Layout(world=2, is_distributed=True, dtype=torch.bfloat16),
    "fp16": Layout(dtype=torch.float16),
}
# In 16 bits a process rounds otherwise than another.
EXACT = [name for name, layout in LAYOUTS.items() if layout.dtype == torch.float32]


@dataclasses.dataclass
class Run:
    """What every rank of a training has left: what Megatron said, and its records."""

    ranks: list[dict[str, Any]]

    def table(self, kind: str) -> pandas.DataFrame:
        return pandas.concat([forgetscope.Reader(rank["ring"]).frame(kind) for rank in self.ranks])

    def sums(self, kind: str, columns: list[str], level: str, by: list[str]) -> pandas.DataFrame:
        """Of what a kind of record adds up, over ranks."""
        table = self.table(kind)
        return table[table.level == level].groupby(["step", *by], dropna=False)[columns].sum()


def train_rank(rank: int, directory: Path, layout: Layout) -> None:
    (directory / f"{rank}.json").write_text(json.dumps(train_twice(layout)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Trains in a layout, each once."""
    runs: dict[Layout, Run] = {}

    def train(layout: Layout) -> Run:
        if layout not in runs:
            directory = tmp_path_factory.mktemp("megatron")
            spawn(train_rank, layout.world, directory, layout)
            runs[layout] = Run([json.loads((directory / f"{rank}.json").read_text()) for rank in range(layout.world)])
        return runs[layout]

    return train


@pytest.mark.parametrize("name", LAYOUTS)
def test_training_is_the_same_and_megatron_says_the_same(trained, name):
    run = trained(LAYOUTS[name])
    for rank in run.ranks:
        assert rank["plain"] == rank["measured"] and rank["unclassified"] == []
        drift = forgetscope.Reader(rank["ring"]).frame("drift")
        drift = drift[drift.level == "model"].drift.tolist()
        if LAYOUTS[name].is_distributed and drift:
            # This rank's share of the master copies, which are fp32 if parameters are not.
            assert drift == pytest.approx(rank["measured"]["drift"], rel=RELATIVE)
    assert run.table("fault").empty
    norms = run.sums("gradient", ["squares"], "model", []).squares ** 0.5
    assert norms.tolist() == pytest.approx(run.ranks[0]["measured"]["norms"], rel=RELATIVE)
    assert run.table("step").step.nunique() == 2 * STEPS


@pytest.mark.parametrize("name", EXACT)
def test_sums_over_ranks_are_those_of_one_process(trained, name):
    layout = LAYOUTS[name]
    run, alone = trained(layout), trained(Layout(is_mixture=layout.is_mixture))
    # With tensor parallelism each rank's part of a matrix is a tensor of its own.
    levels: dict[str, list[str]] = {
        "head": ["layer", "role", "head"],
        "role": ["role"],
        "layer": ["layer"],
        "model": [],
    }
    if layout.tensor == 1:
        levels["tensor"] = ["tensor", "layer", "expert", "role"]
    for kind, columns in {
        "gradient": ["squares", "elements"],
        "interference": ["dot", "squares", "reference_squares"],
        "update": ["updates", "weights"],
        "drift": ["drift", "snapshot"],
    }.items():
        for level, by in levels.items():
            expected, found = (side.sums(kind, columns, level, by) for side in (alone, run))
            assert len(expected) > 0 and expected.index.equals(found.index), (kind, level, expected, found)
            # Dots are small differences of larger terms: they are held to the size of the norms beside them.
            size = np.abs(expected.to_numpy()).max(axis=0)
            # Twice: these are squares.
            assert (np.abs(found - expected).to_numpy() <= 2 * RELATIVE * size).all(), (kind, level, found, expected)


def test_copies_are_measured_once(trained):
    def measured_by(name: str, rank: int) -> set[str]:
        table = forgetscope.Reader(trained(LAYOUTS[name]).ranks[rank]["ring"]).frame("gradient")
        return set(table[table.level == "tensor"].tensor)

    assert measured_by("data", 1) == set()
    assert measured_by("two distributed optimizers", 2) == set() != measured_by("two distributed optimizers", 1)
    second = measured_by("tensor", 1)
    assert "decoder.layers.0.self_attention.linear_proj.weight@tp1" in second
    assert "decoder.layers.0.input_layernorm.weight" not in second
    # The embedding is the first stage's, though the last one has a copy for its output.
    last = measured_by("pipeline", 1)
    assert last and all(name.startswith(("decoder.layers.1.", "decoder.final_layernorm.")) for name in last)
    experts = {name for name in measured_by("experts", 1) if ".experts." in name}
    assert {name.split(".")[6] for name in experts} == {"2", "3"}


def test_heads_are_cut_by_query_group(trained):
    """A group has its query heads, then its key head, then its value head."""
    run = trained(Layout())
    heads = run.table("gradient")
    heads = heads[(heads.level == "head") & heads.tensor.str.endswith("linear_qkv.weight")]
    assert heads.groupby("role")["head"].agg(set).to_dict() == {"q": {0, 1, 2, 3}, "k": {0, 1}, "v": {0, 1}}
    with without_cuda(), one_process():
        job = Job(Layout())
        scope = megatron.attach(job.chunk, job.optimizer, every=1)
        job.backward(0)
        gradient = job.chunk.module.decoder.layers[1].self_attention.linear_qkv.weight.main_grad.double()
        job.optimizer.step()
        found = records_of(scope, "gradient")
        scope.close()
    found = found[(found.level == "head") & (found.tensor == "decoder.layers.1.self_attention.linear_qkv.weight")]
    squares = found.set_index(["role", "head"]).squares
    # Of every group: two query heads, a key head and a value head, of 8 rows each.
    for group, rows in enumerate(gradient.square().view(2, 4, -1).sum(-1)):
        expected = {
            ("q", 2 * group): rows[0],
            ("q", 2 * group + 1): rows[1],
            ("k", group): rows[2],
            ("v", group): rows[3],
        }
        for key, value in expected.items():
            assert squares[key] == pytest.approx(float(value), rel=1e-6)


# What the scope does to a trainer's objects, in this process.


class one_process:
    """A group of this process alone."""

    def __enter__(self) -> None:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def __exit__(self, *_: object) -> None:
        dist.destroy_process_group()


@pytest.fixture
def job() -> Iterator[Job]:
    with without_cuda(), one_process():
        yield Job(Layout())


def finalized(model: Any, tokens: Any = None) -> str:
    return "finalized"


def test_hooks_are_taken_out_and_survive_a_trainer_that_sets_its_own(job):
    plain, calls = type(job.config), []
    job.config.finalize_model_grads_func = None
    scope = megatron.attach(job.chunk, job.optimizer, every=1)
    assert job.config.finalize_model_grads_func is None
    job.config.finalize_model_grads_func = lambda model: calls.append(model)  # as Megatron's train() does
    with scope.task("prose"):
        job.config.finalize_model_grads_func("a")
        job.optimizer.step()
        job.config.finalize_model_grads_func("b")  # whose update never comes
    assert calls == ["a", "b"] and scope.step == 2
    assert records_of(scope, "step").applied.tolist() == [1, 0]
    scope.close()
    assert type(job.config) is plain
    job.config.finalize_model_grads_func("c")
    assert calls == ["a", "b", "c"] and "step" not in vars(job.optimizer)


def test_a_skipped_update_is_said(job, monkeypatch):
    scope = megatron.attach(job.chunk, job.optimizer, every=1)
    job.backward(0)
    for one in job.optimizer.chained_optimizers:
        monkeypatch.setattr(one, "prepare_grads", lambda: True)  # gradients are not finite
    assert job.optimizer.step()[0] is False
    job.backward(1)
    monkeypatch.undo()
    assert job.optimizer.step()[0] is True
    assert records_of(scope, "step").applied.tolist() == [0, 1]
    scope.close()


def test_what_others_put_around_the_update_stays(job):
    scope = megatron.attach(job.chunk, job.optimizer, every=1)
    inner, seen = job.optimizer.step, []

    def timed() -> Any:
        seen.append("timed")
        return inner()

    job.optimizer.step = timed
    scope.close()
    job.backward(0)
    assert job.optimizer.step()[0] is True and seen == ["timed"] and scope.step == 0


def test_copies_of_the_config_are_plain(job):
    plain = type(job.config)
    # The optimizer's and the chunk's, which cannot be copied.
    job.config.grad_scale_func = job.config.no_sync_func = None
    job.config.finalize_model_grads_func = finalized
    scope = megatron.attach(job.chunk, job.optimizer, every=1)
    config = job.config
    assert config == config and "finalize_model_grads_func" in repr(config)
    copies = [
        dataclasses.replace(config, num_layers=4),
        copy.copy(config),
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
    ]
    for other in copies:
        assert other.finalize_model_grads_func([job.chunk]) == "finalized"
        other.finalize_model_grads_func = None
    assert scope.step == 0, "none of them was seen"
    assert [type(other) for other in copies[1:]] == [plain] * 3 and copies[0].num_layers == 4
    assert config.finalize_model_grads_func([job.chunk]) == "finalized"
    job.optimizer.step()
    assert type(config) is not plain and scope.step == 1
    scope.close()
    assert type(config) is plain and config.finalize_model_grads_func is finalized


def test_an_exception_of_the_optimizer_is_the_one_that_is_seen(job, monkeypatch):
    scope = megatron.attach(job.chunk, job.optimizer, every=1)
    monkeypatch.setattr(job.optimizer.chained_optimizers[0], "prepare_grads", lambda: [].pop())
    with pytest.raises(IndexError, match="pop from empty list"), scope.task("prose"):
        job.backward(0)
        job.optimizer.step()
    monkeypatch.undo()
    with scope.task("code"):
        job.backward(1)
        job.optimizer.step()
    steps = records_of(scope, "step")
    assert steps.task.tolist() == ["prose", "code"] and steps.applied.tolist() == [0, 1] and scope.step == 2
    scope.close()


def test_what_cannot_be_measured_is_said(job, monkeypatch):
    for model in (nn.Linear(2, 2), nn.DataParallel(nn.Linear(2, 2))):
        with pytest.raises(forgetscope.Error, match="Megatron's DistributedDataParallel"):
            megatron.attach(model, None, parallel=Parallel())
    with monkeypatch.context() as without, pytest.raises(forgetscope.Error, match="Megatron-Core is not installed"):
        without.setitem(sys.modules, "megatron.core", None)
        megatron.attach(job.chunk, job.optimizer)
    bare = dataclasses.replace(
        job.chunk.ddp_config, use_distributed_optimizer=True, num_distributed_optimizer_instances=2
    )
    monkeypatch.setattr(job.chunk.buffers[0], "ddp_config", bare)
    with pytest.raises(forgetscope.Error, match="several instances of the distributed optimizer"):
        megatron.attach(job.chunk, job.optimizer)


def test_layouts_say_where_gradients_lie_in_buckets(job):
    content = layout.from_megatron(job.chunk).as_dict()
    parameters = {name.removeprefix("module."): p for name, p in job.chunk.module.named_parameters()}
    buckets = [bucket for buffer in job.chunk.buffers for bucket in buffer.buckets]
    assert [bucket["numel"] for bucket in content["buckets"]] == [bucket.grad_data.numel() for bucket in buckets]
    assert len(buckets) > 1
    seen = set()
    for described, bucket in zip(content["buckets"], buckets, strict=True):
        for tensor in described["tensors"]:
            gradient = parameters[tensor["name"]].main_grad
            assert tensor["shape"] == list(gradient.shape) and tensor["numel"] == gradient.numel()
            assert bucket.grad_data[tensor["offset"] :].data_ptr() == gradient.data_ptr()
            seen.add(tensor["name"])
            if tensor["name"].endswith("linear_qkv.weight"):
                assert (tensor["role"], tensor["heads"], tensor["kv_heads"]) == ("qkv", 4, 2)
                assert tensor["head_layout"] == "interleaved"
    assert seen == parameters.keys()
    with pytest.raises(forgetscope.Error, match="chunk: a Linear is no DistributedDataParallel"):
        layout.from_megatron(nn.Linear(2, 2))


def test_names_that_this_model_does_not_have():
    """Of Transformer Engine's layers, which need a GPU."""
    roles = {
        "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight": "NORM",
        "decoder.layers.0.self_attention.q_layernorm.weight": "NORM",
        "decoder.layers.0.mlp.experts.linear_fc1.weight12": "MLP_IN",
        "decoder.layers.0.mlp.experts.linear_fc2.weight0": "MLP_OUT",
        "decoder.layers.0.self_attention.linear_q_up_proj.weight": "QUERY",
        "output_layer.weight": "LM_HEAD",
    }
    assert {name: role_of(name).name for name in roles} == roles
    assert role_of("decoder.layers.0.mixer.A_log") is None
    grouped = "decoder.layers.0.mlp.experts.linear_fc1.weight1"
    assert with_expert(grouped, 8, (2, 4)) == ("decoder.layers.0.mlp.experts.linear_fc1.weight5", 5)
    assert with_expert("decoder.layers.0.mlp.experts.weight1", 8, (2, 4))[0].endswith(".weight1@ep2")
