"""`optimizer.results` beside what SciPy itself returns, field by field."""

import keras
import numpy as np
import pytest
import scipy.optimize
from keras import ops

import kormos
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
# Of the constraint that the sum be one at most.
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
        lambda x: 0.5 * gradient(x) @ (x - CENTRE) + UNIT,
        [0.2, 0.2],
        method=method,
        bounds=np.transpose(BOX) if "box" in limits else None,
        **more,
    )


def by_kormos(method, limits):
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


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
@pytest.mark.parametrize("method, limits", CASES)
def test_fields_are_those_of_the_loss(method, limits, float64):
    result, theirs = by_kormos(method, limits), by_scipy(method, limits)
    assert set(theirs) <= set(result)
    for name in set(theirs) - {"jac"}:  # SLSQP's is a list without a gradient
        if not np.isscalar(theirs[name]):
            assert type(result[name]) is type(theirs[name]), name

    minimum = np.array(MINIMA[limits])
    slope = gradient(minimum)
    loss = 0.5 * slope @ (minimum - CENTRE) + UNIT
    multiplier = MULTIPLIERS.get(limits, 0.0)
    expected = {
        "fun": loss,
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
    if not limits and "hess_inv" in result:
        np.testing.assert_allclose(
            result.hess_inv @ HESSIAN, np.eye(2), atol=0.02
        )
    if method == "nelder-mead":
        points, losses = result.final_simplex
        np.testing.assert_allclose(points, [minimum] * 3, atol=1e-3)
        np.testing.assert_allclose(losses, loss, rtol=1e-5)
    if method == "trust-constr":
        # The gradient, these and their Jacobians cancel.
        of_box, of_line = -slope - multiplier, [-multiplier]
        wanted = {"": [], "box": [of_box], "line": [of_line]}
        wanted = wanted.get(limits, [of_line, of_box])
        for found, right in zip(result.v, wanted, strict=True):
            np.testing.assert_allclose(found, right, atol=1e-3 * UNIT)
