"""Constraints in kormos' own methods."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos
from conftest import lindata
from conftest import linear
from recorded_constraint import run_recorded

METHODS = ["lbfgs", "dense-bfgs", "ssbroyden"]

X, Y = lindata(200, noise=0.3)
# Two equalities on the five weights.
A = np.array([[1.0, 1, 0, 0, 0], [0, 0, 1, -1, 0]])
B = np.array([1.0, 0.5])


def value(variable):
    return ops.convert_to_numpy(variable)


def tensor(array):
    return ops.convert_to_tensor(np.asarray(array, "float64"))


def equality(kernel):
    return {
        "type": "eq",
        "fun": lambda: ops.matmul(tensor(A), kernel[:, 0]) - tensor(B),
    }


def constrained_least_squares():
    """The weights and multipliers, from the conditions of optimality."""
    matrix = np.block([[2 / 200 * X.T @ X, -A.T], [A, np.zeros((2, 2))]])
    found = np.linalg.solve(matrix, np.append(2 / 200 * X.T @ Y[:, 0], B))
    return found[:5], found[5:]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bounds", [None, {".*": (-3, 3)}])
def test_equalities_in_fit(method, bounds, float64):
    model = linear()
    (kernel,) = model.weights
    history = kormos.fit(
        model_with_loss(model),
        X,
        Y,
        optimizer=method,
        constraints=equality(kernel),
        bounds=bounds,
        epochs=100,
        verbose=0,
    )
    result = history.result
    weights, multipliers = constrained_least_squares()
    assert result.success, result
    np.testing.assert_allclose(value(kernel)[:, 0], weights, rtol=1e-8)
    np.testing.assert_allclose(result.multipliers[0], multipliers, rtol=1e-5)
    assert history.history["violation"][-1] < 1e-12
    assert history.history["complementarity"][-1] < 1e-12


def model_with_loss(model):
    model.compile(loss="mse")
    return model


def test_an_optimizer_with_constraints_is_compiled_with(float64):
    model = linear()
    (kernel,) = model.weights
    model.compile(
        optimizer=kormos.optimizers.LBFGS(constraints=equality(kernel)),
        loss="mse",
    )
    history = model.fit(X, Y, epochs=100, verbose=0)
    assert history.result.success
    np.testing.assert_allclose(
        value(kernel)[:, 0], constrained_least_squares()[0], rtol=1e-8
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_lowest_point_of_a_disc(method, float64):
    v = keras.Variable(np.array([0.3, 0.6]))
    result = kormos.minimize(
        lambda: ops.sum(v),
        [v],
        method,
        constraints=[
            {"type": "ineq", "fun": lambda: 1 - ops.sum(v**2)},
            {"type": "ineq", "fun": lambda: v + 9},
        ],
    )
    assert result.success, result
    np.testing.assert_allclose(value(v), [-(0.5**0.5)] * 2, atol=1e-7)
    disc, far = result.multipliers
    np.testing.assert_allclose(disc, [0.5**0.5], rtol=1e-6)
    np.testing.assert_array_equal(far, [0, 0])
    assert "constraints hold to" in result.message


# W. Hock and K. Schittkowski, "Test Examples for Nonlinear Programming Codes",
# 1981: start, bounds, loss, constraints and the least value.
def hs40(v):
    return -v[0] * v[1] * v[2] * v[3]


def hs71(v):
    return v[0] * v[3] * (v[0] + v[1] + v[2]) + v[2]


def hs100(v):
    return (
        (v[0] - 10) ** 2
        + 5 * (v[1] - 12) ** 2
        + v[2] ** 4
        + 3 * (v[3] - 11) ** 2
        + 10 * v[4] ** 6
        + 7 * v[5] ** 2
        + v[6] ** 4
        - 4 * v[5] * v[6]
        - 10 * v[5]
        - 8 * v[6]
    )


def hs83(v):
    return (
        5.3578547 * v[2] ** 2
        + 0.8356891 * v[0] * v[4]
        + 37.293239 * v[0]
        - 40792.141
    )


# The three functions of HS83, and the numbers that they lie between.
OF_HS83 = [
    (
        lambda v: (
            85.334407
            + 0.0056858 * v[1] * v[4]
            + 0.0006262 * v[0] * v[3]
            - 0.0022053 * v[2] * v[4]
        ),
        (0, 92),
    ),
    (
        lambda v: (
            80.51249
            + 0.0071317 * v[1] * v[4]
            + 0.0029955 * v[0] * v[1]
            + 0.0021813 * v[2] ** 2
        ),
        (90, 110),
    ),
    (
        lambda v: (
            9.300961
            + 0.0047026 * v[2] * v[4]
            + 0.0012547 * v[0] * v[2]
            + 0.0019085 * v[2] * v[3]
        ),
        (20, 25),
    ),
]


PROBLEMS = {
    "HS40": (
        [0.8] * 4,
        None,
        hs40,
        [
            ("eq", lambda v: v[0] ** 3 + v[1] ** 2 - 1),
            ("eq", lambda v: v[0] ** 2 * v[3] - v[2]),
            ("eq", lambda v: v[3] ** 2 - v[1]),
        ],
        -0.25,
    ),
    "HS71": (
        [1.0, 5, 5, 1],
        (1.0, 5.0),
        hs71,
        [
            ("ineq", lambda v: v[0] * v[1] * v[2] * v[3] - 25),
            ("eq", lambda v: ops.sum(v**2) - 40),
        ],
        17.0140173,
    ),
    "HS100": (
        [1.0, 2, 0, 4, 0, 1, 1],
        None,
        hs100,
        [
            (
                "ineq",
                lambda v: (
                    127
                    - 2 * v[0] ** 2
                    - 3 * v[1] ** 4
                    - v[2]
                    - 4 * v[3] ** 2
                    - 5 * v[4]
                ),
            ),
            (
                "ineq",
                lambda v: (
                    282 - 7 * v[0] - 3 * v[1] - 10 * v[2] ** 2 - v[3] + v[4]
                ),
            ),
            (
                "ineq",
                lambda v: (
                    196 - 23 * v[0] - v[1] ** 2 - 6 * v[5] ** 2 + 8 * v[6]
                ),
            ),
            (
                "ineq",
                lambda v: (
                    -4 * v[0] ** 2
                    - v[1] ** 2
                    + 3 * v[0] * v[1]
                    - 2 * v[2] ** 2
                    - 5 * v[5]
                    + 11 * v[6]
                ),
            ),
        ],
        680.6300573,
    ),
    # Parameters at bounds, beside a large gradient.
    "HS83": (
        [78.0, 33, 27, 27, 27],
        (np.array([78.0, 33, 27, 27, 27]), np.array([102.0, 45, 45, 45, 45])),
        hs83,
        [
            ("ineq", lambda v, fn=fn, low=low: fn(v) - low)
            for fn, (low, _) in OF_HS83
        ]
        + [
            ("ineq", lambda v, fn=fn, high=high: high - fn(v))
            for fn, (_, high) in OF_HS83
        ],
        -30665.53867,
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_of_hock_and_schittkowski(name, float64):
    start, bounds, loss, constraints, best = PROBLEMS[name]
    v = keras.Variable(np.array(start))
    result = kormos.minimize(
        lambda: loss(v),
        [v],
        bounds=bounds and [(v, bounds)],
        constraints=[
            {"type": kind, "fun": lambda fn=fn: fn(v)}
            for kind, fn in constraints
        ],
    )
    assert result.success, result
    assert result.loss == pytest.approx(best, rel=1e-8)


def test_units_do_not_matter(float64):
    # The same problem, the loss times 1e-6 and the constraint times 1e4.
    v = keras.Variable(np.array([0.3, 0.6]))
    result = kormos.minimize(
        lambda: 1e-6 * ops.sum(v),
        [v],
        constraints={
            "type": "ineq",
            "fun": lambda: 1e4 * (1 - ops.sum(v**2)),
        },
    )
    assert result.success, result
    np.testing.assert_allclose(value(v), [-(0.5**0.5)] * 2, atol=1e-7)
    np.testing.assert_allclose(
        result.multipliers[0], [1e-10 * 0.5**0.5], rtol=1e-5
    )


def test_more_parameters_than_pairs(float64):
    # The nearest point of a plane, in another metric.
    rng = np.random.default_rng(0)
    size = 400
    scales, normal = rng.uniform(0.1, 10, size), rng.normal(size=size)
    target = rng.normal(size=size)
    v = keras.Variable(np.zeros(size))
    result = kormos.minimize(
        lambda: ops.sum(tensor(scales) * (v - tensor(target)) ** 2) / 2,
        [v],
        constraints={"type": "eq", "fun": lambda: ops.dot(v, tensor(normal))},
    )
    share = normal @ target / (normal @ (normal / scales))
    assert result.success, result
    np.testing.assert_allclose(
        value(v), target - share * normal / scales, atol=1e-7
    )


@pytest.mark.parametrize("method", METHODS)
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
    np.testing.assert_allclose(value(v), [0.5, 0.5, 1], atol=1e-8)


@pytest.mark.parametrize("low", [None, 0.1])
def test_a_constraint_that_is_undefined_somewhere(low, float64):
    v = keras.Variable(np.full(2, 3.0))
    logarithms = np.log([1.0, 0.5])
    result = kormos.minimize(
        lambda: ops.sum((v + 1) ** 2),
        [v],
        bounds=[(v, (low, None))],
        constraints={
            "type": "ineq",
            "fun": lambda: ops.log(v) - tensor(logarithms),
        },
    )
    assert result.success, result
    np.testing.assert_allclose(value(v), [1, 0.5], atol=1e-8)


def test_a_constraint_that_is_undefined_at_the_start(float64):
    v = keras.Variable(np.full(2, -1.0))
    with pytest.warns(kormos.ConvergenceWarning, match="constraint is not fin"):
        result = kormos.minimize(
            lambda: ops.sum((v + 1) ** 2),
            [v],
            constraints={"type": "ineq", "fun": lambda: ops.log(v)},
        )
    assert result.status == "non-finite"
    np.testing.assert_array_equal(value(v), [-1, -1])


def test_nothing_is_evaluated_outside_of_the_bounds(float64):
    (stage,) = kormos.optimizers.LBFGS().stages(99)
    outcome, points = run_recorded(stage)
    np.testing.assert_allclose(outcome.theta, [0.7, 0.3], atol=1e-8)
    assert (points >= [0.7, -9]).all() and (points <= 9).all()


@pytest.mark.parametrize("method", METHODS)
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
    assert np.isfinite(value(v)).all()


@pytest.mark.parametrize("unit", [1.0, 1e-3])
@pytest.mark.parametrize("method", METHODS)
def test_curved_constraints_that_contradict_one_another(method, unit, float64):
    """All points on a sphere lie on one side of a plane."""
    v = keras.Variable(np.linspace(0.1, 0.5, 4))
    with pytest.warns(kormos.ConvergenceWarning, match="largest violation"):
        result = kormos.minimize(
            lambda: ops.sum((v - 1) ** 4),
            [v],
            method,
            constraints=[
                {"type": "eq", "fun": lambda: ops.sum(v**2) - 1},
                {"type": "ineq", "fun": lambda: unit * (ops.sum(v) - 6)},
            ],
        )
    assert result.status == "infeasible"
    assert result.evaluations <= 1000


@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
def test_the_limit_on_evaluations_holds(float64):
    sphere = {"type": "eq", "fun": lambda: ops.sum(v**2) - 2}
    for most in range(1, 40):
        v = keras.Variable(np.array([0.3, 0.2, 0.1, 0.5]))
        result = kormos.minimize(
            lambda v=v: (
                ops.sum(100 * (v[1:] - v[:-1] ** 2) ** 2)
                + ops.sum((1 - v[:-1]) ** 2)
            ),
            [v],
            constraints=sphere,
            max_evals=most,
        )
        assert result.evaluations <= most


def test_float32_is_no_violation():
    v = keras.Variable([3.0, 2.0, 1.0])
    result = kormos.minimize(
        lambda: ops.sum((v - 0.3) ** 2),
        [v],
        constraints={"type": "eq", "fun": lambda: ops.sum(v) - 1.7},
    )
    assert result.success, result
    np.testing.assert_allclose(value(v), 1.7 / 3, atol=1e-5)


def test_multipliers_are_kept_for_a_later_run(float64):
    v = keras.Variable(np.array([0.8] * 4))
    optimizer = kormos.optimizers.LBFGS()
    _, _, _, constraints, best = PROBLEMS["HS40"]
    settings = {
        "constraints": [
            {"type": kind, "fun": lambda fn=fn: fn(v)}
            for kind, fn in constraints
        ]
    }
    first = kormos.minimize(lambda: hs40(v), [v], optimizer, **settings)
    again = kormos.minimize(
        lambda: hs40(v), [v], optimizer, resume=True, **settings
    )
    assert again.success
    assert again.loss == pytest.approx(best, rel=1e-12)
    for before, after in zip(first.multipliers, again.multipliers, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-6)


def test_a_state_without_constraints_is_refused(float64):
    v = keras.Variable(np.ones(2))
    optimizer = kormos.optimizers.LBFGS()
    kormos.minimize(lambda: ops.sum(v**2), [v], optimizer)
    with pytest.raises(ValueError, match="state does not fit.*constraints"):
        kormos.minimize(
            lambda: ops.sum(v**2),
            [v],
            optimizer,
            resume=True,
            constraints={"type": "eq", "fun": lambda: v[0] - 1},
        )


@pytest.mark.parametrize("method", [*METHODS, "slsqp", "trust-constr"])
@pytest.mark.parametrize("kind", ["eq", "ineq"])
def test_a_stationary_point_that_is_no_minimum_is_left(float64, method, kind):
    """The gradient is zero at the start, where the loss has a maximum."""
    v = keras.Variable([0.0, 1.0], dtype="float64")
    functions = {"eq": lambda: v[1] - 1, "ineq": lambda: 0.04 - v[0] ** 2}
    result = kormos.minimize(
        lambda: v[0] ** 4 - v[0] ** 2 + (v[1] - 1) ** 2,
        [v],
        method,
        constraints={"type": kind, "fun": functions[kind]},
    )
    assert result.success
    least = -0.25 if kind == "eq" else 0.04**2 - 0.04
    assert result.loss == pytest.approx(least, abs=1e-7)
