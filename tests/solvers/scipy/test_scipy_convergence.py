"""A success of SciPy's methods is an optimum, by another solver's figure.

`test_scipy_claims.py` tests how claims are verified.
"""

import keras
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from keras import ops

import kormos
from likelihoods import Choice
from likelihoods import weibull
from native import eager_only

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning"),
]

ENDS = ("converged", "noise floor")


def tensor(values):
    return ops.convert_to_tensor(np.asarray(values, dtype="float64"))


def minimize(loss, start, method, **settings):
    v = keras.Variable(np.asarray(start, "float64"), dtype="float64", name="v")
    result = kormos.minimize(
        lambda: loss(ops.convert_to_tensor(v)), [v], method, **settings
    )
    return result, np.array(ops.convert_to_numpy(v))


@pytest.mark.parametrize("factor", [1.0, 1e3])
@pytest.mark.parametrize("method", ["newton-cg", "l-bfgs-b", "trust-ncg"])
def test_the_usual_start_of_rosenbrock(method, factor, float64):
    def loss(v):
        valley = 100 * (v[1:] - v[:-1] ** 2) ** 2
        return factor * ops.sum(valley + (1 - v[:-1]) ** 2)

    result, _ = minimize(loss, [-1.2, 1.0] * 3, method)
    assert result.success, result
    # The other minimum in six dimensions, near (-1, 1, 1, 1, 1, 1).
    other = 3.973940500930295
    is_other = result.loss == pytest.approx(factor * other, rel=1e-9)
    assert is_other or result.loss < 1e-15 * factor


@pytest.mark.parametrize("method", ["newton-cg", "l-bfgs-b", "bfgs"])
def test_the_kinks_of_hinge(method, float64):
    """Its minimum is that of a linear program."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=(60, 3))
    labels = np.sign(x @ [1.0, -0.5, 0.2] + rng.normal(size=60))
    costs = np.r_[np.zeros(3), np.full(60, 1 / 60)]
    rows = np.hstack([-labels[:, None] * x, -np.eye(60)])
    bounds = [(None, None)] * 3 + [(0, None)] * 60
    program = scipy.optimize.linprog(costs, rows, -np.ones(60), bounds=bounds)
    margins = tensor(labels[:, None] * x)
    result, _ = minimize(
        lambda v: ops.mean(ops.relu(1 - ops.matmul(margins, v))),
        np.zeros(3),
        method,
    )
    assert result.loss >= program.fun * (1 - 1e-12)
    assert not result.success or result.loss <= program.fun * (1 + 1e-6)


@pytest.mark.parametrize("method", ["l-bfgs-b", "newton-cg", "tnc", "bfgs"])
def test_bands_of_sums_in_fourth_powers(method, float64):
    """CURLY10's terms: `q**4 - 20 q**2 - q / 10` of ten neighbours' sums q."""
    size = 60
    sums = np.triu(np.ones((size, size))) - np.triu(np.ones((size, size)), 11)

    def terms(q):
        return q**4 - 20 * q**2 - 0.1 * q

    result, v = minimize(
        lambda v: ops.sum(terms(ops.matmul(tensor(sums), v))),
        1e-4 * np.arange(1, size + 1) / (size + 1),
        method,
        max_iterations=3000,
    )
    # As functions of the sums the terms are separate, so Newton's method solves
    # each.
    q = sums @ v
    for _ in range(50):
        curvature = np.maximum(12 * q**2 - 40, 1)
        q = q - (4 * q**3 - 40 * q - 0.1) / curvature
    least = terms(q).sum()
    assert not result.success or result.loss - least <= 1e-6 * abs(least)
    assert result.success or method != "l-bfgs-b", result


@pytest.mark.parametrize("method", ["l-bfgs-b", "newton-cg", "bfgs", "slsqp"])
def test_a_logit_with_columns_in_units_far_apart(method, float64):
    choice = Choice()
    _, least = choice.best()
    w, result = choice.fit(method)
    assert not result.success or choice.loss(w) == pytest.approx(
        least, rel=1e-6
    )
    assert result.success or method in ("bfgs", "slsqp"), result


@pytest.mark.parametrize("method", ["l-bfgs-b", "bfgs", "newton-cg", "slsqp"])
def test_a_fit_from_the_optimum_is_a_success_at_once(method, float64):
    choice = Choice()
    best, least = choice.best()
    w, result = choice.fit(method, start=best)
    assert result.status in ENDS, result
    assert result.evaluations <= 20
    assert choice.loss(w) <= least * (1 + 1e-12)


class Gamma:
    """A gamma likelihood in its raw parameters, shape and scale."""

    def __init__(self, unit):
        rng = np.random.default_rng(12)
        self.sample = unit * rng.gamma(2.5, 3.0, size=300)

    def loss(self, v):
        shape, scale = v[0], v[1]
        x = tensor(self.sample)
        density = (
            (shape - 1) * ops.log(x)
            - x / scale
            - shape * ops.log(scale)
            - log_gamma(shape)
        )
        return -ops.sum(density)

    def best(self):
        """The shape is the root of one equation; the scale follows."""
        x = self.sample
        gap = np.log(x.mean()) - np.log(x).mean()
        shape = scipy.optimize.brentq(
            lambda k: np.log(k) - scipy.special.digamma(k) - gap, 0.1, 100
        )
        return np.array([shape, x.mean() / shape])


def log_gamma(k):
    """The log-gamma function, from Stirling's series at `k + 8`."""
    far = k + 8
    series = (far - 0.5) * ops.log(far) - far + 0.5 * np.log(2 * np.pi)
    series += 1 / (12 * far) - 1 / (360 * far**3) + 1 / (1260 * far**5)
    for shift in range(8):
        series -= ops.log(k + shift)
    return series


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize(
    "method",
    [
        "l-bfgs-b",
        "tnc",
        "slsqp",
        pytest.param("trust-constr", marks=eager_only),
    ],
)
def test_a_likelihood_in_raw_parameters_with_bounds(method, unit, float64):
    gamma = Gamma(unit)
    best = gamma.best()
    result, v = minimize(
        gamma.loss,
        [1.0, unit],
        method,
        bounds={"v": ([1e-3, 1e-6 * unit], [1e3, 1e6 * unit])},
    )
    start = float(ops.convert_to_numpy(gamma.loss(tensor([1.0, unit]))))
    least = float(ops.convert_to_numpy(gamma.loss(tensor(best))))
    # With bounds alone, every point that is tried is feasible.
    assert result.status != "infeasible", result
    assert result.loss <= start
    assert not result.success or result.loss - least <= 1e-6 * abs(least)
    is_best = result.success and np.allclose(v, best, rtol=1e-3, atol=0)
    assert is_best or method != "l-bfgs-b", result


@pytest.mark.parametrize(
    "method", ["l-bfgs-b", "bfgs", "newton-cg", "trust-ncg", "nelder-mead"]
)
def test_a_likelihood_without_a_maximum_is_no_success(method, float64):
    result, _ = minimize(
        weibull, [np.log(1e4), 0.0], method, max_iterations=300
    )
    assert not result.success, result
