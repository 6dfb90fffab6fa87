"""`optimizer.results` against SciPy's own results, field by field."""

import functools

import keras
import numpy as np
import pytest
import scipy.optimize
from keras import ops

import kormos
from kormos.solvers.problem import Problem
from kormos.solvers.scipy.evaluation import Halt
from kormos.solvers.scipy.evaluator import Evaluator
from kormos.solvers.scipy.methods import METHODS

# A quadratic that is so small that kormos scales it up for SciPy.
UNIT = 1e-6
HESSIAN = UNIT * np.array([[3.0, 1.0], [1.0, 2.0]])
CENTRE = np.array([2.0, 1.5])
# The minima without limits, in the box, above the line, and with both.
BOX = ([0.0, 0.0], [1.5, 5.0])
MINIMA = {
    "": [2, 1.5],
    "box": [1.5, 1.75],
    "line": [7 / 6, -1 / 6],
    "box, line": [1, 0],
}
# The constraint that the sum is at most one.
MULTIPLIERS = {"line": 25 / 6 * UNIT, "box, line": 4.5 * UNIT}
CASES = [
    (method, limits)
    for method, spec in METHODS.items()
    for limits in MINIMA
    if (spec.bounds or "box" not in limits)
    and (spec.constraints or "line" not in limits)
]


def gradient(x):
    return HESSIAN @ (np.asarray(x) - CENTRE)


def by_scipy(method, limits):
    """SciPy's own result, for the names and the types of its fields."""
    spec = METHODS[method]
    more = {}
    if spec.gradient:
        more["jac"] = gradient
    if spec.hessian:
        more["hess"] = lambda x: HESSIAN
    if spec.hessp:
        more["hessp"] = lambda x, p: HESSIAN @ p
    if "line" in limits:
        more["constraints"] = {"type": "ineq", "fun": lambda x: 1 - sum(x)}
    return scipy.optimize.minimize(
        loss_at,
        [0.2, 0.2],
        method=method,
        bounds=np.transpose(BOX) if "box" in limits else None,
        **more,
    )


@functools.cache
def by_kormos(method, limits):
    """The result of a method, in float64."""
    v = keras.Variable([0.2, 0.2], dtype="float64", name="v")
    hessian, centre = map(ops.convert_to_tensor, (HESSIAN, CENTRE))

    def loss():
        slope = ops.matmul(hessian, v - centre)
        return ops.sum((v - centre) * slope) / 2 + UNIT

    optimizer = kormos.optimizers.get(method)
    kormos.minimize(
        loss,
        [v],
        optimizer,
        bounds=[(v, BOX)] if "box" in limits else None,
        constraints={"type": "ineq", "fun": lambda: 1 - v[0] - v[1]}
        if "line" in limits
        else None,
    )
    (result,) = optimizer.results
    return result


def loss_at(x):
    return 0.5 * gradient(x) @ (x - CENTRE) + UNIT


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
@pytest.mark.parametrize("method, limits", CASES)
def test_fields_have_the_types_of_scipy(method, limits, float64):
    result, theirs = by_kormos(method, limits), by_scipy(method, limits)
    assert set(theirs) <= set(result)
    # SLSQP's `jac` is a list without a gradient.
    names = [n for n in set(theirs) - {"jac"} if not np.isscalar(theirs[n])]
    for name in names:
        assert type(result[name]) is type(theirs[name]), name


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
@pytest.mark.parametrize("method, limits", CASES)
def test_fields_are_those_of_the_loss(method, limits, float64):
    result = by_kormos(method, limits)
    minimum = np.array(MINIMA[limits])
    slope = gradient(minimum)
    multiplier = MULTIPLIERS.get(limits, 0.0)
    expected = {
        "fun": loss_at(minimum),
        "hess": HESSIAN,
        "grad": slope,
        "lagrangian_grad": np.zeros(2),
        "optimality": 0.0,
        "multipliers": [multiplier] if multiplier else [],
    }
    if method != "trust-constr":
        expected["jac"] = slope
    for name in set(expected) & set(result):
        np.testing.assert_allclose(
            result[name], expected[name], atol=1e-3 * UNIT, err_msg=name
        )
    np.testing.assert_allclose(result.x, minimum, atol=1e-3)


@pytest.mark.parametrize("method", ["bfgs", "l-bfgs-b"])
def test_the_inverse_hessian_is_that_of_the_loss(method, float64):
    inverse = by_kormos(method, "").hess_inv
    np.testing.assert_allclose(inverse @ HESSIAN, np.eye(2), atol=0.02)


@pytest.mark.parametrize("limits", ["", "box"])
def test_the_simplex_is_at_the_minimum(limits, float64):
    points, losses = by_kormos("nelder-mead", limits).final_simplex
    minimum = np.array(MINIMA[limits])
    np.testing.assert_allclose(points, [minimum] * 3, atol=1e-3)
    np.testing.assert_allclose(losses, loss_at(minimum), rtol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("limits", MINIMA)
def test_multipliers_of_trust_constr_cancel_the_gradient(limits, float64):
    multiplier = MULTIPLIERS.get(limits, 0.0)
    of_box = -gradient(np.array(MINIMA[limits])) - multiplier
    of_line = [-multiplier]
    expected = {
        "": [],
        "box": [of_box],
        "line": [of_line],
        "box, line": [of_line, of_box],
    }
    found = by_kormos("trust-constr", limits).v
    for values, right in zip(found, expected[limits], strict=True):
        np.testing.assert_allclose(values, right, atol=1e-3 * UNIT)


def test_a_lost_direction_is_no_fault_of_the_loss(float64):
    # SciPy's trust-krylov may ask for a product with NaN.
    v = keras.Variable(np.ones(2))
    objective = kormos.objective.FunctionObjective(lambda: ops.sum(v**2), [v])
    evaluator = Evaluator(
        Problem(objective), np.ones(2), METHODS["trust-krylov"]
    )
    with pytest.raises(Halt) as halt:
        evaluator.hvp(np.ones(2), np.full(2, np.nan))
    assert halt.value.status == "line search failed"
    np.testing.assert_array_equal(evaluator.hvp(np.ones(2), np.ones(2)), [2, 2])
