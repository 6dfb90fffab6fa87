"""Differences contradict wrong derivatives, and only those."""

import numpy as np
import pytest

from kormos.arithmetic.differences import Change
from kormos.arithmetic.differences import Tolerance
from kormos.arithmetic.differences import contradiction

TOLERANCE = Tolerance(part=0.01, of_error=0.1, of_found=0.1)
EPSILON = 2.0**-52


class Central:
    """Central differences of a function, and the derivative to compare."""

    def __init__(self, function, derivative, at=1.0, rounding=EPSILON):
        self.function, self.derivative, self.at = function, derivative, at
        self.rounding = rounding
        self.steps = []

    def __call__(self, step):
        self.steps.append(step)
        ahead, behind = (self.function(self.at + s) for s in (step, -step))
        noise = 2 * self.rounding * np.max(np.abs([ahead, behind]))
        return Change(ahead - behind, 2 * step * self.derivative, noise, step)


def wrong(change, first=1e-3, shortest=1e-9, tolerance=TOLERANCE):
    return contradiction(change, first, shortest, tolerance)


@pytest.mark.parametrize(
    "function, slope",
    [
        (np.exp, np.e),
        (lambda x: x**3 - 2 * x, 1.0),
        (lambda x: 1e150 * np.sin(x), 1e150 * np.cos(1.0)),
        (lambda x: 1e-150 * np.log(x), 1e-150),
        (lambda x: np.array([x**2, np.sqrt(x)]), np.array([2.0, 0.5])),
    ],
)
def test_a_right_derivative_takes_one_step(function, slope):
    change = Central(function, slope)
    assert wrong(change) is None
    assert change.steps == [1e-3]


@pytest.mark.parametrize("share", [-1.0, 0.0, 0.5, 0.98, 1.02, 3.0, 1e6])
def test_a_wrong_derivative_is_told_with_both_changes(share):
    found = wrong(Central(np.exp, share * np.e))
    assert found.found / (2 * found.length) == pytest.approx(np.e, rel=1e-6)
    expected = 2 * found.length * share * np.e
    assert found.expected == pytest.approx(expected, rel=1e-12)
    relative = found.error / abs(found.found)
    assert relative == pytest.approx(abs(share - 1), rel=1e-4)
    assert found.size == abs(found.expected)


def test_a_part_of_a_vector_is_enough():
    def function(x):
        return np.array([x**2, x**3])

    assert wrong(Central(function, np.array([2.0, 3.0]))) is None
    found = wrong(Central(function, np.array([2.0, 4.0])))
    # |(2, 3) - (2, 4)| / |(2, 4)|
    assert found.error / found.size == pytest.approx(1 / 20**0.5, rel=1e-4)


def test_each_caller_has_its_tolerance():
    change = Central(np.exp, 1.2 * np.e)
    for part, is_wrong in ((0.1, True), (0.15, True), (0.3, False)):
        tolerance = Tolerance(part, of_error=0.1)
        assert (wrong(change, tolerance=tolerance) is not None) == is_wrong


def test_a_step_over_which_the_function_bends_is_not_believed():
    # Over a step of 0.1, the difference of sin(100 x) is off by its own size.
    def function(x):
        return np.sin(100 * x)

    change = Central(function, 100.0, at=0.0)
    assert wrong(change, first=0.1) is None
    # Steps shrink until 1 - sin(h)/h = h**2 / 6 is below a hundredth, for h of
    # 100 steps: from 10 by quarters to 0.156.
    assert change.steps == [0.1 / 4**k for k in range(4)]
    found = wrong(Central(function, 200.0, at=0.0), first=0.1)
    assert found.error / found.size == pytest.approx(0.5, abs=0.01)


def test_a_function_that_never_settles_is_no_contradiction():
    # Differences of |x|**0.5 grow as steps shrink: at zero it has no slope.
    change = Central(lambda x: np.sign(x) * abs(x) ** 0.5, 1.0, at=0.0)
    assert wrong(change) is None
    assert len(change.steps) == 10  # 1e-3 / 4**10 is below 1e-9


def test_a_kink_that_is_a_bend_is_within_what_is_unknown():
    # max(x, 0) at zero: any slope from zero to one is right.
    def changes(slope):
        def change(step):
            ahead, behind = max(step, 0.0), max(-step, 0.0)
            bend = abs(ahead + behind)
            return Change(ahead - behind, 2 * step * slope, bend, step)

        return change

    for slope in (0.0, 0.3, 0.5, 1.0):
        assert wrong(changes(slope)) is None
    for slope in (-0.5, 1.5):
        assert wrong(changes(slope)) is not None


def rounded(slope, error=1e-6):
    """A line through one, whose values have a random rounding."""
    rng = np.random.default_rng(0)
    return lambda x: 1.0 + slope * (x - 1) + error * rng.uniform(-1, 1)


@pytest.mark.parametrize("slope", [1e-4, 0.0, -1e-4])
def test_rounding_is_within_what_is_unknown(slope):
    # Over a step of 1e-3, slopes of 1e-4 change less than rounding does.
    assert wrong(Central(rounded(1e-4), slope, rounding=1e-6)) is None


def test_a_slope_beyond_rounding_is_wrong_where_there_is_none():
    # Differences are only rounding. So they do not converge relative to
    # themselves, but they do relative to an error of one.
    strict, open_minded = TOLERANCE, Tolerance(part=0.01, of_error=0.1)
    for tolerance, is_wrong in ((strict, False), (open_minded, True)):
        change = Central(rounded(0.0), 1.0, rounding=1e-6)
        assert (wrong(change, tolerance=tolerance) is not None) == is_wrong


def test_small_differences_that_grow_are_not_believed():
    # A step of 1e-4 at zero, seen from 1e-1: differences are the height of it
    # over the step, and grow fourfold each time, far below the slope.
    change = Central(lambda x: np.tanh(1e4 * x), 1e4, at=0.0)
    assert wrong(change, first=0.1) is None
    careless = Tolerance(part=0.01, of_error=0.1)
    assert wrong(change, first=0.1, tolerance=careless) is not None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_compared(value):
    def function(x):
        return value if x > 1 else x

    with np.errstate(invalid="ignore"):
        assert wrong(Central(function, 5.0)) is None
        assert wrong(Central(np.exp, value)) is None


def test_nothing_is_said_where_there_is_no_step():
    assert wrong(lambda step: None) is None
    change = Central(np.exp, 0.0)
    assert wrong(change, first=1e-3, shortest=1e-3) is None
    assert not change.steps


def test_one_step_proves_nothing():
    change = Central(np.exp, 0.0)
    assert wrong(change, first=1e-3, shortest=2.6e-4) is None
    assert wrong(change, first=1e-3, shortest=2.4e-4) is not None
