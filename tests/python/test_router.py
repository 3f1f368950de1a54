"""A router of a mixture of experts: a tiny one, moved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fgs import Scope
from scipy.special import softmax
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, hypergeom

FP64 = "fp64 on fp32 logits"


@pytest.mark.parametrize("experts, top_k", [(4, 1), (8, 2), (16, 4)])
def test_router(oracle, rng, experts, top_k):
    n, d = 400, 12
    x = rng.normal(size=(n, d))
    weight = rng.normal(size=(d, experts))
    weight[:, 0] += 0.3  # some experts are more popular
    logits = [np.ascontiguousarray(x @ w, np.float32) for w in (weight, weight + 0.3 * rng.normal(size=weight.shape))]
    with Scope(FGS_PROBE_TOKENS="4096") as scope:
        scope.task_begin("A")
        for moment in range(2):
            scope.probe("A")
            scope.batch(n, 1)
            scope.probe_router(0, logits[moment], top_k, None)
            scope.probe_end()
            if moment == 0:
                scope.task_end()
        found = scope.records("router")[-1]
    p, q = (softmax(l.astype(float), 1) for l in logits)
    oracle("router KL", "scipy.stats.entropy", found["divergence"], entropy(p, q, axis=1).mean(), 1e-10, FP64)
    oracle("router JS", "scipy.spatial.distance.jensenshannon²", found["js_divergence"], (jensenshannon(p, q, axis=1) ** 2).mean(),
           1e-10, FP64)
    chosen = [np.argsort(-l, axis=1, kind="stable")[:, :top_k] for l in logits]
    shared = np.array([len(set(a) & set(b)) for a, b in zip(*chosen)])
    oracle("router Jaccard", "Python sets", found["jaccard"], (shared / (2 * top_k - shared)).mean(), 1e-12, "counts")
    j = np.arange(top_k + 1)
    oracle("router Jaccard, null", "scipy.stats.hypergeom", found["jaccard_null"],
           (hypergeom(experts, top_k, top_k).pmf(j) * j / (2 * top_k - j)).sum(), 1e-12, FP64)
    counts = [np.bincount(c.ravel(), minlength=experts) for c in chosen]
    kept = counts[0] + counts[1] >= 10
    load = [(c + 0.5) / (c + 0.5).sum() for c in counts]
    assert found["experts"] == kept.sum()
    if kept.all():
        oracle("router load KL", "scipy.stats.entropy, half an assignment added", found["load_divergence"],
               entropy(load[0], load[1]), 1e-10, FP64)
    oracle("router load entropy", "scipy.stats.entropy", found["load_entropy"], entropy(counts[1] / counts[1].sum()), 1e-10, FP64)


def test_load_null(oracle, rng):
    """Other tokens under the same routing: the mean load divergence over draws is its null (E − k)/(nk)."""
    n, experts, top_k, draws = 500, 8, 2, 60
    popularity = rng.normal(size=experts) * 0.5
    values = []
    with Scope(FGS_PROBE_TOKENS="4096") as scope:
        for draw in range(draws):
            scope.task_begin(f"A{draw}")
            for moment in range(2):
                scope.probe(f"A{draw}")
                scope.batch(n, 1)
                scope.probe_router(0, (popularity + rng.gumbel(size=(n, experts))).astype(np.float32), top_k, None)
                scope.probe_end()
                if moment == 0:
                    scope.task_end()
        found = [record for record in scope.records("router") if "base" not in record.flags]
    values = np.array([record["load_divergence"] for record in found])
    error = values.std(ddof=1) / np.sqrt(draws)
    oracle("router load KL, null, in standard errors of 60 draws", "simulation", values.mean() / error,
           found[0]["load_divergence_null"] / error, 4.0, "a mean within four standard errors")


def test_tiny_mixture_of_experts(oracle, rng):
    """A real one: four linear experts, softmax router, top 1, trained on one task and then on another that needs other experts."""
    d, experts, n = 6, 4, 512

    def task(shift):
        x = rng.normal(size=(n, d)) + shift
        return jnp.asarray(x), jnp.asarray(np.tanh(x @ rng.normal(size=(d, 3))))

    tasks = [task(np.eye(d)[0] * 2), task(-np.eye(d)[0] * 2)]

    def forward(p, x):
        logits = x @ p["router"]
        gate = jax.nn.softmax(logits)
        chosen = jax.nn.one_hot(logits.argmax(1), experts)
        return jnp.einsum("ne,nde->nd", gate * chosen, jnp.einsum("nk,ekd->nde", x, p["experts"])), logits

    loss = jax.jit(jax.value_and_grad(lambda p, x, y: ((forward(p, x)[0] - y) ** 2).mean()))
    p = {"router": jnp.asarray(rng.normal(size=(d, experts)) * 0.3), "experts": jnp.asarray(rng.normal(size=(experts, d, 3)) * 0.3)}

    def train(p, x, y):
        for _ in range(150):
            p = jax.tree.map(lambda w, g: w - 0.3 * g, p, loss(p, x, y)[1])
        return p

    def look(scope):
        logits = np.asarray(forward(p, tasks[0][0])[1], np.float32)
        scope.probe("A")
        scope.batch(n, 1)
        scope.probe_router(0, logits, 1, None)
        scope.probe_end()
        return logits.astype(float)

    with Scope(FGS_PROBE_TOKENS="4096") as scope:
        scope.task_begin("A")
        p = train(p, *tasks[0])
        before = look(scope)
        scope.task_end()
        scope.task_begin("B")
        p = train(p, *tasks[1])
        after = look(scope)
        found = scope.records("router")[-1]
    a, b = softmax(before, 1), softmax(after, 1)
    oracle("router KL of a trained mixture of experts", "scipy.stats.entropy", found["divergence"], entropy(a, b, axis=1).mean(), 1e-10,
           FP64)
    same = (before.argmax(1) == after.argmax(1)).mean()
    oracle("router Jaccard of a trained mixture of experts", "NumPy, top 1", found["jaccard"], same, 1e-12, "counts")
    assert found["divergence"] > 0 and same < 1, "training on the other task moved the router"
