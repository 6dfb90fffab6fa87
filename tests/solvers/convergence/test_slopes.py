"""Kinks are reported if there are some, and never for smooth losses."""

import numpy as np
import pytest
import scipy.optimize

from kormos.solvers import convergence

EPS = 2.0**-52


def confirmed(value, theta, grad, promise):
    """The verdict after a claim of convergence, without measured rounding."""
    claim = convergence.Verdict("converged", convergence.PROMISE, promise, EPS)
    loss = value(theta)
    return convergence.confirmed(claim, value, theta, grad, loss, None, EPS)


class Network:
    """The mean squared error of two units of tanh and a linear output.

    Args:
        x: inputs, `(rows,)`.
        y: targets, `(rows,)`.
    """

    def __init__(self, x, y):
        self._x, self._y = x, y

    def residuals(self, theta):
        w, b, v = theta.reshape(3, -1)
        return np.tanh(np.outer(self._x, w) + b) @ v - self._y

    def columns(self, theta):
        w, b, v = theta.reshape(3, -1)
        units = np.tanh(np.outer(self._x, w) + b)
        slopes = (1 - units**2) * v
        return np.hstack([slopes * self._x[:, None], slopes, units])

    def value(self, theta):
        return float(np.mean(self.residuals(theta) ** 2))

    def grad(self, theta):
        residuals, columns = self.residuals(theta), self.columns(theta)
        return 2 * columns.T @ residuals / len(residuals)

    def promised(self, theta):
        """The relative decrease that a step of Gauss and Newton predicts."""
        residuals = self.residuals(theta)
        basis = np.linalg.qr(self.columns(theta))[0]
        return np.sum((basis.T @ residuals) ** 2) / np.sum(residuals**2)

    def minimum(self, theta):
        for _ in range(40):
            residuals, columns = self.residuals(theta), self.columns(theta)
            theta = theta - np.linalg.lstsq(columns, residuals, rcond=None)[0]
        return theta


# The outputs are about one. With smaller residuals, more of their digits
# cancel, and the rounding of the loss is larger.
@pytest.mark.parametrize("noise", [1e-3, 1e-5, 1e-7, 1e-8])
@pytest.mark.filterwarnings("ignore:overflow")
def test_no_kinks_at_the_minima_of_smooth_networks(noise):
    told, minima = [], 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, theta = rng.uniform(-1, 1, 50), 2 * rng.normal(size=6)
        clean = Network(x, 0.0).residuals(theta)
        network = Network(x, clean + noise * rng.normal(size=50))
        theta = network.minimum(theta)
        promise = network.promised(theta)
        # Where the columns are nearly dependent, a remainder is left.
        if promise <= EPS:
            minima += 1
            grad = network.grad(theta)
            verdict = confirmed(network.value, theta, grad, promise)
            told.append(verdict.findings)
    assert minima >= 10
    assert set(told) == {""}


def absolute_errors():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.normal(size=40)

    def value(theta):
        return float(np.mean(np.abs(x @ theta - y)))

    def grad(theta):
        return x.T @ np.sign(x @ theta - y) / 40

    # The errors are differences of two numbers that are not negative.
    eye = np.eye(40)
    costs = np.r_[np.zeros(3), np.full(80, 1 / 40)]
    bounds = [(None, None)] * 3 + [(0, None)] * 80
    program = scipy.optimize.linprog(
        costs, A_eq=np.hstack([x, eye, -eye]), b_eq=y, bounds=bounds
    )
    return value, grad, program.x[:3]


def absolute_penalty():
    x = np.linspace(-1, 1, 20)

    def value(theta):
        error = x * theta[0] + theta[1] - 2 * x
        return float(np.mean(error**2) + 2 * np.abs(theta[1] + 0.5) + 1)

    def grad(theta):
        error = x * theta[0] + theta[1] - 2 * x
        kink = 2.0 if theta[1] >= -0.5 else -2.0
        return np.array([2 * np.mean(x * error), 2 * np.mean(error) + kink])

    # The intercept's own minimum is zero; the penalty has more slope than that.
    return value, grad, np.array([2.0, -0.5])


def rectifiers():
    x = np.linspace(0.1, 1, 20)

    # Zero up to a parameter of one, where the errors of the rest begin to rise.
    def value(theta):
        unit = np.maximum(theta[0] - 1, 0) + np.maximum(1 - theta[0], 0)
        return float(1 + np.mean(x * unit))

    def grad(theta):
        return np.array([np.mean(x) * (1.0 if theta[0] > 1 else -1.0)])

    return value, grad, np.array([1.0])


@pytest.mark.parametrize(
    "loss", [absolute_errors, absolute_penalty, rectifiers]
)
def test_a_minimum_at_a_kink_is_told(loss):
    value, grad, theta = loss()
    verdict = confirmed(value, theta, grad(theta), EPS / 4)
    assert verdict.status == "stalled"
    assert "kink" in verdict.findings
