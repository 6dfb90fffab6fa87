"""The iteration that all quasi-Newton methods share.

Nocedal and Wright, "Numerical Optimization", 2nd edition, algorithms 6.1 and
7.5, with the line search of `wolfe_search.py`. Differs from them in:

1. a pass of the compiled loop makes one evaluation, of the start or of a trial
   of the line search, so that the model is traced once;
2. a loss times a constant, or with parameters in other units, takes the same
   steps: the first step along the gradient follows from a probe of the
   curvature, and every test compares with the present loss and its rounding;
3. a failed search ends the loop. This loop does not decide whether the run
   ends: `claims.py` tries again with a cleared memory.
"""

from collections.abc import Callable

from kormos import backend
from kormos.arithmetic.scalars import both
from kormos.arithmetic.scalars import cond
from kormos.arithmetic.scalars import constant
from kormos.arithmetic.scalars import either
from kormos.arithmetic.scalars import is_finite
from kormos.arithmetic.scalars import larger
from kormos.arithmetic.scalars import smaller
from kormos.arithmetic.scalars import where
from kormos.arithmetic.scalars import while_loop
from kormos.arithmetic.vectors import dot
from kormos.arithmetic.vectors import largest
from kormos.arithmetic.vectors import norm
from kormos.solvers.convergence import TINIEST
from kormos.solvers.protocols import Curvature
from kormos.solvers.quasi_newton import wolfe_search
from kormos.solvers.quasi_newton.arrival import Arrival
from kormos.solvers.quasi_newton.arrival import Evaluation
from kormos.solvers.quasi_newton.course import course_from
from kormos.solvers.quasi_newton.course import first_trial_of
from kormos.solvers.quasi_newton.course import probe_of
from kormos.solvers.quasi_newton.region import Region
from kormos.solvers.quasi_newton.state import DECREASE
from kormos.solvers.quasi_newton.state import GRADIENT
from kormos.solvers.quasi_newton.state import LINE_SEARCH
from kormos.solvers.quasi_newton.state import NOISE
from kormos.solvers.quasi_newton.state import NON_FINITE
from kormos.solvers.quasi_newton.state import RUNNING
from kormos.solvers.quasi_newton.state import STARTING
from kormos.solvers.quasi_newton.state import STEP
from kormos.solvers.quasi_newton.state import TARGET
from kormos.solvers.quasi_newton.state import Limits
from kormos.solvers.quasi_newton.state import State
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor

# The run may have ended after this many iterations in a row without a new
# lowest loss. Our choice, which the docstring of `QuasiNewton` states: fewer
# end runs on plateaus that could be left, and each additional one is lost at
# the end of every run.
_STALLED = 10

# After a reset, the prediction of the curvature is trusted once it has this
# many pairs, or one for each parameter. Our choice: fewer pairs predict too
# little decrease, and end the run too early.
_PAIRS_AFTER_RESET = 10

# With each pair, `State.spread` is multiplied by this. Our choice: about the
# last ten pairs count.
_FORGETTING = 0.9

# s'y below this part of |s| |y| is rounding.
_ROUNDING = 2.0**-52


def advance(
    curvature: Curvature,
    region: Region,
    evaluate: Callable[[Tensor], Evaluation],
    limits: Limits,
    state: State,
) -> State:
    """Runs until a limit of the call, or the end of the run.

    Args:
        curvature: the formulas of the curvature.
        region: where it may evaluate.
        evaluate: function of a flat tensor that returns the point where it
            evaluated, the same except for rounding, and the loss, the gradient
            and the readings (or `None`) there.
        limits: what ends the call.
        state: the state. If it is `STARTING`, only its `theta` is evaluated.

    Returns:
        The new state, its `rows` filled from the top.
    """
    first = state.iterations
    starting = state.status == STARTING

    def body(state: State) -> State:
        is_start = state.status == STARTING
        trial, loss, grad, readings = evaluate(
            region.point(trial_of(state, is_start))
        )
        loss = backend.scalar(loss)
        slope = dot(grad, region.ahead(trial, state.direction))
        noise = limits.noise
        verdict = wolfe_search.verdict(state.search, loss, slope, noise)
        accepted = both(verdict == wolfe_search.ACCEPTED, ~is_start)
        # The curvature is that of the parameters in their units.
        moved, turned = trial - state.theta, grad - state.grad
        step, change = moved / state.units, turned * state.units
        good = both(accepted, is_curved(step, change))
        store = curvature.record(
            state.store, state.curvature, good, step, change
        )
        arrival = Arrival(
            is_start,
            good,
            trial,
            loss,
            grad,
            moved,
            turned,
            step,
            change,
            readings,
        )
        # No branch may return the store: see `protocols.Curvature`.
        small = state._replace(
            evaluations=state.evaluations + 1, latest=loss, store=()
        )
        small = cond(
            either(is_start, accepted),
            lambda: _arrive(
                curvature, region, limits, small, store, arrival, first
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
        store, known = curvature.settle(store, small.curvature)
        return small._replace(store=store, curvature=known)

    return while_loop(
        lambda state: goes_on(limits, state, starting), body, state
    )


def goes_on(limits: Limits, state: State, starting: Scalar) -> Scalar:
    """Whether the loop of a call continues.

    Args:
        limits: what ends the call.
        state: the state.
        starting: whether the call began at a start, whose evaluation ends it.
    """
    return either(
        state.status == STARTING,
        both(
            state.status == RUNNING,
            state.iterations < limits.iterations,
            state.evaluations < limits.evaluations,
            ~starting,
        ),
    )


def trial_of(state: State, is_start: Scalar) -> Tensor:
    """The start or a trial, before it is moved into the region."""
    length = where(is_start, state.search.step * 0, state.search.step)
    return state.theta + state.direction * length


def is_curved(step: Tensor, change: Tensor) -> Scalar:
    """Whether the curvature along a step is positive, beyond rounding."""
    curvature = dot(step, change)
    squares = dot(step, step) * dot(change, change)
    return both(curvature > 0, curvature * curvature > _ROUNDING**2 * squares)


def _arrive(
    curvature: Curvature,
    region: Region,
    limits: Limits,
    state: State,
    store: Structure,
    arrival: Arrival,
    first: Scalar,
) -> State:
    """The state at the start, or after a step; perhaps with a claimed end.

    Args:
        curvature: the formulas of the curvature.
        region: where it may evaluate.
        limits: what ends the call.
        state: the state before.
        store: the store, in which the step was recorded.
        arrival: the evaluation there.
        first: the count of iterations at the beginning of the call.
    """
    is_start, good, theta, loss, grad, moved, *_ = arrival
    units = state.units
    one, none = constant(1, like=loss), constant(0, like=state.resets)
    course = course_from(curvature, region, state, store, arrival)
    begins = course.begins
    resets = state.resets + where(both(course.lost, ~is_start), none + 1, none)
    first_trial = one
    if curvature.overshoots:
        guess = first_trial_of(state.loss - loss, course.slope, one)
        first_trial = where(either(begins, is_start), one, guess)
        course = region.hasten(course, state, arrival, first_trial)
    # If the loss is linear, a search may run out of trials without showing a
    # curvature. The next search then begins with the step that was reached.
    straight = ~either(is_start, good, begins)
    first_trial = where(
        straight, larger(first_trial, state.search.step), first_trial
    )
    probes = where(begins, larger(state.probes, none + 1), state.probes)
    probe = cond(
        probes > 0,
        lambda: probe_of(
            theta / units, course.direction, course.far, limits.noise
        ),
        lambda: course.far * 0,
    )
    arrived = state._replace(
        theta=theta,
        loss=loss,
        grad=grad,
        direction=course.direction * units,
        spread=spread_after(state, arrival),
        search=wolfe_search.begin(loss, course.slope, first_trial, probe),
        curvature=course.known,
        is_anew=none,
        probes=larger(probes - 1, none),
        resets=resets,
        pairs=where(begins, none, state.pairs + where(good, none + 1, none)),
        iterations=state.iterations + where(is_start, none, none + 1),
    )
    pull = region.pull(theta, grad)
    arrived = judge(
        limits,
        state,
        arrived,
        is_start,
        largest(pull),
        _is_trusted(state, arrived),
    )
    row = [loss, norm(pull), norm(moved), state.evaluations, resets]
    if region.is_bounded:
        row.append(region.active(theta, grad))
    rows = backend.set_row(
        state.rows,
        state.iterations - first,
        arrival.row(row, state.rows),
    )
    return arrived._replace(rows=rows)


def spread_after(state: State, arrival: Arrival) -> Tensor:
    """`State.spread` after a step, if that shows the curvature.

    Args:
        state: the state before the step.
        arrival: the evaluation after it.
    """
    part = arrival.turned / norm(arrival.change)
    return where(
        arrival.good, state.spread * _FORGETTING + part**2, state.spread
    )


def _is_trusted(state: State, arrived: State) -> Scalar:
    """Whether the prediction of the curvature at a new point is reliable.

    From few pairs, a prediction means nothing.
    """
    few = min(arrived.theta.shape[0], _PAIRS_AFTER_RESET)
    return both(
        arrived.pairs > 0,
        state.probes == 0,
        either(arrived.resets == 0, arrived.pairs >= few),
    )


def judge(
    limits: Limits,
    state: State,
    arrived: State,
    is_start: Scalar,
    gradient: Scalar,
    trusted: Scalar,
) -> State:
    """Sets the status where the run may have ended.

    Args:
        limits: the tolerances.
        state: the state before.
        arrived: the state at the new point.
        is_start: whether it is the start.
        gradient: the largest entry of the gradient that does not press against
            a bound, scalar.
        trusted: whether the predicted decrease is reliable.
    """
    loss, one = arrived.loss, constant(1, like=arrived.loss)
    promised = arrived.search.promise
    scale = where(is_start, abs(loss), larger(abs(state.loss), abs(loss)))
    safe = where(scale > 0, scale, one)
    decrease = state.loss - loss
    small = decrease <= larger(limits.ftol, limits.noise) * scale
    # Rounding makes the loss go up and down, so only the lowest counts.
    gain = state.lowest - loss
    is_stalled = both(~is_start, gain <= limits.ftol * scale)
    stalled = where(is_stalled, state.stalled + 1, state.stalled * 0)
    lowest = where(is_start, loss, smaller(state.lowest, loss))
    tiniest = one * TINIEST
    least = larger(limits.gtol**2 * abs(loss), tiniest)
    # Where the squares of slopes underflow, no search could find its way.
    vanished = both(abs(loss) <= tiniest, gradient**2 <= tiniest)
    converged = either(both(trusted, promised <= least), gradient <= 0)
    converged = either(converged, vanished)
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
        (both(~is_start, limits.xtol > 0, moved <= limits.xtol), STEP, moved),
    )
    status, value = _first_of(
        constant(RUNNING, like=state.status), promised, tests
    )
    return arrived._replace(
        stalled=stalled, lowest=lowest, status=status, value=value
    )


def _first_of(
    status: Scalar, value: Scalar, tests: tuple[tuple[Scalar, int, Scalar], ...]
) -> tuple[Scalar, Scalar]:
    """The status and the value of the first test that holds.

    Args:
        status: the status if no test holds.
        value: the value if no test holds.
        tests: triples of a condition, the status and the value if it holds.
    """
    for condition, code, quantity in reversed(tests):
        status = where(condition, constant(code, like=status), status)
        value = where(condition, quantity, value)
    return status, value
