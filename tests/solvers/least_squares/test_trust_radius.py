"""The radius and the damping of steps, on models in closed form."""

import numpy as np
import pytest

from kormos.solvers.least_squares import spectrum
from kormos.solvers.least_squares.trust_radius import Multiplicative
from kormos.solvers.least_squares.trust_radius import TrustRadius

SCALE = np.array([2.0, 10.0, 0.1])
# D^-1 A D^-1 has the eigenvalues 4, 1 and 1/4.
MATRIX = np.diag([4.0, 1.0, 0.25]) * SCALE * SCALE[:, None]
SLOPE = np.array([8.0, 1.0, 1.0])
GRAD = SCALE * SLOPE
# In the scaled variables: p = -(2, 1, 4).
NEWTON = np.sqrt(4 + 1 + 16)


def quadratic():
    return spectrum.of_matrix(MATRIX, SCALE, GRAD)


def begun(radius, damping=0.0):
    trust = TrustRadius(radius, damping)
    trust.begin(quadratic(), np.ones(3), 1.0)
    return trust


@pytest.mark.parametrize(
    "theta, loss, radius",
    [
        # The parameters, in the scaled variables (6, 80, 0).
        ([3.0, 8.0, 0.0], 50.0, np.sqrt(6**2 + 80**2)),
        # The residuals: their squares over two are the loss.
        ([0.0, 0.0, 0.0], 50.0, 10.0),
        ([0.0, 1e-6, 0.0], 50.0, 10.0),
        # Neither tells a radius.
        ([0.0, 0.0, 0.0], 0.0, 1.0),
    ],
    ids=["parameters", "residuals", "tiny parameters", "nothing"],
)
def test_the_first_radius(theta, loss, radius):
    trust = TrustRadius()
    trust.begin(quadratic(), np.array(theta), loss)
    assert trust.radius == pytest.approx(radius, rel=1e-12)


def test_a_radius_of_an_earlier_run_is_kept():
    trust = begun(0.3, damping=7.0)
    assert trust.logs() == {"damping": 7.0, "radius": 0.3}


@pytest.mark.parametrize("radius", [0.1, 1.0, 3.0])
def test_a_step_has_the_length_of_the_radius(radius):
    trust = begun(radius)
    step = trust.step(quadratic())
    assert step.length == pytest.approx(radius, rel=0.1)
    # The damping is given, and makes the step.
    assert trust.damping == step.damping > 0
    expected = -np.linalg.solve(
        MATRIX + trust.damping * np.diag(SCALE**2), GRAD
    )
    np.testing.assert_allclose(step.vector, expected, rtol=1e-12)
    promised = -(GRAD @ expected + expected @ MATRIX @ expected / 2)
    assert step.promised == pytest.approx(promised, rel=1e-12)


def test_a_step_within_the_radius_is_newtons():
    trust = begun(10.0)
    step = trust.step(quadratic())
    np.testing.assert_allclose(SCALE * step.vector, [-2, -1, -4], rtol=1e-12)
    assert trust.damping == 0


def test_where_the_model_is_exact_the_radius_doubles_to_newtons_step():
    trust, model = begun(0.25), quadratic()
    lengths = []
    for _ in range(8):
        step = trust.step(model)
        lengths.append(step.length)
        trust.accept(step, ratio=1.0)
        assert trust.radius == 2 * step.length
    # 0.25, 0.5, 1, 2, 4 within a tenth each, and then it is not longer.
    np.testing.assert_allclose(lengths[-2:], NEWTON, rtol=1e-12)
    assert trust.damping == 0


@pytest.mark.parametrize("ratio, factor", [(0.5, 1.5), (0.89, 1.5), (0.9, 2)])
def test_an_accepted_step_makes_it_longer(ratio, factor):
    trust = begun(1.0)
    step = trust.step(quadratic())
    trust.accept(step, ratio)
    assert trust.radius == pytest.approx(factor * step.length)


def test_an_undamped_step_makes_it_twice_as_long():
    trust = begun(10.0)
    trust.accept(trust.step(quadratic()), ratio=0.1)
    assert trust.radius == pytest.approx(2 * NEWTON)


def test_rejected_steps_make_it_shorter_and_faster_after_three():
    trust, model = begun(1.0), quadratic()
    for factor in (0.7, 0.7, 0.7, 0.5, 0.5):
        step = trust.step(model)
        shorter = min(trust.radius, step.length)
        trust.reject(step, is_wild=False)
        assert trust.radius == pytest.approx(factor * shorter)
    # After an accepted step, the count begins again.
    trust.accept(trust.step(model), ratio=0.5)
    step = trust.step(model)
    shorter = min(trust.radius, step.length)
    trust.reject(step, is_wild=False)
    assert trust.radius == pytest.approx(0.7 * shorter)


def test_a_radius_beyond_newtons_step_is_cut_from_the_step():
    trust = begun(1e6)
    trust.reject(trust.step(quadratic()), is_wild=False)
    assert trust.radius == pytest.approx(0.7 * NEWTON)


def test_wild_and_bent_steps_make_it_much_shorter():
    for cut, factor in (
        (lambda t, s: t.reject(s, is_wild=True), 0.1),
        (lambda t, s: t.shorten(s), 0.5),
    ):
        trust = begun(10.0)
        cut(trust, trust.step(quadratic()))
        assert trust.radius == pytest.approx(factor * NEWTON)


def test_it_is_exhausted_where_no_number_is_shorter():
    trust = begun(1e-299)
    step = spectrum.Step(np.zeros(3), 1e-299, 0.0, 0.0)
    assert not trust.is_exhausted
    trust.reject(step, is_wild=True)
    trust.reject(step, is_wild=True)
    assert trust.is_exhausted


# A damping that is multiplied


def test_a_damping_makes_the_step_of_a_linear_system():
    damping = Multiplicative(0.5, unit=3.0)
    damping.begin(quadratic(), np.ones(3), 1.0)
    step = damping.step(quadratic())
    expected = -np.linalg.solve(MATRIX + 1.5 * np.diag(SCALE**2), GRAD)
    np.testing.assert_allclose(step.vector, expected, rtol=1e-12)
    assert damping.logs() == {"damping": 0.5}


def test_a_damping_grows_and_falls_by_its_factors():
    damping = Multiplicative(0.0, 1.0, first=2.0, increase=5.0, decrease=0.25)
    step = damping.step(quadratic())
    seen = []
    for change in (
        lambda: damping.reject(step, is_wild=False),
        lambda: damping.reject(step, is_wild=True),
        lambda: damping.shorten(step),
        lambda: damping.accept(step, ratio=0.1),
        lambda: damping.accept(step, ratio=1.0),
    ):
        change()
        seen.append(damping.damping)
    assert seen == [10.0, 50.0, 250.0, 62.5, 15.625]


def test_a_damping_is_exhausted_beyond_the_most():
    damping = Multiplicative(1.0, 1.0, increase=10.0, most=100.0)
    step = damping.step(quadratic())
    exhausted = []
    for _ in range(3):
        damping.reject(step, is_wild=False)
        exhausted.append(damping.is_exhausted)
    assert exhausted == [False, False, True]
