"""The direction of a quasi-Newton run at a point, and the first trial."""

from kormos.arithmetic.scalars import both
from kormos.arithmetic.scalars import cond
from kormos.arithmetic.scalars import constant
from kormos.arithmetic.scalars import either
from kormos.arithmetic.scalars import larger
from kormos.arithmetic.scalars import smaller
from kormos.arithmetic.scalars import where
from kormos.arithmetic.vectors import dot
from kormos.arithmetic.vectors import norm
from kormos.solvers.protocols import Curvature
from kormos.solvers.quasi_newton import wolfe_search
from kormos.solvers.quasi_newton.arrival import Arrival
from kormos.solvers.quasi_newton.arrival import Course
from kormos.solvers.quasi_newton.region import Region
from kormos.solvers.quasi_newton.state import Pair
from kormos.solvers.quasi_newton.state import State
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor

# The memory is cleared if losses along a direction were infinite, and the
# search accepted a step of less than this part of it. Our choice: the next
# direction would again be about that much too long, but clearing loses what is
# known of the curvature.
_BLOCKED = 0.1

# A search first tries at least this part of a direction. Our choice: a smaller
# part gives up more of a good direction after a step that gained little.
_SHORTEST = 0.05

# A probe is this power of the loss's rounding, times the shorter of two
# lengths. Our choice: shorter probes are lost in rounding more often, and
# longer ones may leave the region where the curvature is the same.
_PROBE_POWER = 1 / 3

# A slope below this part of the product of its two vectors' norms is rounding.
_ROUNDING = 2.0**-52


def course_from(
    curvature: Curvature,
    region: Region,
    state: State,
    store: Structure,
    arrival: Arrival,
) -> Course:
    """The direction from a point, quasi-Newton's or minus the gradient.

    Args:
        curvature: the formulas of the curvature.
        region: where the run may evaluate.
        state: the state before the point.
        store: the store, in which the latest step was recorded if it is good.
        arrival: the point, with its evaluation.
    """
    is_start, good, theta, loss, grad, *_ = arrival
    units = state.units
    steep, slopes = grad * units, region.pull(theta, grad) * units
    size, one = norm(slopes), constant(1, like=loss)
    is_anew = both(is_start, state.is_anew > 0)
    # s'Bs without B, because the direction is -H times the gradient.
    energy = -state.search.step * dot(arrival.moved, state.grad)
    is_first = both(state.pairs == 0, ~is_start)
    before = state.direction / units
    pair = Pair(
        good, arrival.step, arrival.change, energy, before, before, is_first
    )
    pair = region.downhill(
        region.pair(pair, state, theta),
        state.grad * units,
        lambda vector: curvature.product(store, state.curvature, vector),
    )
    known, direction = curvature.update(store, state.curvature, pair, steep)
    direction = region.steer(
        theta,
        steep,
        units,
        direction,
        lambda vector: curvature.product(store, known, vector),
    )
    slope = dot(slopes, direction)
    # The direction is not downhill beyond rounding, or it is not finite.
    lost = ~(slope < -_ROUNDING * size * norm(direction))
    # After a short step, away from infinite losses, it would reach them again.
    blocked = both(
        state.search.longest < wolfe_search.LONGEST,
        state.search.step < _BLOCKED,
    )
    lost = either(lost, both(blocked, ~is_start))
    begins = either(is_anew, lost)
    far = cond(
        either(begins, state.probes > 0),
        lambda: far_from(theta / units, loss, slopes, size),
        lambda: size * 0,
    )
    steepest = far / where(size > 0, size, one)
    known, direction, slope = cond(
        begins,
        lambda: (
            curvature.clear(known, steepest),
            -slopes * steepest,
            -(size**2) * steepest,
        ),
        lambda: (known, direction, slope),
    )
    return Course(known, direction, slope, far, begins, lost)


def first_trial_of(gain: Scalar, slope: Scalar, one: Scalar) -> Scalar:
    """The step at which a parabola gains as much as the latest step did.

    Nocedal and Wright, equation 3.60, with its factor of 1.01; no longer than
    the whole direction.

    Args:
        gain: the decrease of the loss in the latest step, scalar.
        slope: the directional derivative along the new direction, negative.
        one: the scalar one.
    """
    length = gain * -2.02 / slope
    length = where(length > 0, smaller(length, one), one)
    return larger(length, one * _SHORTEST)


def far_from(theta: Tensor, loss: Scalar, grad: Tensor, size: Scalar) -> Scalar:
    """The distance along the gradient at which a linear loss is zero, a scalar.

    If the loss is zero: the size of the parameters that the gradient moves.

    Args:
        theta: the point, in units, `(size,)`.
        loss: the loss there, scalar.
        grad: the gradient there, in units, `(size,)`.
        size: the 2-norm of the gradient, scalar.
    """
    one = constant(1, like=loss)
    far = abs(loss) / where(size > 0, size, one)
    reach = _reach(theta, grad, size)
    return where(far > 0, far, where(reach > 0, reach, one))


def _reach(theta: Tensor, vector: Tensor, size: Scalar) -> Scalar:
    """The size of the parameters that a vector moves, a scalar.

    Args:
        theta: the point, in units, `(size,)`.
        vector: the vector, `(size,)`.
        size: the 2-norm of the vector, scalar.
    """
    one = constant(1, like=size)
    unit = vector / where(size > 0, size, one)
    return dot(unit * unit, abs(theta))


def probe_of(
    theta: Tensor, direction: Tensor, far: Scalar, noise: Scalar
) -> Scalar:
    """The part of a direction over which its curvature is probed.

    It is short compared with two lengths: `far`, and the size of the parameters
    that the direction moves.

    Args:
        theta: the point, in units, `(size,)`.
        direction: the direction, in units, `(size,)`.
        far: see `Course`.
        noise: the rounding of the loss over its size, scalar.
    """
    one = constant(1, like=far)
    length = norm(direction)
    reach = _reach(theta, direction, length)
    short = where(reach > 0, smaller(reach, far), far)
    return noise**_PROBE_POWER * short / where(length > 0, length, one)
