"""The part of the Hessian that the Gauss-Newton matrix leaves out."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import optimize

import kormos
import mgh
from kormos.solvers.least_squares import spectrum
from kormos.solvers.least_squares.local_models import FEW
from kormos.solvers.least_squares.local_models import Linearized
from kormos.solvers.least_squares.secant_term import SecantTerm

EPS = 2.0**-52
SIZE = 4


def symmetric(seed):
    half = np.random.default_rng(seed).normal(size=(SIZE, SIZE))
    return half + half.T


# A loss F = g't + t'(A + S)t / 2.
MATRIX = np.diag([9.0, 8.0, 7.0, 6.0])
REST = 0.3 * symmetric(0)
SLOPE = np.array([1.0, -2.0, 3.0, -4.0])


def at(theta, rest=REST):
    hessian = MATRIX + rest
    loss = SLOPE @ theta + theta @ hessian @ theta / 2
    grad = SLOPE + hessian @ theta
    model = spectrum.of_matrix(MATRIX, np.ones(SIZE), grad)
    return Linearized(theta, loss, loss, grad, model, MATRIX)


def after_steps(count, rest=REST):
    rng = np.random.default_rng(1)
    here, term = at(np.zeros(SIZE), rest), SecantTerm.unknown(SIZE)
    for _ in range(count):
        before, here = here, at(here.theta + rng.normal(size=SIZE), rest)
        term = term.after(before, here)
    return term, before, here


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_latest_step_is_known_exactly(count):
    """S s = y - A s for the latest step s and change of the gradient y."""
    term, before, here = after_steps(count)
    step = here.theta - before.theta
    np.testing.assert_allclose(term.matrix @ step, REST @ step, atol=1e-12)
    np.testing.assert_allclose(term.matrix, term.matrix.T, atol=1e-12)
    assert term.pairs == count


def test_steps_come_nearer_to_those_of_newton():
    """After steps in all directions, most of S of a quadratic loss is known."""
    term, _, here = after_steps(20)
    assert term.is_better
    newton = -np.linalg.solve(MATRIX + REST, here.grad)
    wrong, wrong_without = (
        np.linalg.norm(model.damped(0.0).vector - newton)
        for model in (term.model(here, EPS), here.model)
    )
    assert wrong < wrong_without / 3


def test_the_term_vanishes_where_residuals_do():
    """A loss that A describes alone needs no term, and forgets an old one."""
    term, before, here = after_steps(3)
    zero = np.zeros((SIZE, SIZE))
    before, here = at(before.theta, zero), at(here.theta, zero)
    for _ in range(3):
        term = term.after(before, here)
    assert not term.is_better
    assert term.model(here, EPS) is here.model
    np.testing.assert_allclose(term.matrix, 0.0, atol=1e-12)


def test_a_hessian_that_is_not_convex_makes_no_step():
    rest = np.diag([0.0, 0.0, 0.0, -20.0])
    _, _, here = after_steps(1, rest)
    term = SecantTerm(rest, np.int32(5), np.bool_(True))
    assert term.model(here, EPS) is here.model


def test_many_parameters_have_no_term():
    term = SecantTerm.unknown(FEW + 1)
    assert term.matrix.shape == (0, 0)
    here = at(np.zeros(SIZE))
    assert term.after(here, here) is term


PROBLEMS = {p.name: p for p in mgh.problems()}


def array(values):
    return np.array(ops.convert_to_numpy(values), "float64")


def solved(name, method="lm", **settings):
    p = PROBLEMS[name]
    v = keras.Variable(np.array(p.x0), dtype="float64")
    result = kormos.least_squares(
        lambda: p.residuals(v), [v], method, reduction="sum", **settings
    )
    return result, v


@pytest.mark.parametrize(
    "name", ["Brown-Dennis", "Kowalik-Osborne", "Penalty I n=10"]
)
def test_large_residuals(name, float64):
    """The published minimum, sooner than by Gauss-Newton steps alone."""
    p = PROBLEMS[name]
    result, _ = solved(name)
    assert result.success, result
    assert p.excess(result.loss, result.initial_loss) <= 0
    # SciPy's method with the same scaling of parameters.
    peer = optimize.least_squares(
        lambda theta: array(p.residuals(theta)),
        p.x0,
        jac="3-point",
        x_scale="jac",
        **dict.fromkeys(("ftol", "xtol", "gtol"), 1e-14),
    )
    assert 2 * peer.cost == pytest.approx(result.loss, rel=1e-9)
    assert result.jacobians < peer.njev


def test_a_resumed_run_has_the_same_bits(float64):
    """What is known of the Hessian is a part of the state."""
    name, optimizer = "Brown-Dennis", kormos.optimizers.LevenbergMarquardt()
    whole, expected = solved(name, max_iterations=16)
    p = PROBLEMS[name]
    v = keras.Variable(np.array(p.x0), dtype="float64")
    for count in (11, 5):
        kormos.least_squares(
            lambda: p.residuals(v),
            [v],
            optimizer,
            reduction="sum",
            max_iterations=count,
            resume=True,
        )
    np.testing.assert_array_equal(array(v), array(expected))
    assert whole.iterations == 16
