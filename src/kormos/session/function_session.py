"""Runs an optimizer on functions of free variables."""

import time

import numpy as np

from kormos.objective.bounds import resolve_bounds
from kormos.objective.start_checks import check_hessian_products
from kormos.objective.start_checks import warn_of_unused_variables
from kormos.session.float64_tail import goes_on_wider
from kormos.session.float64_tail import resolved
from kormos.session.float64_tail import settled
from kormos.session.float64_tail import warn_of_staying
from kormos.session.float64_tail import widen
from kormos.session.resample import Resample
from kormos.session.run import ConvergenceWarning
from kormos.session.run import Run
from kormos.session.run import describe
from kormos.session.run import followed
from kormos.session.run import is_known
from kormos.session.run import is_worth_a_warning
from kormos.session.run import row
from kormos.session.run import taken_over
from kormos.solvers import statuses
from kormos.solvers.problem import Problem
from kormos.solvers.rejections import Raised
from kormos.solvers.rejections import or_else
from kormos.warn import warn

DEFAULT_ITERATIONS = 1000

# Iterations in one compiled call of the methods that can.
_STRIDE = 50


def the_stage(name, optimizer, max_iterations, **settings):
    """The one stage of an optimizer."""
    if max_iterations is None:
        max_iterations = optimizer.epochs
    if max_iterations is None:
        max_iterations = DEFAULT_ITERATIONS
    stages = optimizer.stages(max_iterations, **settings)
    if len(stages) != 1 or stages[0].pretrain_fn is not None:
        raise ValueError(
            f"`kormos.{name}` runs one stage without `pretrain_fn`; call it "
            f"once a stage. Received: {len(stages)} stages"
        )
    if stages[0].uses_batches:
        raise ValueError(
            f"`kormos.{name}` takes its steps on all of the data. "
            "Received: an optimizer with stochastic=True"
        )
    return stages[0]


class Solve:
    """One minimization: a run, or several with other data in between.

    Args:
        objective: a `FlatObjective`.
        optimizer: the `BatchOptimizer`.
        stage: its `Stage`.
        budget: the `Budget`, its deadline in seconds from the start.
        bounds: as `BatchOptimizer` takes them.
        constraints: likewise.
        callbacks: list of functions `(iteration, logs)` and `Resample`s.
        loss_callback: function of the loss, called after each evaluation.
        validation: a `FlatObjective` whose loss is recorded too, or `None`.
        resume: whether to go on with what the optimizer knows.
        is_quiet: whether not to warn of how the run ends.
        own_limit: whether the user chose the number of iterations himself.
    """

    def __init__(
        self,
        objective,
        optimizer,
        stage,
        budget,
        bounds=None,
        constraints=None,
        callbacks=(),
        loss_callback=None,
        validation=None,
        resume=False,
        is_quiet=False,
        own_limit=True,
    ):
        self._objective = objective
        self._optimizer = optimizer
        self._stage = stage
        self._budget = budget
        self._loss_callback = loss_callback
        self._validation = validation
        self._resume = resume
        self._is_quiet = is_quiet
        self._own_limit = own_limit
        callbacks = _check_callbacks(callbacks, objective)
        self._resamplers = [c for c in callbacks if isinstance(c, Resample)]
        self._callbacks = [c for c in callbacks if c not in self._resamplers]
        packing = objective.program.packing
        self._box = resolve_bounds(
            optimizer.bounds if bounds is None else bounds, packing
        )
        self._given_constraints = (
            optimizer.constraints if constraints is None else constraints
        )
        self._resolve()
        stage.check(
            objective.size,
            self._box[0] is not None,
            [c.type for c in self._constraints],
        )
        if stage.uses_jacobian:
            objective.gauss_newton()
        self._blocks = list(getattr(objective, "names", ()))
        names = ("loss", "grad", "fg_evals", "hessp_evals", "seconds")
        self.history = {name: [] for name in names}
        self._evaluations = self._products = 0
        self._initial_loss = None
        self._float64_from = None
        self._raised = Raised()
        self._stopped = False

    def __call__(self):
        """Runs, and returns the `Result`."""
        objective, optimizer = self._objective, self._optimizer
        self._begun = time.perf_counter()
        self._budget = self._budget.started(self._begun)
        theta = narrow = undo = None
        while True:
            done = self._iterations
            try:
                outcome = self._run(theta)
            except Exception as error:
                if undo is None or self._has_begun:
                    raise
                undo()
                self._resolve()
                self._float64_from = None
                warn_of_staying(error)
                outcome = narrow
                break
            theta = undo = None
            if outcome.raw is not None:
                optimizer.results = [outcome.raw]
            if self._iterations == self._stage.epochs:
                break
            if self._stopped:
                break
            spent = self._budget.spent(self._evaluations)
            if goes_on_wider(outcome, objective, spent):
                theta = outcome.theta
                try:
                    narrow, undo = outcome, self._widen()
                except KeyboardInterrupt:
                    # Compiling takes seconds.
                    outcome.status = statuses.INTERRUPTED
                    break
                except Exception as error:
                    warn_of_staying(error)
                    break
                continue
            is_final = outcome.status in statuses.FINAL
            is_other = self._followed is not None
            if is_final or (self._iterations == done and not is_other):
                break
            # What has converged on some points goes on with others.
            due = [
                resampler
                for resampler in self._resamplers
                if outcome.status or resampler.is_due(self._iterations)
            ]
            if spent or not (due or is_other):
                outcome.status = outcome.status or spent
                break
            if is_other:
                theta = outcome.theta
            for resampler in due:
                resampler.replace(objective)
            self._resume = True
            if optimizer.solver_state is not None:
                optimizer.solver_state.forget_loss()
        if self._followed is not None:
            outcome.loss = self._problem.peek(outcome.theta)
            outcome = settled(outcome, objective, self._problem)
        if outcome.status is None:
            outcome.status = (
                statuses.STOPPED_BY_CALLBACK
                if self._stopped
                else statuses.ITERATION_LIMIT
            )
        result = describe(
            outcome,
            self._initial_loss,
            self._iterations,
            self._evaluations,
            self._products,
            time.perf_counter() - self._begun,
            self._float64_from,
        )
        result.history = self.history
        is_due = is_worth_a_warning(result, self._own_limit)
        if is_due and not self._is_quiet:
            warn(str(result), ConvergenceWarning)
        return result

    @property
    def _iterations(self):
        return len(self.history["loss"])

    def _widen(self):
        undo = widen([self._objective, self._validation], self._optimizer)
        self._resolve()
        self._float64_from = self._iterations
        self._resume = True
        return undo

    def _resolve(self):
        self._constraints = resolved(self._objective, self._given_constraints)

    def _run(self, theta=None):
        """One run, on the data as they are."""
        self._has_begun = False
        objective, stage = self._objective, self._stage
        problem = self._problem = self._new_problem()
        start = objective.initial_position()
        theta = problem.project(start if theta is None else theta)
        if self._initial_loss is None and stage.uses_hessian:
            check_hessian_products(objective, theta, problem.project)
        run = Run(stage, problem, self._start, self._iterate)
        self._followed = None
        try:
            outcome = run(theta)
        except BaseException:
            objective.assign(run.best[0])
            raise
        if self._followed is not None:
            outcome = taken_over(outcome, self._followed, np.nan)
        else:
            objective.assign(outcome.theta)
            # A feasible point may be worth a higher loss.
            start = None if problem.constraints else problem.project(start)
            outcome = settled(outcome, objective, problem, start)
        if self._optimizer.solver_state is not None:
            # The solver's own point is not what callbacks leave.
            is_own = self._followed is None
            position = outcome.theta if is_own else None
            self._optimizer.solver_state.position = position
        self._evaluations += problem.fg_evals
        self._products += problem.hessp_evals
        return outcome

    def _new_problem(self):
        self._end = min(
            [
                self._stage.epochs,
                *(r.next_after(self._iterations) for r in self._resamplers),
            ]
        )
        budget = self._budget.without(self._evaluations)
        budget = budget._replace(iterations=self._end - self._iterations)
        self._raised.earlier = self._evaluations
        # A callback looks at every iterate, as blocks' losses do.
        looks = self._callbacks or self._blocks[1:] or self._validation
        return Problem(
            self._objective,
            *self._box,
            constraints=self._constraints,
            epsilon=self._objective.epsilon,
            rounding=self._objective.rounding,
            budget=budget,
            stride=1 if looks else _STRIDE,
            resume=self._resume,
            on_evaluation=self._loss_callback,
            raised=self._raised,
        )

    def _start(self, theta, loss, grad):
        self._has_begun = True
        if not is_known(self._initial_loss):
            self._initial_loss = loss
            project = self._problem.project
            warn_of_unused_variables(self._objective, theta, grad, project)
        return self._iterations >= self._end

    def _iterate(self, theta, loss, grad, **logs):
        problem = self._problem
        logs = row(
            loss,
            grad,
            self._evaluations + problem.fg_evals,
            self._products + problem.hessp_evals,
            {**logs, **self._looked(theta)},
        )
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)
        self.history["seconds"].append(time.perf_counter() - self._begun)
        iteration = self._iterations
        if self._callbacks or self._loss_callback:
            if self._callbacks:
                self._objective.assign(theta)
            before = self._objective.initial_position()
            answers = [fn(iteration, logs) for fn in self._callbacks]
            self._stopped = any(answers)
            self._followed = followed(
                self._objective, self._constraints, before, theta
            )
            if self._followed is not None and self._validation is not None:
                self._validation.refresh()
        is_other = self._followed is not None
        return self._stopped or is_other or iteration >= self._end

    def _looked(self, theta):
        """The losses of blocks and of held-out data at an iterate."""
        found = {}
        if self._blocks[1:]:
            losses = self._block_losses(self._objective, theta)
            found.update({f"{k}_loss": v for k, v in losses.items()})
        if self._validation is not None:
            value = self._validation.value
            found["val_loss"] = or_else(np.nan, value, theta)
            if self._blocks[1:]:
                losses = self._block_losses(self._validation, theta)
                found.update({f"val_{k}_loss": v for k, v in losses.items()})
        return found

    def _block_losses(self, objective, theta):
        instead = dict.fromkeys(self._blocks, np.nan)
        return or_else(instead, objective.block_losses, theta)


def _check_callbacks(callbacks, objective):
    if not isinstance(callbacks, (list, tuple)):
        raise ValueError(
            "Argument `callbacks` must be a list. "
            f"Received: callbacks={callbacks!r}"
        )
    for callback in callbacks:
        if isinstance(callback, Resample):
            callback.check(objective)
        elif not callable(callback):
            raise ValueError(
                "Argument `callbacks` must be a list of functions "
                "`(iteration, logs)` and `kormos.callbacks.Resample`s. "
                f"Received: {callback!r}"
            )
    return callbacks
