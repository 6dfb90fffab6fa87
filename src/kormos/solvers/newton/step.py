"""The iteration of the trust-region Newton method.

Nocedal and Wright, "Numerical Optimization", 2nd edition, algorithm 4.1, with
the steps of `steihaug.py`, preconditioned by the L-BFGS matrix of the run's own
steps. Differs from it in:

1. a pass of the compiled loop makes one step and one evaluation, of the start
   or of a trial, so that the model is traced once;
2. the radius is measured in the norm of the preconditioner's inverse, which
   changes from step to step. A step's length in the new norm is known, because
   L-BFGS maps the change of the gradient to the step: the radius changes alike;
3. where the predicted decrease is close to the rounding of the loss, the slopes
   at both ends of a step say whether the loss falls;
4. no end is decided here: `quasi_newton/claims.py` tries again with a cleared
   memory.
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
from kormos.solvers.newton.method import NewtonMethod
from kormos.solvers.newton.steihaug import Path
from kormos.solvers.newton.steihaug import step_within
from kormos.solvers.quasi_newton import wolfe_search
from kormos.solvers.quasi_newton.arrival import Arrival
from kormos.solvers.quasi_newton.course import far_from
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

# Algorithm 4.1's eta, and the parts of the prediction below and above which the
# radius changes, with its own factors.
_LEAST_RATIO, _POOR, _GOOD = 1e-4, 0.25, 0.75
_SHRINK, _GROW = 0.25, 2.0
# Below this many times the loss's rounding, a decrease is judged by slopes. Our
# choice: the difference of two losses then has fewer than two digits.
_DOUBTFUL = 100.0
# A rejected step that predicts less than this part of the loss's rounding ends
# the search. Our choice, that of the line search.
_LEAST_PROMISE = 1e-3

Product = Callable[[Tensor, Tensor], Tensor]


class _Trial(NamedTuple):
    """A trial step.

    Attributes:
        path: how it was found.
        ratio: the decrease of the loss over the predicted one, scalar.
        promise: the decrease that is predicted without the radius, scalar.
        step: the step in units, `(size,)`.
        change: the change of the gradient in units, `(size,)`.
    """

    path: Path
    ratio: Scalar
    promise: Scalar
    step: Tensor
    change: Tensor


def advance(
    method: NewtonMethod,
    value_and_grad: Callable[[Tensor], tuple[Tensor, ...]],
    hvp: Product,
    limits: Limits,
    state: State,
) -> State:
    """Runs until a limit of the call, or the end of the run.

    Args:
        method: the method.
        value_and_grad: loss and gradient, and readings if there are some, as
            a function of a flat tensor.
        hvp: function `(theta, vector)` of flat tensors: the Hessian times it.
        limits: what ends the call.
        state: the state. If it is `STARTING`, only its `theta` is evaluated.

    Returns:
        The new state, its `rows` filled from the top.
    """
    first, starting = state.iterations, state.status == STARTING

    def body(state: State) -> State:
        is_start = state.status == STARTING
        path, guess = _path(method, hvp, state, is_start)
        theta = state.theta + path.step * state.units
        loss, grad, *readings = value_and_grad(theta)
        loss = backend.scalar(loss)
        trial = _Trial(
            path=path,
            ratio=_ratio(limits, state, path, loss, grad),
            promise=where(
                path.leaves, larger(path.promise, guess), path.promise
            ),
            step=path.step,
            change=(grad - state.grad) * state.units,
        )
        accepted = both(
            ~is_start, trial.ratio > _LEAST_RATIO, is_finite(loss, norm(grad))
        )
        good = both(accepted, is_curved(trial.step, trial.change))
        known = state.curvature
        store = method.memory.record(
            state.store, known.memory, good, trial.step, trial.change
        )
        made = known.products + _as_integer(path.products, known.products)
        # No branch may return the store: see `protocols.Curvature`.
        small = state._replace(
            evaluations=state.evaluations + 1,
            latest=loss,
            store=(),
            curvature=known._replace(products=made),
        )
        arrival = Arrival(is_start, good, theta, loss, grad, *readings)
        small = cond(
            either(is_start, accepted),
            lambda: _arrive(
                method, limits, small, store, arrival, trial, first
            ),
            lambda: _stay(limits, small, trial),
        )
        return small._replace(store=store)

    return while_loop(
        lambda state: goes_on(limits, state, starting), body, state
    )


def _path(
    method: NewtonMethod, hvp: Product, state: State, is_start: Scalar
) -> tuple[Path, Scalar]:
    """The next step, and the decrease that the preconditioner predicts."""
    memory, units = method.memory, state.units
    one = constant(1, like=state.loss)

    def product(vector: Tensor) -> Tensor:
        vector = vector * units
        # In the model's own dtype a short vector would be lost.
        size = norm(vector)
        size = where(size > 0, size, one)
        return hvp(state.theta, vector / size) * units * size

    return step_within(
        state.curvature.radius,
        state.grad * units,
        product,
        lambda vector: memory.product(
            state.store, state.curvature.memory, vector
        ),
        is_start,
        method.most_products,
    )


def _ratio(
    limits: Limits, state: State, path: Path, loss: Scalar, grad: Tensor
) -> Scalar:
    """The decrease of the loss over the predicted one; NaN at a start."""
    decrease = state.loss - loss
    noise = limits.noise * larger(abs(state.loss), abs(loss))
    is_doubtful = both(
        path.promise <= _DOUBTFUL * noise, abs(decrease) <= _DOUBTFUL * noise
    )
    slopes = (state.grad + grad) * state.units
    by_slopes = dot(slopes, path.step) / -2
    return where(is_doubtful, by_slopes, decrease) / path.promise


def _stay(limits: Limits, state: State, trial: _Trial) -> State:
    """The state after a trial that is rejected: with a shorter radius."""
    known, search = state.curvature, state.search
    length = trial.path.square**0.5
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
        limits: what ends the call.
        state: the state before.
        store: the store, in which the step was recorded.
        arrival: the evaluation there.
        trial: the step.
        first: the count of iterations at the beginning of the call.
    """
    is_start, good, theta, loss, grad, _ = arrival
    one, none = constant(1, like=loss), constant(0, like=state.resets)
    known, slopes = state.curvature, grad * state.units
    size = norm(slopes)
    pair = Pair(
        good, trial.step, trial.change, one, trial.step, trial.step, good
    )
    memory, _ = method.memory.update(store, known.memory, pair, slopes)
    begins = both(is_start, state.is_anew > 0)
    far = far_from(theta / state.units, loss, slopes, size)
    steepest = far / where(size > 0, size, one)
    memory = cond(
        begins, lambda: method.memory.clear(memory, steepest), lambda: memory
    )
    radius = where(
        is_start,
        where(begins, (far * size) ** 0.5, known.radius),
        _radius(known.radius, trial, good),
    )
    search = wolfe_search.begin(loss, -size * size * steepest, one)
    promise = where(is_start, search.promise, trial.promise)
    arrived = state._replace(
        theta=theta,
        loss=loss,
        grad=grad,
        direction=trial.step * state.units,
        spread=spread_after(state, grad, good),
        search=search._replace(promise=promise),
        curvature=known._replace(memory=memory, radius=radius),
        is_anew=none,
        probes=none,
        pairs=where(begins, none, state.pairs + where(good, none + 1, none)),
        iterations=state.iterations + where(is_start, none, none + 1),
    )
    # Within a radius, a prediction says little of what lies beyond.
    trusted = both(~is_start, ~trial.path.leaves)
    arrived = judge(limits, state, arrived, is_start, largest(grad), trusted)
    row = (
        loss,
        norm(grad),
        norm(theta - state.theta),
        state.evaluations,
        state.resets,
        known.products,
    )
    rows = backend.set_row(
        state.rows,
        state.iterations - first,
        arrival.row(row),
    )
    return arrived._replace(rows=rows)


def _radius(radius: Scalar, trial: _Trial, good: Scalar) -> Scalar:
    """The radius after an accepted step, in the new norm."""
    length = trial.path.square**0.5
    grows = both(trial.path.leaves, trial.ratio > _GOOD)
    radius = where(grows, radius * _GROW, radius)
    radius = where(trial.ratio < _POOR, length * _SHRINK, radius)
    curvature = dot(trial.step, trial.change)
    one = constant(1, like=length)
    anew = where(good, curvature, one) ** 0.5
    return radius * where(good, anew / length, one)


def _as_integer(number: Scalar, like: Scalar) -> Scalar:
    """A float scalar in the integer dtype of another scalar."""
    return to_float(number, like=like)
