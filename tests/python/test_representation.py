"""Hidden states: alignment, shifts, subspaces, collapse, similarity of tasks."""

import numpy as np
import pytest
from fgs import Scope
from scipy.linalg import orthogonal_procrustes, subspace_angles

ROUNDING = "fp64 algebra on fp32 input: κ·2⁻⁵³ with condition numbers below 10⁴"


def run(scope, passes, labels=None, k_layers=1, tokens=1):
    """Passes of (batches of n_b × d rows). Sequences are `tokens` consecutive rows, as many as are sampled of each."""
    scope.task_begin("A")
    for index, batches in enumerate(passes):
        scope.probe("A")
        for number, rows in enumerate(batches):
            scope.batch(len(rows) // tokens, tokens, None if labels is None else labels[number])
            for layer in range(k_layers):
                part = rows if k_layers == 1 else rows[layer]
                scope.probe_hidden(layer, np.ascontiguousarray(part, np.float32), None)
        scope.probe_end()
        if index == 0:
            scope.task_end()
            scope.task_begin("B")
    return scope.records()


def latest(records, kind):
    return [record for record in records if record.kind == kind][-1]


def hsic1(k, l):
    """Song et al. 2012, written out."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    ones = np.ones(n)
    return (np.trace(k @ l) + k.sum() * l.sum() / (n - 1) / (n - 2) - 2 / (n - 2) * ones @ k @ l @ ones) / (n * (n - 3))


def cka_debiased(base, now, tokens=1, parts=1):
    """The k-th tokens of all sequences, in parts of at most 1,024, are a block; blocks weigh by their rows."""
    sums = np.zeros(3)
    for place in range(tokens):
        for x, y in zip(*(np.split(z[place::tokens], parts) for z in (base, now))):
            k, l = x @ x.T, y @ y.T
            sums += len(k) * np.array([hsic1(k, l), hsic1(k, k), hsic1(l, l)])
    return sums[0] / np.sqrt(sums[1] * sums[2])


def centred(x):
    return x - x.mean(0)


def related(rng, n, d, width, strength):
    """Rows, and rows that are a rotation of a part of them plus noise; as fp32 holds them."""
    x = rng.normal(size=(n, d)) * np.geomspace(3, 0.1, d)
    y = strength * x @ rng.normal(size=(d, width)) / np.sqrt(d) + rng.normal(size=(n, width)) + 0.3
    return x.astype(np.float32).astype(float), y.astype(np.float32).astype(float)


@pytest.mark.parametrize("n, d, batches, tokens", [(120, 16, 1, 1), (64, 200, 1, 1), (240, 24, 4, 1), (240, 24, 5, 4),
                                                   (96, 200, 3, 4), (1500, 8, 3, 1)])
def test_alignment(oracle, rng, n, d, batches, tokens):
    x, y = related(rng, n, d, d, 1.5)
    with Scope(FGS_PROBE_TOKENS_PER_SEQUENCE=str(tokens)) as scope:
        records = run(scope, [np.split(x, batches), np.split(y, batches)], tokens=tokens)
    found = latest(records, "representation")
    assert (found["tokens"], found["batches"]) == (n, batches)
    oracle("debiased CKA", "NumPy, Song et al. 2012 over blocks without a common sequence", found["cka"],
           cka_debiased(x, y, tokens, 1 if n < 1024 else 2), 1e-12, ROUNDING)
    cx, cy = centred(x), centred(y)
    biased = np.linalg.norm(cx.T @ cy) ** 2 / np.linalg.norm(cx.T @ cx) / np.linalg.norm(cy.T @ cy)
    oracle("biased CKA", "NumPy, Kornblith et al. 2019", found["cka_biased"], biased, 1e-12, ROUNDING)
    a, b = cx / np.linalg.norm(cx), cy / np.linalg.norm(cy)
    rotation, scale = orthogonal_procrustes(a, b)
    oracle("Procrustes distance", "scipy.linalg.orthogonal_procrustes", found["procrustes"],
           np.linalg.norm(a @ rotation - b) ** 2, 1e-12, ROUNDING)
    spread = np.cov(x.T).trace()
    oracle("mean shift", "NumPy", found["mean_shift"], np.linalg.norm(y.mean(0) - x.mean(0)) / np.sqrt(spread), 1e-12, ROUNDING)
    oracle("variance shift", "NumPy", found["variance_shift"], np.log(np.cov(y.T).trace() / spread), 1e-12, ROUNDING)
    values = np.linalg.eigvalsh(np.cov(y.T))
    oracle("effective rank", "NumPy, participation ratio", found["effective_rank"], values.sum() ** 2 / (values**2).sum(),
           1e-12, ROUNDING, relative=True)


@pytest.mark.parametrize("n, d", [(150, 20), (60, 150)])
def test_principal_angles(oracle, rng, n, d):
    k = 5
    x, y = related(rng, n, d, d, 3.0)
    y = (0.8 * x + 0.2 * y).astype(np.float32).astype(float)
    with Scope(FGS_SUBSPACE_DIMENSIONS=str(k)) as scope:
        records = run(scope, [[x], [y]])
    found = latest(records, "subspace")
    a, b = (np.linalg.svd(centred(z), full_matrices=False)[2][:k].T for z in (x, y))
    angles = np.degrees(subspace_angles(a, b))
    # A subspace is determined up to rounding over its relative eigengap.
    bound, why = 1e-10, "degrees: 57·2⁻⁵³·κ over eigengaps above 1 %"
    oracle("principal angles, mean", "scipy.linalg.subspace_angles", found["angle_mean"], angles.mean(), bound, why)
    oracle("principal angles, largest", "scipy.linalg.subspace_angles", found["angle_max"], angles.max(), bound, why)
    oracle("subspace overlap", "SciPy, mean cos²", found["overlap"], (np.cos(np.radians(angles)) ** 2).mean(), 1e-12, ROUNDING)
    assert found["overlap_null"] == k / d


@pytest.mark.parametrize("degrees", [10, 30, 60])
def test_planted_rotation(oracle, rng, degrees):
    """A known plane of each of three pairs of axes is turned; the rows are nothing but those axes."""
    n, d, k = 400, 40, 3
    basis = np.linalg.qr(rng.normal(size=(d, 2 * k)))[0]
    loadings = rng.normal(size=(n, k)) * [5, 4, 3]
    angle = np.radians(degrees)
    turned = np.cos(angle) * basis[:, :k] + np.sin(angle) * basis[:, k:]
    with Scope(FGS_SUBSPACE_DIMENSIONS=str(k)) as scope:
        records = run(scope, [[loadings @ basis[:, :k].T], [loadings @ turned.T]])
    found = latest(records, "subspace")
    why = "degrees: fp32 rounding of the rows, 57·2⁻²⁴·√n"
    oracle("planted rotation by 10°, 30°, 60°", "closed form", [found["angle_mean"], found["angle_max"]],
           [degrees, degrees], 1e-4, why)
    assert found["angle_mean"] > found["null_high"]


def test_independent_gaussians(oracle, rng):
    """n = 256 rows in p = 4,096 dimensions: debiasing is not a nicety."""
    n, p = 256, 4096
    with Scope() as scope:
        records = run(scope, [[rng.normal(size=(n, p))], [rng.normal(size=(n, p))]])
    found = latest(records, "representation")
    oracle("biased CKA of independent Gaussians", "closed form 1/(1 + n/p)", found["cka_biased"], 1 / (1 + n / p), 2e-3,
           "spread over draws below 10⁻³")
    oracle("debiased CKA of independent Gaussians, in its errors", "0", found["cka"] / found["cka_error"], 0, 4.0,
           "a null within four standard errors")


@pytest.mark.parametrize("d", [64, 512])
def test_unrelated_states_of_correlated_tokens(oracle, rng, d):
    """16 minibatches of 16 sequences of 4 tokens, which are correlated by .5: of minibatches it would be .44 and .86."""
    def states():
        return (np.repeat(rng.normal(size=(256, d)), 4, axis=0) + rng.normal(size=(1024, d))).astype(np.float32)

    x, y = states(), states()
    with Scope(FGS_PROBE_TOKENS_PER_SEQUENCE="4") as scope:
        records = run(scope, [np.split(x, 16), np.split(y, 16)], tokens=4)
    found = latest(records, "representation")
    oracle("debiased CKA", "NumPy, Song et al. 2012 over blocks without a common sequence", found["cka"],
           cka_debiased(x.astype(float), y.astype(float), 4), 1e-12, ROUNDING)
    oracle("debiased CKA of unrelated states with tokens correlated by .5, in its errors", "0",
           found["cka"] / found["cka_error"], 0, 4.0, "a null within four standard errors")


def test_neighbours(oracle, rng):
    x, y = related(rng, 100, 12, 12, 2.0)
    z = centred(x @ rng.normal(size=(12, 12))).astype(np.float32).astype(float)
    with Scope() as scope:
        scope.task_begin("A")
        for states in ((x, y), (x, z)):
            scope.probe("A")
            scope.batch(100, 1)
            for layer, rows in enumerate(states):
                scope.probe_hidden(layer, np.ascontiguousarray(rows, np.float32), None)
            scope.probe_end()
            if states[1] is y:
                scope.task_end()
                scope.task_begin("B")
        found = latest(scope.records(), "neighbour")
    now, base = cka_debiased(x, z), cka_debiased(x, y)
    oracle("neighbour CKA, now and base", "NumPy", [found["cka"], found["cka_base"]], [now, base], 1e-12, ROUNDING)
    oracle("neighbour CKA, change", "NumPy", found["change"], now - base, 1e-12, ROUNDING)


def test_collapse(oracle, rng):
    n, d, classes = 90, 30, 4
    labels = np.arange(n) % classes
    labels[:7] = -1
    rows = (rng.normal(size=(classes, d))[labels] * 3 + rng.normal(size=(n, d))).astype(np.float32)
    with Scope() as scope:
        records = run(scope, [[rows]], labels=[labels])
    found = latest(records, "collapse")
    kept, label = rows[7:].astype(float), labels[7:]
    means = np.stack([kept[label == index].mean(0) for index in range(classes)])
    within = sum((kept[label == index] - means[index]).T @ (kept[label == index] - means[index]) for index in range(classes))
    between = centred(means).T @ centred(means) / classes
    expected = np.trace(within / len(kept) @ np.linalg.pinv(between)) / classes
    oracle("NC1", "NumPy, Papyan et al. 2020 with pinv", found["nc1"], expected, 1e-12, ROUNDING, relative=True)
    assert found["classes"] == classes and found["nc1_null"] > 3 * found["nc1"]


def test_similarity(oracle, rng):
    k, d = 3, 25
    x, y = related(rng, 200, d, d, 2.0)
    with Scope(FGS_SUBSPACE_DIMENSIONS=str(k)) as scope:
        scope.task_begin("A")
        for task, rows in (("A", x), ("B", y)):
            scope.probe(task)
            scope.batch(200, 1)
            scope.probe_hidden(0, np.ascontiguousarray(rows, np.float32), None)
            scope.probe_end()
        found = latest(scope.records(), "similarity")
    a, b = (np.linalg.svd(centred(z), full_matrices=False)[2][:k].T for z in (x, y))
    oracle("task similarity, overlap", "SciPy, mean cos²", found["overlap"], (np.cos(subspace_angles(a, b)) ** 2).mean(),
           1e-12, ROUNDING)
    deviation = np.sqrt((x.var(0, ddof=1) + y.var(0, ddof=1)) / 2)
    mx, my = x.mean(0) / deviation, y.mean(0) / deviation
    oracle("task similarity, cosine of means", "NumPy", found["mean_cosine"],
           mx @ my / np.linalg.norm(mx) / np.linalg.norm(my), 1e-12, ROUNDING)
