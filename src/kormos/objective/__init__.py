"""Losses as functions of one flat vector."""

from kormos.objective.functions.scalar import FunctionObjective
from kormos.objective.keras_model.objective import Objective

__all__ = ["FunctionObjective", "Objective"]
