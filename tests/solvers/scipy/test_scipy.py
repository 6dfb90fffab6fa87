"""SciPy's methods: the arguments of each, and a comparison with SciPy alone."""

import warnings

import keras
import numpy as np
import pytest
import scipy.optimize
from keras import ops
from scipy.optimize import rosen
from scipy.optimize import rosen_der
from scipy.optimize import rosen_hess
from scipy.optimize import rosen_hess_prod

import kormos
from conftest import lindata
from conftest import linear
from kormos.objective import FunctionObjective
from kormos.optimizers import ScipyBatchOptimizer
from kormos.solvers.problem import Problem
from kormos.solvers.scipy.methods import METHODS
from kormos.solvers.scipy.methods import failure
from observing import watch

# The reference of `scipy.optimize.minimize`.
WITHOUT_GRADIENT = ["cobyla", "cobyqa", "nelder-mead", "powell"]
FIRST_ORDER = ["bfgs", "cg", "l-bfgs-b", "slsqp", "tnc"]
PRODUCTS = ["newton-cg", "trust-constr", "trust-krylov", "trust-ncg"]
DENSE = ["dogleg", "trust-exact"]
WITH_GRADIENT = FIRST_ORDER + PRODUCTS + DENSE
ALL = WITHOUT_GRADIENT + WITH_GRADIENT

# The Hessian is positive definite here, which dogleg requires.
START = np.array([0.8, 1.1, 0.9, 1.2, 1.1])


class Rosenbrock:
    """An objective in NumPy."""

    def __init__(self, start=START):
        self.start = start
        self.size = start.size
        self.value = rosen
        self.hvp = rosen_hess_prod
        self.hessian = rosen_hess

    def initial_position(self):
        return self.start

    def value_and_grad(self, theta):
        return self.value(theta), rosen_der(theta)


class Logarithm(Rosenbrock):
    """A loss that is NaN below zero, with its minimum at one."""

    def __init__(self):
        super().__init__(np.array([4.0, 0.1]))
        self.value = lambda x: np.sum(x - np.log(x))
        self.hvp = lambda x, v: v / x**2
        self.hessian = lambda x: np.diag(1 / x**2)

    def value_and_grad(self, theta):
        return self.value(theta), 1 - 1 / theta


def rosenbrock(v):
    return ops.sum(100 * (v[1:] - v[:-1] ** 2) ** 2 + (1 - v[:-1]) ** 2)


def run(objective, method, epochs=10**6, **settings):
    """Runs a method alone: its outcome, the problem and all iterates."""
    optimizer = ScipyBatchOptimizer(method=method, **settings)
    (stage,) = optimizer.stages(epochs)
    problem = Problem(objective)
    iterates = []

    def report(theta, loss, grad):
        iterates.append(theta)  # An overwritten buffer would show.
        return len(iterates) > stage.epochs

    start = objective.initial_position()
    outcome = stage.run(problem, start, None, watch(report))
    return outcome, problem, np.array(iterates[1:])


@pytest.mark.parametrize("method", ALL)
def test_each_method_is_given_what_it_can_use(method, monkeypatch):
    given = {}
    stock = scipy.optimize.minimize

    def spy(*args, **kwargs):
        given.update(kwargs)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            warnings.simplefilter("error", UserWarning)
            return stock(*args, **kwargs)

    monkeypatch.setattr(scipy.optimize, "minimize", spy)
    v = keras.Variable(START)
    objective = FunctionObjective(lambda: rosenbrock(v), [v])
    _, problem, iterates = run(objective, method, epochs=3)
    assert len(iterates) == 3
    assert (given["jac"] is not None) == (method in WITH_GRADIENT)
    assert (given["hessp"] is not None) == (method in PRODUCTS)
    assert (given["hess"] is not None) == (method in DENSE)
    assert given["bounds"] is None and not given["constraints"]
    traces = objective.program.traces
    assert (traces["value_and_grad"] > 0) == (method in WITH_GRADIENT)
    assert (traces["hvp"] > 0) == (method in PRODUCTS + DENSE)
    assert (problem.hessp_evals > 0) == (method in PRODUCTS + DENSE)


# The most evaluations that verify a claim, with five parameters.
TRIAL = 40


def run_beside_scipy(method, tol):
    """SciPy's own result and kormos', which begin with the same iterates."""
    iterates = []
    options = METHODS[method].tolerances if tol is None else {}
    if method == "cobyla":
        # This method's limit counts evaluations.
        options = {**options, "maxiter": 10**6}
    plain = scipy.optimize.minimize(
        rosen,
        START,
        method=method,
        tol=tol,
        jac=rosen_der if method in WITH_GRADIENT else None,
        hessp=rosen_hess_prod if method in PRODUCTS else None,
        hess=rosen_hess if method in DENSE else None,
        callback=lambda x, *_: iterates.append(x.copy()),
        options=options,
    )
    outcome, problem, ours = run(Rosenbrock(), method, tol=tol)
    assert outcome.status == "converged" and plain.success
    if method == "trust-constr":
        del iterates[0]  # The start.
    if method == "cobyqa":
        del iterates[: 2 * START.size + 1]  # Those of the first model.
    if method == "slsqp":
        iterates.clear()  # It shows the first trials of its line searches.
    same = np.reshape(iterates, (-1, START.size))
    np.testing.assert_array_equal(ours[: len(same)], same)
    return plain, outcome, problem, ours[-1]


@pytest.mark.parametrize("method", ALL)
def test_runs_as_scipy_does(method):
    plain, outcome, problem, last = run_beside_scipy(method, tol=1e-3)
    # No point is evaluated twice.
    assert problem.fg_evals <= plain.nfev + TRIAL
    np.testing.assert_array_equal(outcome.theta, plain.x)
    np.testing.assert_array_equal(last, plain.x)
    assert outcome.loss == plain.fun
    assert outcome.test in METHODS[method].options
    assert outcome.threshold > 0
    assert outcome.value is None or outcome.value <= outcome.threshold


@pytest.mark.parametrize("method", ALL)
def test_runs_on_to_the_least_by_default(method):
    plain, outcome, problem, _ = run_beside_scipy(method, tol=None)
    # It is zero, and none of SciPy's tests is met only there.
    assert outcome.loss < 1e-20
    # COBYLA ends in the valley, and is called again.
    calls = 2 if method == "cobyla" else 1
    assert problem.fg_evals <= calls * plain.nfev + TRIAL


@pytest.mark.parametrize(
    "method, order",
    [
        ("bfgs", np.inf),
        ("cg", np.inf),
        ("trust-krylov", 2),
        ("trust-ncg", 2),
        *((method, 2) for method in DENSE),
    ],
)
def test_the_gradient_that_ends_a_run_is_told(method, order):
    plain, outcome, problem, _ = run_beside_scipy(method, tol=1e-3)
    assert outcome.test == "gtol"
    size = np.linalg.norm(rosen_der(outcome.theta), order)
    assert outcome.value == pytest.approx(size)
    assert problem.fg_evals == plain.nfev


def test_a_loss_in_keras_takes_the_same_path(float64):
    v = keras.Variable(START)
    objective = FunctionObjective(lambda: rosenbrock(v), [v])
    _, _, expected = run(Rosenbrock(), "l-bfgs-b")
    _, _, iterates = run(objective, "l-bfgs-b")
    np.testing.assert_allclose(iterates[:10], expected[:10], atol=1e-10)
    x, direction = np.random.default_rng(0).normal(size=(2, 5))
    loss, grad = objective.value_and_grad(x)
    assert loss == pytest.approx(rosen(x), rel=1e-13)
    np.testing.assert_allclose(grad, rosen_der(x), rtol=1e-12)
    np.testing.assert_allclose(objective.hessian(x), rosen_hess(x), rtol=1e-12)
    np.testing.assert_allclose(
        objective.hvp(x, direction), rosen_hess_prod(x, direction), rtol=1e-12
    )


@pytest.mark.parametrize("method", ALL)
def test_epochs_are_iterations(method, unconverged):
    x, y = lindata(200, noise=0.3)
    model = linear(l2=1e-3)
    # None converges in two iterations: no step has the right length.
    model.compile(optimizer=method.title(), loss="log_cosh")
    start = model.evaluate(x, y, verbose=0)
    history = model.fit(x, y, epochs=2, verbose=0).history
    assert len(history["loss"]) == 2
    assert history["loss"][0] < start
    assert np.isnan(history["grad"]).all() == (method in WITHOUT_GRADIENT)
    (result,) = model.optimizer.results
    assert isinstance(result, scipy.optimize.OptimizeResult)
    np.testing.assert_allclose(result.x, model.get_weights()[0][:, 0])
    assert result.nfev == model.optimizer.fg_evals == history["fg_evals"][-1]
    optimizer = ScipyBatchOptimizer(method=method, options={"maxiter": 1})
    history = kormos.fit(model, x, y, optimizer=optimizer, verbose=0)
    assert len(history.history["loss"]) == 1


def test_scipy_has_no_limits_of_its_own():
    # It would stop after 200 iterations, or evaluations, a parameter.
    start = np.zeros(8)
    plain = scipy.optimize.minimize(rosen, start, method="nelder-mead")
    assert not plain.success
    outcome, problem, _ = run(Rosenbrock(start), "nelder-mead")
    assert outcome.status == "converged"
    assert problem.fg_evals > plain.nfev


@pytest.mark.parametrize("method", DENSE)
def test_a_dense_hessian_is_refused_before_the_loss_is_called(
    method, monkeypatch
):
    monkeypatch.setattr("kormos.free_memory.free_bytes", lambda: 100e6)
    size = 2001
    v = keras.Variable(np.ones(size))
    losses = []
    with pytest.raises(ValueError, match=f"'{method}'.*128 MB .* 100 MB are"):
        kormos.minimize(
            lambda: ops.sum(v**2), [v], method, loss_callback=losses.append
        )
    assert losses == []
    np.testing.assert_array_equal(ops.convert_to_numpy(v), np.ones(size))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("method", ALL)
def test_a_non_finite_trial_is_a_step_too_long(method):
    outcome, _, iterates = run(Logarithm(), method)
    assert outcome.status == "converged"
    np.testing.assert_allclose(outcome.theta, 1, atol=1e-3)
    assert (iterates > 0).all()


@pytest.mark.parametrize("method", PRODUCTS + DENSE)
def test_a_non_finite_hessian_ends_the_run(method):
    objective = Rosenbrock()
    objective.hvp = lambda x, v: np.nan * v
    objective.hessian = lambda x: np.full((5, 5), np.nan)
    outcome, *_ = run(objective, method)
    assert outcome.status == "non-finite"
    assert "NaN or infinite" in outcome.detail
    np.testing.assert_array_equal(outcome.theta, START)


@pytest.mark.parametrize(
    "message, status",
    [
        ("ABNORMAL: ", "line search failed"),
        ("Linear search failed", "line search failed"),
        (
            "Desired error not necessarily achieved due to precision loss.",
            "line search failed",
        ),
        (
            "Warning: CG iterations didn't converge. The Hessian is not "
            "positive definite.",
            "line search failed",
        ),
        (
            "A linalg error occurred, such as a non-psd Hessian.",
            "line search failed",
        ),
        ("NaN result encountered.", "non-finite"),
        (
            "STOP: TOTAL NO. OF F,G EVALUATIONS EXCEEDS LIMIT",
            "evaluation limit",
        ),
        ("Max. number of function evaluations reached", "evaluation limit"),
        ("Iteration limit reached", "iteration limit"),
        ("Inequality constraints incompatible", "infeasible"),
        ("More equality constraints than independent variables", "infeasible"),
        ("Singular matrix C in LSQ subproblem", "infeasible"),
        ("Constraint violation exceeds 'gtol'", "infeasible"),
    ],
)
def test_failures_by_their_messages(message, status):
    assert failure(message) == status


@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
@pytest.mark.parametrize("method", [*FIRST_ORDER, "newton-cg"])
def test_float32_ends_at_its_rounding(method):
    # Its line searches once spent ten evaluations and more at the end.
    x, y = lindata(200, noise=0.3)
    model = linear(l2=1e-3)
    model.compile(optimizer=method, loss="mse")
    result = model.fit(x, y, epochs=100, verbose=0).result
    assert result.status in ("converged", "noise floor")
    assert result.loss == pytest.approx(0.0895758670, rel=1e-6)
    # TNC's own line searches take more than others in coarse arithmetic.
    assert result.evaluations <= (60 if method == "tnc" else TRIAL)
