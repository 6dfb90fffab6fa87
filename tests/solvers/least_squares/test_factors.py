"""Damped steps from Cholesky factors, and the beginning with L-BFGS."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos
from kormos.solvers.least_squares import beginning
from kormos.solvers.least_squares import factors
from kormos.solvers.least_squares.factors import MatrixFactors
from kormos.solvers.least_squares.factors import RowFactors

EPS = 2.0**-52
SIZE = 30


def case(kind, held=()):
    """A model, its matrix, gradient and scale."""
    g = np.random.default_rng(0)
    rows = g.normal(size=(12 if kind is RowFactors else 50, SIZE))
    rows *= np.geomspace(1, 1e-3, len(rows))[:, None]
    scale = g.uniform(0.5, 2, SIZE)
    scale[list(held)] = np.inf
    matrix, grad = rows.T @ rows, rows.T @ g.normal(size=len(rows))
    given = rows.copy() if kind is RowFactors else np.triu(matrix)
    return kind(given, scale, grad, EPS), matrix, grad, scale


each_kind = pytest.mark.parametrize("kind", [RowFactors, MatrixFactors])


@each_kind
@pytest.mark.parametrize("damping", [1e-8, 1e-4, 1.0, 1e4])
def test_steps_solve_the_damped_equations(kind, damping):
    model, matrix, grad, scale = case(kind)
    damped = matrix + damping * np.diag(scale**2)
    step = model.damped(damping)
    expected = -np.linalg.solve(damped, grad)
    # The equations lose digits as the damping becomes small.
    lost = 64 * EPS * np.linalg.cond(damped)
    assert np.linalg.norm(step.vector - expected) <= lost * step.length
    length = np.linalg.norm(scale * expected)
    np.testing.assert_allclose(step.length, length, rtol=lost)
    fall = -grad @ expected - expected @ matrix @ expected / 2
    np.testing.assert_allclose(step.promised, fall, rtol=lost)
    slope = matrix @ np.arange(1.0, 1 + SIZE)
    bent, expected = model.bend(slope, damping), -np.linalg.solve(damped, slope)
    assert np.linalg.norm(bent - expected) <= lost * np.linalg.norm(expected)


@each_kind
@pytest.mark.parametrize("guess", [0.0, 1e-6, 1e3])
def test_a_step_is_about_as_long_as_the_radius(kind, guess):
    model, *_ = case(kind)
    longest = model.damped(0.0).length
    for radius in (1e-3 * longest, 0.1 * longest, 0.5 * longest):
        step = model.within(radius, guess)
        assert 0.7 * radius <= step.length <= 1.3 * radius
    assert model.within(10 * longest, guess).length <= 1.0001 * longest


@each_kind
def test_the_promise_is_of_the_undamped_step_unless_less_is_enough(kind):
    model, matrix, grad, _ = case(kind)
    whole = grad @ np.linalg.lstsq(matrix, grad, rcond=1e-13)[0] / 2
    # The smallest damping keeps almost nothing of the smallest directions.
    assert model.promise(np.inf) == pytest.approx(whole, rel=0.01)
    assert 0 < model.promise(0.0) < whole


@each_kind
def test_what_is_held_does_not_move(kind):
    model, matrix, grad, scale = case(kind, held=(3, 7))
    free = np.isfinite(scale)
    damped = (matrix + 0.1 * np.diag(np.where(free, scale, 0) ** 2))[free]
    step = model.damped(0.1)
    assert not step.vector[~free].any()
    np.testing.assert_allclose(
        step.vector[free], -np.linalg.solve(damped[:, free], grad[free])
    )


def sines(rows, optimizer, **kwargs):
    """A fit of 61 parameters to a sine, and its result."""
    g = np.random.default_rng(1)
    x = np.linspace(-1, 1, rows)[:, None]
    y = np.sin(5 * x)
    shapes = [(1, 20), (20,), (20, 1), (1,)]
    vs = [keras.Variable(g.normal(size=s), dtype="float64") for s in shapes]

    def residuals(data):
        hidden = ops.tanh(ops.matmul(data["x"], vs[0]) + vs[1])
        return ops.matmul(hidden, vs[2]) + vs[3] - data["y"]

    return kormos.least_squares(
        residuals, vs, optimizer, data={"x": x, "y": y}, **kwargs
    )


@pytest.mark.parametrize(
    ("rows", "kind"), [(40, RowFactors), (200, MatrixFactors)]
)
def test_factors_reach_a_fit_that_is_exact(rows, kind, monkeypatch, float64):
    monkeypatch.setattr(factors, "_FEWEST", 1)
    monkeypatch.setattr("kormos.solvers.least_squares.spectrum._SMALL", 1)
    used, within = [], kind.within

    def spy(model, radius, guess):
        used.append(model.name)
        return within(model, radius, guess)

    monkeypatch.setattr(kind, "within", spy)
    result = sines(rows, "lm", target_loss=1e-10)
    assert result.loss <= 1e-10
    assert len(used) >= result.iterations


@pytest.fixture
def small(monkeypatch):
    """Makes steps of small problems count as slow."""
    monkeypatch.setattr(beginning, "_FEWEST", 1)
    monkeypatch.setattr(beginning, "_SIDE_AN_EVALUATION", 10)


def test_a_long_run_begins_cheaply(small, float64):
    result = sines(200, "lm", max_iterations=150, target_loss=1e-9)
    history = result.history
    is_cheap = np.isnan(history["damping"])
    assert len({len(column) for column in history.values()}) == 1
    # All iterations of L-BFGS come first, up to a multiple of the stride.
    count = np.count_nonzero(is_cheap)
    assert count % 10 == 0 and count > 0
    assert is_cheap[:count].all() and not is_cheap[count:].any()
    assert np.all(np.diff(history["fg_evals"]) >= 1)
    assert result.loss <= 1e-9
    # A second fit does the same, independently of the clock.
    assert (
        sines(200, "lm", max_iterations=150, target_loss=1e-9).history["loss"]
        == history["loss"]
    )


def test_a_run_of_few_iterations_counts_steps(small, float64):
    result = sines(200, "lm", max_iterations=20)
    assert not np.isnan(result.history["damping"]).any()


def test_a_beginning_ends_with_the_limits_of_the_run(small, float64):
    with pytest.warns(kormos.ConvergenceWarning, match="evaluation limit"):
        result = sines(200, "lm", max_evals=6)
    assert result.status == "evaluation limit"
    assert np.isnan(result.history["damping"]).all()
    reached = sines(200, "lm", target_loss=0.3)
    assert reached.status == "target reached"
    assert reached.loss <= 0.3


def test_a_callback_ends_a_beginning(small, float64):
    def stop(iteration, logs):
        return iteration >= 3

    result = sines(200, "lm", callbacks=[stop])
    assert result.status == "stopped by callback"
    assert result.iterations == 3
