"""Steps of Keras' own optimizers, on batches of rows or on the whole loss.

Unlike a step of kormos' methods, a step may raise the loss. A run keeps its
last point, as `fit` of Keras does, unless the loss there is above that of its
start. If several runs continue one another, the start is that of the first run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from typing import Protocol
from typing import cast

import keras
import numpy as np

from kormos import backend
from kormos.processes import current
from kormos.solvers import statuses
from kormos.solvers.keras_updates import compiled_update
from kormos.solvers.keras_updates import kept_in_box
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Iterate
from kormos.solvers.protocols import Observer
from kormos.solvers.protocols import Point
from kormos.solvers.protocols import ProblemObjective
from kormos.solvers.solver_state import SolverState
from kormos.types import Array
from kormos.types import Vector

# The names of the entries of the state.
_SLOT = "slot"
_PASSES = "passes"
_START = "start"
_START_LOSS = "start_loss"
_REST = "rest"
# A run continues an earlier one if it begins at the loss at which that one has
# ended, except for rounding on another machine. Our choice.
_SAME_LOSS = 1e-4


class _Start(NamedTuple):
    """Where the first of several runs began.

    Attributes:
        theta: the point, `(size,)`.
        loss: the loss there.
        rest: the values that the loss depended on there besides the point.
    """

    theta: Vector
    loss: float
    rest: list[Array]


class VariablesObjective(ProblemObjective, Protocol):
    """The loss of variables that a Keras optimizer can update."""

    def initial_position(self) -> Vector:
        """The variables' present values."""

    def assign(self, theta: Vector) -> None:
        """Writes a flat vector into the variables."""

    def refresh(self) -> None:
        """Reads again the other values that the loss depends on."""


class TrainableObjective(VariablesObjective, Protocol):
    """The loss of a model that Keras' own `fit` can train.

    Attributes:
        seed_states: the variables of the model's random numbers, which files
            of Keras do not have.
        other_variables: the variables that the loss reads besides those that
            are trained.
    """

    seed_states: list[keras.Variable]
    other_variables: list[keras.Variable]

    def train_epoch(
        self,
        optimizer: keras.optimizers.Optimizer,
        batch_size: int | None,
        rng: np.random.Generator,
    ) -> None:
        """Trains the model for an epoch, on batches in a random order.

        Args:
            optimizer: the Keras optimizer.
            batch_size: the rows of a batch, or `None` for a default.
            rng: the random generator that draws the order of the rows.
        """


class KerasSteps:
    """A `Solver` that is one of Keras' own optimizers.

    Args:
        optimizer: the Keras optimizer. Each run begins with a fresh one, except
            a run that continues from an earlier one's state.
        is_full: whether an iteration is a step on the whole loss, not an epoch
            of steps on batches of shuffled rows.
        batch_size: the rows of a batch, or `None` for a default.
        seed: the seed of the order of the rows.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        is_full: bool,
        batch_size: int | None,
        seed: int,
    ):
        self.optimizer = optimizer
        self._is_full = is_full
        self._batch_size = batch_size
        self._seed = seed
        self._key = f"keras {type(optimizer).__name__}"
        self._passes = 0

    def check(
        self, size: int, bounded: bool, constraint_types: list[str]
    ) -> None:
        """Raises a `ValueError` where Keras' optimizer cannot do the task."""
        del size, bounded
        received = None
        if constraint_types:
            received = f"constraints {sorted(set(constraint_types))}"
        elif not (self._is_full or current().is_alone):
            received = "several processes"
        if received is not None:
            raise ValueError(
                "A stage with one of Keras' own optimizers supports bounds, "
                "but not constraints, and with several processes it needs "
                "`full_batch=True`. Begin with 'lbfgs' instead. Received: "
                f"optimizer '{self.optimizer.name}' with {received}"
            )

    def __call__(
        self,
        problem: Problem,
        theta: Vector,
        state: SolverState | None,
        observer: Observer,
    ) -> Outcome:
        objective = self._objective = cast(
            VariablesObjective, problem.objective
        )
        objective.assign(theta)
        self._seeds: list[keras.Variable] = []
        # Training assigns averages of batch normalization too.
        self._others: list[keras.Variable] = []
        if not self._is_full:
            model_loss = cast(TrainableObjective, objective)
            self._seeds = model_loss.seed_states
            self._others = model_loss.other_variables
        self._prepare(objective.program.packing.variables, state)
        with kept_in_box(problem, objective.program.packing):
            if self._is_full:
                return self._on_all_rows(problem, objective, observer)
            return self._on_batches(problem, objective, observer)

    def _on_all_rows(
        self,
        problem: Problem,
        objective: VariablesObjective,
        observer: Observer,
    ) -> Outcome:
        update = compiled_update(self.optimizer)

        def evaluate(theta: Vector) -> Point:
            return Point(theta, *problem.value_and_grad(theta))

        def advance(point: Point) -> Point:
            assert point.grad is not None
            update(objective.program.packing.split_array(point.grad))
            return evaluate(objective.initial_position())

        first = evaluate(objective.initial_position())
        problem.verify(Problem.evaluate, first.theta, first.loss)
        return self._run(problem, observer, first, advance)

    def _on_batches(
        self,
        problem: Problem,
        objective: VariablesObjective,
        observer: Observer,
    ) -> Outcome:
        model_loss = cast(TrainableObjective, objective)
        size = self._batch_size

        def here() -> Point:
            theta = objective.initial_position()
            return Point(theta, problem.value(theta), None)

        def advance(point: Point) -> Point:
            del point
            # A resumed run draws the same orders as one long run.
            rng = np.random.default_rng([self._seed, self._passes])
            model_loss.train_epoch(self.optimizer, size, rng)
            objective.refresh()
            return here()

        first = here()
        problem.verify(Problem.peek, first.theta, first.loss)
        return self._run(problem, observer, first, advance)

    def _run(
        self,
        problem: Problem,
        observer: Observer,
        first: Point,
        advance: Callable[[Point], Point],
    ) -> Outcome:
        """Steps until a limit is reached, or until the observer asks to stop.

        Args:
            problem: the `Problem`.
            observer: the `Observer`.
            first: the start.
            advance: function of a point that makes the next step from there.
        """
        start = self._start_of(first, self._earlier)
        point, state = first, self._keep(first, start)
        # The values at the point to keep, and the loss there.
        rest, kept_loss = self._rest(), first.loss
        stop = observer.started(first)
        status = problem.spent() if first.is_finite else statuses.NON_FINITE
        detail = ""
        try:
            while not stop and status is None:
                before, point = point, advance(point)
                self._passes += 1
                if not point.is_finite:
                    status, point = statuses.STALLED, before
                    detail = "a step led to where the loss is not finite"
                    break
                state = self._keep(point, start)
                if point.loss <= max(start.loss, kept_loss):
                    rest, kept_loss = self._rest(), point.loss
                step = float(np.linalg.norm(point.theta - before.theta))
                stop = observer.accepted(
                    Iterate(
                        *point,
                        state=state,
                        logs={"step": step},
                        # The run continues from this point.
                        is_penalized=bool(point.loss <= start.loss),
                    )
                )
                status = problem.spent()
        except BaseException:
            self._assign_rest(rest)
            raise
        point = self._averaged(problem, point)
        if not point.loss <= start.loss:
            point, rest = Point(start.theta, start.loss, None), start.rest
        return Outcome(
            None if stop else status,
            point.theta,
            point.loss,
            detail=detail,
            state=state,
            is_penalized=True,
            settle=lambda: self._assign_rest(rest),
        )

    def _averaged(self, problem: Problem, point: Point) -> Point:
        """The point, or the averages of the weights if these replace it."""
        if not (self.optimizer.use_ema and self._passes):
            return point
        objective = self._objective
        variables = objective.program.packing.variables
        self.optimizer.finalize_variable_values(variables)
        theta = objective.initial_position()
        objective.assign(point.theta)
        return Point(theta, problem.peek(theta), None)

    def _start_of(
        self, first: Point, earlier: dict[str, Array] | None
    ) -> _Start:
        """Where the first of the runs began that this one continues from.

        Args:
            first: where this run begins.
            earlier: the arrays of the state that it continues from, or `None`.
        """
        rest = self._rest()
        if earlier is None or not np.isclose(
            first.loss, earlier["loss"], rtol=_SAME_LOSS, atol=0
        ):
            return _Start(first.theta, first.loss, rest)
        rest = [earlier.get(f"{_REST}{i}", now) for i, now in enumerate(rest)]
        return _Start(earlier[_START], float(earlier[_START_LOSS]), rest)

    def _rest(self) -> list[Array]:
        return [np.array(backend.to_numpy(v)) for v in self._others]

    def _assign_rest(self, rest: list[Array]) -> None:
        for variable, value in zip(self._others, rest, strict=True):
            variable.assign(value)
        if self._others:
            self._objective.refresh()

    def _prepare(
        self, variables: list[keras.Variable], state: SolverState | None
    ) -> None:
        """Resets the optimizer for a new run, or restores it from a state."""
        optimizer, kind = self.optimizer, type(self.optimizer)
        known = getattr(optimizer, "_trainable_variables", None)
        is_fit = optimizer.built and [id(v) for v in known or ()] == [
            id(v) for v in variables
        ]
        if optimizer.built and not is_fit:
            # The optimizer was built for other variables, of layers that are
            # frozen now.
            optimizer = kind.from_config(optimizer.get_config())
            self.optimizer = optimizer
        if not optimizer.built:
            optimizer.build(variables)
        self._earlier: dict[str, Array] | None = None
        if state is not None and state.key == self._key:
            arrays = self._earlier = state.arrays()
            kept = [*optimizer.variables, *self._seeds]
            values = [arrays.get(f"{_SLOT}{i}") for i in range(len(kept))]
            self._passes = int(arrays[_PASSES])
            _check_fit(kept, values)
        else:
            fresh = kind.from_config(optimizer.get_config())
            fresh.build(variables)
            kept = optimizer.variables
            values = [backend.to_numpy(v) for v in fresh.variables]
            self._passes = 0
        for variable, value in zip(kept, values, strict=True):
            variable.assign(value)

    def _keep(self, point: Point, start: _Start) -> SolverState:
        """The optimizer's variables as a state to continue from."""
        kept = [*self.optimizer.variables, *self._seeds]
        slots = {
            f"{_SLOT}{i}": np.array(backend.to_numpy(variable))
            for i, variable in enumerate(kept)
        }
        # The variables of frozen layers do not change, and may be large.
        rest = {
            f"{_REST}{i}": then
            for i, (then, now) in enumerate(
                zip(start.rest, self._rest(), strict=True)
            )
            if not np.array_equal(then, now)
        }
        arrays = {
            "theta": point.theta,
            "loss": np.array(point.loss),
            _PASSES: np.array(self._passes),
            _START: start.theta,
            _START_LOSS: np.array(start.loss),
            **slots,
            **rest,
        }
        return SolverState(self._key, arrays)


def _check_fit(
    variables: list[keras.Variable], values: list[Array | None]
) -> None:
    """Raises a `ValueError` unless a state is one of these variables."""
    shapes = [tuple(variable.shape) for variable in variables]
    found = [None if value is None else value.shape for value in values]
    if shapes != found:
        raise ValueError(
            "The optimizer's state does not fit: it belongs to other "
            "variables, for example to those before layers were frozen. Fit "
            f"with `resume=False`. Received: arrays of shapes {found}, not "
            f"{shapes}"
        )
