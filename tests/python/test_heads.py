"""Attention heads: descriptors, contributions, classes."""

import numpy as np
import pytest
from fgs import GRAD, PARAM, ROLE_OUTPUT, Scope
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import entropy, false_discovery_control, linregress, t as student

HEADS, WIDTH = 4, 8
FP32 = "fp32 probabilities: 2⁻²⁴ a key, summed in fp64"


def f32(array):
    return np.ascontiguousarray(array, np.float32)


def causal(logits):
    t, s = logits.shape[-2:]
    return np.where(np.tri(t, s, s - t, dtype=bool), logits, -np.inf)


def of_heads(records, kind):
    """The latest record of each head, in order."""
    found = {record.slice & 0xFFFF: record for record in records if record.kind == kind}
    return [found[head] for head in sorted(found)]


def two_passes(scope, give, length, sequences):
    """give(moment) hands over layer 0 of the only batch."""
    scope.task_begin("A")
    for moment in range(2):
        scope.probe("A")
        scope.batch(sequences, length)
        give(moment)
        scope.probe_end()
        if moment == 0:
            scope.task_end()
            scope.task_begin("B")
    return scope.records()


@pytest.mark.parametrize("form", ["probabilities", "query and key", "query, key, lse, softcap"])
def test_attention(oracle, rng, form):
    s, t, groups = 6, 12, 2
    softcap = 5.0 if "softcap" in form else 0.0
    q = [f32(rng.normal(size=(s, t, HEADS, WIDTH)) * 2) for _ in range(2)]
    k = [f32(rng.normal(size=(s, t, groups, WIDTH)) * 2) for _ in range(2)]

    def logits(moment):
        keys = np.repeat(k[moment].astype(float), HEADS // groups, axis=2)
        raw = np.einsum("sthw,suhw->shtu", q[moment].astype(float), keys) / np.sqrt(WIDTH)
        return causal(softcap * np.tanh(raw / softcap) if softcap else raw)

    def give(moment):
        if form == "probabilities":
            scope.attention(0, probabilities=f32(softmax(logits(moment), -1)), mask=1)
        elif softcap:
            lse = f32(logsumexp(logits(moment), axis=-1))
            scope.attention(0, query=q[moment], key=k[moment], log_sum_exp=lse, softcap=softcap, mask=1)
        else:
            scope.attention(0, query=q[moment], key=k[moment], mask=1)

    # Every token is looked at.
    with Scope(FGS_PROBE_TOKENS_PER_SEQUENCE="64", FGS_ATTENTION_ROWS="4096") as scope:
        found = of_heads(two_passes(scope, give, t, s), "attention")
    p = [softmax(logits(moment), -1) for moment in range(2)]
    rows = [[np.array([p[m][i, h, j, : j + 1] for i in range(s)]) for h in range(HEADS) for j in range(t)] for m in range(2)]

    def per_head(value, skip=0):
        return [np.mean([value(h * t + j) for j in range(skip, t)]) for h in range(HEADS)]

    now, base = rows[1], rows[0]
    oracle("attention entropy", "scipy.stats.entropy", [r["entropy"] for r in found],
           per_head(lambda i: entropy(now[i], axis=1).mean()), 2e-6, FP32)
    oracle("attention divergence", "scipy.spatial.distance.jensenshannon²", [r["divergence"] for r in found],
           per_head(lambda i: (jensenshannon(now[i], base[i], axis=1) ** 2).mean()), 2e-6, FP32)
    oracle("sink mass", "NumPy", [r["sink"] for r in found], per_head(lambda i: now[i][:, 0].mean(), skip=1), 1e-6, FP32)
    oracle("dormancy", "NumPy", [r["dormant"] for r in found], per_head(lambda i: (now[i][:, 0] > 0.9).mean(), skip=1), 1e-12,
           "counts")
    if form != "probabilities":
        largest = np.max(logits(1), axis=(0, 2, 3))
        oracle("largest attention logit", "NumPy", [r["max_logit"] for r in found], largest, 1e-4, "fp32 products of size 20")


def test_uniform_and_one_hot(oracle):
    t = 16
    even, pointed = np.full((2, 1, t, t), 1 / t), np.zeros((2, 1, t, t))
    pointed[..., 0] = 1
    with Scope(FGS_PROBE_TOKENS_PER_SEQUENCE="64") as scope:
        records = two_passes(scope, lambda moment: scope.attention(0, probabilities=f32((even, pointed)[moment])), t, 2)
    base, now = [record for record in records if record.kind == "attention"]
    oracle("entropy of uniform and one-hot attention", "closed form ln n and 0", [base["entropy"], now["entropy"]],
           [np.log(t), 0], 1e-6, FP32)
    assert (now["sink"], now["dormant"]) == (1, 1)


def test_contribution(oracle, rng):
    """d_res with the contributions formed in full, the projection bound as a parameter."""
    n, c = 40, 24
    o = [f32(rng.normal(size=(n, HEADS, WIDTH))) for _ in range(2)]
    o[1] = f32(o[0] + 0.3 * o[1])
    weight = f32(rng.normal(size=(c, HEADS * WIDTH)))
    before = weight.copy()
    hidden = [f32(rng.normal(size=(n, c)) + 0.5) for _ in range(2)]
    with Scope() as scope:
        scope.tensor("out", weight, np.zeros_like(weight), role=ROLE_OUTPUT, layer=0, head_count=HEADS)

        def give(moment):
            scope.probe_hidden(0, hidden[moment], None)
            scope.probe_head_output(0, HEADS, 0, o[moment], None, None)
            weight[:] = f32(before * 1.1)

        found = of_heads(two_passes(scope, give, 1, n), "head")

    def contribution(moment, h):
        w = (before if moment == 0 else f32(before * 1.1)).astype(float)
        return o[moment][:, h].astype(float) @ w[:, h * WIDTH : (h + 1) * WIDTH].T

    residual = np.linalg.norm(hidden[0].astype(float))
    expected = [np.linalg.norm(contribution(1, h) - contribution(0, h)) / residual for h in range(HEADS)]
    oracle("change of a head's contribution", "NumPy, contributions formed in full", [r["contribution_change"] for r in found],
           expected, 1e-9, "cancellation of Grams: 2⁻⁵²·‖c‖²/‖Δc‖²")
    a, b = (x.astype(float).transpose(1, 0, 2).reshape(HEADS, -1) for x in o)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    oracle("cosine of head outputs", "NumPy", [r["output_cosine"] for r in found], cosine, 1e-12, "fp64")


def test_severity(oracle, rng):
    """p- and q-values by SciPy from the changes that the records themselves give for the null's passes."""
    n, c, heads = 30, 16, 8
    o = f32(rng.normal(size=(n, heads, WIDTH)))
    weight, hidden = f32(rng.normal(size=(c, heads * WIDTH))), f32(rng.normal(size=(n, c)))
    pace = np.exp(rng.normal(size=heads)) * 1e-3

    def give(change):
        scope.batch(n, 1)
        scope.probe_hidden(0, hidden, None)
        scope.probe_head_output(0, heads, 0, f32(o * (1 + change[:, None])), weight, None)
        scope.probe_end()

    def noise():
        return np.exp(0.2 * rng.normal(size=heads))

    with Scope() as scope:
        scope.task_begin("A")
        scope.probe("A")
        give(np.zeros(heads))
        updates = [10, 20, 40, 10, 20, 40]
        for u in updates:
            scope.probe("A", continued=u)
            give(pace * u**0.6 * noise())
        scope.task_end()
        scope.task_begin("B")
        value, gradient = np.ones(1, np.float32), np.zeros(1, np.float32)
        scope.tensor("any", value, gradient)
        for step in range(30):
            scope.step_begin(step)
            scope.gradients_ready(1.0, 0, None)
            scope.step_end(1, None)
        scope.probe("A")
        change = pace * 30**0.6 * noise()
        change[2] *= 8
        give(change)
        records = [record for record in scope.records() if record.kind == "head"]
    null = np.array([r["contribution_change"] for r in records if "continued" in r.flags]).reshape(len(updates), heads)
    found = [r for r in records if "continued" not in r.flags]
    x, y = np.log(np.repeat(np.array(updates, float)[:, None], heads, 1)), np.log(null)
    slope = linregress((x - x.mean(0)).ravel(), (y - y.mean(0)).ravel()).slope
    residual = y - y.mean(0) - slope * (x - x.mean(0))
    degrees = y.size - heads - 1
    s, sxx = np.sqrt((residual**2).sum() / degrees), ((x - x.mean(0)) ** 2).sum()
    at = np.log(30) - x.mean(0)
    scale = s * np.sqrt(1 + 1 / len(updates) + at**2 / sxx)
    d = np.array([r["contribution_change"] for r in found])
    p = student.sf((np.log(d) - y.mean(0) - slope * at) / scale, degrees)
    why = "the same regression twice, in fp64"
    oracle("p-value of a head's change", "scipy.stats.t on its own regression", [r["p_value"] for r in found], p, 1e-9, why)
    oracle("q-value of a head's change", "scipy.stats.false_discovery_control", [r["q_value"] for r in found],
           false_discovery_control(p), 1e-9, why)
    high = np.exp(y.mean(0) + slope * at + scale * student.ppf(0.99, degrees))
    oracle("99 % quantile of the null", "scipy.stats.t", [r["null_high"] for r in found], high, 1e-9, why, relative=True)
    assert [r["severity"] for r in found] == [1.0 if h == 2 else 0.0 for h in range(heads)]


def test_depth(oracle, rng):
    n, c, layers = 25, 16, 4
    o = f32(rng.normal(size=(n, HEADS, WIDTH)))
    weight, hidden = f32(rng.normal(size=(c, HEADS * WIDTH))), f32(rng.normal(size=(n, c)))
    change = np.abs(rng.normal(size=(layers, HEADS)))
    with Scope() as scope:
        scope.task_begin("A")
        for moment in range(2):
            scope.probe("A")
            scope.batch(n, 1)
            for layer in range(layers):
                factor = 1 + moment * change[layer][:, None]
                scope.probe_hidden(layer, hidden, None)
                scope.probe_head_output(layer, HEADS, 0, f32(o * factor), weight, None)
            scope.probe_end()
            if moment == 0:
                scope.task_end()
                scope.task_begin("B")
        records = scope.records()
    d = {record.slice >> 16: [] for record in records if record.kind == "head"}
    for record in records:
        if record.kind == "head":
            d[record.slice >> 16].append(record["contribution_change"])
    found = [record for record in records if record.kind == "depth"][-1]
    lower, upper = np.mean([d[0], d[1]]), np.mean([d[2], d[3]])
    oracle("lower against upper layers", "NumPy", [found["difference"], found["lower"], found["upper"]],
           [upper - lower, lower, upper], 1e-12, "fp64")
    draws = rng.choice(np.concatenate([d[2], d[3]]), (20000, 8)).mean(1) - rng.choice(np.concatenate([d[0], d[1]]), (20000, 8)).mean(1)
    width = np.percentile(draws, 97.5) - np.percentile(draws, 2.5)
    oracle("bootstrap interval, in its widths", "NumPy, 20,000 resamples", [found["low"] / width, found["high"] / width],
           np.percentile(draws, [2.5, 97.5]) / width, 0.05, "2,000 resamples: error of a 2.5 % quantile 0.01 of the width")
