"""Claims of SciPy's methods are verified: a success is an optimum."""

import contextlib

import keras
import numpy as np
import pytest
import scipy.optimize
from keras import ops
from scipy.optimize import OptimizeResult

import kormos
from kormos.optimizers import ScipyBatchOptimizer
from kormos.solvers.problem import Constraint
from kormos.solvers.problem import Problem
from kormos.solvers.scipy.result import unscale
from observing import watch

pytestmark = pytest.mark.slow

GRADIENT = [
    "bfgs",
    "cg",
    "l-bfgs-b",
    "newton-cg",
    "slsqp",
    "tnc",
    "trust-constr",
    "trust-exact",
    "trust-krylov",
    "trust-ncg",
]
BLIND = ["cobyla", "cobyqa", "nelder-mead", "powell"]
CONSTRAINED = ["cobyla", "cobyqa", "slsqp", "trust-constr"]
ENDS = ("converged", "noise floor")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 4))
NOISE = RNG.standard_t(2, size=200)
Y = X @ [1.0, -2.0, 0.5, 0.0] + NOISE
LABELS = np.sign(Y)


def value(variable):
    return ops.convert_to_numpy(variable)


def minimize(loss, start, method, **settings):
    v = keras.Variable(np.asarray(start, "float64"))
    result = kormos.minimize(lambda: loss(v), [v], method, **settings)
    return result, value(v)


def rosenbrock(v):
    return ops.sum(100 * (v[1:] - v[:-1] ** 2) ** 2 + (1 - v[:-1]) ** 2)


def normal_likelihood(v):
    # The estimates of the mean and of the logarithm of the deviation.
    z = (ops.convert_to_tensor(Y) - v[0]) * ops.exp(-v[1])
    return ops.sum(z**2 / 2 + v[1])


def logistic(x):
    x, labels = map(ops.convert_to_tensor, (x, LABELS > 0))
    labels = ops.cast(labels, "float64")

    def loss(v):
        outputs = ops.matmul(x, v)
        return ops.mean(ops.softplus(outputs) - labels * outputs)

    return loss


def logistic_optimum(x):
    """The optimum, by Newton's method in NumPy from zero."""
    w = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ w))
        hessian = (x * (p * (1 - p))[:, None]).T @ x
        w -= np.linalg.solve(hessian, x.T @ (p - (LABELS > 0)))
    outputs = x @ w
    return np.mean(np.logaddexp(0, outputs) - (LABELS > 0) * outputs), w


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e3])
@pytest.mark.parametrize("method", GRADIENT)
def test_the_valley_of_rosenbrock(method, factor, float64):
    # From here six dimensions have one minimum.
    start = [0.5, 0.2, 0.6, 0.1, 0.5, 0.3]
    result, _ = minimize(lambda v: factor * rosenbrock(v), start, method)
    assert result.success, result
    assert result.loss < 1e-15 * factor


@pytest.mark.parametrize("start", [[0.0, 0.0], [50.0, -1.0], [5.0, 4.0]])
@pytest.mark.parametrize("method", [*GRADIENT, "nelder-mead", "powell"])
@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
def test_a_likelihood_from_a_far_start(method, start, float64):
    result, (mean, log_deviation) = minimize(normal_likelihood, start, method)
    # From there it takes more than a thousand steps, and reports that.
    is_long = method == "newton-cg" and start[1] < 0
    assert result.status in (*ENDS, "iteration limit")
    assert result.status in ENDS or is_long, result
    least = len(Y) * (0.5 + np.log(Y.std()))
    is_least = result.loss == pytest.approx(least, rel=1e-9)
    is_mean = mean == pytest.approx(Y.mean(), abs=1e-4)
    assert not result.success or (is_least and is_mean)


# The methods that converge with columns of very different units.
SURE = ["l-bfgs-b", "bfgs", "newton-cg", "slsqp", "trust-exact"]


@pytest.mark.parametrize("method", GRADIENT)
@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
def test_columns_in_units_that_are_far_apart(method, float64):
    x = np.column_stack([np.ones(200), X[:, :3] * [2e4, 30.0, 1e-4]])
    expected, _ = logistic_optimum(x)
    result, _ = minimize(logistic(x), np.zeros(4), method)
    # Some do not end; none stops early and claims convergence.
    assert not result.success or result.loss == pytest.approx(
        expected, rel=1e-9
    )
    assert result.success or method not in SURE, result


@pytest.mark.parametrize("method", GRADIENT)
def test_a_second_run_from_the_optimum(method, float64):
    expected, optimum = logistic_optimum(X)
    for start in (optimum, optimum * (1 + 1e-9)):
        result, theta = minimize(logistic(X), start, method)
        assert result.status in ENDS, result
        assert result.loss <= expected * (1 + 1e-14)
        # A barrier method walks back to the bounds, had it any.
        assert result.evaluations <= 20
        np.testing.assert_allclose(theta, optimum, rtol=1e-6)


def absolute_error():
    """A loss with kinks, and the minimum that a linear program finds."""
    costs = np.r_[np.zeros(4), np.full(200, 1 / 200)]
    signed = np.vstack([X, -X])
    rows = np.hstack([signed, -np.vstack([np.eye(200)] * 2)])
    bounds = [(None, None)] * 4 + [(0, None)] * 200
    program = scipy.optimize.linprog(costs, rows, np.r_[Y, -Y], bounds=bounds)
    x, y = map(ops.convert_to_tensor, (X, Y))
    return lambda v: ops.mean(ops.abs(ops.matmul(x, v) - y)), program.fun


@pytest.mark.parametrize("method", [*GRADIENT, *BLIND])
@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
def test_no_success_on_a_slope(method, float64):
    loss, least = absolute_error()
    result, _ = minimize(loss, np.zeros(4), method)
    assert not result.success or result.loss == pytest.approx(least, rel=1e-8)
    # How near a method for smooth losses comes depends on the last digits, but
    # it always makes most of the way.
    assert result.loss - least < 0.05 * (np.mean(abs(Y)) - least)


@pytest.mark.parametrize("size", [1e-9, 1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("method", ["newton-cg", "trust-krylov", "tnc"])
@pytest.mark.parametrize("dtype", ["float64", None])
@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
def test_no_success_on_a_slope_near_zero(method, size, dtype):
    # Parameters of such a size change the loss by less than its rounding.
    with kormos.precision("float64") if dtype else contextlib.nullcontext():
        loss, least = absolute_error()
        result, _ = minimize(loss, size * np.arange(4), method)
    assert not result.success, result


class Fake:
    """Stands for `scipy.optimize.minimize`, with given iterates and claims."""

    def __init__(self, points, repeats=1, **result):
        self.points = [np.array(p, "float64") for p in points]
        self.repeats = repeats
        self.result = {"success": True, "status": 0, "message": "", **result}
        self.calls = 0

    def __call__(self, fun, x0, callback=None, jac=None, **settings):
        self.calls += 1
        points = self.points if self.calls == 1 else []
        here = x0
        for here in points:
            for _ in range(self.repeats):
                fun(here)
                callback(here)
        loss = fun(here)
        loss = loss[0] if jac else loss
        return OptimizeResult(x=here, fun=loss, nit=1, **self.result)


@pytest.fixture
def fake(monkeypatch):
    def install(*args, **kwargs):
        method = Fake(*args, **kwargs)
        monkeypatch.setattr(scipy.optimize, "minimize", method)
        return method

    return install


@pytest.mark.parametrize("is_success", [True, False])
def test_a_false_claim_of_few_parameters_is_followed_by_a_success(
    is_success, fake, float64
):
    fake([], success=is_success, message="precision loss")
    result, _ = minimize(rosenbrock, np.full(4, 0.6), "bfgs")
    assert result.success and result.loss < 1e-15


@pytest.mark.parametrize("is_success", [True, False])
def test_a_false_claim_is_not_passed_on(is_success, fake, float64):
    method = fake([], success=is_success, message="precision loss")
    with pytest.warns(kormos.ConvergenceWarning):
        result, _ = minimize(rosenbrock, np.full(16, 0.6), "bfgs")
    # A few quasi-Newton steps at a time do not get through the valley.
    assert result.status == "stalled"
    assert "still lowers the loss from" in result.message
    assert method.calls > 2
    assert result.loss < 15 * (100 * (0.6 - 0.36) ** 2 + 0.16)


@pytest.mark.parametrize("is_success", [True, False])
def test_a_true_end_is_a_success_whatever_scipy_calls_it(
    is_success, fake, float64
):
    fake([], success=is_success, message="bad approximation")
    expected, optimum = logistic_optimum(X)
    result, _ = minimize(logistic(X), optimum, "trust-ncg")
    assert result.status in ENDS
    assert result.loss == pytest.approx(expected, rel=1e-14)


def test_a_run_that_goes_round_is_ended_and_tried(fake, float64):
    optimum = np.full(2, -(0.5**0.5))
    away = np.array([0.3, -0.2])
    for point in (optimum, away):
        v = keras.Variable(np.array([0.3, 0.6]))
        method = fake([point], repeats=10**4)
        result = kormos.minimize(
            lambda v=v: ops.sum(v),
            [v],
            "cobyqa",
            max_iterations=10**4,
            constraints={"type": "ineq", "fun": lambda v=v: 1 - ops.sum(v**2)},
        )
        # From both points, the conditions of optimality lead to the optimum.
        assert result.success, result
        assert method.calls <= 3
        assert result.evaluations < 200
        np.testing.assert_allclose(value(v), optimum, atol=1e-7)


@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
def test_the_users_own_limit_is_a_limit(fake, float64):
    fake([[0.9, 0.9]], repeats=10**4)
    result, _ = minimize(rosenbrock, [0.5, 0.5], "cobyqa", max_iterations=30)
    assert result.status == "iteration limit"
    assert result.iterations == 30


@pytest.mark.parametrize(
    "method, radius",
    [
        *((method, 1.0) for method in CONSTRAINED),
        # The radius of trust-constr's region is one at first, and grows.
        *((method, 1e3) for method in ("cobyla", "cobyqa", "slsqp")),
    ],
)
def test_cobyqa_and_others_end_at_the_lowest_point_of_a_disc(
    method, radius, float64
):
    v = keras.Variable(np.array([0.3, 0.6]) * radius)
    result = kormos.minimize(
        lambda: ops.sum(v),
        [v],
        method,
        constraints={
            "type": "ineq",
            "fun": lambda: 1 - ops.sum((v / radius) ** 2),
        },
    )
    assert result.success, result
    assert result.loss == pytest.approx(-(2**0.5) * radius, rel=1e-7)


class Garch:
    """A GARCH(1, 1) likelihood in raw parameters, in NumPy."""

    def __init__(self):
        rng = np.random.default_rng(0)
        omega, a, b = 0.1, 0.1, 0.8
        variance, squares = omega / (1 - a - b), []
        for _ in range(600):
            squares.append(variance * rng.normal() ** 2)
            variance = omega + a * squares[-1] + b * variance
        self.squares = np.array(squares)
        self.level = self.squares.mean()
        self.start = np.array([0.05 * self.level, 0.05, 0.9])
        self.size = 3

    def value(self, theta):
        return self.value_and_grad(theta)[0]

    def value_and_grad(self, theta):
        omega, a, b = theta
        variance, turn, loss, grad = self.level, np.zeros(3), 0.0, np.zeros(3)
        for square in self.squares:
            loss += (np.log(2 * np.pi * variance) + square / variance) / 2
            grad += (1 / variance - square / variance**2) / 2 * turn
            turn = np.array([1.0, square, variance]) + b * turn
            variance = omega + a * square + b * variance
        return loss, grad

    def hvp(self, theta, vector):
        size = np.linalg.norm(vector)
        if size == 0:
            return vector
        step = 1e-6 * np.linalg.norm(theta) / size
        ahead = self.value_and_grad(theta + step * vector)[1]
        behind = self.value_and_grad(theta - step * vector)[1]
        return (ahead - behind) / (2 * step)


@pytest.mark.parametrize("has_constraint", [True, False])
@pytest.mark.parametrize("method", CONSTRAINED)
def test_no_run_ends_above_its_feasible_start(method, has_constraint):
    objective = Garch()
    lower = np.array([1e-12 * objective.level, 0.0, 0.0])
    upper = np.array([10 * objective.level, 1.0, 1.0])
    constraint = Constraint(
        "ineq",
        lambda x: np.array([0.9999 - x[1] - x[2]]),
        lambda x: np.array([[0.0, -1.0, -1.0]]),
    )
    problem = Problem(
        objective, lower, upper, [constraint] if has_constraint else ()
    )
    (stage,) = ScipyBatchOptimizer(method=method).stages(1000)
    count = [0]

    def report(theta, loss, grad):
        count[0] += 1
        return count[0] > 1000

    outcome = stage.run(problem, objective.start, None, watch(report))
    # Another program finds it, from another start.
    plain = scipy.optimize.minimize(
        objective.value_and_grad,
        [0.1, 0.05, 0.9],
        jac=True,
        bounds=list(zip(lower, upper, strict=True)),
        options={"ftol": 1e-14, "gtol": 1e-8},
    )
    assert plain.fun < objective.value(objective.start) - 0.1
    assert outcome.loss <= objective.value(objective.start)
    assert problem.is_feasible(outcome.theta)
    is_end = outcome.status in ENDS
    assert not is_end or outcome.loss == pytest.approx(plain.fun, rel=1e-8)
    assert is_end or method == "cobyla", outcome


def test_a_worse_end_does_not_replace_a_feasible_start(fake, float64):
    # The second point is lower and infeasible, the third feasible and higher.
    fake([[0.5, 0.5], [-3.0, -3.0], [0.9, 0.1]], tr_radius=0.0)
    v = keras.Variable(np.array([0.6, 0.6]))
    losses = []
    result = kormos.minimize(
        lambda: ops.sum((v + 5) ** 2),
        [v],
        "cobyqa",
        max_iterations=3,
        constraints={"type": "ineq", "fun": lambda: ops.sum(v) - 1.0},
        loss_callback=losses.append,
    )
    assert result.loss == pytest.approx(2 * 5.5**2)
    np.testing.assert_allclose(value(v), [0.5, 0.5], atol=1e-7)


@pytest.mark.parametrize("factor", [1e-6, 1.0])
@pytest.mark.parametrize("method", CONSTRAINED)
def test_bounds_and_a_constraint_of_a_small_loss(method, factor, float64):
    # The projection of (2, 1.5) on the line x + y = 1.
    result, theta = minimize(
        lambda v: factor * ((v[0] - 2) ** 2 + (v[1] - 1.5) ** 2),
        [0.2, 0.2],
        method,
        bounds={".*": (0, 5)},
        constraints=None,
    )
    assert result.success
    np.testing.assert_allclose(theta, [2, 1.5], atol=1e-4)
    v = keras.Variable(np.array([0.2, 0.2]))
    result = kormos.minimize(
        lambda: factor * ((v[0] - 2) ** 2 + (v[1] - 1.5) ** 2),
        [v],
        method,
        bounds=[(v, (0, 5))],
        constraints={"type": "ineq", "fun": lambda: 1 - v[0] - v[1]},
    )
    assert result.success, result
    np.testing.assert_allclose(value(v), [0.75, 0.25], atol=1e-5)
    assert result.loss == pytest.approx(3.125 * factor, rel=1e-6)


@pytest.mark.parametrize("method", ["trust-constr", "slsqp"])
def test_fields_of_a_result_are_those_of_the_loss(method):
    def solve(scale):
        return scipy.optimize.minimize(
            lambda x: scale * ((x[0] - 2) ** 2 + (x[1] - 1.5) ** 2),
            [0.2, 0.2],
            jac=lambda x: scale * 2 * (x - [2, 1.5]),
            method=method,
            bounds=[(0, 5)] * 2,
            constraints={
                "type": "ineq",
                "fun": lambda x: 1 - x[0] - x[1],
                "jac": lambda x: -np.ones(2),
            },
            tol=1e-10,
        )

    plain, scaled = solve(1.0), solve(2.0**6)
    unscale(scaled, 2.0**6)
    assert set(plain) == set(scaled)
    names = set(plain) & {
        "fun",
        "jac",
        "grad",
        "lagrangian_grad",
        "v",
        "multipliers",
        "constr",
    }
    assert len(names) >= (6 if method == "trust-constr" else 2)
    for name in names:
        ours, theirs = scaled[name], plain[name]
        if not isinstance(ours, list):
            ours, theirs = [ours], [theirs]
        for a, b in zip(ours, theirs, strict=True):
            a, b = (getattr(m, "toarray", lambda m=m: m)() for m in (a, b))
            np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)


def test_a_tolerance_that_is_given_is_the_users_own(float64):
    start = [0.8, 1.1, 0.9, 1.2, 1.1]
    for options in ({"gtol": 1e-1}, {"ftol": 1e-2, "gtol": 1e-9}):
        (name, threshold), *_ = options.items()
        result, theta = minimize(rosenbrock, start, "l-bfgs-b", options=options)
        assert result.status == "converged"
        assert (result.test, result.threshold) == (name, threshold)
        assert 1e-12 < result.loss < 0.1
    tight, _ = minimize(rosenbrock, start, "l-bfgs-b")
    assert tight.loss < 1e-20


def test_a_tolerance_that_is_met_on_a_slope_is_no_success(fake, float64):
    # The claim is a change of the loss by less than 1e-6, but it could fall by
    # three.
    fake([], message="RELATIVE REDUCTION OF F")
    with pytest.warns(kormos.ConvergenceWarning, match="stalled"):
        result, _ = minimize(
            rosenbrock,
            np.full(16, 0.6),
            "l-bfgs-b",
            options={"ftol": 1e-6},
        )
    assert not result.success
