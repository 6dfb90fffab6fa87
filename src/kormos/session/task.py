"""What a session minimizes: a loss, under bounds and constraints."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING
from typing import Any

import keras

from kormos.objective.base import FlatObjective
from kormos.objective.bounds import moved_into_bounds
from kormos.objective.bounds import resolve_bounds
from kormos.objective.fixed import with_fixed
from kormos.objective.keras_model.loss_weights import weighted
from kormos.objective.keras_model.model_checks import is_built
from kormos.optimizers.stage import LossSettings
from kormos.session.float64_tail import go_on_in_float64
from kormos.session.float64_tail import resolved
from kormos.solvers.budget import Budget
from kormos.solvers.problem import Constraint
from kormos.solvers.problem import Problem
from kormos.solvers.rejections import Raised
from kormos.types import Vector

if TYPE_CHECKING:
    from kormos.optimizers.base import BatchOptimizer
    from kormos.optimizers.stage import Stage

Objectives = tuple[FlatObjective, FlatObjective | None]


class Task:
    """What a session minimizes, over which variables and within what limits.

    Args:
        optimizer: the `BatchOptimizer`, whose bounds and constraints are the
            defaults.
        make_objectives: function of `LossSettings` that returns the
            objectives of training and of validation (or `None`) for the
            variables as they are.
        bounds: see `BatchOptimizer`.
        constraints: see `BatchOptimizer`.
        model: the model of a fit, which `pretrain_fn` is called with, or
            `None`. Its variables are moved into the bounds before the
            objectives are made. Without a model the caller does so.
        fixed: the parameters of the model that keep their values, in the form
            that `with_fixed` takes.

    Attributes:
        objective: the objective of training, once the task is prepared.
        validation: the objective of validation, or `None`.
        constraints: a list of `Constraint`s.
    """

    objective: FlatObjective
    validation: FlatObjective | None
    constraints: list[Constraint]

    def __init__(
        self,
        optimizer: BatchOptimizer,
        make_objectives: Callable[[LossSettings], Objectives],
        bounds: Any = None,
        constraints: Any = None,
        model: Any = None,
        fixed: Any = None,
    ):
        if constraints is None:
            constraints = optimizer.constraints
        self._make_objectives = make_objectives
        self._user_bounds = optimizer.bounds if bounds is None else bounds
        self._fixed = fixed
        self._given_constraints = constraints
        self._model = model
        self._given_bounds = self._bounds()
        self._settings = LossSettings()
        # Whether no session has used the objectives yet.
        self._are_new = False
        # A scope in which the model has the present stage's `loss_weights`.
        self._weighted = contextlib.ExitStack()

    def _bounds(self) -> Any:
        """The bounds, with those that hold parameters at present values."""
        if self._fixed is None:
            return self._user_bounds
        variables = self._model.trainable_variables
        return with_fixed(self._user_bounds, self._fixed, variables)

    def hold(self) -> None:
        """Holds fixed parameters at their present values, as of a backup."""
        if self._fixed is None:
            return
        self._given_bounds = self._bounds()
        packing = self.objective.program.packing
        # Bounds may name variables that another stage trains.
        frozen = self._model.non_trainable_variables
        self._box = resolve_bounds(self._given_bounds, packing, frozen)

    def prepare(self, stages: Sequence[Stage]) -> None:
        """Makes the objectives for the variables as they are.

        Args:
            stages: the stages to check now. The objectives of the first one are
                kept.

        Raises:
            ValueError: if the method of a stage cannot do the task.
        """
        frozen: Sequence[keras.Variable] = ()
        if any(stage.pretrain_fn is not None for stage in stages):
            # Bounds may name variables that another stage trains.
            frozen = self._model.non_trainable_variables
        with self._within_bounds(frozen):
            groups = _by_settings(stages) or [(LossSettings(), [])]
            for settings, group in reversed(groups):
                with self._with_weights(settings):
                    self._make(settings, frozen)
                    for stage in group:
                        self._check(stage)

    def prepare_choice(self) -> None:
        """Makes the objectives, for a choice of the stages.

        The session then takes them over if its stages have no other loss.
        """
        self.prepare([])
        self._are_new = True

    def _make(
        self, settings: LossSettings, frozen: Sequence[keras.Variable]
    ) -> None:
        if self._are_new and settings == self._settings:
            self._are_new = False
            return
        self._settings = settings
        self.objective, self.validation = self._make_objectives(settings)
        packing = self.objective.program.packing
        self._box = resolve_bounds(self._given_bounds, packing, frozen)
        self._resolve_constraints()

    def _check(self, stage: Stage) -> None:
        types = [c.type for c in self.constraints]
        stage.check(self.objective.size, self._box[0] is not None, types)
        if stage.uses_jacobian:
            if not stage.uses_batches:
                self.objective.cut_for_jacobians()
            self.objective.gauss_newton()

    def _with_weights(
        self, settings: LossSettings
    ) -> AbstractContextManager[None]:
        """A scope in which the model has the `loss_weights` of a stage."""
        if self._model is None or settings.loss_weights is None:
            return contextlib.nullcontext()
        return weighted(self._model, settings.loss_weights)

    def without_validation(self) -> Task:
        """The same task, prepared, for runs without validation."""
        task = copy.copy(self)
        made = [(self._settings, self.objective)]

        def make(settings: LossSettings) -> Objectives:
            for known, objective in made:
                if known == settings:
                    return objective, None
            objective, _ = self._make_objectives(settings)
            made.append((settings, objective))
            return objective, None

        task._make_objectives = make
        task.validation = None
        task._weighted = contextlib.ExitStack()
        return task

    @property
    def box(self) -> tuple[Vector | None, Vector | None]:
        """The lower and upper bounds, or a pair of `None`."""
        return self._box

    def begin(self, stage: Stage) -> bool:
        """Calls the `pretrain_fn` of a stage, and takes over its loss.

        Returns:
            Whether the loss has changed.
        """
        before = self._settings
        self.end()
        if stage.pretrain_fn is not None:
            stage.pretrain_fn(self._model)
        if stage.pretrain_fn is not None or stage.loss != before:
            # It may have frozen, thawed or assigned variables.
            self.prepare([stage])
        self._weighted.enter_context(self._with_weights(stage.loss))
        return stage.loss != before

    def end(self) -> None:
        """Gives the model back the `loss_weights` of its `compile`."""
        self._weighted.close()

    def refresh(self) -> None:
        """Reads again the other values that the losses depend on."""
        self.objective.refresh()
        self.refresh_validation()

    def assign(self, theta: Vector) -> None:
        """Writes a point into the variables."""
        self.objective.assign(theta)
        # With `training=True`, averages of layers are assigned, too.
        self.refresh_validation()

    def note(self) -> None:
        """Notes what the variables hold, before callbacks may assign others."""
        self.objective.note()

    def followed(self, theta: Vector) -> Vector | None:
        """Takes over what callbacks have assigned.

        Args:
            theta: the point before the variables rounded it.

        Returns:
            The point to continue from, or `None` if nothing has changed.
        """
        point = self.objective.followed(theta)
        are_others = [c.refresh() for c in self.constraints]
        if point is None and any(are_others):
            point = theta
        if point is not None:
            self.refresh_validation()
        return point

    def go_on_in_float64(self) -> Callable[[], None]:
        """Evaluates in float64 from now on.

        Returns:
            A function that goes back to float32.
        """
        narrow = go_on_in_float64([self.objective, self.validation])
        self._resolve_constraints()

        def undo() -> None:
            narrow()
            self._resolve_constraints()

        return undo

    def problem(
        self,
        budget: Budget,
        stride: int,
        on_evaluation: Callable[[float], object] | None,
        raised: Raised,
    ) -> Problem:
        """The `Problem` of a run, with its arguments of the same names."""
        lower, upper = self._box
        return Problem(
            self.objective,
            lower=lower,
            upper=upper,
            constraints=self.constraints,
            evaluation_eps=self.objective.evaluation_eps,
            storage_eps=self.objective.storage_eps,
            budget=budget,
            stride=stride,
            on_evaluation=on_evaluation,
            raised=raised,
        )

    def _within_bounds(
        self, frozen: Sequence[keras.Variable]
    ) -> AbstractContextManager[None]:
        model = self._model
        if model is None or not is_built(model):
            return contextlib.nullcontext()
        return moved_into_bounds(
            model.trainable_variables, self._given_bounds, frozen
        )

    def refresh_validation(self) -> None:
        """Reads again the values that the loss of validation depends on."""
        if self.validation is not None:
            self.validation.refresh()

    def _resolve_constraints(self) -> None:
        self.constraints = resolved(self.objective, self._given_constraints)


def _by_settings(
    stages: Sequence[Stage],
) -> list[tuple[LossSettings, list[Stage]]]:
    """The stages that evaluate the same loss, in the order of the stages."""
    found: list[tuple[LossSettings, list[Stage]]] = []
    for stage in stages:
        group = next((g for s, g in found if s == stage.loss), None)
        if group is None:
            group = []
            found.append((stage.loss, group))
        group.append(stage)
    return found
