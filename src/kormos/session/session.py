"""One call of the user: stages of an optimizer, from a start to a `Result`.

Everything that every door offers is here: the best point and its way into the
variables, interrupts, limits, float64 after float32, new data between runs,
what callbacks assign meanwhile, the counts and the result. A door brings the
objective, and an observer that knows what its users are told.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING
from typing import Any

import keras
import numpy as np

from kormos.objective.base import FlatObjective
from kormos.objective.bounds import resolve_bounds
from kormos.objective.start_checks import check_hessian_products
from kormos.objective.start_checks import warn_of_unused_variables
from kormos.session.float64_tail import goes_on_wider
from kormos.session.float64_tail import resolved
from kormos.session.float64_tail import settled
from kormos.session.float64_tail import warn_of_staying
from kormos.session.float64_tail import widen
from kormos.session.observer import SessionObserver
from kormos.session.result import Result
from kormos.session.run import Counts
from kormos.session.run import Run
from kormos.session.run import describe
from kormos.session.run import followed
from kormos.session.run import is_known
from kormos.session.run import row
from kormos.session.run import taken_over
from kormos.solvers import statuses
from kormos.solvers.budget import UNLIMITED
from kormos.solvers.budget import Budget
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Iterate
from kormos.solvers.protocols import Point
from kormos.solvers.rejections import Raised
from kormos.types import Vector
from kormos.warn import warn

if TYPE_CHECKING:
    from kormos.optimizers.base import BatchOptimizer
    from kormos.optimizers.stage import Stage
    from kormos.session.resample import Resample
    from kormos.solvers.solver_state import SolverState

Objectives = tuple[FlatObjective, FlatObjective | None]


class Session:
    """One call of the user.

    Args:
        optimizer: the `BatchOptimizer`.
        stages: its `Stage`s.
        make_objectives: function that returns the objectives of training and
            of validation (or `None`) for the variables as they are.
        observer: the `SessionObserver`.
        model: the model for `pretrain_fn`, or `None`.
        bounds: as `BatchOptimizer` takes them. Defaults to the optimizer's.
        constraints: as `BatchOptimizer` takes them. Defaults to the
            optimizer's.
        frozen: function that returns other variables that bounds may name.
        within_bounds: function that makes a scope in which the variables are
            moved into their bounds.
        budget: the `Budget`, its deadline in seconds from the start.
        resume: whether to go on with what the optimizer knows.
        resamplers: the `Resample`s.
        loss_callback: function of the loss, called after each evaluation.

    Attributes:
        objective: the objective.
        validation: the objective of validation, or `None`.
        followed: the point to go on from, where callbacks have changed the
            loss or the variables; `None` otherwise.
        trace: a dict of columns with an entry for each accepted iterate.
    """

    def __init__(
        self,
        optimizer: BatchOptimizer,
        stages: Sequence[Stage],
        make_objectives: Callable[[], Objectives],
        observer: SessionObserver,
        *,
        model: Any = None,
        bounds: Any = None,
        constraints: Any = None,
        frozen: Callable[[], Sequence[keras.Variable]] = tuple,
        within_bounds: Callable[
            [], AbstractContextManager[None]
        ] = contextlib.nullcontext,
        budget: Budget = UNLIMITED,
        resume: bool = False,
        resamplers: Sequence[Resample] = (),
        loss_callback: Callable[[float], object] | None = None,
    ):
        self._optimizer = optimizer
        self._stages = list(stages)
        self._make_objectives = make_objectives
        self._observer = observer
        self._model = model
        self._given_bounds = optimizer.bounds if bounds is None else bounds
        self._given_constraints = (
            optimizer.constraints if constraints is None else constraints
        )
        self._frozen = frozen
        self._within_bounds = within_bounds
        self._budget = budget
        self._resume = resume
        self._resamplers = resamplers
        self._loss_callback = loss_callback
        self.followed: Vector | None = None
        self.trace: dict[str, list[Any]] = {}
        self._results: list[Any] = []
        # Of the runs that are over.
        self._counts, self._iterations = Counts(), 0
        self._initial_loss: float | None = None
        self._float64_from: int | None = None
        self._raised = Raised()
        self._run: Run | None = None
        self._problem: Problem | None = None
        self._state: SolverState | None = None
        self._begun, self._earlier_iterations = 0.0, 0
        self._has_begun = False
        self._prepare(self._stages)

    @property
    def iterations(self) -> int:
        """Accepted iterations of this session so far."""
        running = 0 if self._run is None else self._run.iterations
        return self._iterations + running

    @property
    def counts(self) -> Counts:
        """What this session has evaluated so far."""
        return self._counts.with_those_of(self._problem)

    @property
    def seconds(self) -> float:
        """Seconds since the session began."""
        return time.perf_counter() - self._begun

    def __call__(self) -> Result:
        """Runs all stages."""
        optimizer, observer = self._optimizer, self._observer
        optimizer.build(
            [
                v
                for v in self.objective.variables
                if isinstance(v, keras.Variable)
            ]
        )
        optimizer.results = self._results
        loads = optimizer.loads
        observer.begin(self)
        # A backup may have been read: its state is to go on.
        resume = self._resume or optimizer.loads > loads
        self._earlier_iterations = int(
            keras.ops.convert_to_numpy(optimizer.iterations)
        )
        self._state = optimizer.solver_state if resume else None
        if resume and optimizer.keeps_state:
            self._warn_of_a_lost_state()
        self._begun = time.perf_counter()
        self._budget = self._budget.started(self._begun)
        outcome = self._run_stages()
        observer.close()
        result = describe(
            outcome,
            self._initial_loss,
            self._iterations,
            self._counts,
            self.seconds,
            self._float64_from,
        )
        optimizer.fg_evals = self._counts.evaluations
        optimizer.hessp_evals = self._counts.hessian_products
        optimizer.jacobians = self._counts.jacobians
        observer.finish(result)
        return result

    def call_out(
        self, theta: Vector, fn: Callable[..., Any], *args: Any
    ) -> Any:
        """Calls a function of the user's, which may assign variables.

        Args:
            theta: the point that the variables keep, before they round it.
            fn: the function.
            *args: its arguments.

        Returns:
            What the function returns.
        """
        before = self.objective.initial_position()
        answer = fn(*args)
        self.followed = followed(
            self.objective, self._constraints, before, theta
        )
        if self.followed is not None and self.validation is not None:
            self.validation.refresh()
        return answer

    def write(self, theta: Vector) -> None:
        """Writes a point into the variables, and what belongs to it."""
        self.objective.assign(theta)
        if self.validation is not None:
            # In training, averages of layers are assigned too.
            self.validation.refresh()
        if self._state is not None:
            self._state.position = theta
        self._optimizer.iterations.assign(
            self._earlier_iterations + self.iterations
        )

    def started(self, point: Point) -> bool:
        """Told of the start of each run; returns whether to stop there."""
        self._has_begun = True
        theta, loss, grad = point
        if not is_known(self._initial_loss):
            self._initial_loss = loss
            assert self._problem is not None
            warn_of_unused_variables(
                self.objective, theta, grad, self._problem.project
            )
        self._observer.starts(point)
        return self._observer.done >= self._end

    def accepted(self, iterate: Iterate) -> bool:
        """Told of every accepted iterate; returns whether to stop."""
        observer = self._observer
        self._attach(iterate.state)
        observer.opens(iterate)
        if self.followed is not None:
            # A callback has changed the loss or the variables: the run is to
            # begin anew from what it has set, without this iterate.
            observer.discards()
            assert self._run is not None
            self._run.iterations -= 1
            return True
        logs = row(iterate, self.counts)
        observer.accepts(iterate, logs)
        is_over = observer.is_stopped or observer.done >= self._end
        return is_over or self.followed is not None

    def record(self, logs: dict[str, Any]) -> None:
        """Adds a row to the trace."""
        for name, value in {**logs, "seconds": self.seconds}.items():
            self.trace.setdefault(name, []).append(value)

    def _attach(self, state: SolverState | None) -> None:
        """Makes a state what callbacks save and a later session finds."""
        self._state = state
        self._optimizer.keep(state)

    def _warn_of_a_lost_state(self) -> None:
        if self._state is None and self._optimizer.loads:
            warn(
                "The optimizer has no state of its earlier iterations, and "
                "goes on from the weights only. For a saved model to have it, "
                "set `optimizer.keep_state = True` before it is saved. "
                f"Received: resume=True, '{self._optimizer.name}' after "
                f"{self._earlier_iterations} iterations"
            )

    def _run_stages(self) -> Outcome:
        is_first = True
        for stage in self._stages:
            if not self._observer.begins(stage):
                continue
            # A later stage has another method, which cannot use this state.
            self._state, is_first = self._state if is_first else None, False
            if stage.pretrain_fn is not None:
                stage.pretrain_fn(self._model)
                # It may have frozen, thawed or assigned variables.
                self._prepare([stage])
            outcome = self._run_to_end(stage)
            if outcome.status is None:
                outcome.status = self._budget.spent(
                    self._counts.evaluations
                ) or (
                    statuses.STOPPED_BY_CALLBACK
                    if self._observer.is_stopped
                    else statuses.ITERATION_LIMIT
                )
            if outcome.raw is not None:
                self._results.append(outcome.raw)
            if self._is_spent() or outcome.status in statuses.FINAL:
                break
        return outcome

    def _run_to_end(self, stage: Stage) -> Outcome:
        """The runs of a stage.

        Another run follows where callbacks have changed the loss, where data
        are drawn anew, and where float64 goes on.
        """
        theta: Vector | None = None
        narrow: Outcome | None = None
        undo: Callable[[], None] | None = None
        is_first = True
        while True:
            done = self._iterations
            try:
                outcome = self._run_once(stage, theta, is_first)
            except Exception as error:
                if undo is None or narrow is None or self._has_begun:
                    raise
                undo()
                self._resolve()
                self._float64_from = self._run = self._problem = None
                warn_of_staying(error)
                return narrow
            theta, undo, is_first = outcome.theta, None, False
            is_ended = outcome.status == statuses.INTERRUPTED
            if is_ended or self._is_over():
                return outcome
            if self.followed is None:
                if goes_on_wider(outcome, self.objective):
                    try:
                        narrow, undo = outcome, self._widened()
                    except KeyboardInterrupt:
                        # Compiling takes seconds.
                        outcome.status = statuses.INTERRUPTED
                        return outcome
                    except Exception as error:
                        warn_of_staying(error)
                        return outcome
                else:
                    due = self._due(outcome)
                    is_final = outcome.status in statuses.FINAL
                    if not due or is_final or self._iterations == done:
                        return outcome
                    for resampler in due:
                        resampler.replace(self.objective)
                    theta = None
            if self._state is not None:
                self._state.forget_loss()

    def _due(self, outcome: Outcome) -> list[Resample]:
        """What draws new data after a run."""
        # A run that has converged on its data goes on with new data at once.
        return [
            resampler
            for resampler in self._resamplers
            if outcome.status or resampler.is_due(self._observer.done)
        ]

    def _is_spent(self) -> bool:
        spent = self._budget.spent(self._counts.evaluations)
        return self._observer.is_stopped or spent is not None

    def _is_over(self) -> bool:
        """Whether no run of the stage may follow."""
        return self._observer.done >= self._observer.end or self._is_spent()

    def _widened(self) -> Callable[[], None]:
        undo = widen([self.objective, self.validation])
        self._resolve()
        self._float64_from = self._iterations
        if self._state is not None and not self._state.is_sound:
            # Of a start that float32 could not evaluate.
            self._attach(None)
        return undo

    def _run_once(
        self, stage: Stage, theta: Vector | None, is_first: bool
    ) -> Outcome:
        """One run of a solver."""
        self._has_begun, self.followed = False, None
        objective, observer = self.objective, self._observer
        objective.refresh()
        if self.validation is not None:
            self.validation.refresh()
        problem = self._problem = self._new_problem()
        start = objective.initial_position()
        begins = problem.project(start if theta is None else theta)
        is_checked = is_first and not objective.has_own_derivatives
        if is_checked and stage.uses_hessian:
            check_hessian_products(objective, begins, problem.project)
        observer.run_begins(begins)
        run = self._run = Run(stage, problem, self)
        try:
            outcome = run(begins, self._state)
            self._attach(run.state)
            observer.run_ended(outcome)
        except BaseException:
            self._attach(run.state)
            if run.iterations:
                self.write(run.best[0])
            raise
        self._counts, self._iterations = self.counts, self.iterations
        self._run = self._problem = None
        return self._left(outcome, problem, problem.project(start))

    def _left(
        self, outcome: Outcome, problem: Problem, start: Vector | None
    ) -> Outcome:
        """The outcome, after its point or a callback's is in the variables."""
        latest = self._observer.latest()
        if self.followed is not None:
            if self._state is not None:
                # The solver's own point is not what callbacks leave.
                self._state.position = None
            loss = np.nan
            if self._is_over() or outcome.status == statuses.INTERRUPTED:
                loss = problem.peek(self.followed)
            outcome = taken_over(outcome, self.followed, loss)
        elif latest is not None:
            outcome.theta, outcome.loss = latest
        else:
            self.write(outcome.theta)
            # A feasible point may be worth a higher loss.
            start = None if problem.constraints else start
            return settled(outcome, self.objective, problem, start)
        return settled(outcome, self.objective, problem)

    def _new_problem(self) -> Problem:
        observer, objective = self._observer, self.objective
        following = [r.next_after(observer.done) for r in self._resamplers]
        self._end = min([observer.end, *following])
        left = (self._end - observer.done) * observer.steps
        budget = self._budget.without(self._counts.evaluations)
        self._raised.earlier = self._counts.evaluations
        return Problem(
            objective,
            lower=self._box[0],
            upper=self._box[1],
            constraints=self._constraints,
            epsilon=objective.epsilon,
            rounding=objective.rounding,
            budget=budget._replace(iterations=left),
            stride=observer.stride,
            on_evaluation=self._loss_callback,
            raised=self._raised,
        )

    def _prepare(self, stages: Sequence[Stage]) -> None:
        """Makes the objectives for the variables as they are.

        Args:
            stages: those that are to be checked now.
        """
        with self._within_bounds():
            self.objective, self.validation = self._make_objectives()
            packing = self.objective.program.packing
            self._box = resolve_bounds(
                self._given_bounds, packing, self._frozen()
            )
            self._resolve()
            for stage in stages:
                types = [c.type for c in self._constraints]
                is_bounded = self._box[0] is not None
                stage.check(self.objective.size, is_bounded, types)
                if stage.uses_jacobian:
                    self.objective.gauss_newton()

    def _resolve(self) -> None:
        self._constraints = resolved(self.objective, self._given_constraints)
