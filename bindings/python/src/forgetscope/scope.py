"""`Scope`: the instrument, from any array library.

A thin cover of the C ABI: tensors are read where they lie, nothing is copied. A call that is refused raises `Error`
with a sentence that names the argument. For PyTorch models `forgetscope.attach` makes all of these calls by itself.

Costs, beyond the library's: about 1 µs a call, 9 µs where a tensor is described anew.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from . import _abi
from ._abi import (
    UNSET_U32,
    UNSET_U64,
    Data,
    GradientFlag,
    HeadLayout,
    Mask,
    ProbeFlag,
    Role,
    Shard,
    Status,
    TensorFlag,
    Want,
)
from ._library import Error, invalid, library
from .arguments import LARGEST_I32, LARGEST_U32, filled, path, real, text, whole
from .dlpack import View, stream_handle
from .names import member
from .session import Session


class Scope(Session):
    """An open instrument. Options that are not given keep the library's defaults (docs/configuration.md).

    A context manager: `with Scope(run="study") as scope:` closes it at the end. A scope that is not closed is closed
    when it is collected or the interpreter ends.
    """

    def __init__(
        self,
        run: str | None = None,
        *,
        every: int | None = None,
        ring_path: str | os.PathLike[str] | None = None,
        include: str | None = None,
        exclude: str | None = None,
        **options: int | float,
    ) -> None:
        self.raw = library().raw
        """The functions of the C ABI, for `handle`; `check` raises for what they return."""
        self.check = library().check
        fields: dict[str, Any] = {"run": run, "ring_path": ring_path, "include": include, "exclude": exclude}
        fields = {name: path(value, name) for name, value in fields.items() if value is not None}
        options = {"every": every, **options} if every is not None else options
        described = filled(_abi.Options, fields, options)
        self.handle = ctypes.c_void_p()
        self.check(self.raw.fgs_open(ctypes.byref(described), ctypes.byref(self.handle)))
        # A scope that was forked away belongs to the parent: the library leaves it alone.
        self._closer = weakref.finalize(self, self.raw.fgs_close, self.handle)
        # What is bound has to stay readable: whoever binds need not keep it.
        self._bound: dict[tuple[int, int], View] = {}
        self._names: dict[int, str] = {}
        ring = ctypes.c_char_p()
        self._call("ring_path", ctypes.byref(ring))
        self.ring_path: Path | None = Path(os.fsdecode(ring.value)) if ring.value else None
        """File of the ring; None if the instrument is disabled."""

    def _call(self, name: str, *arguments: Any) -> int:
        self.expect_open()
        return self.check(getattr(self.raw, f"fgs_{name}")(self.handle, *arguments))

    def expect_open(self) -> None:
        """Raises if the scope was closed."""
        if self.is_closed:
            raise Error(Status.ERROR_PHASE, "the scope was closed; open another one")

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return not self._closer.alive

    @property
    def disabled(self) -> bool:
        """Whether `FGS_DISABLE=1` made every call do nothing."""
        return self.ring_path is None

    def close(self) -> None:
        """Publishes what is waiting and ends the threads. The ring's file stays."""
        self._closer()
        self.handle = ctypes.c_void_p()
        self._bound.clear()
        self._names.clear()

    def flush(self) -> None:
        """Waits until everything handed over so far is in the ring."""
        self._call("flush")

    # Tensors

    def register(
        self,
        name: str,
        numel: int | None = None,
        *,
        shape: Sequence[int] | None = None,
        role: Role | str | int = Role.OTHER,
        layer: int | None = None,
        expert: int | None = None,
        group: int = 0,
        heads: int = 0,
        kv_heads: int = 0,
        head_layout: HeadLayout | str | int = HeadLayout.AUTO,
        head_axis: int | None = None,
        head_offset: int = 0,
        kv_head_offset: int = 0,
        replica: int | None = None,
        tied_to: int | None = None,
        layer_count: int = 1,
    ) -> int:
        """Adds a tensor and returns its id. `numel` or `shape` are those of the unsharded tensor.

        `shape` of more than two dimensions counts as rows and the rest. `replica`: which of several equal copies this
        process has; only copy 0 is measured.
        """
        rows = cols = 0
        if shape is not None:
            numel = int(np.prod(shape, dtype=np.int64))
            if len(shape) > 1 and layer_count == 1:
                rows = shape[0]
                cols = numel // rows if rows else 0
        if numel is None:
            raise invalid("numel: give it, or shape")
        fields: dict[str, Any] = {
            "name": text(name, "name"),
            "numel": whole(numel, "numel"),
            "rows": whole(rows, "shape"),
            "cols": whole(cols, "shape"),
            "role": member(Role, role, "role"),
            "group": whole(group, "group", LARGEST_U32),
            "head_layout": member(HeadLayout, head_layout, "head_layout"),
            "head_count": whole(heads, "heads", LARGEST_U32),
            "kv_head_count": whole(kv_heads, "kv_heads", LARGEST_U32),
            "head_offset": whole(head_offset, "head_offset", LARGEST_U32),
            "kv_head_offset": whole(kv_head_offset, "kv_head_offset", LARGEST_U32),
            "layer_count": whole(layer_count, "layer_count", LARGEST_U32),
            "layer": -1 if layer is None else whole(layer, "layer", LARGEST_I32),
            "expert": -1 if expert is None else whole(expert, "expert", LARGEST_I32),
            "head_axis": UNSET_U32 if head_axis is None else whole(head_axis, "head_axis", LARGEST_U32),
            "tied_to": UNSET_U32 if tied_to is None else whole(tied_to, "tied_to", LARGEST_U32),
            "replica": 0 if replica is None else whole(replica, "replica", LARGEST_U32),
        }
        fields["flags"] = (TensorFlag.REPLICATED if replica is not None else 0) | (
            TensorFlag.TIED if tied_to is not None else 0
        )
        number = ctypes.c_uint32()
        self._call("register", ctypes.byref(_abi.Tensor(**fields)), ctypes.byref(number))
        self._names[number.value] = name
        return number.value

    def bind(self, tensor_id: int, what: Data | str | int, tensor: Any, shard: Shard | None = None) -> None:
        """Says where a tensor's gradient, parameters or master copy lie; `tensor` None: nowhere any more.

        `shard`: which elements of the unsharded tensor they are; None: all. The tensor is kept alive until something
        else is bound.
        """
        source = member(Data, what, "what")
        view = None if tensor is None else View.of(tensor)
        described = None if view is None else ctypes.byref(view)
        tensor_id = _id(tensor_id)
        if shard is None:
            self._call("bind", tensor_id, source, described)
        else:
            self._call("bind_shard", tensor_id, source, described, ctypes.byref(shard))
        if view is None:
            self._bound.pop((tensor_id, source), None)
        else:
            self._bound[tensor_id, source] = view

    def rebind(self, what: Data | str | int, ids: Sequence[int], addresses: Sequence[int]) -> None:
        """New addresses for tensors that are bound, all else as it was; 0 unbinds. Keeps nothing alive."""
        if len(ids) != len(addresses):
            raise invalid(f"addresses: {len(addresses)} for {len(ids)} ids")
        numbers = np.asarray(ids, np.uint32)
        places = np.asarray(addresses, np.uint64)
        source = member(Data, what, "what")
        self._call("rebind", source, numbers.ctypes.data, places.ctypes.data, len(numbers))
        for number in ids:
            self._bound.pop((number, source), None)

    # Tasks

    def task_begin(self, name: str) -> None:
        self._call("task_begin", text(name, "name"))

    def task_end(self) -> None:
        self._call("task_end")

    def reference_add(self, task: str, *, examples: int = 0, scale: float = 1.0, stream: Any = None) -> None:
        """The gradients that are bound now are one batch of the reference of `task`; 32 to 64 make a good one.

        `examples`: loss terms that the batch's loss is a mean over.
        """
        self._call(
            "reference_add",
            text(task, "task"),
            whole(examples, "examples"),
            real(scale, "scale"),
            stream_handle(stream),
        )

    def reference_feed(
        self,
        task: str,
        tensor_id: int,
        tensor: Any,
        *,
        shard: Shard | None = None,
        scale: float = 1.0,
        stream: Any = None,
    ) -> None:
        """One tensor of a reference batch; the next `reference_add` completes it."""
        view = ctypes.byref(View.of(tensor))
        part = None if shard is None else ctypes.byref(shard)
        called = text(task, "task"), _id(tensor_id), view, part, real(scale, "scale")
        self._call("reference_feed", *called, stream_handle(stream))

    def snapshot(self, task: str | None = None, *, stream: Any = None) -> None:
        """Keeps the parameters of now as those of `task` (None: of the current one): drift is measured from them."""
        self._call("snapshot", None if task is None else text(task, "task"), stream_handle(stream))

    # Steps

    def step_begin(self, step: int) -> None:
        self._call("step_begin", whole(step, "step"))

    @property
    def sampled(self) -> bool:
        """Whether the step that has begun is sampled."""
        answer = ctypes.c_int32()
        self._call("step_sampled", ctypes.byref(answer))
        return bool(answer.value)

    def gradient_feed(
        self, tensor_id: int, tensor: Any, *, shard: Shard | None = None, scale: float = 1.0, stream: Any = None
    ) -> None:
        """One tensor's gradient, for trainers that never have all at once."""
        view = ctypes.byref(View.of(tensor))
        part = None if shard is None else ctypes.byref(shard)
        self._call("gradient_feed", _id(tensor_id), view, part, real(scale, "scale"), stream_handle(stream))

    def gradients_ready(self, scale: float = 1.0, *, unreduced: bool = False, stream: Any = None) -> None:
        """All gradients are final. `scale`: what they will still be multiplied by, such as 1 / loss scale."""
        flags = GradientFlag.UNREDUCED if unreduced else 0
        self._call("gradients_ready", real(scale, "scale"), flags, stream_handle(stream))

    def step_end(self, applied: bool = True, *, stream: Any = None) -> None:
        """The step is over; `applied` False: the update was skipped."""
        self._call("step_end", bool(applied), stream_handle(stream))

    def every(self, steps: int) -> None:
        """Samples every so many steps from now on; 0: none."""
        self._call("set_every", whole(steps, "steps"))

    # Probes

    @contextmanager
    def probe(
        self, task: str, *, continued: int | None = None, run: int = 0, base: bool = False, stream: Any = None
    ) -> Iterator[ProbePass]:
        """A pass over the probe of a task: `with scope.probe("legal") as p: p.batch(8, 128); p.hidden(0, states); …`

        `continued`: the weights are those after so many more updates on the task itself, in run number `run`. `base`:
        later passes are compared with this one. A pass that is left by an exception is given up.
        """
        fields = {
            "task": text(task, "task"),
            "continued_updates": UNSET_U64 if continued is None else whole(continued, "continued"),
            "flags": ProbeFlag.BASE if base else 0,
            "run": whole(run, "run", LARGEST_U32),
        }
        self._call("probe_begin", ctypes.byref(_abi.Probe(**fields)))
        try:
            yield ProbePass(self, stream)
        except BaseException:
            self.raw.fgs_probe_abandon(self.handle)
            raise
        self._call("probe_end")

    def head_effect(self, task: str, layer: int, head: int, loss: float, loss_restored: float, error: float) -> None:
        """What putting back a head's old weights does to a task's loss; `error`: its standard error, NaN if unknown."""
        place = whole(layer, "layer", LARGEST_U32), whole(head, "head", LARGEST_U32)
        losses = real(loss, "loss"), real(loss_restored, "loss_restored"), real(error, "error")
        self._call("head_effect", text(task, "task"), *place, *losses)

    # Curvature and outcomes

    def curvature(
        self,
        task: str,
        answer: Callable[[bool], float],
        *,
        scale: float = 1.0,
        blocks: Sequence[int] = (),
        stream: Any = None,
        **options: int | float,
    ) -> None:
        """The loss landscape of a task around the weights of now. `answer(with_gradient)` returns the loss of the same
        batch.

        While it runs the bound parameters are moved in place; afterwards they are as they were, to the last bit, also
        if `answer` raises. With `with_gradient` the gradients have to be those that are bound. `options`: fields of
        `fgs_curvature`.
        """
        for (tensor_id, source), view in self._bound.items():
            if source != Data.GRAD and not view.is_writable:
                raise invalid(
                    f"tensor {self._names.get(tensor_id, tensor_id)}: its memory may only be read; bind a copy"
                )
        ids = (ctypes.c_uint32 * len(blocks))(*map(_id, blocks))
        request = _abi.CurvatureRequest()
        fields = {"task": text(task, "task"), "blocks": ids, "block_count": len(blocks)}
        self._call("curvature_begin", ctypes.byref(filled(_abi.Curvature, fields, options)))
        try:
            while True:
                self._call("curvature_next", ctypes.byref(request))
                if request.want == Want.DONE:
                    break
                loss = answer(request.want == Want.GRADIENT)
                self._call("curvature_submit", real(loss, "answer"), real(scale, "scale"), stream_handle(stream))
        finally:
            self._call("curvature_end")

    def record_loss(self, task: str, value: float) -> None:
        """The loss of a task on held-out data, at the weights of now."""
        self._call("record_loss", text(task, "task"), real(value, "value"))

    def record_eval(self, task: str, metric: str, value: float, *, higher_is_better: bool) -> None:
        """Another metric of a task on held-out data."""
        self._call(
            "record_eval", text(task, "task"), text(metric, "metric"), real(value, "value"), bool(higher_is_better)
        )


def _id(value: Any) -> int:
    return whole(value, "tensor_id", LARGEST_U32)


def _layer(value: Any) -> int:
    return whole(value, "layer", LARGEST_U32)


class ProbePass:
    """What `Scope.probe` gives: for every batch `batch`, then for every layer what is to be measured."""

    def __init__(self, scope: Scope, stream: Any) -> None:
        self._call = scope._call
        self._stream = stream_handle(stream)

    def batch(self, sequences: int, length: int, labels: Any = None) -> None:
        """A batch begins. `labels`: a class per sequence or token, negative for none."""
        classes = np.zeros(0, np.int32) if labels is None else np.ascontiguousarray(labels, np.int32).ravel()
        given = None if labels is None else classes.ctypes.data
        self._call("probe_batch", whole(sequences, "sequences"), whole(length, "length"), given, classes.size)

    def hidden(self, layer: int, states: Any) -> None:
        """The residual stream after a layer: [sequences, tokens, width] or [sequences · tokens, width]."""
        self._call("probe_hidden", _layer(layer), ctypes.byref(View.of(states)), self._stream)

    def attention(
        self,
        layer: int,
        *,
        probabilities: Any = None,
        query: Any = None,
        key: Any = None,
        log_sum_exp: Any = None,
        scale: float = 0.0,
        softcap: float = 0.0,
        mask: Mask | str | int = Mask.NONE,
        window: int = 0,
        first_head: int = 0,
    ) -> None:
        """Attention of a layer: probabilities, or query and key as they enter the product.

        `probabilities`: [sequences, heads, queries, keys]. `query`, `key`: [sequences, tokens, heads, width].
        `scale` 0: 1/√width. `window`: a query sees only so many of the latest keys.
        """
        given = {"probabilities": probabilities, "query": query, "key": key, "log_sum_exp": log_sum_exp}
        views = {name: View.of(tensor) for name, tensor in given.items() if tensor is not None}
        kind = ctypes.POINTER(_abi.DLTensor)
        fields = {name: ctypes.cast(ctypes.pointer(view), kind) for name, view in views.items()}
        numbers = {
            "scale": real(scale, "scale"),
            "softcap": real(softcap, "softcap"),
            "window": whole(window, "window", LARGEST_U32),
            "first_head": whole(first_head, "first_head", LARGEST_U32),
        }
        described = _abi.Attention(**fields, **numbers, mask=member(Mask, mask, "mask"))
        self._call("probe_attention", _layer(layer), ctypes.byref(described), self._stream)

    def head_output(self, layer: int, heads: int, outputs: Any, *, projection: Any = None, first_head: int = 0) -> None:
        """What the heads put out, [sequences, tokens, heads · width]; `projection`: [model width, heads · width]."""
        matrix = None if projection is None else ctypes.byref(View.of(projection))
        heads, first_head = whole(heads, "heads", LARGEST_U32), whole(first_head, "first_head", LARGEST_U32)
        described = ctypes.byref(View.of(outputs))
        self._call("probe_head_output", _layer(layer), heads, first_head, described, matrix, self._stream)

    def router(self, layer: int, logits: Any, top_k: int) -> None:
        """Logits of a router, [sequences · tokens, experts]."""
        described = ctypes.byref(View.of(logits))
        self._call("probe_router", _layer(layer), described, whole(top_k, "top_k", LARGEST_U32), self._stream)
