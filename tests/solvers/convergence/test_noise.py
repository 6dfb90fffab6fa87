"""The measured rounding of a loss, and ends at which a loss jumps."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from kormos.solvers.convergence.noise import measured_noise
from kormos.solvers.convergence.noise import vanished_noise

EPS = 2.0**-23


def rounding(size, jump, at):
    """A loss of about one: a parabola, rounding of a known size and jumps.

    Args:
        size: the standard deviation of the rounding.
        jump: what is added at some points.
        at: the numbers of these points.
    """
    rng = np.random.default_rng(1)
    calls = [0]

    def value(theta):
        calls[0] += 1
        smooth = 1 + 1e-3 * float(np.sum(theta**2))
        return smooth + size * rng.normal() + jump * (calls[0] in at)

    return value


@pytest.mark.parametrize("eps", [EPS, 2.0**-52])
def test_equal_losses_are_rounded_too(eps):
    # A number is off by up to half of its spacing, by a quarter on average.
    found = measured_noise(lambda theta: 3.0, np.ones(5), 3.0, eps)
    assert found == pytest.approx(3.0 * eps / 4)


@pytest.mark.parametrize("jump", [0.0, 1e-3, -1e-2, 0.4])
@pytest.mark.parametrize("at", [{1}, {1, 2, 3}, {2}, {3, 4}, {4}])
def test_a_jump_is_no_rounding(jump, at):
    theta = np.ones(5)
    value = rounding(1e-8, jump, at)
    start = 1 + 5e-3
    assert 1e-9 < measured_noise(value, theta, start, EPS) < 1e-7


def test_coarse_values_are_rounding():
    # Only one of four differences is not zero, as in a loss whose values are
    # multiples of a number.
    values = iter([1.0, 1.0, 1.0 + 1e-6, 1.0 + 1e-6])
    found = measured_noise(lambda theta: next(values), np.ones(3), 1.0, EPS)
    assert 1e-7 < found < 1e-6


X = np.random.default_rng(4).normal(size=(50, 3))
TRUE = np.array([1.0, -2.0, 0.5])


def errors(theta):
    return 1e-3 * X @ (theta - TRUE)


def rounded_log_cosh(theta):
    """The usual formula, whose terms are about log 2."""
    e = np.abs(errors(theta))
    return float(np.mean(e + np.log1p(np.exp(-2 * e)) - np.log(2)))


def exact_log_cosh(theta):
    """For small errors, where their fourth powers vanish."""
    return float(np.mean(errors(theta) ** 2) / 2)


@pytest.mark.parametrize("distance", [1e-11, 1e-9, 1e-7])
def test_the_rounding_of_terms_that_do_not_vanish(distance):
    theta = TRUE + distance
    promise = exact_log_cosh(theta)
    # The decrease that is left is smaller than the rounding of the loss. Points
    # nearby do not show it, because the computed loss is the same there.
    assert promise < 2.0**-53
    loss = rounded_log_cosh(theta)
    given = promise, rounded_log_cosh, theta, loss, 2.0**-52
    found = vanished_noise(0.0, *given)
    assert promise / 10 <= found <= 2.0**-50
    # If the same loss is evaluated precisely, no rounding hides it.
    given = promise, exact_log_cosh, theta, promise, 2.0**-52
    assert vanished_noise(0.0, *given) < promise / 10


@pytest.mark.parametrize("digit", [1e-4, 1e-3, 1e-2])
def test_the_rounding_of_a_loss_that_is_coarse_beside_its_terms(digit):
    def value(theta):
        return digit * round(float(theta[0] - 1) ** 2 / (2 * digit))

    promise = 1e-6
    found = vanished_noise(0.0, promise, value, np.ones(1), 0.0, 2.0**-52)
    assert promise / 10 <= found <= digit


class Rounded(layers.Dense):
    """Rounds its outputs, with the gradient of the outputs before that."""

    def call(self, inputs):
        exact = super().call(inputs)
        return exact + ops.stop_gradient(ops.round(4 * exact) / 4 - exact)


@pytest.mark.parametrize("method", ["l-bfgs-b", "lbfgs", "ssbroyden"])
def test_an_end_at_a_jump_is_no_optimum(method):
    x = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
    y = np.sin(x.sum(axis=1, keepdims=True))
    losses, ends = [], set()
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential(
            [
                keras.Input((3,)),
                Rounded(6),
                layers.Activation("tanh"),
                layers.Dense(1),
            ]
        )
        model.compile(loss="mse")
        with pytest.warns(kormos.ConvergenceWarning):
            history = kormos.fit(
                model, x, y, optimizer=method, epochs=200, verbose=0
            )
        losses.append(history.result.loss)
        ends.add(history.result.status)
    # `lm` reaches 0.0007 from another start.
    assert min(losses) > 0.01
    assert not ends & {"converged", "noise floor"}
