"""Constraints in all units, in float32, and where the start is special."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos

SIZE = 12


def simplex_projection(point):
    """The nearest point with a sum of one and no negative entry, by sorting."""
    ordered = np.sort(point)[::-1]
    excess = (np.cumsum(ordered) - 1) / np.arange(1, point.size + 1)
    return np.maximum(point - excess[ordered > excess][-1], 0.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "unit, factor",
    [(1, 1e-12), (1, 1e-6), (1, 1e6), (1e-4, 1), (1e5, 1), (1e5, 1e9)],
)
def test_neither_unit_matters(unit, factor, dtype, request):
    """A loss with tiny gradients ended where it began, as a success."""
    if dtype == "float64":
        request.getfixturevalue("float64")
    wish = np.random.default_rng(0).normal(size=SIZE)
    w = keras.Variable(np.full(SIZE, unit / 40), dtype=dtype)
    target = ops.convert_to_tensor(wish, dtype)
    result = kormos.minimize(
        lambda: factor * ops.sum((w / unit - target) ** 2),
        [w],
        bounds=[(w, (0, None))],
        constraints={"type": "eq", "fun": lambda: ops.sum(w) - unit},
    )
    assert result.success, result
    found = np.asarray(ops.convert_to_numpy(w), float) / unit
    # An absolute tolerance counts as feasible.
    slack = 2.0**-26 / unit if dtype == "float64" else 1e-4
    np.testing.assert_allclose(
        found, simplex_projection(wish), atol=max(1e-5, slack)
    )


@pytest.mark.parametrize("size", [3, 12, 30])
@pytest.mark.parametrize("kind", ["eq", "ineq"])
def test_a_budget_in_float32(size, kind):
    """One rounding of a thousand is more than SciPy calls feasible."""
    rng = np.random.default_rng(size)
    prices = rng.uniform(10, 100, size).astype("float32")
    wish = rng.uniform(0, 60 * 40 / size, size).astype("float32")
    sign = 1 if kind == "eq" else -1
    w = keras.Variable(np.ones(size, "float32"))
    result = kormos.minimize(
        lambda: ops.sum((w - ops.convert_to_tensor(wish)) ** 2),
        [w],
        bounds=[(w, (0, None))],
        constraints={
            "type": kind,
            "fun": lambda: (
                sign * (ops.sum(w * ops.convert_to_tensor(prices)) - 1000)
            ),
        },
    )
    assert result.success, result
    spent = float(prices.astype(float) @ ops.convert_to_numpy(w))
    assert spent <= 1000 * (1 + 1e-5)
    if kind == "eq" or prices @ wish > 1000:
        assert spent == pytest.approx(1000, rel=1e-5)


@pytest.mark.parametrize("method", ["lbfgs", "slsqp", "trust-constr", "cobyla"])
@pytest.mark.parametrize("total, status", [(2, "converged"), (3, "infeasible")])
def test_bounds_that_fix_every_parameter(method, total, status, unconverged):
    v = keras.Variable([0.5, 0.5])
    result = kormos.minimize(
        lambda: ops.sum(v**2),
        [v],
        method,
        bounds=[(v, (1.0, 1.0))],
        constraints={"type": "eq", "fun": lambda: ops.sum(v) - total},
    )
    assert result.status == status
    np.testing.assert_array_equal(ops.convert_to_numpy(v), [1, 1])


@pytest.mark.parametrize("method", ["lbfgs", "slsqp"])
@pytest.mark.parametrize("start", [1, 2])
def test_a_saddle_point_on_a_sphere_is_left(method, start, float64):
    """Every eigenvector is stationary, and one is the minimum."""
    vectors, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    matrix = vectors @ np.diag([1.0, 2.0, 3.0]) @ vectors.T
    v = keras.Variable(vectors[:, start])
    result = kormos.minimize(
        lambda: ops.sum(v * ops.matmul(ops.convert_to_tensor(matrix), v)),
        [v],
        method,
        constraints={"type": "eq", "fun": lambda: ops.sum(v**2) - 1},
    )
    assert result.success, result
    assert result.loss == pytest.approx(1, rel=1e-7)


def test_a_cusp_has_a_result(float64, unconverged):
    """The only constraint has no gradient at the optimum, zero."""
    v = keras.Variable(np.ones(2))
    result = kormos.minimize(
        lambda: v[0],
        [v],
        constraints={"type": "ineq", "fun": lambda: v[0] ** 3 - v[1] ** 2},
    )
    assert not result.success
    assert abs(result.loss) < 1e-6


def test_a_violation_that_can_be_mended_is_not_infeasible(float64, unconverged):
    """SLSQP's subproblem fails if two constraints are the same."""
    v = keras.Variable(np.array([3.0, 1.0, 0.0]))
    result = kormos.minimize(
        lambda: ops.sum(v**2),
        [v],
        "slsqp",
        constraints=[
            {"type": "eq", "fun": lambda: ops.sum(v) - 1},
            {"type": "eq", "fun": lambda: 2 * ops.sum(v) - 2},
        ],
    )
    assert result.status == "line search failed"


def test_what_constraints_bound_is_not_unbounded(float64, unconverged):
    """A tiny start is far from the optimum, where the loss is negative."""
    wish, unit = np.random.default_rng(0).normal(size=4), 1e-4
    w = keras.Variable(np.full(4, unit / 16))
    result = kormos.minimize(
        lambda: ops.sum((w / unit - ops.convert_to_tensor(wish)) ** 2) - 5,
        [w],
        "cobyla",
        bounds=[(w, (0, None))],
        constraints={"type": "eq", "fun": lambda: ops.sum(w) - unit},
        max_iterations=1000,
    )
    assert result.status in ("converged", "noise floor", "stalled")


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("kind", ["eq", "ineq"])
def test_a_constraint_without_a_gradient_at_the_start(kind, size):
    """A product of two variables that are zero; 1 and 4 times 3 of them."""
    a, b = np.tile([1.0, 2.0, 3.0], size), np.tile([2.0, -1.0, 1.0], size)
    u, w = (keras.Variable(np.zeros(3 * size, "float32")) for _ in range(2))
    wishes = [ops.convert_to_tensor(wish, "float32") for wish in (a, b)]
    result = kormos.minimize(
        lambda: ops.sum((u - wishes[0]) ** 2) + ops.sum((w - wishes[1]) ** 2),
        [u, w],
        constraints={"type": kind, "fun": lambda: -ops.sum(u * w)},
    )
    assert result.success, result
    # With the multiplier m of u.w = 0: u = a - m w, w = b - m u.
    inner, squares = a @ b, a @ a + b @ b
    m = (squares - np.sqrt(squares**2 - 4 * inner**2)) / (2 * inner)
    left = (squares * (1 + m**2) - 4 * m * inner) / (1 - m**2) ** 2
    assert result.loss == pytest.approx(m**2 * left, rel=1e-5)


@pytest.mark.parametrize("method", ["lbfgs", "slsqp", "trust-constr"])
def test_a_minimum_with_two_sets_of_multipliers_is_no_saddle(method, float64):
    """Both constraints have the same gradient, and only one is curved."""
    v = keras.Variable(np.array([1.5, 2.3]))
    result = kormos.minimize(
        lambda: 5 + v[0] - 1 + 0.05 * (v[1] - 2) ** 2,
        [v],
        method,
        constraints=[
            {"type": "ineq", "fun": lambda: 20 * (v[0] - 1 + (v[1] - 2) ** 2)},
            {"type": "ineq", "fun": lambda: v[0] - 1},
        ],
        max_iterations=500,
    )
    assert result.success, result
    assert result.loss == pytest.approx(5, abs=1e-6)


@pytest.mark.parametrize("precision", [None, "auto", "float64"])
def test_a_constraint_that_does_not_bound_the_loss(precision, unconverged):
    v = keras.Variable(np.ones(2, "float32"))
    result = kormos.minimize(
        lambda: -v[0],
        [v],
        constraints={"type": "ineq", "fun": lambda: v[1] - 1},
        precision=precision,
    )
    assert result.status == "unbounded"
    assert "ran from 1" in result.message


@pytest.mark.parametrize("method", ["lbfgs", "slsqp"])
def test_an_infeasible_point_does_not_reach_the_target(method, float64):
    v = keras.Variable(np.array([1.0, 0.2]))
    result = kormos.minimize(
        lambda: ops.sum(v**2),
        [v],
        method,
        constraints={"type": "ineq", "fun": lambda: v[0] - 3},
        target_loss=9.5,
    )
    assert result.status == "target reached"
    assert ops.convert_to_numpy(v)[0] >= 3 - 1e-6
