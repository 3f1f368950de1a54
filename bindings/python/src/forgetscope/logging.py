"""What is measured, on the boards that a run has already: Weights & Biases, TensorBoard.

    log = forgetscope.log_to_wandb(scope)                    # after wandb.init()
    log = forgetscope.log_to_tensorboard(scope, writer)      # torch.utils.tensorboard.SummaryWriter

A thread reads the ring and logs what is said of the whole model, by pair of tasks, with the trainer's step.
`log.close()` waits until everything is logged; it is called by itself when the process ends. Costs the trainer nothing
but the thread's share of the interpreter.
"""

from __future__ import annotations

import atexit
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ._library import invalid
from .catalog import NONE_U16
from .reader import Reader
from .watch import Watch

# Kind → values that are logged of it, and what they are called there.
LOGGED: dict[str, dict[str, str]] = {
    "step": {"gradient_norm": "gradient_norm"},
    "interference": {"cosine": "interference_cosine", "conflict_fraction": "conflict_fraction"},
    "corrected": {"cosine": "interference_cosine_corrected"},
    "update": {"relative_step": "relative_step"},
    "alignment": {"cosine": "update_cosine"},
    "drift": {"relative": "drift"},
    "prediction": {"predicted": "predicted_loss_change", "path": "predicted_loss_change_path"},
    "evaluation": {"value": "evaluation", "forgetting_maximum": "forgetting"},
    "transfer": {"backward": "backward_transfer"},
}


class Log:
    """A thread that logs a ring. `close` ends it after the last record."""

    def __init__(self, path: Path, log: Callable[[int, dict[str, float]], None], poll: float) -> None:
        self._reader = Reader(path)
        self._log, self._poll = log, poll
        self._ending = threading.Event()
        self._watch = Watch()
        self._thread = threading.Thread(target=self._run, name="forgetscope-log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def close(self) -> None:
        atexit.unregister(self.close)
        self._ending.set()
        self._thread.join()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while True:
                is_ending = self._ending.is_set()
                for step, scalars in scalars_of(self._reader, self._reader.read()):
                    self._log(step, scalars)
                if is_ending or self._reader.closed:
                    break
                self._ending.wait(self._poll)
        except Exception as error:
            self._watch.say("logging has ended", str(error))
        finally:
            self._reader.close()


def scalars_of(reader: Reader, records: np.ndarray) -> Iterator[tuple[int, dict[str, float]]]:
    """For every step what is logged of it, by name: "interference_cosine/legal" (the earlier task)."""
    if not records.size:
        return
    catalog = reader.catalog
    chosen = {number: LOGGED[name] for number, name in catalog.kinds.items() if name in LOGGED}
    model = next((number for number, name in catalog.levels.items() if name == "model"), None)
    steps: dict[int, dict[str, float]] = {}
    for record in records[(records["level"] == model) & np.isin(records["kind"], list(chosen))]:
        kind, reference = int(record["kind"]), int(record["reference"])
        names = catalog.values[kind]
        values = dict(zip(names, record["values"].tolist(), strict=False))
        about = "" if reference == NONE_U16 else f"/{catalog.tasks.get(reference, reference)}"
        metric = catalog.metrics.get(int(values["metric"])) if not math.isnan(values.get("metric", math.nan)) else None
        for name, title in chosen[kind].items():
            if not math.isnan(value := values.get(name, math.nan)):
                title = f"{title}_{metric}" if metric else title
                steps.setdefault(int(record["step"]), {})[title + about] = value
    yield from sorted(steps.items())


def _path(source: Any) -> Path | None:
    """The ring of a scope, or the path that is given. None: the instrument is disabled."""
    if isinstance(source, (str, Path)):
        return Path(source)
    if hasattr(source, "ring_path"):
        return source.ring_path
    raise invalid(f"source: a {type(source).__name__} is neither a scope nor the path of a ring")


def log_to_wandb(source: Any, run: Any = None, *, prefix: str = "forgetscope/", poll: float = 1.0) -> Log | None:
    """Logs to a run of Weights & Biases (None: the one of `wandb.init`). `source`: a scope, or the path of a ring."""
    import wandb

    path, run = _path(source), run or wandb.run
    if run is None:
        raise invalid("run: there is none; call wandb.init first")
    if path is None:
        return None
    # The trainer's own logging keeps its steps.
    axis = f"{prefix}step"
    run.define_metric(axis, hidden=True)
    run.define_metric(f"{prefix}*", step_metric=axis)
    return Log(path, lambda step, scalars: run.log({axis: step} | {prefix + k: v for k, v in scalars.items()}), poll)


def log_to_tensorboard(source: Any, writer: Any, *, prefix: str = "forgetscope/", poll: float = 1.0) -> Log | None:
    """Logs to a `SummaryWriter`. `source`: a scope, or the path of a ring."""
    path = _path(source)
    if path is None:
        return None

    def log(step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            writer.add_scalar(prefix + name, value, step)

    return Log(path, log, poll)
