"""The line search: the same trials as SciPy's, and cases where that fails."""

import numpy as np
import pytest
from scipy.optimize._dcsrch import DCSRCH

from kormos.solvers.quasi_newton import wolfe_search
from kormos.solvers.quasi_newton.wolfe_search import ACCEPTED
from kormos.solvers.quasi_newton.wolfe_search import FAILED
from kormos.solvers.quasi_newton.wolfe_search import SEARCHING

EPSILON = 2.0**-52


def yanai(beta1, beta2):
    """Functions 4 to 6 of Moré and Thuente, section 5."""
    g1 = np.sqrt(1 + beta1**2) - beta1
    g2 = np.sqrt(1 + beta2**2) - beta2

    def phi(a):
        left, right = np.hypot(1 - a, beta2), np.hypot(a, beta1)
        return (
            g1 * left + g2 * right,
            g1 * (a - 1) / left + g2 * a / right,
        )

    return phi


def wave(a, beta=0.01, waves=39):
    """Function 3 of Moré and Thuente."""
    slope = np.clip((a - 1) / beta, -1, 1)
    inside = (a - 1) ** 2 / (2 * beta) + beta / 2
    base = np.where(abs(a - 1) <= beta, inside, abs(a - 1))
    angle = waves * np.pi / 2 * a
    factor = 2 * (1 - beta) / (waves * np.pi)
    return base + factor * np.sin(angle), slope + (1 - beta) * np.cos(angle)


FUNCTIONS = {
    "rational": lambda a: (-a / (a**2 + 2), (a**2 - 2) / (a**2 + 2) ** 2),
    "power": lambda a: (
        (a + 0.004) ** 5 - 2 * (a + 0.004) ** 4,
        5 * (a + 0.004) ** 4 - 8 * (a + 0.004) ** 3,
    ),
    "wave": wave,
    "yanai 1e-3 1e-3": yanai(1e-3, 1e-3),
    "yanai 1e-2 1e-3": yanai(1e-2, 1e-3),
    "yanai 1e-3 1e-2": yanai(1e-3, 1e-2),
}


def number(value):
    return np.float64(value)


def search(phi, step, noise=EPSILON):
    """The trials of a search, and its verdict."""
    with np.errstate(all="ignore"):
        loss, slope = map(number, phi(number(0)))
        state = wolfe_search.begin(loss, slope, number(step))
        trials = []
        while True:
            trials.append(float(state.step))
            loss, slope = map(number, phi(state.step))
            verdict = wolfe_search.verdict(state, loss, slope, number(noise))
            if verdict != SEARCHING:
                return trials, verdict
            state = wolfe_search.advance(state, loss, slope, number(noise))


def scipys_trials(phi, step):
    trials = []

    def loss(a):
        trials.append(a)
        return phi(a)[0]

    dcsrch = DCSRCH(
        loss, lambda a: phi(a)[1], 1e-4, 0.9, 1e-14, 0.0, wolfe_search.LONGEST
    )
    loss0, slope0 = phi(0.0)
    dcsrch(step, phi0=loss0, derphi0=slope0, maxiter=wolfe_search.MOST_TRIALS)
    return trials


@pytest.mark.parametrize("step", [1e-3, 1e-1, 1e1, 1e3])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_trials_are_those_of_dcsrch(name, step):
    phi = FUNCTIONS[name]
    trials, verdict = search(phi, step)
    assert verdict == ACCEPTED
    np.testing.assert_allclose(trials, scipys_trials(phi, step), rtol=1e-12)


@pytest.mark.parametrize("outside", [np.nan, np.inf, -np.inf])
def test_a_trial_that_is_not_finite_is_too_long(outside):
    def phi(a):
        if a > 1e-3:
            return outside, outside
        return (a - 1) ** 2, 2 * (a - 1)

    trials, verdict = search(phi, 1.0)
    assert verdict == ACCEPTED
    assert trials[-1] <= 1e-3
    # A quarter each time, and no trial beyond the wall once it is known.
    np.testing.assert_allclose(trials[:3], [1, 0.25, 0.0625])


def test_slopes_decide_within_the_rounding_of_the_loss():
    # The offset hides every change of the loss; the slopes are exact.
    def phi(a):
        return 1e6 + 1e-12 * (a - 1) ** 2, 2e-12 * (a - 1)

    trials, verdict = search(phi, 0.9, noise=1e-16)
    assert (trials, verdict) == ([0.9], ACCEPTED)


def test_slopes_decide_within_the_noise_of_a_small_loss():
    # Residuals of 1e-3 of float32 outputs of one: noise of 1e-4 of the loss,
    # which was measured.
    random = np.random.default_rng(0)

    def phi(a):
        noise = 1e-10 * random.uniform(-1, 1)
        return 1e-6 + 1e-11 * (a - 1) ** 2 + noise, 2e-11 * (a - 1)

    verdicts = [search(phi, 0.5, noise=1e-4) for _ in range(20)]
    assert all(v == ACCEPTED for _, v in verdicts)
    assert max(len(trials) for trials, _ in verdicts) <= 2


def test_a_wrong_slope_fails():
    trials, verdict = search(lambda a: (a, -1.0), 1.0)
    assert verdict == FAILED
    assert len(trials) <= wolfe_search.MOST_TRIALS


def test_a_descent_of_too_many_trials_ends_at_the_best():
    # A wall in front of the minimum: the steps towards it never end.
    def phi(a):
        return (-a, -1.0) if a < 1 / 3 else (np.nan, np.nan)

    trials, verdict = search(phi, 1.0)
    assert verdict == ACCEPTED
    assert len(trials) <= wolfe_search.MOST_TRIALS
    assert trials[-1] == max(t for t in trials if t < 1 / 3) > 0.3
