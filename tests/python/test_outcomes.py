"""Outcomes and interference: what the first kinds of records say, on small arrays."""

import numpy as np
from fgs import Scope
from scipy.stats import linregress

BLOCKS = "sums in fp32 blocks: at most 68·2⁻²⁴, see docs/statistics"


def step(scope, number):
    scope.step_begin(number)
    scope.gradients_ready(1.0, 0, None)
    scope.step_end(1, None)
    scope.flush()


def test_interference_and_drift(oracle, rng):
    shape = (48, 32)
    value, gradient = rng.normal(size=shape).astype(np.float32), np.zeros(shape, np.float32)
    with Scope() as scope:
        scope.tensor("w", value, gradient)
        scope.task_begin("A")
        batches = rng.normal(size=(8, *shape)) + 0.3 * rng.normal(size=shape)
        for batch in batches:
            gradient[:] = batch
            scope.reference_add("A", __import__("ctypes").c_uint64(1), 1.0, None)
        scope.task_end()
        before = value.astype(float)
        scope.task_begin("B")
        gradient[:] = rng.normal(size=shape) - 0.5 * batches.mean(0)
        scope.step_begin(1)
        scope.gradients_ready(1.0, 0, None)
        value -= np.float32(0.01) * gradient
        scope.step_end(1, None)
        records = scope.records()

    def of(kind, level="model"):
        return next(r for r in records if r.kind == kind and r.level == level and r.step == 1)

    g, r = gradient.astype(float).ravel(), batches.astype(np.float32).astype(float).mean(0).ravel()
    found = of("interference")
    oracle("gradient cosine", "NumPy", found["cosine"], g @ r / np.linalg.norm(g) / np.linalg.norm(r), 1e-5, BLOCKS)
    oracle("null error of a cosine", "NumPy, fair signs", found["null_error"],
           np.sqrt(((g * r) ** 2).sum()) / np.linalg.norm(g) / np.linalg.norm(r), 1e-5, BLOCKS)
    oracle("conflict fraction", "NumPy", found["conflict_fraction"], (g * r < 0).mean(), 1e-12, "counts")
    drift = value.astype(float) - before
    oracle("relative drift", "NumPy", of("drift")["relative"], np.linalg.norm(drift) / np.linalg.norm(before), 1e-5, BLOCKS,
           relative=True)
    oracle("first-order change of the loss", "NumPy", of("prediction")["first_order"], r @ drift.ravel(), 1e-5, BLOCKS,
           relative=True)
    oracle("update cosine", "NumPy", of("alignment")["cosine"], r @ drift.ravel() / np.linalg.norm(r) / np.linalg.norm(drift),
           1e-5, BLOCKS)


def test_forgetting(oracle):
    accuracy = np.array([[0.9, 0.3, 0.1], [0.6, 0.8, 0.2], [0.5, 0.7, 0.95]])
    with Scope() as scope:
        for trained in range(3):
            scope.task_begin(str(trained))
            for task in range(3):
                scope.record_eval(str(task), "accuracy", float(accuracy[trained, task]), 1)
            scope.task_end()
        records = scope.records()
    evaluations = {record.reference: record for record in records if record.kind == "evaluation"}
    expected = [accuracy[:2, j].max() - accuracy[2, j] for j in range(2)]
    oracle("forgetting, maximum", "Chaudhry et al. 2018", [evaluations[str(j)]["forgetting_maximum"] for j in range(2)],
           expected, 1e-15, "fp64")
    own = [accuracy[j, j] - accuracy[2, j] for j in range(2)]
    oracle("forgetting, since own", "Avalanche's definition", [evaluations[str(j)]["forgetting_since_own"] for j in range(2)],
           own, 1e-15, "fp64")
    transfer = [record for record in records if record.kind == "transfer"][-1]
    oracle("backward transfer", "Lopez-Paz & Ranzato 2017", transfer["backward"], -np.mean(own), 1e-15, "fp64")


def test_stage(oracle, rng):
    losses = 3 * np.exp(-0.004 * np.arange(8) * 10) * np.exp(0.01 * rng.normal(size=8))
    with Scope() as scope:
        scope.task_begin("A")
        for index, loss in enumerate(losses):
            for k in range(10):
                step(scope, 10 * index + k)
            scope.record_loss("A", float(loss))
        found = scope.records("stage")[-1]
    fit = linregress(9 + 10 * np.arange(8), np.log(losses))
    oracle("stage, slope of the loss curve", "scipy.stats.linregress", found["slope"], fit.slope, 1e-9, "fp64", relative=True)
    oracle("stage, its error", "scipy.stats.linregress", found["slope_error"], fit.stderr, 1e-9, "fp64", relative=True)
    assert found["stage"] == 1
