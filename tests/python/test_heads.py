"""Attention heads: descriptors, contributions, classes."""

import numpy as np
import pytest
from fgs import GRAD, PARAM, ROLE_OUTPUT, Scope
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import binomtest, entropy, false_discovery_control, linregress, t as student

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


def null_of_runs(x, y, run, at):
    """ln d of every head at ln u = `at`, predicted from runs: location and scale of Student's t, its degrees, the slope.
    x: ln u of each pass; y: ln d, passes × heads; run: of each pass. Runs have as many passes each."""
    heads, runs = y.shape[1], np.unique(run)
    slope = np.clip(linregress(np.repeat(x - x.mean(), heads), (y - y.mean(0)).ravel()).slope, 0, 1)
    left = y - y.mean(0) - slope * (x - x.mean())[:, None]
    of_runs = np.array([left[run == r].mean(0) for r in runs])
    degrees = of_runs.size - heads - 1
    between = (of_runs**2).sum() / degrees
    variance = between + np.mean([left[run == r].var(0) for r in runs])
    share = (of_runs.sum(1) ** 2).sum() / heads / (of_runs**2).sum()
    whole = max(len(runs) - 2, 1)
    effective = 1 / (share**2 / whole + (1 - share) ** 2 / (degrees - whole))
    reach = sum(np.abs(x[run == r] - x.mean()).sum() ** 2 for r in runs) / heads / ((x - x.mean()) ** 2).sum() ** 2
    at = at - x.mean()
    return y.mean(0) + slope * at, np.sqrt(variance * (1 + reach * at**2) + between / len(runs)), effective, slope


class Layers:
    """Head outputs and output projections that wander at each head's pace; passes of a run are stages of one walk."""

    def __init__(self, rng, layers, heads, n=24, c=12):
        self.rng, self.layers, self.heads = rng, layers, heads
        self.o = rng.normal(size=(layers, n, heads, WIDTH))
        self.w = rng.normal(size=(layers, c, heads, WIDTH))
        self.hidden = f32(rng.normal(size=(n, c)))
        self.pace = 0.004 * np.exp(0.5 * rng.normal(size=(layers, heads)))

    def walk(self, updates):
        """The states of one run after each of `updates`."""
        o, w, before = self.o.copy(), self.w.copy(), 0
        for u in updates:
            size = (self.pace * np.sqrt(u - before))[:, None, :, None]
            o, w, before = o + size * self.rng.normal(size=o.shape), w + size * self.rng.normal(size=w.shape), u
            yield u, o, w

    def give(self, scope, o=None, w=None, layers=None):
        o, w = self.o if o is None else o, self.w if w is None else w
        scope.batch(o.shape[1], 1)
        for layer in range(self.layers) if layers is None else layers:
            scope.probe_hidden(layer, self.hidden, None)
            weight = f32(w[layer].reshape(w.shape[1], -1))
            scope.probe_head_output(layer, self.heads, 0, f32(o[layer]), weight, None)
        scope.probe_end()

    def null(self, scope, runs, updates):
        scope.task_begin("A")
        scope.probe("A")
        self.give(scope)
        for run in range(runs):
            for u, o, w in self.walk(updates):
                scope.probe("A", continued=u, run=run)
                self.give(scope, o, w)
        scope.task_end()

    def now(self, updates):
        return list(self.walk([updates]))[0][1:]


def steps(scope, count):
    """So many updates of a second task."""
    scope.task_begin("B")
    scope.tensor("any", np.ones(1, np.float32), np.zeros(1, np.float32))
    for step in range(count):
        scope.step_begin(step)
        scope.gradients_ready(1.0, 0, None)
        scope.step_end(1, None)


def test_severity(oracle, rng):
    """p- and q-values by SciPy from the changes that the records themselves give for the null's passes."""
    runs, updates, heads = 4, [10, 20, 40], 8
    model = Layers(rng, 1, heads)
    with Scope() as scope:
        model.null(scope, runs, updates)
        steps(scope, 30)
        o, w = model.now(30)
        w[0, :, 2] = rng.normal(size=w[0, :, 2].shape)
        scope.probe("A")
        model.give(scope, o, w)
        records = scope.records()
    null = [r["contribution_change"] for r in records if r.kind == "head" and "continued" in r.flags]
    found = [r for r in records if r.kind == "head" and "continued" not in r.flags]
    x, y = np.log(np.tile(np.array(updates, float), runs)), np.log(np.array(null).reshape(-1, heads))
    location, scale, degrees, slope = null_of_runs(x, y, np.repeat(np.arange(runs), len(updates)), np.log(30))
    d = np.array([r["contribution_change"] for r in found])
    p = student.sf((np.log(d) - location) / scale, degrees)
    why = "the same regression twice, in fp64"
    oracle("p-value of a head's change", "scipy.stats.t on its own regression", [r["p_value"] for r in found], p, 1e-9, why)
    oracle("q-value of a head's change", "scipy.stats.false_discovery_control", [r["q_value"] for r in found],
           false_discovery_control(p), 1e-9, why)
    oracle("99 % quantile of the null", "scipy.stats.t", [r["null_high"] for r in found],
           np.exp(location + scale * student.ppf(0.99, degrees)), 1e-9, why, relative=True)
    depth = [record for record in records if record.kind == "depth"][-1]
    oracle("slope and degrees of the null", "NumPy and SciPy", [depth["null_slope"], depth["null_degrees"]], [slope, degrees],
           1e-9, why, relative=True)
    assert found[2]["severity"] == 1.0


def test_every_head_has_its_own_null(oracle, rng):
    """A null over two layers; later passes with both, with the second alone, and with one that the null has never seen."""
    model = Layers(rng, 3, HEADS)
    model.pace[1] *= 30
    with Scope() as scope:
        scope.task_begin("A")
        scope.probe("A")
        model.give(scope)
        for run in range(3):
            _, o, w = next(model.walk([20]))
            scope.probe("A", continued=20, run=run)
            model.give(scope, o, w, layers=[0, 1])
        scope.task_end()
        steps(scope, 20)
        o, w = model.now(20)
        found = []
        for layers in ([0, 1], [1], [1, 2]):
            scope.probe("A")
            model.give(scope, o, w, layers=layers)
            found.append({r.slice: r for r in scope.records("head") if "continued" not in r.flags})
        scope.head_effect("A", 1, 2, 1.5, 1.0, 0.01)
        effect = scope.records("head")[-1]
    both, alone, more = found
    second = [1 << 16 | head for head in range(HEADS)]
    for value in ("null_median", "null_high", "p_value"):
        expected = [both[s][value] for s in second]
        oracle("a head's null in a pass without other layers", "the pass with them", [alone[s][value] for s in second],
               expected, 0.0, "the same numbers")
    assert all(alone[s]["severity"] == 0.0 for s in second)
    assert [more[s]["null_median"] for s in second] == [both[s]["null_median"] for s in second]
    stranger = more[2 << 16]
    assert np.isnan(stranger["severity"]) and np.isnan(stranger["null_median"]) and "undetermined" in stranger.flags
    assert effect.slice == second[2] and effect["effect"] == 0.5
    assert (effect["null_median"], effect["q_value"]) == (more[second[2]]["null_median"], more[second[2]]["q_value"])


def test_scrambled_heads(oracle, rng):
    """32 heads over 4 layers: three scrambled ones are found among continued training, and others left alone."""
    trials, hits, false, alarms = 20, 0, [], 0
    for _ in range(trials):
        model = Layers(rng, 4, 8)
        scrambled = {(int(h) // 8) << 16 | int(h) % 8 for h in rng.choice(32, 3, replace=False)}
        with Scope() as scope:
            model.null(scope, 4, [20, 40])
            steps(scope, 40)
            for broken in (set(), scrambled):
                o, w = model.now(40)
                for s in broken:
                    w[s >> 16, :, s & 0xFFFF] = rng.normal(size=w.shape[1:2] + w.shape[3:])
                scope.probe("A")
                model.give(scope, o, w)
            records = [r for r in scope.records("head") if "continued" not in r.flags]
        still, now = ({r.slice for r in part if r["severity"] >= 1} for part in (records[:32], records[32:]))
        alarms += bool(still)
        hits += scrambled <= now
        false.append(len(now - scrambled) / max(len(now), 1))
    interval = binomtest(alarms, trials).proportion_ci(method="exact")
    print(f"any of 32 heads under the null: {alarms} of {trials}, {interval.low:.3f} … {interval.high:.3f}")
    oracle("3 of 32 heads scrambled, share of trials that miss one", "planted", 1 - hits / trials, 0.0, 0.0, "changes some 50 times those of the null")
    oracle("3 of 32 heads scrambled, false discoveries", "planted", np.mean(false), 0.0, 0.15,
           "5 % of discoveries and four standard errors of 20 trials")
    oracle("32 heads of continued training, share of trials with any flagged", f"promise of 5 %, Clopper–Pearson "
           f"{interval.low:.2f} … {interval.high:.2f}", alarms / trials, 0.05, 0.2, "four standard errors of 20 trials")


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
