"""Megatron-Core itself, training a small GPT on processes without a GPU.

Megatron names CUDA devices and streams here and there, and runs on gloo and host memory where these names are given
another meaning. Nothing else of it is changed: groups, buffers, buckets, reductions and optimizers are its own.
"""

from __future__ import annotations

import contextlib
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import forgetscope.megatron
import torch
from forgetscope.megatron.names import names_and_layers, with_expert
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.random import initialize_rng_tracker
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.overrides import TorchFunctionMode

LAYERS, WIDTH, HEADS, GROUPS, EXPERTS, VOCABULARY, LENGTH = 2, 32, 4, 2, 4, 64, 16
# Of a global batch.
MICRO_BATCHES = 4
STEPS, REFERENCES = 3, 2


class _HostMemory(TorchFunctionMode):
    """What is asked for on a CUDA device lies in host memory, and says that it is on the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if "cuda" in str(kwargs.get("device", "")):
            kwargs["device"] = "cpu"
        if func is torch.Tensor.cuda:
            return args[0]
        result = func(*args, **kwargs)
        return result.replace("torch.", "torch.cuda.") if func is torch.Tensor.type and len(args) == 1 else result


@contextlib.contextmanager
def without_cuda() -> Iterator[None]:
    stream = mock.MagicMock(name="stream")
    names = {name: mock.Mock(return_value=stream) for name in ("Stream", "Event", "current_stream", "default_stream")}
    names |= {"current_device": lambda: "cpu", "synchronize": lambda *_: None, "stream": contextlib.nullcontext}
    # Megatron 0.16 forgets this name where Transformer Engine is missing.
    gemm = mock.patch.object(moe_utils, "te_general_gemm", None, create=True)
    with mock.patch.multiple(torch.cuda, **names), gemm, _HostMemory():
        yield


@dataclass(frozen=True)
class Layout:
    """How a model is spread over processes, and in which numbers it is trained."""

    world: int = 1
    tensor: int = 1
    pipeline: int = 1
    experts: int = 1
    is_mixture: bool = False
    is_distributed: bool = False
    """The distributed optimizer, which shards the buckets."""
    instances: int = 1
    dtype: torch.dtype = torch.float32


class Job:
    """This process's part of a training."""

    def __init__(self, layout: Layout) -> None:
        parallel_state.destroy_model_parallel()
        parallel_state.initialize_model_parallel(
            layout.tensor,
            layout.pipeline,
            expert_model_parallel_size=layout.experts,
            num_distributed_optimizer_instances=layout.instances,
        )
        # The one without state on a device: dropout is off.
        initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
        half = {"bf16": layout.dtype == torch.bfloat16, "fp16": layout.dtype == torch.float16}
        mixture: dict[str, Any] = {
            "num_moe_experts": EXPERTS,
            "moe_router_topk": 2,
            "moe_router_load_balancing_type": "none",
            "moe_token_dispatcher_type": "allgather",
            "expert_model_parallel_size": layout.experts,
            "add_bias_linear": False,
        }
        self.config = TransformerConfig(
            num_layers=LAYERS,
            hidden_size=WIDTH,
            num_attention_heads=HEADS,
            num_query_groups=GROUPS,
            tensor_model_parallel_size=layout.tensor,
            pipeline_model_parallel_size=layout.pipeline,
            pipeline_dtype=layout.dtype,
            params_dtype=layout.dtype,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            use_cpu_initialization=True,
            gradient_accumulation_fusion=False,
            bias_dropout_fusion=False,
            masked_softmax_fusion=False,
            **half,
            **(mixture if layout.is_mixture else {}),
        )
        model = GPTModel(
            self.config,
            get_gpt_layer_local_spec(num_experts=EXPERTS if layout.is_mixture else None, moe_grouped_gemm=False),
            vocab_size=VOCABULARY,
            max_sequence_length=LENGTH,
            pre_process=parallel_state.is_pipeline_first_stage(),
            post_process=parallel_state.is_pipeline_last_stage(),
            share_embeddings_and_output_weights=True,
        )
        self.chunk = DistributedDataParallel(
            self.config,
            DistributedDataParallelConfig(
                use_distributed_optimizer=layout.is_distributed,
                num_distributed_optimizer_instances=layout.instances,
                grad_reduce_in_fp32=True,
                # Without it there is one bucket.
                overlap_grad_reduce=True,
                bucket_size=4000,
            ),
            Float16Module(self.config, model) if any(half.values()) else model,
        )
        self._fill()
        self.config.finalize_model_grads_func = finalize_model_grads
        self.optimizer = get_megatron_optimizer(
            OptimizerConfig(
                optimizer="adam",
                # The distributed one takes no other. So large that rounding of small gradients is not blown up to 1.
                adam_eps=1.0,
                lr=1.0,
                weight_decay=0.0,
                clip_grad=1.0,
                loss_scale=1024.0 if half["fp16"] else None,
                params_dtype=layout.dtype,
                use_distributed_optimizer=layout.is_distributed,
                **half,
            ),
            [self.chunk],
        )
        self.config.grad_scale_func, self.config.no_sync_func = self.optimizer.scale_loss, self.chunk.no_sync

    @torch.no_grad()
    def _fill(self) -> None:
        """Every parameter has the same values wherever it is: those that its name in the whole model draws."""
        names, _ = names_and_layers(self.chunk)
        expert = parallel_state.get_expert_model_parallel_rank(), parallel_state.get_expert_model_parallel_world_size()
        tensor = parallel_state.get_tensor_model_parallel_world_size()
        for parameter, name in names.items():
            if not getattr(parameter, "allreduce", True):
                name, _ = with_expert(name, EXPERTS, expert)
            name = name.replace("output_layer", "embedding.word_embeddings")
            dimension = parameter.partition_dim if getattr(parameter, "tensor_model_parallel", False) else None
            shape = [length * (tensor if d == dimension else 1) for d, length in enumerate(parameter.shape)]
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            whole = torch.randn(shape, generator=generator) * 0.1 + float("norm.weight" in name)
            rank = parallel_state.get_tensor_model_parallel_rank()
            parameter.copy_(whole if dimension is None else whole.chunk(tensor, dimension)[rank])

    def backward(self, seed: int) -> list[float]:
        """Reduced gradients of a global batch, of which this process takes its share; its losses, on the last stage."""
        self.chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        replicas = parallel_state.get_data_parallel_world_size()
        here = MICRO_BATCHES // replicas
        first = here * parallel_state.get_data_parallel_rank()
        losses = get_forward_backward_func()(
            forward_step_func=_forward,
            data_iterator=iter(range(100 * seed + first, 100 * seed + first + here)),
            model=[self.chunk],
            num_microbatches=here,
            seq_length=LENGTH,
            micro_batch_size=2,
            forward_only=False,
        )
        return [float(loss) for loss in losses]

    def train(self, scope: forgetscope.megatron.MegatronScope | None) -> dict[str, Any]:
        """Two tasks, with references if they are measured. What Megatron itself says of them."""
        norms, losses, drift, base = [], [], [], None
        seeds = itertools.count()
        for task in ("prose", "code"):
            with scope.task(task) if scope else contextlib.nullcontext():
                for _ in range(STEPS):
                    losses.append(self.backward(next(seeds)))
                    norms.append(float(self.optimizer.step()[1]))
                    if base is not None:
                        drift.append(
                            sum(float((a - b).square().sum()) for a, b in zip(self.masters(), base, strict=True))
                        )
                    if scope:
                        scope.flush()
                if scope:
                    with scope.reference(task, examples=8):
                        for batch in range(REFERENCES):
                            self.backward(1000 + batch)
            base = self.masters()
        return {"norms": norms, "losses": losses, "drift": drift, "weights": self.digest()}

    def masters(self) -> list[torch.Tensor]:
        """What this process's optimizer updates, in fp64."""
        return [p.detach().double() for group in self.optimizer.param_groups for p in group["params"]]

    def digest(self) -> int:
        values = [parameter.detach().float().numpy().tobytes() for parameter in self.chunk.module.parameters()]
        return zlib.crc32(b"".join(values))


def _forward(seeds: Iterator[int], model: Any) -> Any:
    generator = torch.Generator().manual_seed(next(seeds))
    tokens = torch.randint(VOCABULARY, (2, LENGTH), generator=generator)
    positions = torch.arange(LENGTH).expand(2, LENGTH)
    hidden = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).triu(1)
    output = model(tokens, positions, hidden, labels=tokens.roll(-1, 1))
    return output, lambda losses: (losses.mean(), losses.mean().detach())


def train_twice(layout: Layout) -> dict[str, Any]:
    """The same training without and with the instrument, in a process of a gloo group."""
    with without_cuda():
        plain = Job(layout).train(None)
        job = Job(layout)
        scope = forgetscope.megatron.attach(job.chunk, job.optimizer, every=1, threads=1)
        measured = job.train(scope)
        unclassified = scope.unclassified
        scope.close()
    return {"plain": plain, "measured": measured, "ring": str(scope.ring_path), "unclassified": unclassified}


__all__ = ["Job", "Layout", "train_twice", "without_cuda"]
