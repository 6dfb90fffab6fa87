"""Data that are not finite, in rows whose residuals are not finite either."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kormos import backend
from kormos.arithmetic.vectors import to_array
from kormos.backend.common import as_tensor
from kormos.objective.compiled import ChunkPair
from kormos.objective.functions.residual_blocks import ResidualFunction
from kormos.types import Array

if TYPE_CHECKING:
    from kormos.objective.functions.residuals import ResidualObjective


def refuse_missing(
    objective: "ResidualObjective", function: ResidualFunction
) -> None:
    """Refuses data that are not finite if their residuals are not finite.

    Args:
        objective: the objective, which has the data.
        function: its residuals, in the widest dtype of the fit.

    Raises:
        ValueError: naming the data.
    """
    for i, group in enumerate(function.groups):
        if group is not None:
            is_usable = functools.partial(_is_usable, objective, i)
            function.points.refuse_missing(objective.data, group, is_usable)


def _is_usable(
    objective: "ResidualObjective", index: int, arrays: Sequence[Array]
) -> Array:
    """Whether residuals and their derivatives are finite.

    Args:
        objective: the objective.
        index: the place of a term in the program's `terms`.
        arrays: rows of its data.

    Returns:
        An array of `bool`, with an entry for each row.
    """
    theta, program = objective.initial_position(), objective.program
    chunks: list[ChunkPair] = [(None, None)] * len(program.terms)
    try:
        values = objective.outputs(index, theta, arrays)
        found = np.asarray(np.isfinite(values).all(axis=1))
        if not found.all():
            return found
        with backend.float64():
            chunks[index] = None, tuple(map(as_tensor, arrays))
            _, grad = program.value_and_grad(
                theta,
                objective.arguments.frozen,
                objective.arguments.term_factors,
                tuple(chunks),
            )
        return np.full(len(found), np.isfinite(to_array(grad)).all())
    except Exception as error:
        if not backend.is_numerical(error):
            raise
        # The fit will report the failure.
        return np.ones(len(arrays[0]), bool)
