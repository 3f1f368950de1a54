"""The instrument in Megatron-LM (Megatron-Core), without a change to it.

    import forgetscope.megatron
    scope = forgetscope.megatron.attach(model, optimizer)       # after setup_model_and_optimizer: chunks, optimizer
    with scope.task("legal"):
        train(...)                                              # as ever
    with scope.reference("legal"):                              # weights unchanged; each iteration is one batch
        for _ in range(32):
            zero_gradients(); forward_backward(...)

Gradients are read when `config.finalize_model_grads_func` has reduced them, where they lie: in the flat buffers of
Megatron's DistributedDataParallel. With the distributed optimizer a rank holds the reduced gradient, and the fp32
master copy, of a part of each bucket only: that part is bound as a flat range of its parameter, cut wherever Megatron
cuts. What several ranks hold alike (tensor-parallel replicas, data-parallel copies, shared embeddings of the last
pipeline stage) is measured once.

With tensor parallelism each rank's part of a matrix is a tensor of its own ("…@tp1"), with the numbers that its heads
have in the whole model: sums over ranks are those of the whole matrix, for heads, roles, layers and the model.

Cost: binding once, then the three calls of a step. Clipping happens inside `optimizer.step()`, after the gradients were
read: sizes of gradients are those before clipping, directions and updates are exact. Megatron itself needs a GPU; this
module was tested with objects of the same shape.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ._abi import Data, HeadLayout, Role, Shard
from ._library import invalid
from .attached import Attached
from .intercept import call_after_field, call_around
from .scope import Scope

_FINALIZE = "finalize_model_grads_func"
_LAYER = re.compile(r"(.*\blayers\.)(\d+)(\..*)")
_EXPERT = re.compile(r"(?<=\.local_experts\.)\d+|(?<=\.experts\.linear_fc[12]\.weight)\d+$")

_ROLES: Sequence[tuple[str, Role]] = (
    (r"word_embeddings\.weight$", Role.EMBEDDING),
    (r"position_embeddings\.weight$", Role.POSITION),
    (r"output_layer\.weight$", Role.LM_HEAD),
    (r"layer_?norm[^.]*(weight|bias)?$|(layer_?norm|norm)\.(weight|bias)$", Role.NORM),
    (r"linear_qkv\.(weight|bias)$", Role.QKV),
    (r"linear_q(_up_proj|_proj)?\.(weight|bias)$", Role.QUERY),
    (r"linear_proj\.weight$", Role.OUTPUT),
    (r"router\.weight$", Role.ROUTER),
    (r"linear_fc1\.weight\d*$", Role.MLP_IN),
    (r"linear_fc2\.weight\d*$", Role.MLP_OUT),
    (r"bias\d*$", Role.BIAS),
)


@dataclass(frozen=True)
class Parallel:
    """Where this process stands. Ranks within their groups; default: what `megatron.core.parallel_state` says."""

    rank: int = 0
    world: int = 1
    tensor: tuple[int, int] = (0, 1)
    """Rank and size."""
    data: tuple[int, int] = (0, 1)
    """Of the data-parallel group, with context parallelism, that gradients are reduced over."""
    expert_tensor: tuple[int, int] = (0, 1)
    expert_data: tuple[int, int] = (0, 1)
    expert: tuple[int, int] = (0, 1)
    is_last_of_several_stages: bool = False

    @classmethod
    def of_megatron(cls) -> Parallel:
        try:
            from megatron.core import parallel_state as state
        except ImportError as error:
            raise invalid("parallel: Megatron-Core is not installed here; say where this process stands") from error

        def of(name: str, **options: Any) -> tuple[int, int]:
            rank = getattr(state, f"get_{name}_rank", None)
            size = getattr(state, f"get_{name}_world_size", None)
            return (rank(**options), size(**options)) if rank and size else (0, 1)

        tensor, data = of("tensor_model_parallel"), of("data_parallel", with_context_parallel=True)
        stages = state.get_pipeline_model_parallel_world_size()
        return cls(
            rank=torch.distributed.get_rank(),
            world=torch.distributed.get_world_size(),
            tensor=tensor,
            data=data,
            # Versions without a group of their own have the experts in that of everything else.
            expert_tensor=of("expert_tensor_parallel"),
            expert_data=of("expert_data_parallel") if hasattr(state, "get_expert_data_parallel_rank") else data,
            expert=of("expert_model_parallel"),
            is_last_of_several_stages=stages > 1 and state.is_pipeline_last_stage(ignore_virtual=True),
        )


def attach(
    model: Any,
    optimizer: Any,
    *,
    config: Any = None,
    parallel: Parallel | None = None,
    **options: Any,
) -> MegatronScope:
    """Measures the model chunks of this pipeline stage.

    model:      chunk, or list of chunks, wrapped in Megatron's DistributedDataParallel
    optimizer:  what `get_megatron_optimizer` returned
    config:     the TransformerConfig whose `finalize_model_grads_func` is called. Default: that of the first chunk
    parallel:   where this process stands. Default: what Megatron says
    options:    fields of `fgs_options`: run, every, include, exclude, ring_path, …
    """
    return MegatronScope(model, optimizer, config, parallel or Parallel.of_megatron(), options)


class MegatronScope(Attached):
    """What `attach` gives. Close it before the buffers are freed."""

    def __init__(self, model: Any, optimizer: Any, config: Any, parallel: Parallel, options: dict[str, Any]) -> None:
        chunks = list(model) if isinstance(model, (list, tuple)) else [model]
        if not chunks or not all(hasattr(chunk, "buffers") and hasattr(chunk, "module") for chunk in chunks):
            raise invalid("model: pass the chunks that are wrapped in Megatron's DistributedDataParallel")
        self._config = config or _config(chunks[0])
        self._optimizer = optimizer
        super().__init__(Scope(**{"rank": parallel.rank, "world_size": parallel.world, **options}))
        self.step = 0
        """Number of the next step. Set it to go on where a checkpoint was made."""
        self.unclassified: list[str] = []
        """Parameters that nothing says the role of; measured as role "other"."""
        self._reference: tuple[str, int] | None = None
        self._is_open = False
        self._is_measured = False  # a rank may have copies of others' data only
        self._cuda: torch.device | None = None
        try:
            for chunk in chunks:
                for piece in _pieces(chunk, self._config, parallel):
                    self._bind(piece)
        except BaseException:
            self.scope.close()
            raise
        guarded = functools.partial(self._guarded, self._gradients_are_final)
        self._unhook = [
            call_after_field(self._config, _FINALIZE, guarded),
            call_around(optimizer, "step", self._updated),
        ]

    def close(self) -> None:
        """Takes the hooks out and closes the scope; the ring stays."""
        for unhook in self._unhook:
            unhook()
        self._unhook = []
        self.scope.close()

    def task_begin(self, name: str) -> None:
        self._settle()
        self.scope.task_begin(name)

    def task_end(self) -> None:
        self._settle()
        self.scope.snapshot(stream=self._stream())
        self.scope.task_end()

    @contextmanager
    def reference(self, task: str, *, examples: int = 0) -> Iterator[None]:
        """Gradients that are finalized within are batches of a task's reference, at the weights of now: no step.

        `examples`: loss terms that a global batch's loss is a mean over.
        """
        self._settle()
        self._reference = task, examples
        try:
            yield
        finally:
            self._reference = None

    def _bind(self, piece: Piece) -> None:
        if not piece.is_known:
            self.unclassified.append(piece.name)
        number = self.scope.register(
            piece.name,
            shape=piece.shape,
            role=piece.role,
            layer=piece.layer,
            expert=piece.expert,
            replica=piece.replica,
            **piece.heads,
        )
        if piece.replica or piece.gradient is None:
            return
        shard = None if piece.gradient.numel() == piece.numel else Shard(offset=piece.offset)
        self._is_measured = True
        self.scope.bind(number, Data.GRAD, piece.gradient, shard)
        what = Data.PARAM if piece.master is None else Data.MASTER
        self.scope.bind(number, what, piece.values if piece.master is None else piece.master, shard)
        if piece.gradient.is_cuda:
            self._cuda = piece.gradient.device

    def _stream(self) -> int | None:
        return None if self._cuda is None else torch.cuda.current_stream(self._cuda).cuda_stream

    # Within a step nothing raises.

    def _updated(self, update: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = update(*args, **kwargs)
        # (update_successful, grad_norm, num_zeros_in_grad)
        applied = bool(result[0]) if isinstance(result, tuple) and result else True
        self._guarded(lambda: self._parameters_are_updated(applied))
        return result

    def _gradients_are_final(self) -> None:
        scale = 1.0 / self._loss_scale()
        stream = self._stream()
        if self._reference is not None:
            task, examples = self._reference
            if self._is_measured:
                self.scope.reference_add(task, examples=examples, scale=scale, stream=stream)
            return
        self._settle()
        self._is_open = True
        self.scope.step_begin(self.step)
        self.scope.gradients_ready(scale, stream=stream)

    def _parameters_are_updated(self, applied: bool) -> None:
        if self._is_open:
            self._is_open = False
            self.step += 1
            self.scope.step_end(applied, stream=self._stream())

    def _settle(self) -> None:
        # `optimizer.step()` has raised, or was left out.
        self._guarded(lambda: self._parameters_are_updated(False))

    def _loss_scale(self) -> float:
        # In fp16 only: the scale is on the device, and Megatron itself waits for it in the update that comes now.
        if not getattr(self._config, "fp16", False):
            return 1.0
        scale = self._optimizer.get_loss_scale()
        return float(scale.item() if isinstance(scale, torch.Tensor) else scale)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._watch.say("a step was not measured", str(error))


@dataclass(frozen=True)
class Piece:
    """A parameter as this rank has it."""

    name: str
    shape: tuple[int, ...]
    role: Role
    is_known: bool
    layer: int | None
    expert: int | None
    heads: dict[str, Any]
    replica: int | None
    gradient: torch.Tensor | None
    """The part of the reduced gradient that is this rank's, flat; None: nothing of it."""
    values: torch.Tensor
    master: torch.Tensor | None
    offset: int
    """Where the part begins in the parameter."""

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())


def _pieces(chunk: Any, config: Any, parallel: Parallel) -> Iterator[Piece]:
    names, layers = _names(chunk)
    expert_buffers = list(getattr(chunk, "expert_parallel_buffers", []))
    for buffer in [*chunk.buffers, *expert_buffers]:
        is_expert = any(buffer is other for other in expert_buffers)
        data = parallel.expert_data if is_expert else parallel.data
        tensor = parallel.expert_tensor if is_expert else parallel.tensor
        is_sharded = bool(buffer.ddp_config.use_distributed_optimizer)
        for parameter, (start, end, *bucket) in buffer.param_index_map.items():
            owned = _owned(buffer, bucket[0] if bucket else 0, data) if is_sharded else (start, end)
            low, high = max(start, owned[0]), min(end, owned[1])
            gradient = buffer.grad_data[low:high] if low < high else None
            offset = max(low - start, 0)
            values = parameter.detach().view(-1)[offset : offset + max(high - low, 0)]
            yield _piece(
                names[parameter],
                parameter,
                config,
                parallel,
                tensor,
                is_expert,
                layers.get(parameter),
                None if is_sharded else data[0],
                gradient,
                values,
                offset,
            )


def _owned(buffer: Any, bucket: int, data: tuple[int, int]) -> tuple[int, int]:
    """The range of the buffer that this rank's optimizer owns: its share of the bucket, which is padded to be even."""
    found = buffer.buckets[bucket]
    length = found.grad_data.numel()
    if length % data[1]:
        raise invalid(f"model: a bucket of {length} elements is not even over {data[1]} data-parallel ranks")
    share = length // data[1]
    first = found.offset + data[0] * share
    return first, first + share


def _piece(
    name: str,
    parameter: torch.Tensor,
    config: Any,
    parallel: Parallel,
    tensor: tuple[int, int],
    is_expert: bool,
    layer: int | None,
    data_rank: int | None,
    gradient: torch.Tensor | None,
    values: torch.Tensor,
    offset: int,
) -> Piece:
    role = next((role for pattern, role in _ROLES if re.search(pattern, name)), None)
    match = _EXPERT.search(name)
    expert = None
    if is_expert and match:
        # Experts are numbered within a rank; the number in the whole model is the name's.
        local = int(match.group())
        per_rank = int(config.num_moe_experts) // parallel.expert[1]
        expert = parallel.expert[0] * per_rank + local
        name = f"{name[: match.start()]}{expert}{name[match.end() :]}"
    elif is_expert and parallel.expert[1] > 1:
        name = f"{name}@ep{parallel.expert[0]}"
    # Ranks with an equal copy: among them the first one is measured.
    copies = [rank for rank in (data_rank,) if rank is not None]
    is_split = bool(getattr(parameter, "tensor_model_parallel", False)) and tensor[1] > 1
    if is_split:
        name = f"{name}@tp{tensor[0]}"
    elif tensor[1] > 1:
        copies.append(tensor[0])
    if getattr(parameter, "shared_embedding", False) and parallel.is_last_of_several_stages:
        # The first stage has the same weights, and the same gradient after it was reduced.
        name, role = name.replace("output_layer", "embedding.word_embeddings"), Role.EMBEDDING
        copies.append(1)
    is_owned = gradient is not None and gradient.numel() > 0
    main = getattr(parameter, "main_param", None)
    master = None
    if isinstance(main, torch.Tensor) and is_owned and main is not parameter:
        flat = main.detach().view(-1)
        is_part = bool(getattr(parameter, "main_param_sharded", flat.numel() != parameter.numel()))
        master = flat if is_part else flat[offset : offset + values.numel()]
        if master.numel() != values.numel():
            raise invalid(
                f"optimizer: the master copy of {name} has {master.numel()} elements, {values.numel()} are owned"
            )
    return Piece(
        name=name,
        shape=tuple(parameter.shape),
        role=role or Role.OTHER,
        is_known=role is not None,
        layer=layer,
        expert=expert,
        heads=_heads(role, parameter, config, tensor if is_split else (0, 1)),
        replica=int(any(copies)) if copies else None,
        gradient=gradient if is_owned else None,
        values=values,
        master=master,
        offset=offset,
    )


def _heads(role: Role | None, parameter: torch.Tensor, config: Any, tensor: tuple[int, int]) -> dict[str, Any]:
    """Heads of this rank's part, with their numbers in the whole model. Whole if it cannot be cut evenly."""
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


def _names(chunk: Any) -> tuple[dict[torch.Tensor, str], dict[torch.Tensor, int]]:
    """Names and layers of parameters in the whole model: a stage counts its layers from 0, `layer_number` does not."""
    names, layers = {}, {}
    numbers = {
        name: module.layer_number - 1
        for name, module in chunk.module.named_modules()
        if isinstance(getattr(module, "layer_number", None), int)
    }
    for name, parameter in chunk.module.named_parameters():
        if match := _LAYER.match(name):
            layer = numbers.get(match[1] + match[2], int(match[2]))
            name, layers[parameter] = f"{match[1]}{layer}{match[3]}", layer
        names[parameter] = re.sub(r"(^|(?<=\.))module\.", "", name)
    return names, layers


def _config(chunk: Any) -> Any:
    while chunk is not None:
        config = getattr(chunk, "config", None)
        if hasattr(config, "finalize_model_grads_func"):
            return config
        chunk = getattr(chunk, "module", None)
    raise invalid("config: the model has none with a finalize_model_grads_func; pass it")


__all__ = ["MegatronScope", "Parallel", "attach"]
