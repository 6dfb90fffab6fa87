"""Finds a step that lowers the loss, from a model of it at a point."""

from typing import NamedTuple

import numpy as np

from kormos.arithmetic.vectors import norm
from kormos.solvers import statuses
from kormos.solvers.least_squares.local_models import Linearized
from kormos.solvers.least_squares.local_models import LocalModels
from kormos.solvers.least_squares.secant_term import SecantTerm
from kormos.solvers.least_squares.spectrum import Step
from kormos.solvers.least_squares.trust_radius import Multiplicative
from kormos.solvers.least_squares.trust_radius import TrustRadius
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Damping
from kormos.solvers.protocols import LeastSquaresSettings
from kormos.types import Vector

# The acceleration may be this part of a step, in the scaled norm. A larger one
# means that the outputs bend too much along the step. The value is that of
# Transtrum and Sethna (2012, arXiv:1201.5885).
_MOST_BENT = 0.75
# How often an iteration shortens its step because of that, without a trial. Our
# choice: each time costs a second derivative, and a trial tells more.
_MOST_BENT_STEPS = 2
# Outputs count as linear if the acceleration is at most this part of the step.
# Our choice: a larger one would let a first step go far beyond its model.
_LINEAR = 1e-6

# A step is accepted if more than this part of the predicted decrease comes
# true, as in MINPACK's `lmder`.
_LEAST_RATIO = 1e-4
# A first step that does not halve the loss is too long if the longest column of
# J has changed by more than this factor. Our choice: with a milder factor runs
# end where sigmoid units are saturated, and a stricter one costs trials.
_ALIKE = 0.1
# A trial whose loss is at least this many times the present one is followed by
# a much shorter step. `lmder` does so where residuals have grown tenfold.
_WILD_LOSS = 100.0


class Found(NamedTuple):
    """A point where the loss is lower.

    Attributes:
        here: what is known at the point.
        length: the 2-norm of the step to it.
        trials: how many points were tried.
    """

    here: Linearized
    length: float
    trials: int


class StepSearch:
    """Tries damped Gauss-Newton steps until one lowers the loss.

    Args:
        problem: the `Problem`.
        models: makes models of the loss.
        settings: the `LevenbergMarquardt`.
        damping: the damping of the latest step of an earlier run, or zero.
        radius: the trust radius of an earlier run, or zero.
        term: the secant term of an earlier run, or an unknown one.

    Attributes:
        control: the `Damping`, which decides how far steps go.
        term: what the steps so far tell about the rest of the Hessian.
        non_finite: the number of points so far with a lower loss where
            derivatives were not finite.
    """

    def __init__(
        self,
        problem: Problem,
        models: LocalModels,
        settings: LeastSquaresSettings,
        damping: float,
        radius: float,
        term: SecantTerm,
    ):
        self._problem = problem
        self._models = models
        self._preset = settings.preset
        self._accelerates = settings.acceleration and models.can_bend
        self.control = self._new_control(damping, radius)
        self.term = term
        self.non_finite = 0

    def begin(self, here: Linearized) -> None:
        """Begins at a point, with what is known of an earlier run."""
        self.control.begin(here.model, here.theta, here.loss)

    def begin_anew(self, here: Linearized) -> None:
        """Begins at a point, without what is known so far."""
        self.control = self._new_control(damping=0.0, radius=0.0)
        self.term = SecantTerm.unknown(len(self.term.matrix))
        self.begin(here)

    def trust_linear_outputs(self, here: Linearized) -> None:
        """Makes the whole first step where outputs are linear."""
        if not self._accelerates:
            return
        step = here.model.damped(0.0)
        if step.length > self.control.radius:
            bend = self._bend(here, step)
            if bend is None:
                return
            if here.model.scaled(bend) <= _LINEAR * step.length:
                self.control.radius = step.length

    def __call__(self, here: Linearized, is_trial: bool = False) -> Found | str:
        """A step from a point.

        Args:
            here: what is known at the point.
            is_trial: whether the run tries an end. Steps of all sizes are then
                to be tried in few evaluations.

        Returns:
            A `Found`, or a status where no step lowers the loss.
        """
        problem, control, bent, trials = self._problem, self.control, 0, 0
        model = self.term.model(here, problem.evaluation_eps)
        while True:
            step = control.step(model)
            vector = step.vector
            # The acceleration is that of a Gauss-Newton step.
            if self._accelerates and model is here.model:
                vector, is_bent = self._accelerated(here, step)
                if is_bent and bent < _MOST_BENT_STEPS:
                    bent += 1
                    control.shorten(step)
                    continue
            theta = problem.project(here.theta + vector)
            loss = problem.value(theta)
            trials += 1
            gain = here.loss - loss
            ratio = gain / step.promised if step.promised > 0 else 0.0
            if gain > 0 and (ratio > _LEAST_RATIO or problem.is_bounded):
                before = self._models.norms
                there = self._models.at(theta, loss)
                if there and not self._is_far(before, here, there):
                    control.accept(step, ratio)
                    self.term = self.term.after(here, there)
                    length = float(norm(theta - here.theta))
                    return Found(there, length, trials)
                # No step can be computed there.
                self._models.norms = before
                self.non_finite += there is None
                loss = np.inf
            if step.promised <= self._rounding(here):
                return statuses.NOISE_FLOOR
            is_wild = is_trial or not loss < _WILD_LOSS * here.loss
            control.reject(step, is_wild)
            if control.is_exhausted:
                return statuses.LINE_SEARCH_FAILED
            spent = problem.spent()
            if spent is not None:
                return spent

    def _is_far(
        self, before: Vector, here: Linearized, there: Linearized
    ) -> bool:
        """Whether a first step with a guessed radius went too far.

        A start where units are nearly saturated looks like one whose parameters
        are far too small. The first step is then so long that all units
        saturate, and the run would end there, on a plateau.

        Args:
            before: the norms of the columns of J at the start.
            here: what is known at the start.
            there: what is known after the step.
        """
        if not self.control.is_guess or there.loss <= here.loss / 2:
            return False
        share = self._models.norms.max() / before.max()
        return not _ALIKE <= share <= 1 / _ALIKE

    def _new_control(self, damping: float, radius: float) -> Damping:
        if self._preset == "matlab":
            # `trainlm` adds mu to J'J of the errors; the matrix here is that
            # of their mean square.
            return Multiplicative(damping, 2 / self._models.outputs)
        return TrustRadius(radius, damping)

    def _rounding(self, here: Linearized) -> float:
        """The rounding of the loss, as far as its dtype explains it."""
        evaluation_eps = self._problem.evaluation_eps
        moved = evaluation_eps * here.model.scaled(here.theta)
        return evaluation_eps * abs(here.loss) + moved**2 / 2

    def _accelerated(self, here: Linearized, step: Step) -> tuple[Vector, bool]:
        """The step plus half its acceleration, and whether it is too large."""
        bend = self._bend(here, step)
        if bend is None or (here.model.scaled(bend) > _MOST_BENT * step.length):
            return step.vector, True
        return step.vector + bend / 2, False

    def _bend(self, here: Linearized, step: Step) -> Vector | None:
        """The acceleration along a step, or `None` if it is not finite."""
        return self._models.acceleration(here, step.vector, step.damping)
