"""DDP, FSDP2, HSDP and tensor parallelism with gloo: sums over ranks are those of one process."""

import copy
import json
import math
from pathlib import Path

import forgetscope
import numpy as np
import pandas
import pytest
import torch
import torch.distributed as dist
from conftest import RULES, Tiny, batches, loss_of, spawn
from forgetscope.torch.sharding import Copies, part_of
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

STEPS = 3


def model_of() -> Tiny:
    torch.manual_seed(7)
    # 15 rows of vocabulary: no number of ranks divides them.
    return Tiny(vocabulary=15).eval()


def data_of(seed: int) -> list[torch.Tensor]:
    return batches(STEPS, seed, sequences=8, vocabulary=15)


def two_tasks(model: nn.Module, part: slice, **options) -> Path:
    """Two tasks in sequence on this rank's part of the data."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scope = forgetscope.attach(model, optimizer, every=1, rules=RULES, **options)
    for seed, task in enumerate(("a", "b")):
        with scope.task(task):
            for tokens in data_of(seed):
                loss_of(model, tokens[part]).backward()
                optimizer.step()
                optimizer.zero_grad()
                scope.flush()
            scope.reference(task, [tokens[part] for tokens in data_of(10 + seed)], loss_of, examples=8)
            scope.probe("a", batches(1, 20, sequences=16, vocabulary=15))
    scope.close()
    return scope.ring_path


def additive(paths: list[Path], kind: str, columns: list[str]) -> pandas.DataFrame:
    """Sums over ranks of what a kind of record adds up, of everything it is about."""
    frames = []
    for path in paths:
        reader = forgetscope.Reader(path)
        assert reader.frame("fault").empty
        frames.append(reader.frame(kind))
    about = ["step", "level", "reference", "tensor", "layer", "expert", "head", "role"]
    rows = pandas.concat(frames)
    for column in about:
        rows[column] = [str(value) for value in rows[column]]
    return rows.groupby(about)[columns].sum().sort_index()


SUMS = {
    "gradient": ["squares", "elements"],
    "interference": ["dot", "squares", "reference_squares"],
    "drift": ["drift", "snapshot", "elements"],
    "update": ["updates", "weights", "elements"],
}


def check_same(paths: list[Path], single: Path) -> None:
    for kind, columns in SUMS.items():
        # Per tensor, head and model; a slice that lies on several ranks comes once from each.
        found, expected = additive(paths, kind, columns), additive([single], kind, columns)
        assert found.index.equals(expected.index), kind
        assert len(expected) > 50
        for column in columns:
            assert np.isfinite(expected[column]).all()
            scale = expected[column].abs() + 1e-4 * expected[column].abs().max()
            assert ((found[column] - expected[column]).abs() / scale).max() < 1e-3, (kind, column)


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    """The same training in one process."""
    directory = tmp_path_factory.mktemp("single")
    return two_tasks(model_of(), slice(None), ring_path=directory / "ring")


def rings(directory: Path) -> list[Path]:
    return [run.path for run in sorted(forgetscope.runs(directory), key=lambda run: run.rank)]


def ddp(rank: int, directory: Path) -> None:
    model = nn.parallel.DistributedDataParallel(model_of(), gradient_as_bucket_view=True, bucket_cap_mb=0.002)
    two_tasks(model, slice(4 * rank, 4 * rank + 4))
    plain = nn.parallel.DistributedDataParallel(model_of(), gradient_as_bucket_view=True, bucket_cap_mb=0.002)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for seed in range(2):
        for tokens in data_of(seed):
            loss_of(plain, tokens[4 * rank : 4 * rank + 4]).backward()
            optimizer.step()
            optimizer.zero_grad()
    # References and probes are beside training: the same bits with and without.
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_ddp_counts_its_copies_once(tmp_path, single):
    spawn(ddp, 2, tmp_path)
    first, second = rings(tmp_path)
    check_same([first], single)
    check_same([first, second], single)
    assert forgetscope.Reader(second).frame("gradient").empty
    assert (
        len(forgetscope.Reader(first).frame("representation"))
        and forgetscope.Reader(second).frame("representation").empty
    )
    assert [run.world for run in forgetscope.runs(tmp_path)] == [2, 2]


def losses_beside(look, rank: int, **options) -> list[float]:
    """Training in which `look` comes between gradients that wait for their step, and a forward pass that waits."""
    model = nn.parallel.DistributedDataParallel(model_of(), **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scope = forgetscope.attach(model, optimizer, every=1, rules=RULES) if look is not None else None
    found = []
    part = slice(4 * rank, 4 * rank + 4)
    for number, tokens in enumerate(data_of(0) + data_of(1)):
        loss = loss_of(model, tokens[part])
        # Twice before the backward pass of this batch, while the gradient of the one before waits for its step.
        if scope is not None and number % 2:
            look(scope, [tokens[part] for tokens in data_of(10 + rank)])
        loss.backward()
        found.append(loss.item())
        # Evaluation with gradients, and without a backward pass: the reducer expects one.
        loss_of(model, data_of(2)[0][part])
        if scope is not None:
            look(scope, [tokens[part] for tokens in data_of(20 + rank)])
        if number % 2:
            optimizer.step()
            optimizer.zero_grad(set_to_none=number < 3)
    if scope is not None:
        scope.close()
    return found


def beside(rank: int, directory: Path) -> None:
    looks = (
        lambda scope, data: scope.reference("a", data, loss_of),
        lambda scope, data: scope.probe("a", batches(1, 20, sequences=16, vocabulary=15)),
        lambda scope, data: scope.curvature("a", data[0], loss_of, lanczos_steps=2, trace_vectors=1),
    )
    for options in ({"gradient_as_bucket_view": True}, {"find_unused_parameters": True}):
        alone = losses_beside(None, rank, **options)
        for number, look in enumerate(looks):
            assert losses_beside(look, rank, **options) == alone, (options, number)


def test_ddp_reduces_the_gradients_of_training_only(tmp_path):
    """Its hooks wait for a backward pass of training, and its buckets are the gradients of training."""
    spawn(beside, 2, tmp_path)


def first_version(rank: int, directory: Path) -> None:
    for shows_views in (False, True):
        model = FullyShardedDataParallel(model_of(), use_orig_params=shows_views, device_id=torch.device("cpu"))
        for wrapped in (model, nn.ModuleDict({"inner": model})):
            with pytest.raises(forgetscope.Error, match="FullyShardedDataParallel of the first version"):
                forgetscope.attach(wrapped, rules=RULES)


def test_fsdp_of_the_first_version_is_refused(tmp_path):
    spawn(first_version, 1, tmp_path)


def raising(rank: int, directory: Path) -> None:
    """One rank fails; the probe at the end of the task is a collective that the others do not take part in."""
    model = model_of()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    scope = forgetscope.attach(model, every=1, rules=RULES, probes={"a": batches(2, 20, vocabulary=15)})
    if rank:
        with pytest.raises(ZeroDivisionError), scope.task("a"):
            raise ZeroDivisionError
    mine = torch.ones(1)
    dist.all_reduce(mine)
    assert mine.item() == 2
    scope.close()


def test_a_rank_that_fails_makes_no_probe_by_itself(tmp_path):
    spawn(raising, 2, tmp_path)


def uneven(rank: int, directory: Path, sharded: bool) -> None:
    """Ranks that have not as many batches, and a loss that raises on one of them."""
    model = model_of()
    if sharded:
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        scope = forgetscope.attach(model, every=1, rules=RULES)
    else:
        scope = forgetscope.attach(nn.parallel.DistributedDataParallel(model), every=1, rules=RULES)
    data = data_of(10) + data_of(11)
    assert scope.reference("a", iter(data[: 4 - rank]), loss_of) == 3

    def failing():
        yield from data[:2]
        if rank == 1:
            raise ZeroDivisionError

    refused = pytest.raises(ZeroDivisionError) if rank else pytest.raises(forgetscope.Error, match="another rank has")
    with refused:
        scope.reference("b", failing(), loss_of)
    if not sharded:
        calls = []

        def loss(model, tokens):
            calls.append(1 / (2 * (1 - rank) + len(calls) - 1))
            return loss_of(model, tokens)

        with refused:
            scope.reference("c", data, loss)
    # Nothing is left that another collective could be paired with.
    mine = torch.ones(1)
    dist.all_reduce(mine)
    assert mine.item() == 2 and scope.reference("d", data[:2], loss_of) == 2
    scope.close()


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_ranks_with_different_batches_stop_together(tmp_path, sharded):
    spawn(uneven, 2, tmp_path, sharded)


def fsdp(rank: int, directory: Path, world: int, columns: bool) -> None:
    model = model_of()
    mesh = init_device_mesh("cpu", (world,))
    place = (lambda p: Shard(1) if p.ndim == 2 and p.shape[1] % world == 0 else Shard(0)) if columns else None
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, shard_placement_fn=place)
    fully_shard(model, mesh=mesh, shard_placement_fn=place)
    share = 8 // world
    two_tasks(model, slice(share * rank, share * rank + share))


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
def test_fsdp2_adds_up(tmp_path, single, columns):
    """Parameters are cut in rows, unevenly, or in columns."""
    spawn(fsdp, 2, tmp_path, 2, columns)
    check_same(rings(tmp_path), single)


def hsdp_and_tensor_parallel(rank: int, directory: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
    model = model_of()
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    (directory / "hsdp").mkdir(exist_ok=True)
    two_tasks(model, slice(2 * rank, 2 * rank + 2), ring_path=directory / "hsdp" / f"forgetscope-{rank}.ring")
    dist.barrier()
    model = model_of()
    plan = {
        **{f"attn.{name}_proj": ColwiseParallel(output_layouts=Replicate()) for name in "qkv"},
        "attn.o_proj": RowwiseParallel(input_layouts=Replicate()),
        "mlp.0": ColwiseParallel(),
        "mlp.3": RowwiseParallel(),
    }
    for layer in model.layers:
        parallelize_module(layer, mesh["shards"], plan)
        fully_shard(layer, mesh=mesh["replicas"])
    fully_shard(model, mesh=mesh["replicas"])
    (directory / "tp").mkdir(exist_ok=True)
    first = rank // 2
    two_tasks(model, slice(4 * first, 4 * first + 4), ring_path=directory / "tp" / f"forgetscope-{rank}.ring")


def test_meshes_of_two_dimensions_add_up(tmp_path, single):
    """HSDP: replicas of shards. FSDP2 with tensor parallelism: a parameter is cut twice, in one dimension or in two."""
    spawn(hsdp_and_tensor_parallel, 4, tmp_path)
    for kind in ("hsdp", "tp"):
        check_same(rings(tmp_path / kind), single)
    # With tensor parallelism each rank looks at its own heads.
    heads = [forgetscope.Reader(path).frame("head") for path in rings(tmp_path / "tp")]
    assert [sorted(set(frame["head"])) for frame in heads] == [[0, 1], [2, 3], [0, 1], [2, 3]]


def parts(rank: int, directory: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2))
    for shape in ((5, 6), (2, 3), (3, 4, 4), (7,), (1, 5)):
        whole = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
        cuts = [Replicate(), *(Shard(k) for k in range(len(shape)))]
        for placements in ((a, b) for a in cuts for b in cuts):
            tensor = distribute_tensor(whole, mesh, placements)
            part = part_of(tensor, Copies([tensor], None))
            here = tensor.to_local()
            if part.is_empty:
                assert here.numel() == 0
                continue
            try:
                shard = part.shard(shape, "x")
            except forgetscope.Error:
                assert len(shape) == 3 and {p.dim for p in placements} in ({0, 2}, {1, 2})
                continue
            runs, length, step, offset = 1, here.numel(), 0, 0
            if shard is not None:
                runs, offset, step = max(shard.run_count, 1), shard.offset, shard.run_step
                length = shard.run_length or here.numel()
            found = np.concatenate([np.arange(offset + r * step, offset + r * step + length) for r in range(runs)])
            assert found.tolist() == here.flatten().long().tolist(), (shape, placements)
            copies = [p for p in placements if isinstance(p, Replicate)]
            assert (part.replica is None) == (not copies)


def test_every_cut_of_a_tensor_is_where_it_is_said_to_be(tmp_path):
    """The elements of a shard, by their numbers, against what DTensor has."""
    spawn(parts, 4, tmp_path)


def layout(rank: int, directory: Path) -> None:
    model = nn.parallel.DistributedDataParallel(model_of(), bucket_cap_mb=0.004)
    found = forgetscope.layout.from_ddp(model, rules=RULES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = copy.deepcopy(model.module)
    reference = nn.parallel.DistributedDataParallel(plain, bucket_cap_mb=0.004)
    other = torch.optim.SGD(plain.parameters(), lr=0.1)
    for number, tokens in enumerate(data_of(0)):
        if number < 2:
            with pytest.raises(forgetscope.Error, match=f"layout: {number} steps were seen"):
                found.as_dict()
        for one, step in ((model, optimizer), (reference, other)):
            loss_of(one, tokens[4 * rank : 4 * rank + 4]).backward()
            step.step()
            step.zero_grad()
    if rank == 0:
        found.write(directory / "layout.json")
        names = [plain_name for plain_name, _ in plain.named_parameters()]
        logged = reference._get_ddp_logging_data()["rebuilt_per_bucket_param_indices"]
        buckets = [[names[int(number)] for number in bucket.split()] for bucket in logged.split(", ")]
        (directory / "expected.json").write_text(json.dumps(buckets))


def test_the_layout_of_ddp_is_that_of_its_buckets(tmp_path):
    spawn(layout, 2, tmp_path)
    found = json.loads((tmp_path / "layout.json").read_text())
    assert found["version"] == 1 and len(found["buckets"]) > 2
    assert [[tensor["name"] for tensor in bucket["tensors"]] for bucket in found["buckets"]] == json.loads(
        (tmp_path / "expected.json").read_text()
    )
    for bucket in found["buckets"]:
        offset = 0
        for tensor in bucket["tensors"]:
            assert tensor["offset"] == offset and tensor["numel"] == math.prod(tensor["shape"])
            offset += tensor["numel"]
        assert bucket["numel"] == offset
    tensors = {tensor["name"]: tensor for bucket in found["buckets"] for tensor in bucket["tensors"]}
    output = tensors["layers.1.attn.o_proj.weight"]
    assert (output["role"], output["layer"], output["heads"]) == ("o", 1, 4)
    assert (output["head_layout"], output["head_axis"]) == ("separate", "columns")
    with pytest.raises(forgetscope.Error, match="model: a Tiny is no DistributedDataParallel"):
        forgetscope.layout.from_ddp(model_of())
