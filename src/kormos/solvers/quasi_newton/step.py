"""The iteration that all quasi-Newton methods share.

Nocedal and Wright, "Numerical Optimization", 2nd edition, algorithms 6.1 and
7.5, with the line search of `wolfe_search.py`. Differs from them in:

1. a step of the compiled loop is one evaluation: the start, or a trial of the
   line search, so that the model is traced once;
2. a loss times a constant, or parameters in other units, take the same steps:
   the first step along the gradient follows from a probe of the curvature, and
   every test compares with the present loss and its rounding;
3. a failed search ends the loop. Whether it is the end of the run is not
   decided here: the driver tries again from a cleared memory.
"""

from kormos import backend
from kormos.arithmetic.scalars import both
from kormos.arithmetic.scalars import cond
from kormos.arithmetic.scalars import constant
from kormos.arithmetic.scalars import either
from kormos.arithmetic.scalars import is_finite
from kormos.arithmetic.scalars import larger
from kormos.arithmetic.scalars import smaller
from kormos.arithmetic.scalars import stack
from kormos.arithmetic.scalars import to_float
from kormos.arithmetic.scalars import where
from kormos.arithmetic.scalars import while_loop
from kormos.arithmetic.vectors import dot
from kormos.arithmetic.vectors import largest
from kormos.arithmetic.vectors import norm
from kormos.solvers.quasi_newton import wolfe_search
from kormos.solvers.quasi_newton.state import DECREASE
from kormos.solvers.quasi_newton.state import GRADIENT
from kormos.solvers.quasi_newton.state import LINE_SEARCH
from kormos.solvers.quasi_newton.state import NOISE
from kormos.solvers.quasi_newton.state import NON_FINITE
from kormos.solvers.quasi_newton.state import RUNNING
from kormos.solvers.quasi_newton.state import STARTING
from kormos.solvers.quasi_newton.state import STEP
from kormos.solvers.quasi_newton.state import TARGET
from kormos.solvers.quasi_newton.state import Pair

# Iterations in a row without a new lowest loss that end a run.
_STALLED = 10

# Fewer pairs, of more parameters, do not make up for a cleared memory.
_PAIRS_AFTER_RESET = 10

# The least part of a direction that a line search tries first.
_SHORTEST = 0.05

# By this the squares of older changes of the gradient count less.
_FORGETTING = 0.9

# A pair of `s'y` below rounding says nothing of the curvature.
_ROUNDING = 2.0**-52


def advance(method, value_and_grad, limits, state):
    """Runs until a limit of the call, or the end of the run.

    Args:
        method: as `init` takes it.
        value_and_grad: function of a flat tensor.
        limits: the `Limits`.
        state: the `State`. One that is `STARTING` is evaluated at its
            `theta`, and no more.

    Returns:
        The new `State`, its `rows` filled from the top.
    """
    first = state.iterations
    starting = state.status == STARTING

    def goes_on(state):
        return either(
            state.status == STARTING,
            both(
                state.status == RUNNING,
                state.iterations < limits.iterations,
                state.evaluations < limits.evaluations,
                ~starting,
            ),
        )

    def body(state):
        is_start = state.status == STARTING
        trial = trial_of(state, is_start)
        loss, grad = value_and_grad(trial)
        loss = backend.scalar(loss)
        slope = dot(grad, state.direction)
        noise = limits.noise
        verdict = wolfe_search.verdict(state.search, loss, slope, noise)
        accepted = both(verdict == wolfe_search.ACCEPTED, ~is_start)
        # What the curvature knows is in the units of the parameters.
        step = (trial - state.theta) / state.units
        change = (grad - state.grad) * state.units
        good = both(accepted, _is_curved(step, change))
        store = method.record(state.store, state.curvature, good, step, change)
        small = state._replace(
            evaluations=state.evaluations + 1, latest=loss, store=()
        )
        small = cond(
            either(is_start, accepted),
            lambda: _arrive(
                method,
                limits,
                small,
                store,
                is_start,
                good,
                trial,
                loss,
                grad,
                first,
            ),
            lambda: cond(
                verdict == wolfe_search.SEARCHING,
                lambda: small._replace(
                    search=wolfe_search.advance(
                        small.search, loss, slope, noise
                    )
                ),
                lambda: small._replace(
                    status=constant(LINE_SEARCH, like=small.status),
                    value=small.search.promise,
                ),
            ),
        )
        store, curvature = method.settle(store, small.curvature)
        return small._replace(store=store, curvature=curvature)

    return while_loop(goes_on, body, state)


def trial_of(state, is_start):
    """The point to evaluate: the start, or a trial of the line search."""
    length = where(is_start, state.search.step * 0, state.search.step)
    return state.theta + state.direction * length


def _is_curved(step, change):
    curvature = dot(step, change)
    squares = dot(step, step) * dot(change, change)
    return both(curvature > 0, curvature * curvature > _ROUNDING**2 * squares)


def _arrive(
    method, limits, state, store, is_start, good, theta, loss, grad, first
):
    """Takes the start, or a step: curvature, direction, tests."""
    moved, moved_grad = theta - state.theta, grad - state.grad
    units = state.units
    step, change = moved / units, moved_grad * units
    slopes = grad * units
    size, one = norm(slopes), constant(1, like=loss)
    is_anew = both(is_start, state.is_anew > 0)
    # s'Bs without B: the direction is -H times the gradient.
    energy = -state.search.step * dot(moved, state.grad)
    is_first = both(state.pairs == 0, ~is_start)
    before = state.direction / units
    pair = Pair(good, step, change, energy, before, is_first)
    curvature, direction = method.update(store, state.curvature, pair, slopes)
    slope = dot(slopes, direction)
    # A direction is not downhill, beyond rounding, or not finite.
    lost = ~(slope < -_ROUNDING * size * norm(direction))
    # One that ran into infinite losses would do so again.
    blocked = both(
        state.search.longest < wolfe_search.LONGEST, state.search.step < 0.1
    )
    lost = either(lost, both(blocked, ~is_start))
    begins = either(is_anew, lost)
    far = _far(theta / units, loss, slopes, size)
    steepest = far / where(size > 0, size, one)
    curvature = cond(
        begins, lambda: method.clear(curvature, steepest), lambda: curvature
    )
    direction = where(begins, -slopes * steepest, direction)
    slope = where(begins, -(size**2) * steepest, slope)
    none = constant(0, like=state.resets)
    resets = state.resets + where(both(lost, ~is_start), none + 1, none)
    first_trial = one
    if method.overshoots:
        guess = _first_trial(state.loss - loss, slope, one)
        first_trial = where(either(begins, is_start), one, guess)
    probes = where(begins, larger(state.probes, none + 1), state.probes)
    probe = _probe(theta / units, direction, far, limits.noise)
    arrived = state._replace(
        theta=theta,
        loss=loss,
        grad=grad,
        direction=direction * units,
        spread=where(
            good,
            state.spread * _FORGETTING + (moved_grad / norm(change)) ** 2,
            state.spread,
        ),
        search=wolfe_search.begin(
            loss, slope, first_trial, where(probes > 0, probe, probe * 0)
        ),
        curvature=curvature,
        is_anew=none,
        probes=larger(probes - 1, none),
        resets=resets,
        pairs=where(begins, none, state.pairs + where(good, none + 1, none)),
        iterations=state.iterations + where(is_start, none, none + 1),
    )
    arrived = _judge(limits, state, arrived, is_start)
    row = (loss, norm(grad), norm(moved), state.evaluations, resets)
    rows = backend.set_row(
        state.rows,
        state.iterations - first,
        stack([to_float(cell, like=loss) for cell in row]),
    )
    return arrived._replace(rows=rows)


def _first_trial(gain, slope, one):
    """Where a parabola would gain as much as the latest step did.

    Nocedal and Wright, equation 3.60; no longer than the whole direction.
    """
    length = gain * -2.02 / slope
    length = where(length > 0, smaller(length, one), one)
    return larger(length, one * _SHORTEST)


def _far(theta, loss, grad, size):
    """How far along the gradient the loss would fall to zero, a scalar.

    As far as the parameters that the gradient moves are long, if it is zero.
    """
    one = constant(1, like=loss)
    far = abs(loss) / where(size > 0, size, one)
    reach = _reach(theta, grad, size)
    return where(far > 0, far, where(reach > 0, reach, one))


def _reach(theta, vector, size):
    """The size of the parameters that a vector moves, a scalar."""
    one = constant(1, like=size)
    unit = vector / where(size > 0, size, one)
    return dot(unit * unit, abs(theta))


def _probe(theta, direction, far, noise):
    """How far along a direction to probe its curvature, as a part of it.

    It is short beside what two lengths in the units of the parameters say.
    """
    one = constant(1, like=far)
    length = norm(direction)
    reach = _reach(theta, direction, length)
    short = where(reach > 0, smaller(reach, far), far)
    return noise ** (1 / 3) * short / where(length > 0, length, one)


def _judge(limits, state, arrived, is_start):
    """Whether the run may have ended where it has arrived, and why."""
    loss, one = arrived.loss, constant(1, like=arrived.loss)
    promised = arrived.search.promise
    scale = where(is_start, abs(loss), larger(abs(state.loss), abs(loss)))
    safe = where(scale > 0, scale, one)
    decrease = state.loss - loss
    small = decrease <= larger(limits.ftol, limits.noise) * scale
    # Near its noise the loss goes up and down.
    gain = state.lowest - loss
    is_stalled = both(~is_start, gain <= limits.ftol * scale)
    stalled = where(is_stalled, state.stalled + 1, state.stalled * 0)
    lowest = where(is_start, loss, smaller(state.lowest, loss))
    gradient = largest(arrived.grad)
    # What a cleared memory promises means nothing.
    few = min(arrived.theta.shape[0], _PAIRS_AFTER_RESET)
    trusted = both(
        arrived.pairs > 0,
        state.probes == 0,
        either(arrived.resets == 0, arrived.pairs >= few),
    )
    converged = both(trusted, promised <= limits.gtol**2 * abs(loss))
    converged = either(converged, gradient <= 0)
    noisy = both(trusted, ~is_start, promised <= limits.noise * scale, small)
    step = norm(arrived.theta - state.theta)
    reach = norm(arrived.theta) + step
    moved = step / where(reach > 0, reach, one)
    tests = (
        (~is_finite(loss, gradient), NON_FINITE, loss),
        (loss <= limits.target, TARGET, loss),
        (converged, GRADIENT, promised / safe),
        (noisy, NOISE, promised / safe),
        (stalled >= _STALLED, DECREASE, gain / safe),
        (both(~is_start, moved <= limits.xtol), STEP, moved),
    )
    status, value = _first_of(
        constant(RUNNING, like=state.status), promised, tests
    )
    return arrived._replace(
        stalled=stalled, lowest=lowest, status=status, value=value
    )


def _first_of(status, value, tests):
    """The status and the value of the first test that holds."""
    for condition, code, quantity in reversed(tests):
        status = where(condition, constant(code, like=status), status)
        value = where(condition, quantity, value)
    return status, value
