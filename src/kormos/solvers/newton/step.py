"""The iteration of the trust-region Newton method.

Nocedal and Wright, "Numerical Optimization", 2nd edition, algorithm 4.1, with
the steps of `steihaug.py`, preconditioned by the L-BFGS matrix of the run's own
steps. Differs from it in:

1. a pass of the compiled loop makes one step and one evaluation, of the start
   or of a trial, so that the model is traced once;
2. the radius is measured in the norm of the preconditioner's inverse, which
   changes from step to step. A step's length in the new norm is known, because
   L-BFGS maps the change of the gradient to the step. The radius is changed by
   the same factor;
3. where the predicted decrease is close to the rounding of the loss, the slopes
   at both ends of a step say whether the loss falls;
4. this loop does not decide whether a run ends: `quasi_newton/claims.py` tries
   again with a cleared memory;
5. within bounds every decrease is accepted, because the model does not include
   the projection of the step.
"""

from collections.abc import Callable
from typing import NamedTuple

from kormos import backend
from kormos.arithmetic.scalars import both
from kormos.arithmetic.scalars import cond
from kormos.arithmetic.scalars import constant
from kormos.arithmetic.scalars import either
from kormos.arithmetic.scalars import is_finite
from kormos.arithmetic.scalars import larger
from kormos.arithmetic.scalars import to_float
from kormos.arithmetic.scalars import where
from kormos.arithmetic.scalars import while_loop
from kormos.arithmetic.vectors import dot
from kormos.arithmetic.vectors import largest
from kormos.arithmetic.vectors import norm
from kormos.solvers.newton.attempt import Attempt
from kormos.solvers.newton.method import NewtonMethod
from kormos.solvers.quasi_newton import wolfe_search
from kormos.solvers.quasi_newton.arrival import Arrival
from kormos.solvers.quasi_newton.course import far_from
from kormos.solvers.quasi_newton.region import Region
from kormos.solvers.quasi_newton.search_interval import MOST_TRIALS
from kormos.solvers.quasi_newton.state import LINE_SEARCH
from kormos.solvers.quasi_newton.state import STARTING
from kormos.solvers.quasi_newton.state import Limits
from kormos.solvers.quasi_newton.state import Pair
from kormos.solvers.quasi_newton.state import State
from kormos.solvers.quasi_newton.step import goes_on
from kormos.solvers.quasi_newton.step import is_curved
from kormos.solvers.quasi_newton.step import judge
from kormos.solvers.quasi_newton.step import spread_after
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor

# eta of algorithm 4.1, and the parts of the prediction below and above which
# the radius changes, with the algorithm's factors.
_LEAST_RATIO, _POOR, _GOOD = 1e-4, 0.25, 0.75
_SHRINK, _GROW = 0.25, 2.0
# Below this many times the loss's rounding, a decrease is judged by slopes. Our
# choice: the difference of two losses then has fewer than two digits.
_DOUBTFUL = 100.0
# A rejected step that predicts less than this part of the loss's rounding ends
# the search. Our choice, that of the line search.
_LEAST_PROMISE = 1e-3


class _Trial(NamedTuple):
    """A trial step.

    Attributes:
        made: how it was found.
        ratio: the decrease of the loss over the predicted one, scalar.
        promise: the decrease that is predicted for a step without a radius,
            scalar.
    """

    made: Attempt
    ratio: Scalar
    promise: Scalar


def advance(
    method: NewtonMethod,
    region: Region,
    attempt: Callable[[State], Attempt],
    limits: Limits,
    state: State,
) -> State:
    """Runs until a limit of the call, or the end of the run.

    Args:
        method: the method.
        region: where it may evaluate.
        attempt: function of a state that makes the next step and evaluates the
            loss after it; if the state is `STARTING`, it evaluates its `theta`.
        limits: what ends the call.
        state: the state. If it is `STARTING`, only its `theta` is evaluated.

    Returns:
        The new state, its `rows` filled from the top.
    """
    first, starting = state.iterations, state.status == STARTING
    least = 0.0 if region.is_bounded else _LEAST_RATIO

    def body(state: State) -> State:
        is_start = state.status == STARTING
        made = attempt(state)
        moved, turned = made.theta - state.theta, made.grad - state.grad
        step = moved / state.units if region.is_bounded else made.step
        change = turned * state.units
        trial = _Trial(
            made=made,
            ratio=_ratio(limits, state, made, step),
            promise=where(
                made.leaves, larger(made.promise, made.guess), made.promise
            ),
        )
        accepted = both(
            ~is_start,
            trial.ratio > least,
            is_finite(made.loss, norm(made.grad)),
        )
        good = both(accepted, is_curved(step, change))
        known = state.curvature
        store = method.memory.record(
            state.store, known.memory, good, step, change
        )
        count = known.products + _as_integer(made.products, known.products)
        # No branch may return the store: see `protocols.Curvature`.
        small = state._replace(
            evaluations=state.evaluations + 1,
            latest=made.loss,
            store=(),
            curvature=known._replace(products=count),
        )
        arrival = Arrival(
            is_start,
            good,
            made.theta,
            made.loss,
            made.grad,
            moved,
            turned,
            step,
            change,
            made.readings,
        )
        small = cond(
            either(is_start, accepted),
            lambda: _arrive(
                method, region, limits, small, store, arrival, trial, first
            ),
            lambda: _stay(limits, small, trial),
        )
        return small._replace(store=store)

    return while_loop(
        lambda state: goes_on(limits, state, starting), body, state
    )


def _ratio(limits: Limits, state: State, made: Attempt, step: Tensor) -> Scalar:
    """The decrease of the loss over the predicted one; NaN at a start."""
    decrease = state.loss - made.loss
    noise = limits.noise * larger(abs(state.loss), abs(made.loss))
    is_doubtful = both(
        made.promise <= _DOUBTFUL * noise, abs(decrease) <= _DOUBTFUL * noise
    )
    slopes = (state.grad + made.grad) * state.units
    by_slopes = dot(slopes, step) / -2
    return where(is_doubtful, by_slopes, decrease) / made.promise


def _stay(limits: Limits, state: State, trial: _Trial) -> State:
    """The state after a trial that is rejected: with a shorter radius."""
    known, search = state.curvature, state.search
    length = trial.made.square**0.5
    radius = where(is_finite(length), length, known.radius) * _SHRINK
    trials = search.trials + 1
    least = _LEAST_PROMISE * limits.noise * abs(state.loss)
    fails = either(trials >= MOST_TRIALS, ~(trial.promise > least))
    failed = constant(LINE_SEARCH, like=state.status)
    return state._replace(
        search=search._replace(trials=trials, promise=trial.promise),
        curvature=known._replace(radius=radius),
        status=where(fails, failed, state.status),
        value=where(fails, trial.promise, state.value),
    )


def _arrive(
    method: NewtonMethod,
    region: Region,
    limits: Limits,
    state: State,
    store: Structure,
    arrival: Arrival,
    trial: _Trial,
    first: Scalar,
) -> State:
    """The state at the start, or after a step; perhaps with a claimed end.

    Args:
        method: the method.
        region: where it may evaluate.
        limits: what ends the call.
        state: the state before.
        store: the store, in which the step was recorded.
        arrival: the evaluation there.
        trial: the step.
        first: the count of iterations at the beginning of the call.
    """
    is_start, good, theta, loss, grad, moved, _, step, change, _ = arrival
    one, none = constant(1, like=loss), constant(0, like=state.resets)
    known, slopes = state.curvature, grad * state.units
    pull = region.pull(theta, grad)
    size = norm(pull * state.units)
    pair = Pair(good, step, change, one, step, step, good)
    memory, _ = method.memory.update(store, known.memory, pair, slopes)
    begins = both(is_start, state.is_anew > 0)
    far = far_from(theta / state.units, loss, pull * state.units, size)
    steepest = far / where(size > 0, size, one)
    memory = cond(
        begins, lambda: method.memory.clear(memory, steepest), lambda: memory
    )
    radius = where(
        is_start,
        where(begins, (far * size) ** 0.5, known.radius),
        _radius(known.radius, trial, arrival),
    )
    search = wolfe_search.begin(loss, -size * size * steepest, one)
    promise = where(is_start, search.promise, trial.promise)
    arrived = state._replace(
        theta=theta,
        loss=loss,
        grad=grad,
        direction=step * state.units,
        spread=spread_after(state, arrival),
        search=search._replace(promise=promise),
        curvature=known._replace(memory=memory, radius=radius),
        is_anew=none,
        probes=none,
        pairs=where(begins, none, state.pairs + where(good, none + 1, none)),
        iterations=state.iterations + where(is_start, none, none + 1),
    )
    # A prediction within the radius says little about what lies beyond it.
    trusted = both(~is_start, ~trial.made.leaves)
    arrived = judge(limits, state, arrived, is_start, largest(pull), trusted)
    row = [loss, norm(pull), norm(moved), state.evaluations, state.resets]
    if region.is_bounded:
        row.append(region.active(theta, grad))
    row.append(known.products)
    rows = backend.set_row(
        state.rows,
        state.iterations - first,
        arrival.row(row, state.rows),
    )
    return arrived._replace(rows=rows)


def _radius(radius: Scalar, trial: _Trial, arrival: Arrival) -> Scalar:
    """The radius after an accepted step, in the new norm.

    Args:
        radius: the radius before the step.
        trial: the step.
        arrival: the evaluation after it.
    """
    length = trial.made.square**0.5
    grows = both(trial.made.leaves, trial.ratio > _GOOD)
    radius = where(grows, radius * _GROW, radius)
    radius = where(trial.ratio < _POOR, length * _SHRINK, radius)
    curvature = dot(arrival.step, arrival.change)
    one = constant(1, like=length)
    # A projected step does not have the length of the path.
    good = both(arrival.good, ~trial.made.is_bent)
    anew = where(good, curvature, one) ** 0.5
    return radius * where(good, anew / length, one)


def _as_integer(number: Scalar, like: Scalar) -> Scalar:
    """A float scalar in the integer dtype of another scalar."""
    return to_float(number, like=like)
