"""Bounds on variables, and `NonNeg` constraints, which are bounds."""

import keras
import numpy as np
import pytest
import scipy.optimize
from keras import ops

import kormos
from conftest import lindata
from conftest import linear
from kormos.objective import FunctionObjective
from kormos.objective.bounds import resolve_bounds
from kormos.objective.layout import Packing
from kormos.optimizers import ScipyBatchOptimizer

BOUNDED = [
    "cobyla",
    "cobyqa",
    "l-bfgs-b",
    "nelder-mead",
    "powell",
    "slsqp",
    "tnc",
    "trust-constr",
]
UNBOUNDED = [
    "bfgs",
    "cg",
    "dogleg",
    "newton-cg",
    "trust-exact",
    "trust-krylov",
    "trust-ncg",
]

X, Y = lindata(200, noise=0.3)

LOWER = np.array([0, -0.1, -0.3, -np.inf, 0.2])
UPPER = np.array([0.1, 0.1, np.inf, -0.2, 0.5])


def mean_squared_error(v):
    prediction = ops.matmul(ops.convert_to_tensor(X), ops.reshape(v, (5, 1)))
    residuals = prediction - ops.convert_to_tensor(Y)
    return ops.mean(residuals**2)


def least_squares(columns, lower, upper, target=Y[:, 0]):
    return scipy.optimize.lsq_linear(
        X[:, columns], target, (lower, upper), tol=1e-14
    ).x


@pytest.fixture
def evaluated(monkeypatch):
    """All points at which losses and their derivatives are evaluated."""
    points = []
    for name in ("value", "value_and_grad", "hvp"):
        stock = getattr(FunctionObjective, name)

        def recording(self, theta, *args, stock=stock):
            points.append(np.array(theta))
            return stock(self, theta, *args)

        monkeypatch.setattr(FunctionObjective, name, recording)
    return points


@pytest.mark.parametrize("method", BOUNDED)
def test_no_evaluation_lies_outside(method, float64, evaluated):
    start = np.full(5, 3.0)  # Outside of most bounds.
    v = keras.Variable(start)
    result = kormos.minimize(
        lambda: mean_squared_error(v),
        [v],
        method,
        bounds=[(v, (LOWER, UPPER))],
    )
    assert result.success
    solution = ops.convert_to_numpy(v)
    # Powell's tolerance is relative to the loss.
    expected = least_squares(range(5), LOWER, UPPER)
    np.testing.assert_allclose(solution, expected, atol=1e-4)
    points = np.array(evaluated)
    assert len(points) >= result.evaluations > 0
    assert (LOWER <= points).all() and (points <= UPPER).all()


@pytest.mark.parametrize("method", BOUNDED)
def test_equal_bounds_fix_parameters(method, float64, evaluated, capsys):
    fixed = np.array([False, True, False, False, False])
    lower = np.where(fixed, -0.05, LOWER)
    upper = np.where(fixed, -0.05, UPPER)
    v = keras.Variable(np.zeros(5))
    seen = []
    result = kormos.minimize(
        lambda: mean_squared_error(v),
        [v],
        method,
        bounds=[(v, (lower, upper))],
        callback=lambda *_: seen.append(ops.convert_to_numpy(v)[1]) and None,
    )
    assert result.success
    assert set(np.array(evaluated)[:, 1]) == set(seen) == {-0.05}
    expected = least_squares(
        ~fixed, lower[~fixed], upper[~fixed], Y[:, 0] + 0.05 * X[:, 1]
    )
    solution = ops.convert_to_numpy(v)
    np.testing.assert_allclose(solution[~fixed], expected, atol=1e-4)
    # SciPy 1.17 prints its callback here.
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("method", BOUNDED)
def test_all_parameters_may_be_fixed(method):
    v = keras.Variable([3.0, 4.0])
    result = kormos.minimize(
        lambda: ops.sum(v**2), [v], method, bounds=[(v, (1, 1))]
    )
    assert result.success
    assert (result.loss, result.evaluations) == (2, 1)
    np.testing.assert_array_equal(ops.convert_to_numpy(v), [1, 1])


@pytest.mark.parametrize("method", ["l-bfgs-b", "tnc", "slsqp", "cobyqa"])
def test_a_loss_that_is_undefined_outside(method, float64):
    # NaN below zero; least at 4, and at the bound of the second entry.
    v = keras.Variable(np.array([1e-3, 1.0]))
    result = kormos.minimize(
        lambda: ops.sum(v - 4 * ops.sqrt(v)),
        [v],
        method,
        bounds=[(v, (1e-6, [np.inf, 2]))],
    )
    assert result.success
    np.testing.assert_allclose(ops.convert_to_numpy(v), [4, 2], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", BOUNDED)
def test_nonneg_constraint_is_a_bound(method, float64):
    # Their default tolerances are coarse.
    tight = {
        "cobyla": {"tol": 1e-7},
        "powell": {"xtol": 1e-8},
        "slsqp": {"ftol": 1e-12},
    }
    options = tight.get(method)
    model = linear(kernel_constraint=keras.constraints.NonNeg())
    optimizer = ScipyBatchOptimizer(method=method, options=options)
    model.compile(optimizer=optimizer, loss="mse")
    history = model.fit(X, Y, epochs=1000, verbose=0)
    assert history.result.success
    kernel = model.get_weights()[0][:, 0]
    assert (kernel >= 0).all()
    expected, _ = scipy.optimize.nnls(X, Y[:, 0])
    np.testing.assert_allclose(kernel, expected, atol=1e-4)


def test_nonneg_and_bounds_hold_together(float64):
    v = keras.Variable(np.ones(3))
    v.constraint = keras.constraints.NonNeg()
    target = ops.convert_to_tensor(np.array([-1.0, 5.0, 2.0]))
    kormos.minimize(
        lambda: ops.sum((v - target) ** 2),
        [v],
        bounds=[(v, (-9, [9, 3, 9]))],
    )
    np.testing.assert_allclose(ops.convert_to_numpy(v), [0, 3, 2], atol=1e-7)
    with pytest.raises(ValueError, match="NonNeg.*Received: .0.0, -1.0"):
        kormos.minimize(lambda: ops.sum(v**2), [v], bounds=[(v, (-9, -1))])


def test_other_constraints_of_keras_are_refused_by_fit_alone():
    model = linear(kernel_constraint=keras.constraints.MaxNorm(0.5))
    model.compile(optimizer="adam", loss="mse")
    model.fit(X, Y, verbose=0)
    weights = model.get_weights()[0]
    model.compile(optimizer="l-bfgs-b", loss="mse")
    with pytest.raises(ValueError, match="`NonNeg` is the only.*MaxNorm"):
        model.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], weights)


@pytest.mark.parametrize("method", UNBOUNDED)
def test_methods_without_bounds_refuse_them_by_name(method):
    match = f"Method '{method}' does not support bounds"
    model = linear()
    model.compile(
        optimizer=ScipyBatchOptimizer(method=method, bounds={".*": (0, 1)}),
        loss="mse",
    )
    evaluations = []
    with pytest.raises(ValueError, match=match):
        model.fit(X, Y, verbose=0)
    v = keras.Variable([-3.0])
    v.constraint = keras.constraints.NonNeg()
    with pytest.raises(ValueError, match=match):
        kormos.minimize(
            lambda: ops.sum(v**2),
            [v],
            method,
            loss_callback=evaluations.append,
        )
    assert evaluations == []
    np.testing.assert_array_equal(model.get_weights()[0], np.ones((5, 1)))
    np.testing.assert_array_equal(ops.convert_to_numpy(v), [-3.0])


def two_layers():
    return keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(2, name="first"),
            keras.layers.Dense(1, name="last"),
        ]
    )


def test_bounds_by_path_by_pattern_and_by_variable():
    model = two_layers()
    packing = Packing(model.trainable_variables)
    low, high = resolve_bounds(
        {
            model.layers[1].bias.path: (1, 2),
            ".*/kernel": (-np.inf, 5),
            ".*first/(kernel|bias)": (None, [3, 4]),
        },
        packing,
    )
    inf = np.inf
    np.testing.assert_array_equal(low, [-inf] * 8 + [1])
    # The kernel of the first layer is (2, 2): [3, 4] bounds its columns.
    np.testing.assert_array_equal(high, [3, 4, 3, 4, 3, 4, 5, 5, 2])
    pairs = [(model.layers[1].bias, (0, None)), (".*first.*", ([[0, 1]], 1))]
    with pytest.raises(ValueError, match="broadcast.*first"):
        resolve_bounds(pairs, packing)
    low, high = resolve_bounds(pairs[:1], packing)
    np.testing.assert_array_equal(low, [-inf] * 8 + [0])
    np.testing.assert_array_equal(high, [inf] * 9)
    for bounds in (None, {}, [], {".*": (None, None)}):
        assert resolve_bounds(bounds, packing) == (None, None)


def test_a_path_is_no_pattern_where_it_fits():
    v = keras.Variable([1.0], name="a(b")
    w = keras.Variable([1.0], name="c")
    low, _ = resolve_bounds({"a(b": (0, 1)}, Packing([v, w]))
    np.testing.assert_array_equal(low, [0, -np.inf])


@pytest.mark.parametrize(
    "pair, match",
    [
        ((2, 1), r"not be above.*Received: \(2.0, 1.0\)"),
        (([0, 3, 0], 2), r"not be above.*Received: \(3.0, 2.0\)"),
        ((np.inf, None), "finite number between"),
        ((None, -np.inf), "finite number between"),
        ((np.nan, 1), "NaN"),
        ((0, [1, np.nan, 1]), "NaN"),
        (([0, 1], 9), r"shape, \(3,\). Received: shape \(2,\)"),
        (5, "pair"),
        ((0, 1, 2), "pair"),
        ("zero", "pair"),
    ],
)
def test_malformed_bounds_raise(pair, match):
    v = keras.Variable([9.0, 9.0, 9.0])
    with pytest.raises(ValueError, match=match):
        kormos.minimize(lambda: ops.sum(v**2), [v], bounds=[(v, pair)])
    np.testing.assert_array_equal(ops.convert_to_numpy(v), [9, 9, 9])


@pytest.mark.parametrize("bounds", [{"kernel2": (0, 1)}, {"(": (0, 1)}, 5, [0]])
def test_bounds_that_match_nothing_raise(bounds):
    model = two_layers()
    model.compile(optimizer="l-bfgs-b", loss="mse")
    with pytest.raises(ValueError, match="bounds.*Received"):
        kormos.fit(model, X[:, :2], Y, verbose=0, bounds=bounds)
    frozen = keras.Variable([1.0])
    with pytest.raises(ValueError, match="matches no variable"):
        kormos.fit(model, X[:, :2], Y, verbose=0, bounds=[(frozen, (0, 1))])


def test_bounds_in_float32_hold_for_the_weights():
    model = linear(l2=1e-3)
    model.compile(optimizer="l-bfgs-b", loss="mse")
    kormos.fit(model, X, Y, verbose=0, bounds={".*kernel": (0, 0.1)})
    kernel = model.get_weights()[0][:, 0]
    expected = np.array([0.1, 0, 0, 0, 0.1], "float32")
    np.testing.assert_array_equal(kernel, expected)


def test_a_fit_of_no_epochs_stays_in_place():
    # A barrier method would start elsewhere.
    model = linear()
    optimizer = ScipyBatchOptimizer(
        method="trust-constr", bounds={".*": (0, 1)}
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(X, Y, epochs=0, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], np.ones((5, 1)))


def test_none_is_no_bound_for_a_single_entry_too():
    v = keras.Variable([3.0, -3.0], name="v")
    packing = Packing([v])
    for bounds in ({"v": ([1, None], None)}, [(1, None), (None, None)]):
        lower, upper = resolve_bounds(bounds, packing)
        np.testing.assert_array_equal(lower, [1, -np.inf])
        np.testing.assert_array_equal(upper, [np.inf, np.inf])
    with pytest.raises(ValueError, match="must be numbers.*Received: 'a'"):
        resolve_bounds({"v": ("a", None)}, packing)
