"""Shapes and dtypes of a model's outputs."""

import dataclasses

import keras
import numpy as np
from keras import tree

from kormos.types import Structure


@dataclasses.dataclass(frozen=True)
class OutputLayout:
    """Shapes and dtypes of a model's outputs.

    Attributes:
        structure: the structure of the outputs.
        shapes: the shape of a row of each output.
        other_shapes: the shapes of outputs without a row for each input row.
        dtype: the dtype in which outputs are given to the losses.
        has_complex: whether an output is complex.
    """

    structure: Structure
    shapes: list[tuple[int, ...]]
    other_shapes: list[tuple[int, ...]]
    dtype: str
    has_complex: bool

    @property
    def widths(self) -> list[int]:
        """The number of entries in a row of each output."""
        return [int(np.prod(shape)) for shape in self.shapes]


def layout_of(y_pred: Structure, rows: int) -> OutputLayout:
    """The layout of a model's outputs.

    Args:
        y_pred: what the model returns.
        rows: the number of rows that it was called on.
    """
    outputs = tree.flatten(y_pred)
    shapes = [tuple(output.shape) for output in outputs]
    dtypes = [keras.backend.standardize_dtype(o.dtype) for o in outputs]
    return OutputLayout(
        structure=tree.map_structure(lambda t: 0, y_pred),
        shapes=[shape[1:] for shape in shapes],
        other_shapes=[shape for shape in shapes if shape[:1] != (rows,)],
        dtype="float64" if dtypes[0] == "float64" else "float32",
        has_complex=any("complex" in dtype for dtype in dtypes),
    )
