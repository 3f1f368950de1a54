"""A pass over a probe: one forward run of fixed batches, and what appears on the way.

Taken from the model by hooks that are there during the pass only: hidden states behind every layer, what heads put out
(the input of the output projection), logits of routers, and attention:

- transformers' attention functions get query, key and mask; they are handed over as they enter the product, and the
  library computes the few rows that it looks at;
- `nn.MultiheadAttention` is asked for its probabilities, which the model does not notice;
- a model that returns `attentions` (as with `output_attentions=True`) has them taken from there.

Masks that are neither causal nor absent (padding) need whole matrices of probabilities: batches without padding are
cheaper. What sequences that are packed into one may see is not told to hooks: their attention is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .._abi import Mask, Role
from ..scope import ProbePass, Scope
from ..watch import Watch
from .aside import aside
from .masks import is_unknown, plain_mask, probabilities, visible_keys
from .multihead import probabilities_of
from .parameters import Measured, layer_prefix, module_paths
from .references import on_device
from .sharding import is_sharded, local, part_of

Forward = Callable[[nn.Module, Any], Any]


def forward_of(model: nn.Module, batch: Any) -> Any:
    batch = on_device(batch, model)
    return model(**batch) if isinstance(batch, Mapping) else model(batch)


@dataclass(frozen=True)
class Points:
    """Where a model is looked at; found once, when it is attached."""

    layers: dict[int, nn.Module]
    outputs: dict[int, tuple[nn.Module, int]]
    """Output projection of a layer's attention, and the number of heads."""
    routers: dict[int, tuple[nn.Module, int]]
    """Router of a layer, and how many experts a token goes to."""
    attentions: dict[nn.MultiheadAttention, int]
    """Layer of each `nn.MultiheadAttention`."""
    owners: dict[nn.Module, int]
    """Layer of every module that is in one: attention functions are called with a module."""

    @classmethod
    def of(cls, model: nn.Module, measured: Iterable[Measured]) -> Points:
        paths = module_paths(model)
        points = cls({}, {}, {}, {}, {})
        for entry in measured:
            if entry.layer is None:
                continue
            prefix, owner = layer_prefix(entry.name), entry.name.rpartition(".")[0]
            if prefix in paths and entry.layer not in points.layers:
                points.layers[entry.layer] = paths[prefix][-1]
                points.owners.update(dict.fromkeys(paths[prefix][-1].modules(), entry.layer))
            module = paths.get(owner, [None])[-1]
            if module is None:
                continue
            if entry.role == Role.OUTPUT and entry.heads.heads and len(entry.shape) == 2:
                points.outputs[entry.layer] = module, entry.heads.heads
            if entry.role == Role.ROUTER and len(entry.shape) == 2 and entry.shape[0] > 1:
                points.routers[entry.layer] = module, _top_k(paths[owner])
            if isinstance(module, nn.MultiheadAttention):
                points.attentions[module] = entry.layer
        return points


def _top_k(around: list[nn.Module]) -> int:
    for module in reversed(around):
        for source in (module, getattr(module, "config", None)):
            for name in ("top_k", "num_experts_per_tok", "num_selected_experts", "moe_topk"):
                if isinstance(value := getattr(source, name, None), int):
                    return value
    return 1


@dataclass(frozen=True)
class _Projection:
    """The output projection of the heads that are here: all, or with tensor parallelism this rank's."""

    matrix: torch.Tensor
    """[model width, heads · width]"""
    heads: int
    first_head: int


def _projection(module: nn.Module, heads: int) -> _Projection | None:
    """None: the module has no plain matrix, as quantised layers, or it is cut within a head."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point() or weight.ndim != 2:
        return None
    part, whole = part_of(weight), tuple(weight.shape)
    matrix, axis = local(weight.detach()), 1
    if type(module).__name__ == "Conv1D":
        # [in, out]
        matrix, axis = matrix.t(), 0
    width = whole[axis] // heads
    if part.shape[1 - axis] != whole[1 - axis] or part.offset[axis] % width or part.shape[axis] % width:
        return None
    return _Projection(matrix, part.shape[axis] // width, part.offset[axis] // width)


class _Capture:
    """The hooks of one pass. A batch of the pass begins with the first tensor that shows how large it is."""

    def __init__(self, probe: ProbePass, points: Points, watch: Watch) -> None:
        self._probe, self._points, self._watch = probe, points, watch
        self._labels: Any = None
        self._is_begun = False
        self._seen: set[tuple[str, int]] = set()

    def new_batch(self, labels: Any) -> None:
        self._labels, self._is_begun = labels, False
        self._seen.clear()

    def _first(self, what: str, layer: int) -> bool:
        """Layers that are run twice are looked at once."""
        is_first = (what, layer) not in self._seen
        self._seen.add((what, layer))
        return is_first

    def _begin(self, states: torch.Tensor) -> None:
        if not self._is_begun:
            length = states.shape[1] if states.ndim > 2 else 1
            self._probe.batch(states.shape[0], length, self._labels)
            self._is_begun = True

    @contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for layer, module in self._points.layers.items():
                stack.callback(module.register_forward_hook(self._hidden(layer)).remove)
            for layer, (module, heads) in self._points.outputs.items():
                stack.callback(module.register_forward_pre_hook(self._head_output(layer, heads)).remove)
            for layer, (module, top_k) in self._points.routers.items():
                stack.callback(module.register_forward_hook(self._router(layer, top_k)).remove)
            for module, layer in self._points.attentions.items():
                stack.enter_context(probabilities_of(module, self._weights(layer, module)))
            # Without hooks inside, this path of nn.TransformerEncoder would go past them.
            fast = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
            stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
            for interface in _attention_interfaces(model):
                stack.enter_context(self._intercepted(interface))
            yield

    def _hidden(self, layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            if not isinstance(states, torch.Tensor) or is_sharded(states) or states.ndim not in (2, 3):
                return
            if not self._first("hidden", layer):
                return
            states = _sequences_first(module, states)
            self._begin(states)
            self._probe.hidden(layer, states)

        return hook

    def _head_output(self, layer: int, heads: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if not inputs or inputs[0].ndim not in (2, 3) or not self._first("head_output", layer):
                return
            outputs, found = local(inputs[0]), _projection(module, heads)
            if outputs.ndim == 3:
                self._begin(outputs)
            if self._is_begun and found is not None and outputs.shape[-1] == found.matrix.shape[1]:
                self._probe.head_output(
                    layer,
                    found.heads,
                    outputs.contiguous(),
                    projection=found.matrix,
                    first_head=found.first_head,
                )

        return hook

    def _router(self, layer: int, top_k: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            logits = output[0] if isinstance(output, tuple) else output
            if not self._is_begun or not isinstance(logits, torch.Tensor) or logits.ndim not in (2, 3):
                return
            if not is_sharded(logits) and self._first("router", layer):
                self._probe.router(layer, logits.contiguous(), top_k)

        return hook

    def _weights(self, layer: int, module: nn.MultiheadAttention) -> Callable[[torch.Tensor, torch.Tensor], None]:
        def seen(output: torch.Tensor, probabilities: torch.Tensor) -> None:
            if probabilities.ndim == 4 and self._first("attention", layer):
                self._begin(_sequences_first(module, output))
                self._given(layer, probabilities)

        return seen

    @contextmanager
    def _intercepted(self, interface: Any) -> Iterator[None]:
        """Puts a function in front of each of transformers' attention functions."""
        mapping = interface._local_mapping
        before = dict(mapping)
        names = [*interface, "eager"]
        try:
            for name in names:
                interface[name] = self._in_front(before.get(name) or interface.get(name))
            yield
        finally:
            mapping.clear()
            mapping.update(before)

    def _in_front(self, function: Callable[..., Any] | None) -> Callable[..., Any]:
        def attention(
            module: nn.Module,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            mask: Any,
            *rest: Any,
            **kwargs: Any,
        ) -> Any:
            layer = self._points.owners.get(module)
            if layer is not None and self._first("attention", layer):
                self._attention(layer, module, query, key, mask, kwargs)
            # Eager attention is in no table: every model has its own.
            original = function or sys.modules[type(module).__module__].eager_attention_forward
            return original(module, query, key, value, mask, *rest, **kwargs)

        return attention

    def _attention(
        self,
        layer: int,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: Any,
        kwargs: Mapping[str, Any],
    ) -> None:
        """`query` and `key`: [sequences, heads, tokens, width]."""
        if kwargs.get("position_bias") is not None or kwargs.get("s_aux") is not None:
            return  # logits that query and key do not give
        if is_unknown(mask, len(query), kwargs):
            self._watch.say(
                "attention of probes is not measured",
                f"only the attention function of layer {layer} knows what queries see; give batches of sequences that "
                "are not packed, or a model with sdpa or eager attention",
            )
            return
        query, key = local(query), local(key)
        self._begin(query.transpose(1, 2))
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        softcap = kwargs.get("softcap") or 0.0
        window = kwargs.get("sliding_window") or 0
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        visible = visible_keys(mask, query.shape[2], key.shape[2])
        plain = plain_mask(visible, causal, window, query.shape[2], key.shape[2], query.device)
        if plain is None:
            self._given(layer, probabilities(query, key, visible, scale, softcap), window)
            return
        self._probe.attention(
            layer,
            query=query.transpose(1, 2),
            key=key.transpose(1, 2),
            scale=scale,
            softcap=softcap,
            mask=plain,
            window=window if plain == Mask.CAUSAL else 0,
            first_head=self._first_head(layer),
        )

    def _first_head(self, layer: int) -> int:
        """Number of the first head that is here: with tensor parallelism not 0 on every rank."""
        if layer not in self._points.outputs:
            return 0
        found = _projection(*self._points.outputs[layer])
        return 0 if found is None else found.first_head

    def _given(self, layer: int, probabilities: torch.Tensor, window: int = 0) -> None:
        """Probabilities, [sequences, heads, queries, keys]. In causal attention early queries see few keys."""
        queries, keys = probabilities.shape[2:]
        is_causal = queries == keys > 1 and not bool(probabilities.triu(1).any())
        first_head = self._first_head(layer)
        mask, window = (Mask.CAUSAL, window) if is_causal else (Mask.NONE, 0)
        self._probe.attention(
            layer, probabilities=probabilities.contiguous(), mask=mask, window=window, first_head=first_head
        )

    def returned(self, output: Any) -> None:
        """Attention that the model returned by itself."""
        attentions = getattr(output, "attentions", None) or ()
        for layer, returned in zip(sorted(self._points.layers), attentions, strict=False):
            if self._is_begun and isinstance(returned, torch.Tensor) and self._first("attention", layer):
                self._given(layer, returned)


def _attention_interfaces(model: nn.Module) -> list[Any]:
    """The tables of attention functions that the modules of a model look in."""
    found = {}
    for module in model.modules():
        source = sys.modules.get(type(module).__module__)
        interface = getattr(source, "ALL_ATTENTION_FUNCTIONS", None)
        if hasattr(interface, "_local_mapping"):
            found[id(interface)] = interface
    return list(found.values())


def _sequences_first(module: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """[sequences, tokens, width], also where PyTorch's own layers have tokens first."""
    attention = module if isinstance(module, nn.MultiheadAttention) else getattr(module, "self_attn", None)
    is_tokens_first = isinstance(attention, nn.MultiheadAttention) and not attention.batch_first
    return states.transpose(0, 1) if is_tokens_first and states.ndim == 3 else states


def run_probe(
    scope: Scope,
    model: nn.Module,
    points: Points,
    task: str,
    batches: Iterable[Any],
    forward: Forward | None,
    labels: Callable[[Any], Any] | None,
    stream: int | None,
    watch: Watch,
    **options: Any,
) -> None:
    """One pass. `labels(batch)`: a class per sequence or token, for neural collapse."""
    with aside(model), torch.no_grad(), scope.probe(task, stream=stream, **options) as probe:
        capture = _Capture(probe, points, watch)
        with capture.hooks(model):
            for batch in batches:
                capture.new_batch(None if labels is None else labels(batch))
                capture.returned((forward or forward_of)(model, batch))


__all__ = ["Points", "run_probe"]
