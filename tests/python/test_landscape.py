"""The loss landscape against exact Hessians by automatic differentiation in fp64."""

import ctypes as c

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fgs import MAGIC, Refused, Scope

jax.config.update("jax_enable_x64", True)


class Curvature(c.Structure):
    _fields_ = [("size", c.c_uint32), ("magic", c.c_uint32), ("task", c.c_char_p), ("lanczos_steps", c.c_uint32),
                ("trace_vectors", c.c_uint32), ("density_vectors", c.c_uint32), ("eigenvectors", c.c_uint32),
                ("path_points", c.c_uint32), ("block_vectors", c.c_uint32), ("blocks", c.POINTER(c.c_uint32)),
                ("block_count", c.c_uint32), ("relative_step", c.c_double), ("seed", c.c_uint64)]


class Request(c.Structure):
    _fields_ = [("size", c.c_uint32), ("magic", c.c_uint32), ("want", c.c_uint32), ("index", c.c_uint32),
                ("total", c.c_uint32)]


class Problem:
    """A loss of named fp32 parameters, bound to a scope, with its exact derivatives."""

    def __init__(self, scope, loss, **parameters):
        self.scope, self.loss = scope, loss
        self.values = {name: np.ascontiguousarray(value, np.float32) for name, value in parameters.items()}
        self.gradients = {name: np.zeros_like(value) for name, value in self.values.items()}
        self.ids = {name: scope.tensor(name, value, self.gradients[name]) for name, value in self.values.items()}
        self.derivative = jax.jit(jax.value_and_grad(loss))
        self.start = self.vector()

    def vector(self):
        return np.concatenate([value.astype(float).ravel() for value in self.values.values()])

    def unflatten(self, vector):
        parts, at = {}, 0
        for name, value in self.values.items():
            parts[name] = vector[at : at + value.size].reshape(value.shape)
            at += value.size
        return parts

    def hessian(self):
        return np.asarray(jax.hessian(lambda vector: self.loss(self.unflatten(vector)))(jnp.asarray(self.vector())))

    def answer(self):
        """Loss at the weights as they are; the gradient goes where it is bound."""
        value, gradient = self.derivative({name: jnp.asarray(v, jnp.float64) for name, v in self.values.items()})
        for name, part in gradient.items():
            self.gradients[name][:] = part
        return float(value)

    def run(self, until=None, **options):
        """A run to its end, or given up at request `until`. Returns the number of requests."""
        raw = Curvature(size=c.sizeof(Curvature), magic=MAGIC, task=b"A", lanczos_steps=32, trace_vectors=8, density_vectors=1,
                        eigenvectors=3, block_vectors=4, relative_step=1e-3)
        for name, value in options.items():
            setattr(raw, name, value)
        self.scope.curvature_begin(raw)
        request = Request(c.sizeof(Request), MAGIC)
        count = 0
        while True:
            self.scope.curvature_next(request)
            if request.want == 0 or count == until:
                break
            self.scope.curvature_submit(self.answer(), 1.0, None)
            count += 1
        self.scope.curvature_end()
        return count


def network(rng, width=12, inputs=6):
    """Two layers of tanh with softmax cross-entropy: an indefinite Hessian of 6·12 + 12 + 12·4 parameters."""
    x, labels = jnp.asarray(rng.normal(size=(64, inputs))), jnp.asarray(rng.integers(0, 4, 64))

    def loss(p):
        logits = jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"]
        return -jax.nn.log_softmax(logits)[jnp.arange(64), labels].mean()

    return loss, {"w1": rng.normal(size=(inputs, width)), "b1": rng.normal(size=width), "w2": rng.normal(size=(width, 4))}


def last(records, kind, level="model"):
    return [record for record in records if record.kind == kind and record.level == level][-1]


HVP = "products by central differences of fp32 gradients: 6·10⁻⁵, see docs/statistics/landscape.md"


def test_quadratic(oracle, rng):
    """A known spectrum: two outliers over a bulk."""
    n = 200
    spectrum = np.concatenate([[40.0, 25.0], np.geomspace(5, 0.01, n - 2)])
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    matrix = jnp.asarray(basis * spectrum @ basis.T)
    with Scope() as scope:
        problem = Problem(scope, lambda p: 0.5 * p["w"] @ matrix @ p["w"], w=rng.normal(size=n))
        scope.task_begin("A")
        problem.run(trace_vectors=32)
        records = scope.records()
    found = last(records, "curvature")
    oracle("λ₁ of a quadratic, relative to it", "planted spectrum", found["largest"], 40.0, 1e-3, HVP, relative=True)
    values = [record["value"] for record in records if record.kind == "eigenvalue"][:2]
    oracle("λ₁, λ₂ of a quadratic", "planted spectrum", values, [40.0, 25.0], 1e-3, HVP, relative=True)
    oracle("trace of a quadratic, in its standard errors", "planted spectrum", found["trace"] / found["trace_error"],
           spectrum.sum() / found["trace_error"], 2.0, "two standard errors, 32 vectors")


@pytest.mark.parametrize("seed", range(3))
def test_network(oracle, rng, seed):
    loss, parameters = network(np.random.default_rng(seed))
    with Scope() as scope:
        problem = Problem(scope, loss, **parameters)
        hessian = problem.hessian()
        gradient = np.asarray(jax.grad(lambda v: loss(problem.unflatten(v)))(jnp.asarray(problem.vector())))
        scope.task_begin("A")
        problem.run(trace_vectors=32, lanczos_steps=40, seed=seed)
        records = scope.records()
        assert np.array_equal(problem.vector(), problem.start)
    found, exact = last(records, "curvature"), np.linalg.eigvalsh(hessian)[::-1]
    values = [record["value"] for record in records if record.kind == "eigenvalue"][:3]
    oracle("λ₁ … λ₃ of a tanh network", "jax.hessian", values, exact[:3], 1e-3, HVP, relative=True)
    oracle("trace of a tanh network, in its standard errors", "jax.hessian", found["trace"] / found["trace_error"],
           exact.sum() / found["trace_error"], 3.0, "three standard errors for three draws, 32 vectors")
    theta = problem.start
    oracle("relative trace Σθ²H, in its standard errors", "jax.hessian", found["relative_trace"] / found["relative_trace_error"],
           (theta**2 * np.diag(hessian)).sum() / found["relative_trace_error"], 3.0, "three standard errors for three draws")
    oracle("gradient norm", "jax.grad", found["gradient_norm"], np.linalg.norm(gradient), 1e-6, "fp32 gradients", relative=True)
    density = [record for record in records if record.kind == "density"]
    nodes, weights = (np.array([record[key] for record in density]) for key in ("node", "weight"))
    oracle("density, number of eigenvalues", "n", weights.sum(), len(theta), 1e-9, "weights add up", relative=True)
    # One starting vector of fair signs: Σ w·f(node) = n·vᵀf(H)v exactly, which has the variance of Hutchinson.
    error = np.sqrt(2 * ((hessian**2).sum() - (np.diag(hessian) ** 2).sum()))
    oracle("density, first moment in its standard errors", "jax.hessian", (nodes * weights).sum() / error, exact.sum() / error, 3.0,
           "three standard errors for three draws")


def test_blocks_and_drift(oracle, rng):
    loss, parameters = network(rng)
    with Scope() as scope:
        problem = Problem(scope, loss, **parameters)
        scope.task_begin("A")
        problem.run(lanczos_steps=40)
        scope.task_end()
        base, old = problem.hessian(), problem.vector()
        scope.task_begin("B")
        scope.step_begin(1)
        scope.gradients_ready(1.0, 0, None)
        for value in problem.values.values():
            value += 0.1 * rng.normal(size=value.shape).astype(np.float32)
        scope.step_end(1, None)
        moved, ids = problem.vector(), (c.c_uint32 * 1)(problem.ids["w2"])
        problem.run(lanczos_steps=40, trace_vectors=32, path_points=5, blocks=ids, block_count=1, block_vectors=8)
        records = scope.records()
        assert np.array_equal(problem.vector(), moved)
    hessian, drift = problem.hessian(), problem.vector() - old
    found = last(records, "curvature")
    along = drift @ hessian @ drift / (drift @ drift)
    oracle("curvature along the drift", "jax.hessian", found["along_drift"], along, 1e-3, HVP, relative=True)
    vectors = np.linalg.eigh(base)[1][:, ::-1][:, :3]
    oracle("curvature along old eigenvectors", "jax.hessian", found["along_old"], np.diag(vectors.T @ hessian @ vectors).mean(),
           1e-3, HVP, relative=True)
    block = last(records, "curvature", "tensor")
    part = hessian[-48:, -48:]
    assert "block" in block.flags
    oracle("λ₁ within a tensor", "jax.hessian", block["largest"], np.linalg.eigvalsh(part)[-1], 1e-3, HVP, relative=True)
    oracle("Hutch++ trace within a tensor, in its standard errors", "jax.hessian", block["trace"] / block["trace_error"],
           np.trace(part) / block["trace_error"], 3.0, "three standard errors, 8 vectors a part")
    path = [record for record in records if record.kind == "loss_path"]
    at = [loss(problem.unflatten(old + record["position"] * drift)) for record in path]
    oracle("loss along the drift", "JAX", [record["loss"] for record in path], at, 1e-6, "fp32 weights")
    flat = last(records, "flattening")
    oracle("flattening, largest eigenvalue", "jax.hessian", flat["largest_ratio"],
           np.linalg.eigvalsh(hessian)[-1] / np.linalg.eigvalsh(base)[-1], 2e-3, HVP + ", twice", relative=True)


def test_abandoned_at_every_request(rng):
    loss, parameters = network(rng, width=4)
    with Scope() as scope:
        problem = Problem(scope, loss, **parameters)
        scope.task_begin("A")
        total = problem.run(lanczos_steps=4, trace_vectors=2, path_points=2)
        for until in range(total):
            problem.run(until=until, lanczos_steps=4, trace_vectors=2, path_points=2)
            assert all((value == kept).all() for value, kept in zip(problem.vector(), problem.start)), until
        with pytest.raises(Refused, match="submit"):
            problem.scope.curvature_submit(1.0, 1.0, None)


def test_secant_and_fisher(oracle, rng):
    """On a quadratic the secant of mean gradients is the curvature along the drift; Fisher from per-batch gradients."""
    n, batches = 60, 16
    matrix = (lambda q: q @ np.diag(np.geomspace(8, 0.1, n)) @ q.T)(np.linalg.qr(rng.normal(size=(n, n)))[0])
    noise = rng.normal(size=(batches, n)) * 0.1
    value, gradient = rng.normal(size=n).astype(np.float32), np.zeros(n, np.float32)

    def references(scope):
        for e in noise:
            gradient[:] = matrix @ value + e
            scope.reference_add("A", c.c_uint64(16), 1.0, None)

    with Scope() as scope:
        scope.tensor("w", value, gradient)
        scope.task_begin("A")
        references(scope)
        scope.task_end()
        old = value.astype(float)
        scope.task_begin("B")
        for step in range(3):
            scope.step_begin(step)
            scope.gradients_ready(1.0, 0, None)
            value += 0.1 * rng.normal(size=n).astype(np.float32)
            scope.step_end(1, None)
        references(scope)
        records = scope.records()
    drift = value.astype(float) - old
    secant = last(records, "secant")
    exact = drift @ matrix @ drift / (drift @ drift)
    oracle("secant along the drift of a quadratic", "closed form DᵀHD/|D|²", secant["curvature"], exact, 1e-5,
           "fp32 gradients; the same noise in both references", relative=True)
    centred = (noise - noise.mean(0)).astype(float)
    covariance = 16 * centred.T @ centred / (batches - 1)
    fisher = [record for record in records if record.kind == "fisher" and record["batches"] == batches][0]
    oracle("empirical Fisher, five largest", "NumPy, examples × covariance",
           [fisher[key] for key in ("largest", "second", "third", "fourth", "fifth")],
           np.linalg.eigvalsh(covariance)[::-1][:5], 1e-4, "fp32 gradients and sketches that are exact for small tensors",
           relative=True)
