"""Whether data and gradients are badly scaled."""

import numpy as np

from kormos.data.memory import Data
from kormos.data.memory import leaves
from kormos.inspection.report import Finding
from kormos.objective import Objective
from kormos.types import Array
from kormos.types import Vector

# The numbers below are our choices. Smaller ones raise more false alarms,
# larger ones miss more.

# Sizes with at least this ratio are badly scaled.
_UNEQUAL = 1e4
# A column may lie at most this many times its spread from zero.
_FAR = 100
# A column counts as constant if its spread is at most this part of its mean.
_CONSTANT = 1e-12
# A part of the gradient counts as zero if it is at most this many roundings of
# the largest part.
_ROUNDINGS_OF_ZERO = 10


def scaling(objective: Objective, data: Data, grad: Vector) -> Finding:
    """Whether the columns of the data, and the gradients, have similar sizes.

    Args:
        objective: the objective.
        data: all rows, or those of the first batch.
        grad: the gradient at the start.
    """
    said: list[str] = []
    names: list[str] = []
    for name, part in (("x", data.x), ("y", data.y)):
        for array in leaves(part):
            trouble = _unequal_columns(array)
            if trouble:
                said.append(f"{name} {trouble}")
                names.append(name)
    extremes = _unequal_parts(objective, grad)
    if extremes is not None:
        (low, smallest), (high, largest) = extremes
        said.append(
            f"the gradient is {high / low:.0e} times larger in "
            f"{largest} than in {smallest}"
        )
        names += [largest, smallest]
    if not said:
        return Finding(
            "scaling", True, "Data and gradients have similar sizes."
        )
    return Finding(
        "scaling",
        False,
        f"Badly scaled: {'; '.join(said)}."
        + (" `keras.layers.Normalization` helps." if "x" in names else ""),
        tuple(dict.fromkeys(names)),
        is_fatal=False,
    )


def _unequal_parts(
    objective: Objective, grad: Vector
) -> tuple[tuple[float, str], tuple[float, str]] | None:
    """The variables with the smallest and the largest gradient, if unequal.

    Returns:
        Two pairs of the size of an entry of the gradient and the path of the
        variable, or `None` if the two have similar sizes.
    """
    parts = objective.program.packing.split_array(grad)
    sizes = [np.sqrt(np.mean(np.square(part))) for part in parts]
    pairs = [
        (size, v.path)
        for size, v in zip(sizes, objective.variables, strict=True)
        if 0 < size < np.inf
    ]
    # A gradient that is zero except for rounding errors says nothing.
    largest = max(pairs, default=(0.0, ""))[0]
    noise = _ROUNDINGS_OF_ZERO * objective.evaluation_eps * largest
    pairs = [pair for pair in pairs if pair[0] > noise]
    if pairs and max(pairs)[0] > _UNEQUAL * min(pairs)[0]:
        return min(pairs), max(pairs)
    return None


def _unequal_columns(array: Array) -> str | None:
    """How an array is badly scaled, as text that follows its name."""
    if array.dtype.kind != "f" or len(array) < 2:
        return None
    columns = array.reshape(len(array), -1).astype("float64")
    mean, spread = np.abs(columns.mean(axis=0)), columns.std(axis=0)
    moving = spread > _CONSTANT * mean
    if not moving.any():
        return None
    mean, spread = mean[moving], spread[moving]
    if spread.max() > _UNEQUAL * spread.min():
        ratio = spread.max() / spread.min()
        return f"has columns that differ {ratio:.0e} times in their spread"
    if (mean > _FAR * spread).any():
        ratio = (mean / spread).max()
        return f"lies {ratio:.0e} times its spread from zero"
    if spread.max() > _UNEQUAL or spread.max() < 1 / _UNEQUAL:
        return f"has a spread of {spread.max():.0e}"
    return None
