"""The loop of a fit.

Separation of concerns: this file knows Keras (callbacks, History, validation)
and no mathematics. The objective knows the model and its loss, the optimizer
knows vectors. They meet once an accepted iteration, here: nothing else writes
weights, validates, calls callbacks or says stop.
"""

import contextlib
import dataclasses
import time

import keras
import numpy as np

from kormos.objective.bounds import moved_into_bounds
from kormos.objective.bounds import resolve_bounds
from kormos.objective.keras_model.program_cache import is_built
from kormos.objective.start_checks import check_hessian_products
from kormos.objective.start_checks import warn_of_unused_variables
from kormos.session.float64_tail import goes_on_wider
from kormos.session.float64_tail import resolved
from kormos.session.float64_tail import settled
from kormos.session.float64_tail import warn_of_staying
from kormos.session.float64_tail import widen
from kormos.session.progress import Progress
from kormos.session.run import ConvergenceWarning
from kormos.session.run import Run
from kormos.session.run import describe
from kormos.session.run import followed
from kormos.session.run import is_known
from kormos.session.run import is_worth_a_warning
from kormos.session.run import row
from kormos.session.run import taken_over
from kormos.solvers import statuses
from kormos.solvers.budget import UNLIMITED
from kormos.solvers.problem import Problem
from kormos.solvers.rejections import Raised
from kormos.solvers.rejections import or_else
from kormos.warn import warn

_BATCH_HOOKS = (
    "on_batch_begin",
    "on_batch_end",
    "on_train_batch_begin",
    "on_train_batch_end",
)


class FitLoop:
    """One fit: the runs of an optimizer's stages, a row of History an epoch.

    Args:
        model: the model.
        optimizer: the `BatchOptimizer`.
        make_objectives: function that returns the `Objective`s of training
            and of validation (or `None`) for the model as it is.
        bounds: as `BatchOptimizer` takes them.
        constraints: likewise.
        steps_per_epoch: accepted iterations to an epoch.
        validation_freq: validate every so many epochs, or in a list of
            epochs, counted from 1.
        budget: the `Budget` of the whole fit, its deadline in seconds from
            the start.
        resume: whether to go on with what the optimizer knows of an earlier
            fit.
        own_limit: whether the user chose the number of epochs himself.
    """

    def __init__(
        self,
        model,
        optimizer,
        make_objectives,
        bounds,
        constraints,
        steps_per_epoch,
        validation_freq,
        budget=UNLIMITED,
        resume=False,
        own_limit=True,
    ):
        self._model = model
        self._optimizer = optimizer
        self._make_objectives = make_objectives
        self._bounds = bounds
        self._constraints = constraints
        self._steps_per_epoch = steps_per_epoch
        self._validation_freq = validation_freq
        self._budget = budget
        self._resume = resume
        self._own_limit = own_limit
        # Counts over the stages that are done.
        self._iterations = 0
        self._evaluations = 0
        self._hessian_products = 0
        self._initial_loss = None
        # The iteration at which the evaluation became wider.
        self._float64_from = None
        self._raised = Raised()
        self._logs = {}
        self._run = self._problem = None

    def run(self, stages, initial_epoch, callbacks, verbose):
        """Runs the stages and returns the History."""
        model, optimizer = self._model, self._optimizer
        self._prepare(stages, stages)
        last_epoch = sum(stage.epochs for stage in stages)
        optimizer.build(model.trainable_variables)
        optimizer.results = []
        model.stop_training = False
        # With nobody to look at them, weights are written at the end alone.
        self._observed = bool(callbacks)
        self._batch_hooks = any(_has_batch_hooks(c) for c in callbacks)
        verbose = 1 if verbose == "auto" else verbose
        shown = [Progress(last_epoch, verbose)] if verbose else []
        self._callbacks = keras.callbacks.CallbackList(
            [*shown, *callbacks],
            add_history=True,
            model=model,
            verbose=verbose,
            epochs=last_epoch,
            steps=self._steps_per_epoch,
        )
        history = model.history
        history.iteration, history.seconds, history.val_epoch = [], [], []
        history.iterations = {}
        loads = optimizer.loads
        # `BackupAndRestore` restores weights, state and epoch here: they are
        # read after it, and the epoch would else return in the next fit.
        self._callbacks.on_train_begin()
        self._epoch = getattr(model, "_initial_epoch", None) or initial_epoch
        model._initial_epoch = None
        self._resume = self._resume or optimizer.loads > loads
        self._earlier_iterations = int(
            keras.ops.convert_to_numpy(optimizer.iterations)
        )
        self._start_time = time.perf_counter()
        self._budget = self._budget.started(self._start_time)
        has_epochs = self._epoch < last_epoch
        self._epoch_is_open = self._batch_is_open = False
        if has_epochs:
            self._begin_epoch()
        outcome = self._run_stages(stages)
        result = describe(
            outcome,
            self._initial_loss,
            self._iterations,
            self._evaluations,
            self._hessian_products,
            time.perf_counter() - self._start_time,
            self._float64_from,
        )
        history.result = result
        optimizer.fg_evals = self._evaluations
        optimizer.hessp_evals = self._hessian_products
        self._callbacks.on_train_end(self._logs)
        if has_epochs and is_worth_a_warning(result, self._own_limit):
            warn(f"{model.name}: {result}", ConvergenceWarning)
        return history

    def _run_stages(self, stages):
        planned = 0
        for stage in stages:
            planned += stage.epochs
            if self._epoch >= planned and stage is not stages[-1]:
                continue  # A resumed fit has this stage behind it.
            # An earlier stage may have converged before its last epoch.
            self._end = min(planned, self._epoch + stage.epochs)
            if stage.pretrain_fn is not None:
                stage.pretrain_fn(self._model)
                # It may have frozen, thawed or assigned variables.
                self._prepare(stages, [stage])
            outcome = self._run_to_end(stage)
            if outcome.raw is not None:
                self._optimizer.results.append(outcome.raw)
            if self._model.stop_training or outcome.status in statuses.FINAL:
                break
            if self._budget.spent(self._evaluations):
                break
        if self._epoch_is_open:
            # A fit without an iteration has a row for where it stands.
            self._end_epoch()
        return outcome

    def _run_to_end(self, stage):
        """The runs of a stage: another follows where the loss has changed."""
        theta = narrow = undo = None
        while True:
            try:
                outcome = self._run_stage(stage, theta)
            except Exception as error:
                if undo is None or self._has_begun:
                    raise
                undo()
                self._resolve()
                self._float64_from = self._run = self._problem = None
                warn_of_staying(error)
                return narrow
            theta, undo = outcome.theta, None
            if self._is_over() or outcome.status == statuses.INTERRUPTED:
                return outcome
            if self._followed is not None:
                state = self._optimizer.solver_state
                if state is not None:
                    state.forget_loss()
            elif goes_on_wider(outcome, self._objective, None):
                try:
                    narrow, undo = outcome, self._widen()
                except KeyboardInterrupt:
                    # Compiling takes seconds.
                    return dataclasses.replace(
                        outcome, status=statuses.INTERRUPTED
                    )
                except Exception as error:
                    warn_of_staying(error)
                    return outcome
            else:
                return outcome
            self._resume = True

    def _is_over(self):
        """Whether no run of the stage may follow."""
        return (
            self._epoch >= self._end
            or self._model.stop_training
            or self._budget.spent(self._evaluations) is not None
        )

    def _widen(self):
        undo = widen([self._objective, self._validation], self._optimizer)
        self._resolve()
        self._float64_from = self._iterations
        return undo

    def _run_stage(self, stage, theta=None):
        self._has_begun = False
        objective = self._objective
        objective.refresh()
        if self._validation is not None:
            self._validation.refresh()
        problem = self._problem = self._new_problem()
        start = objective.initial_position()
        theta = problem.project(start if theta is None else theta)
        if stage.uses_hessian:
            check_hessian_products(objective, theta, problem.project)
        self._steps, self._followed = 0, None
        self._latest, self._counts = (theta, np.nan, None), None
        self._standing = theta
        run = self._run = Run(stage, problem, self._start, self._iterate)
        try:
            outcome = run(theta)
            if self._latest[0] is None:
                # An interrupt among the iterates of a compiled call.
                self._latest = outcome.theta, outcome.loss, None
                self._counts = {
                    **self._counts,
                    "loss": float(outcome.loss),
                    "grad": np.nan,
                }
            if self._steps:
                self._end_epoch()
        except BaseException:
            if run.iterations:
                self._write(run.best[0])
            raise
        self._iterations += run.iterations
        self._evaluations += problem.fg_evals
        self._hessian_products += problem.hessp_evals
        self._run = self._problem = None
        self._resume = False
        if self._followed is not None:
            if self._optimizer.solver_state is not None:
                # The solver's own point is not what callbacks leave.
                self._optimizer.solver_state.position = None
            theta, loss = self._followed, np.nan
            if self._is_over():
                loss = problem.peek(theta)
                self._latest, self._counts = (theta, loss, None), None
            outcome = taken_over(outcome, theta, loss)
            outcome = settled(outcome, objective, problem)
        elif self._observed and self._model.stop_training:
            # A callback that stops a fit may set weights itself.
            outcome.theta, outcome.loss, _ = self._latest
            outcome = settled(outcome, objective, problem)
        else:
            self._write(outcome.theta)
            # A feasible point may be worth a higher loss.
            start = None if problem.constraints else problem.project(start)
            outcome = settled(outcome, objective, problem, start)
        if outcome.status is None:
            outcome.status = (
                statuses.STOPPED_BY_CALLBACK
                if self._model.stop_training
                else statuses.ITERATION_LIMIT
            )
        return outcome

    def _start(self, theta, loss, grad):
        """Told where a run starts; returns whether to stop there."""
        self._has_begun = True
        if not is_known(self._initial_loss):
            self._initial_loss = loss
            warn_of_unused_variables(
                self._objective, theta, grad, self._problem.project
            )
        self._latest = theta, loss, grad
        return self._epoch >= self._end

    def _iterate(self, theta, loss, grad, **logs):
        """Told of every accepted iterate; returns whether to stop."""
        self._steps += 1
        self._latest = theta, loss, grad
        self._counts = self._counted(loss, grad, logs)
        if not self._epoch_is_open:
            # The optimizer owns its loop: whether there is another iterate is
            # known only when it comes.
            before = self._present()
            self._begin_epoch()
            self._follow(before, self._standing)
            if self._followed is not None:
                # The epoch is to begin with what was set now.
                self._steps = 0
                self._run.iterations -= 1
                return True
        iterations = self._model.history.iterations
        for name, value in self._counts.items():
            iterations.setdefault(name, []).append(value)
        if self._steps == self._steps_per_epoch:
            self._end_epoch()
        is_other = self._followed is not None
        return is_other or self._epoch >= self._end or self._model.stop_training

    def _present(self):
        """The present weights, or `None` where there are no callbacks."""
        return self._objective.initial_position() if self._observed else None

    def _follow(self, before, theta):
        """Notes what callbacks have assigned, if that changes anything."""
        if before is not None:
            self._followed = followed(
                self._objective, self._resolved, before, theta
            )

    def _begin_epoch(self):
        # Before the hooks: after an interrupt in one, none is called twice.
        self._epoch_is_open = True
        self._callbacks.on_epoch_begin(self._epoch)
        if self._batch_hooks:
            self._callbacks.on_train_batch_begin(0)
            self._batch_is_open = True

    def _end_epoch(self):
        """Writes weights, validates, and tells the callbacks."""
        theta, loss, grad = self._latest
        if self._observed:
            self._write(theta)
        self._standing, before = theta, self._present()
        logs = self._logs = self._row(theta, loss, grad)
        if self._batch_is_open:
            self._batch_is_open = False
            self._callbacks.on_train_batch_end(0, {"loss": logs["loss"]})
        self._steps = 0
        self._epoch_is_open = False
        history, epoch = self._model.history, self._epoch
        self._epoch += 1
        history.iteration.append(self._done_iterations())
        history.seconds.append(time.perf_counter() - self._start_time)
        if any(name.startswith("val_") for name in logs):
            history.val_epoch.append(epoch)
        try:
            self._callbacks.on_epoch_end(epoch, logs)
        except BaseException:
            # The History, which the user has, comes after the callbacks.
            if epoch not in history.epoch:
                history.on_epoch_end(epoch, logs)
            raise
        self._follow(before, theta)

    def _counted(self, loss, grad, logs):
        problem, evaluations, products = self._problem, 0, 0
        if problem is not None:
            evaluations, products = problem.fg_evals, problem.hessp_evals
        return row(
            loss,
            grad,
            self._evaluations + evaluations,
            self._hessian_products + products,
            logs,
        )

    def _row(self, theta, loss, grad):
        logs = dict(self._counts or self._counted(loss, grad, {}))
        if self._objective.has_metrics:
            metrics = _evaluated(self._objective, theta)
            logs.update({k: v for k, v in metrics.items() if k != "loss"})
        if self._validation is not None and self._validates():
            values = _evaluated(self._validation, theta)
            logs.update({f"val_{k}": v for k, v in values.items()})
        return logs

    def _write(self, theta):
        self._objective.assign(theta)
        if self._validation is not None:
            # In training, averages of layers are assigned too.
            self._validation.refresh()
        if self._optimizer.solver_state is not None:
            self._optimizer.solver_state.position = theta
        self._optimizer.iterations.assign(
            self._earlier_iterations + self._done_iterations()
        )

    def _done_iterations(self):
        running = 0 if self._run is None else self._run.iterations
        return self._iterations + running

    def _validates(self):
        every = self._validation_freq
        if isinstance(every, (int, np.integer)):
            return (self._epoch + 1) % every == 0
        return self._epoch + 1 in every

    def _prepare(self, stages, present):
        """Makes the objectives for the model as it is.

        Args:
            stages: all stages of the fit.
            present: those that are to be checked now.
        """
        model = self._model
        # Stages may freeze and thaw layers.
        staged = any(stage.pretrain_fn is not None for stage in stages)
        frozen = model.non_trainable_variables if staged else ()
        scope = contextlib.nullcontext()
        if is_built(model):
            variables = model.trainable_variables
            scope = moved_into_bounds(variables, self._bounds, frozen)
        with scope:
            self._objective, self._validation = self._make_objectives()
            packing = self._objective.program.packing
            self._box = resolve_bounds(self._bounds, packing, frozen)
            self._resolve()
            for stage in present:
                self._check(stage)

    def _resolve(self):
        self._resolved = resolved(self._objective, self._constraints)

    def _new_problem(self):
        self._raised.earlier = self._evaluations
        return Problem(
            self._objective,
            *self._box,
            constraints=self._resolved,
            epsilon=self._objective.epsilon,
            rounding=self._objective.rounding,
            budget=self._budget.without(self._evaluations),
            stride=self._steps_per_epoch,
            resume=self._resume,
            raised=self._raised,
        )

    def _check(self, stage):
        lower, _ = self._box
        types = [c.type for c in self._resolved]
        stage.check(self._objective.size, lower is not None, types)
        if stage.uses_jacobian:
            self._objective.gauss_newton()


def _evaluated(objective, theta):
    """The loss and the metrics, NaN where the numerics fail."""
    names = ["loss", *objective.metric_names]
    instead = dict.fromkeys(names, np.nan)
    return or_else(instead, objective.evaluate, theta)


def _has_batch_hooks(callback):
    # An instance may have its own, as a `LambdaCallback` has.
    return any(
        getattr(getattr(callback, hook), "__func__", None)
        is not getattr(keras.callbacks.Callback, hook)
        for hook in _BATCH_HOOKS
    )
