"""Runs the quasi-Newton methods, compiled on the device."""

import functools
import math
import time

import numpy as np
from keras import ops

from kormos import backend
from kormos.backend.common import as_tensor
from kormos.numerics import stopping
from kormos.numerics.stopping import Outcome
from kormos.numerics.vectors import to_array
from kormos.optimizers import quasi_newton
from kormos.optimizers import quasi_newton_state as states
from kormos.optimizers.native import FINE
from kormos.optimizers.native import NativeOptimizer
from kormos.optimizers.packed import on_host
from kormos.optimizers.packed import pack
from kormos.optimizers.packed import skeleton
from kormos.optimizers.packed import unpack
from kormos.optimizers.solver_state import SolverState

_NO_LIMIT = 2**31 - 1

_PROMISE = "relative decrease that the curvature promises"
_SLOPE = "relative decrease that the slope promises"

_STATUS = {
    states.GRADIENT: (stopping.CONVERGED, "gtol"),
    states.DECREASE: (stopping.CONVERGED, "ftol"),
    states.STEP: (stopping.CONVERGED, "xtol"),
    states.SETTLED: (stopping.CONVERGED, _PROMISE),
    states.NOISE: (stopping.NOISE_FLOOR, _PROMISE),
    states.FLOOR: (stopping.NOISE_FLOOR, _SLOPE),
    states.TARGET: (None, None),
    states.LINE_SEARCH: (stopping.LINE_SEARCH_FAILED, None),
    states.NON_FINITE: (stopping.NON_FINITE, None),
}


class QuasiNewton(NativeOptimizer):
    """Base class of the quasi-Newton methods that kormos compiles itself.

    The whole iteration runs on the device, `steps_per_epoch` of them in one
    call, in float64 but for the model. Every test is relative: the loss times
    a constant takes the same steps and stops alike.

    Args:
        name: name of the optimizer.
        epochs: the number of epochs when `fit` is not told. Defaults to 20.
        batch_size: the most rows in memory at once when `fit` is not told.
        pretrain_fn: function of the model, called before the fit starts.
        gtol: converged when the largest entry of the gradient is so small a
            part of its value at the start, and the decrease of the loss that
            the curvature promises so small a part, squared, of the loss.
            Defaults to 1e-9.
        ftol: converged when ten iterations in a row do not lower the lowest
            loss by more than this part of it. Defaults to 1e-14; below the
            rounding of the loss the end is a noise floor.
        xtol: converged when a step is this part of the parameters' length.
            Defaults to 0, which is never.
    """

    def __init__(
        self,
        name,
        epochs=None,
        batch_size=None,
        pretrain_fn=None,
        gtol=1e-9,
        ftol=1e-14,
        xtol=0.0,
    ):
        super().__init__(
            name, epochs, batch_size, pretrain_fn, gtol, ftol, xtol
        )

    def method(self, size):
        """What `quasi_newton_state.init` calls a method of curvature.

        Args:
            size: the number of parameters.
        """
        raise NotImplementedError

    def check_size(self, size):
        """Raises a `ValueError` if there are too many parameters."""

    def get_config(self):
        config = super().get_config()
        del config["bounds"]
        return config

    def _check(self, size, bounded, constraint_types):
        if bounded:
            raise ValueError(
                f"Optimizer '{self.name}' takes no bounds (nor a `NonNeg` "
                "constraint, which is one). Use 'l-bfgs-b', 'tnc' or 'slsqp'. "
                f"Received: optimizer='{self.name}' with bounds"
            )
        super()._check(size, bounded, constraint_types)
        self.check_size(size)

    def _run(self, problem, theta, report):
        method = self.method(problem.size)
        state, earlier = states.init(method, theta, problem.stride), None
        if problem.resume and self.solver_state is not None:
            earlier = self.solver_state.restored(
                method.key, state, theta, problem.rounding
            )
            state = state if earlier is None else earlier
        packed, frame = pack(state), skeleton(state)
        advance, arguments_at = self._compiled(problem, method, frame)
        pace = _Pace(problem.budget.deadline)
        first = goal = int(state.iterations)
        stop, status = False, states.STARTING
        with backend.wide():
            while True:
                done, spent = int(state.iterations), int(state.evaluations)
                limits = self._limits(problem, goal, spent, pace)
                # An interrupt leaves a state that may be half changed.
                self.solver_state = None
                packed = advance(packed, *limits, *arguments_at(state))
                state = unpack(on_host(packed), frame)
                is_start, status = spent == 0, int(state.status)
                if is_start and earlier is not None:
                    state = _as_it_was(state, earlier, problem.epsilon)
                    packed = pack(state)
                self.solver_state = SolverState(method.key, state)
                pace.note(int(state.evaluations) - spent)
                if problem.on_evaluation is not None:
                    problem.on_evaluation(float(state.latest))
                if is_start:
                    stop = self._report_start(problem, state, report)
                else:
                    stop = self._report(problem, state, done, report)
                if stop or status != states.RUNNING or problem.spent():
                    break
                if int(state.iterations) == goal:
                    goal = _next_goal(problem, goal, first)
            outcome = Outcome(None, to_array(state.theta), float(state.loss))
            if not stop and status == states.RUNNING:
                outcome.status = problem.spent()
            elif not stop:
                self._explain(outcome, status, float(state.value), problem)
        return outcome

    def _compiled(self, problem, method, frame):
        """The loop, compiled once for an objective and a method.

        Returns:
            The function, and one of a state to what else it takes there.
        """
        key = method.key, problem.is_streamed
        if problem.is_streamed:
            # The loop stops where an evaluation is due, and is given it.
            value_and_grad = _as_given
            arguments_at = functools.partial(_evaluated, problem)
        else:
            value_and_grad, arguments = problem.traceable()

            def arguments_at(state):
                return arguments

        def advance(packed, tolerances, counts, *args):
            state = quasi_newton.advance(
                method,
                lambda theta: value_and_grad(theta, *args),
                states.Limits(
                    *(tolerances[i] for i in range(5)), counts[0], counts[1]
                ),
                unpack(packed, frame),
            )
            return pack(state)

        return problem.compiled_loop(key, advance), arguments_at

    def _limits(self, problem, iterations, spent, pace):
        """The `quasi_newton_state.Limits` of a call, as two vectors."""
        budget = problem.budget
        evaluations = [_NO_LIMIT, spent + pace.affordable()]
        if budget.evaluations is not None:
            evaluations.append(budget.evaluations)
        if problem.on_evaluation is not None or problem.is_streamed:
            evaluations.append(spent + 1)
        target = -np.inf if budget.target is None else budget.target
        tolerances = (self.gtol, self.ftol, self.xtol, problem.epsilon, target)
        counts = (min(evaluations), iterations)
        return np.array(tolerances), np.array(counts, "int32")

    def _report_start(self, problem, state, report):
        problem.fg_evals = int(state.evaluations)
        theta, grad = to_array(state.theta), to_array(state.grad)
        return report(theta, float(state.loss), grad)

    def _report(self, problem, state, done, report):
        """Reports the iterations of a call; the last one has its point."""
        count = int(state.iterations) - done
        rows = ops.convert_to_numpy(state.rows)[:count].tolist()
        stop = False
        for i, (loss, grad, step, evaluations, resets) in enumerate(rows):
            problem.fg_evals = int(evaluations)
            theta = to_array(state.theta) if i == count - 1 else None
            stop = stop or report(theta, loss, grad, step=step, resets=resets)
        problem.fg_evals = int(state.evaluations)
        return stop

    def _explain(self, outcome, status, value, problem):
        outcome.status, outcome.test = _STATUS[status]
        if outcome.test is None:
            return
        outcome.value = value
        outcome.threshold = {
            "gtol": self.gtol,
            "ftol": self.ftol,
            "xtol": self.xtol,
            _PROMISE: problem.epsilon,
            _SLOPE: problem.epsilon**0.25,
        }[outcome.test]
        is_coarse = problem.epsilon > FINE
        if status == states.SETTLED and is_coarse:
            outcome.status = stopping.NOISE_FLOOR
        if status == states.DECREASE and self.ftol < problem.epsilon:
            outcome.status = stopping.NOISE_FLOOR


def _as_it_was(state, earlier, noise):
    """The state of an earlier run to the bit, if its loss is the same.

    Another loss, of other data say, goes on with the curvature alone.
    """
    grad, change = to_array(state.grad), abs(state.loss - earlier.loss)
    moved = np.linalg.norm(grad - earlier.grad)
    is_same = (
        earlier.iterations > 0
        and change <= 100 * noise * abs(state.loss)
        and moved <= 1e-3 * np.linalg.norm(grad)
    )
    if not is_same:
        return state
    names = "loss", "grad", "direction", "search"
    return state._replace(**{name: getattr(earlier, name) for name in names})


def _as_given(theta, loss, grad):
    """An evaluation of `theta` that was made before."""
    del theta
    return loss, grad


def _evaluated(problem, state):
    """The loss and gradient that a state waits for, as tensors."""
    trial = quasi_newton.trial_of(state, state.status == states.STARTING)
    loss, grad = problem.evaluate(to_array(trial))
    return as_tensor(np.array(loss)), as_tensor(grad)


class _Pace:
    """How many evaluations fit into the time that is left.

    A compiled call cannot look at the clock; calls become shorter towards the
    deadline, and the last is of one evaluation.
    """

    def __init__(self, deadline):
        self._deadline = deadline
        self._began = 0.0
        self._seconds = math.inf
        self._calls = 0

    def affordable(self):
        if self._deadline is None:
            return _NO_LIMIT
        self._began = time.perf_counter()
        # The first call compiles: its time says nothing.
        if self._calls < 2:
            return 1
        left = self._deadline - self._began
        return max(1, int(min(left / (2 * self._seconds), _NO_LIMIT)))

    def note(self, evaluations):
        if self._deadline is not None:
            seconds = time.perf_counter() - self._began
            self._seconds = min(self._seconds, seconds / evaluations)
            self._calls += 1


def _next_goal(problem, goal, first):
    """The count of iterations after which to look again."""
    most = problem.budget.iterations
    if most is None:
        return goal + problem.stride
    return min(goal + problem.stride, first + most)
