"""Losses as functions of one flat vector."""

from kormos.objective.function import FunctionObjective as FunctionObjective
from kormos.objective.model import Objective as Objective
