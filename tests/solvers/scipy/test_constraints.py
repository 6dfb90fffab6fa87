"""Equality and inequality constraints as functions of variables."""

import keras
import numpy as np
import pytest
import scipy.optimize
from keras import ops

import kormos
from conftest import lindata
from conftest import linear
from kormos.objective.bounds import resolve_constraints
from kormos.objective.layout import Packing
from kormos.optimizers import ScipyBatchOptimizer
from kormos.solvers.problem import Constraint
from recorded_constraint import run_recorded

CONSTRAINED = ["cobyla", "cobyqa", "slsqp", "trust-constr"]
UNCONSTRAINED = [
    "bfgs",
    "cg",
    "dogleg",
    "l-bfgs-b",
    "nelder-mead",
    "newton-cg",
    "powell",
    "tnc",
    "trust-exact",
    "trust-krylov",
    "trust-ncg",
]
TIGHT = {
    "cobyla": {"tol": 1e-8},
    "cobyqa": {"final_tr_radius": 1e-9},
    "slsqp": {"ftol": 1e-12},
    "trust-constr": {},
}

X, Y = lindata(200, noise=0.3)

# Two equalities on the five weights.
A = np.array([[1.0, 1, 0, 0, 0], [0, 0, 1, -1, 0]])
B = np.array([1.0, 0.5])


def constrained_least_squares():
    """The solution of the Karush-Kuhn-Tucker conditions."""
    matrix = np.block([[X.T @ X, A.T], [A, np.zeros((2, 2))]])
    return np.linalg.solve(matrix, np.concatenate([X.T @ Y[:, 0], B]))[:5]


def value(variable):
    return ops.convert_to_numpy(variable)


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [None, {".*": (-3, 3)}])
@pytest.mark.parametrize("method", CONSTRAINED)
def test_vector_of_equalities_in_fit(method, bounds, float64):
    model = linear()
    kernel = model.weights[0]
    optimizer = ScipyBatchOptimizer(
        method=method,
        options=TIGHT[method],
        bounds=bounds,
        constraints={
            "type": "eq",
            "fun": lambda: (
                ops.matmul(ops.convert_to_tensor(A), kernel[:, 0])
                - ops.convert_to_tensor(B)
            ),
        },
    )
    model.compile(optimizer=optimizer, loss="mse")
    history = model.fit(X, Y, epochs=1000, verbose=0)
    assert history.result.success, history.result
    np.testing.assert_allclose(
        value(kernel)[:, 0], constrained_least_squares(), atol=1e-5
    )
    np.testing.assert_allclose(A @ value(kernel)[:, 0], B, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("method", CONSTRAINED)
def test_inequality_in_minimize(method, float64):
    # The lowest point of a disc, with a second constraint that is inactive.
    v = keras.Variable(np.array([0.3, 0.6]))
    result = kormos.minimize(
        lambda: ops.sum(v),
        [v],
        method,
        options=TIGHT[method],
        constraints=[
            {"type": "ineq", "fun": lambda: 1 - ops.sum(v**2)},
            {"type": "ineq", "fun": lambda: v + 9},
        ],
    )
    assert result.success, result
    np.testing.assert_allclose(value(v), [-(0.5**0.5)] * 2, atol=1e-4)
    assert result.loss == pytest.approx(-(2**0.5), abs=1e-7)


@pytest.mark.parametrize("method", CONSTRAINED)
def test_equality_and_fixed_parameter(method, float64):
    v = keras.Variable(np.full(3, 3.0))
    result = kormos.minimize(
        lambda: ops.sum(v**2),
        [v],
        method,
        bounds=[(v, ([-9, -9, 1], [9, 9, 1]))],
        constraints={"type": "eq", "fun": lambda: v[0] + v[1] - v[2]},
    )
    assert result.success, result
    np.testing.assert_allclose(value(v), [0.5, 0.5, 1], atol=1e-4)


@pytest.mark.parametrize("method", CONSTRAINED)
@pytest.mark.parametrize("low", [None, 0.1])
def test_a_constraint_that_is_undefined_somewhere(method, low, float64):
    v = keras.Variable(np.full(2, 3.0))
    logarithms = np.log([1.0, 0.5])
    result = kormos.minimize(
        lambda: ops.sum((v + 1) ** 2),
        [v],
        method,
        bounds=[(v, (low, None))],
        constraints={
            "type": "ineq",
            "fun": lambda: ops.log(v) - ops.convert_to_tensor(logarithms),
        },
    )
    assert result.success, result
    np.testing.assert_allclose(value(v), [1, 0.5], atol=1e-4)


@pytest.mark.parametrize("method", ["slsqp", "trust-constr"])
def test_constraints_are_evaluated_within_the_bounds(method, float64):
    (stage,) = ScipyBatchOptimizer(method=method).stages(99)
    outcome, points = run_recorded(stage)
    np.testing.assert_allclose(outcome.theta, [0.7, 0.3], atol=1e-6)
    assert (points >= [0.7, -9]).all() and (points <= 9).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", CONSTRAINED)
def test_contradictory_constraints_are_named_infeasible(method, float64):
    v = keras.Variable(np.full(2, 3.0))
    with pytest.warns(kormos.ConvergenceWarning, match="infeasible"):
        result = kormos.minimize(
            lambda: ops.sum((v + 1) ** 2),
            [v],
            method,
            constraints=[
                {"type": "ineq", "fun": lambda: v - 1},
                {"type": "ineq", "fun": lambda: -v - 1},
            ],
        )
    assert result.status == "infeasible"
    assert not result.success
    assert np.isfinite(value(v)).all()


@pytest.mark.parametrize("method", CONSTRAINED)
def test_float32_is_no_violation(method):
    v = keras.Variable([3.0, 2.0, 1.0])
    result = kormos.minimize(
        lambda: ops.sum((v - 0.3) ** 2),
        [v],
        method,
        constraints={"type": "eq", "fun": lambda: ops.sum(v) - 1.7},
    )
    assert result.success, result
    np.testing.assert_allclose(value(v), 1.7 / 3, atol=1e-3)


def test_jacobians_are_exact(float64):
    rng = np.random.default_rng(0)
    v = keras.Variable(rng.normal(size=(2, 3)))
    w = keras.Variable(rng.normal(size=2))
    other = keras.Variable(rng.normal(size=2))  # It is read only.

    def curve():
        return ops.concatenate(
            [
                ops.matmul(v, ops.sin(v[0]))[None] * other[:, None],
                ops.exp(w)[None],
                # It reads no variable that is optimized.
                (other**2)[None],
            ]
        )

    packing = Packing([v, w])
    (constraint,) = resolve_constraints(
        [{"type": "eq", "fun": curve}], packing, Constraint
    )
    theta = packing.read()
    step = 1e-6
    columns = [
        (constraint.fun(theta + step * e) - constraint.fun(theta - step * e))
        / (2 * step)
        for e in np.eye(8)
    ]
    jacobian = constraint.jac(theta)
    assert jacobian.shape == (8, 8)
    np.testing.assert_allclose(jacobian, np.array(columns).T, atol=1e-8)
    np.testing.assert_array_equal(value(w), theta[6:])


def test_frozen_variables_are_read_anew_by_every_fit(float64):
    v = keras.Variable(np.ones(2))
    total = keras.Variable(3.0, dtype="float64", trainable=False)
    constraint = {"type": "eq", "fun": lambda: ops.sum(v) - total}
    for expected in (3.0, 5.0):
        total.assign(expected)
        kormos.minimize(
            lambda: ops.sum(v**2), [v], "slsqp", constraints=constraint
        )
        np.testing.assert_allclose(value(v), expected / 2, atol=1e-8)


def test_a_constraint_without_values_is_refused():
    v = keras.Variable(np.ones(2))
    empty = {"type": "ineq", "fun": lambda: v[:0]}
    with pytest.raises(ValueError, match=r"at least one number.*\(0,\)"):
        kormos.minimize(lambda: ops.sum(v**2), [v], constraints=empty)


@pytest.mark.parametrize("method", UNCONSTRAINED)
def test_methods_without_constraints_refuse_them_by_name(method):
    model = linear()
    kernel = model.weights[0]
    model.compile(
        optimizer=ScipyBatchOptimizer(
            method=method,
            constraints={"type": "eq", "fun": lambda: kernel[0] - 1},
        ),
        loss="mse",
    )
    match = f"Method '{method}' does not support constraints.*cobyla.*slsqp.*eq"
    with pytest.raises(ValueError, match=match):
        model.fit(X, Y, verbose=0)
    evaluations = []
    with pytest.raises(ValueError, match=match):
        kormos.minimize(
            lambda: ops.sum(kernel**2),
            [kernel],
            method,
            constraints={"type": "eq", "fun": lambda: kernel[0] - 1},
            loss_callback=evaluations.append,
        )
    assert evaluations == []
    np.testing.assert_array_equal(value(kernel), np.ones((5, 1)))


def zero():
    return ops.zeros(1)


@pytest.mark.parametrize(
    "constraint, match",
    [
        (5, "dict with the keys"),
        ([zero], "dict with the keys"),
        ({"fun": zero}, "dict with the keys"),
        ({"type": "le", "fun": zero}, "dict with the keys"),
        (
            {"type": "eq", "fun": zero, "jac": zero},
            "Derivatives are computed automatically",
        ),
        ({"type": "eq", "fun": 0}, "function of no arguments"),
        ({"type": "eq", "fun": lambda x: x[0]}, "function of no arguments"),
        ({"type": "eq", "fun": lambda: 0.0}, "must return a tensor"),
        (
            {"type": "eq", "fun": lambda: ops.ones(1, "int32")},
            "floating-point",
        ),
        (scipy.optimize.LinearConstraint(A), "2 parameters"),
        (scipy.optimize.LinearConstraint(np.ones((1, 2)), np.inf), "at most"),
        (scipy.optimize.NonlinearConstraint(zero, 0, 1), "dict with the keys"),
    ],
)
def test_malformed_constraints_raise(constraint, match):
    v = keras.Variable([9.0, 9.0])
    with pytest.raises(ValueError, match=match):
        kormos.minimize(
            lambda: ops.sum(v**2), [v], "slsqp", constraints=constraint
        )
    np.testing.assert_array_equal(value(v), [9, 9])
