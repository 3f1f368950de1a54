#!/usr/bin/env python3
"""What the Python package adds to a step, beyond the calls of the C ABI that every trainer makes: `make bench-python`.

A model of 200 tensors whose gradients get new memory in every step, as `zero_grad(set_to_none=True)` does. The hooks
of a step are called by themselves, without `fgs_gradients_ready` and the reading in `fgs_step_end`, which measure: what
remains is finding where gradients and parameters lie, and saying so. The library's part of that, `fgs_step_begin`,
`fgs_step_sampled`, `fgs_rebind` and `fgs_step_end`, is timed by itself too. The least of the medians of interleaved
rounds: others use the machine. A step of SGD is there to compare with.
"""

from __future__ import annotations

import ctypes
import statistics
import time
import types
import warnings
from array import array
from collections.abc import Callable

import forgetscope
import torch

TENSORS, ELEMENTS, ROUNDS, STEPS = 200, 4096, 15, 200


def microseconds(call: Callable[[], object], prepare: Callable[[], object]) -> float:
    """Median time of a call; `prepare` before each is not counted."""
    times = []
    for _ in range(STEPS):
        prepare()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def main() -> None:
    warnings.simplefilter("ignore", RuntimeWarning)
    torch.set_num_threads(1)
    model = torch.nn.ParameterList(torch.nn.Parameter(torch.randn(ELEMENTS)) for _ in range(TENSORS))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, foreach=True)
    scope = forgetscope.attach(model, optimizer, every=1, threads=1)
    hooks, library, handle = scope._hooks, scope.scope.raw, scope.scope.handle
    assert hooks is not None and scope.ring_path is not None
    scope.ring_path.unlink()
    hooks._raw = types.SimpleNamespace(
        fgs_step_begin=library.fgs_step_begin,
        fgs_step_sampled=library.fgs_step_sampled,
        fgs_gradients_ready=lambda *_: 0,
        fgs_step_end=library.fgs_step_end,
    )
    spare = [[torch.randn(ELEMENTS) for _ in range(TENSORS)] for _ in range(2)]
    turn = 0

    def new_gradients() -> None:
        nonlocal turn
        turn += 1
        for parameter, gradient in zip(model.parameters(), spare[turn % 2], strict=True):
            parameter.grad = gradient

    def hooked() -> None:
        hooks._before(optimizer, (optimizer,), {})
        hooks._done(optimizer, (optimizer,), {})

    ids = array("I", range(TENSORS))
    places = [array("Q", [gradient.data_ptr() for gradient in gradients]) for gradients in spare]
    sampled = ctypes.c_int32()

    def called(is_sampled: bool) -> None:
        library.fgs_step_begin(handle, hooks.step)
        library.fgs_step_sampled(handle, ctypes.byref(sampled))
        if is_sampled:
            library.fgs_rebind(handle, 0, ids.buffer_info()[0], places[turn % 2].buffer_info()[0], TENSORS)
        library.fgs_step_end(handle, 1, None)

    def other_memory() -> None:
        nonlocal turn
        turn += 1

    results: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, every in (("sampled", 1), ("not sampled", 2**40)):
            scope.every(every)
            hooks.step = 1
            step = microseconds(hooked, new_gradients)
            results.setdefault(f"hooks of a step that is {name}", []).append(step)
            hooks.step = 1
            calls = microseconds(lambda is_sampled=every == 1: called(is_sampled), other_memory)
            results.setdefault(f"    of which the library, {name}", []).append(calls)
            results.setdefault(f"    of which Python, {name}", []).append(step - calls)
    hooks.remove()
    results["the optimizer's own step"] = [microseconds(optimizer.step, new_gradients)]
    print(f"{TENSORS} tensors of {ELEMENTS} elements, fp32, one thread")
    for name, times in results.items():
        print(f"{min(times):9.1f} µs  {name}")
    scope.close()


if __name__ == "__main__":
    main()
