"""Records of a point that a quasi-Newton run reaches and of its next search."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kormos import backend
from kormos.arithmetic.scalars import is_eager
from kormos.arithmetic.scalars import stack
from kormos.arithmetic.scalars import to_float
from kormos.backend import ops
from kormos.backend.common import as_tensor
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor


class Evaluation(NamedTuple):
    """An evaluation.

    Attributes:
        theta: the point, `(size,)`.
        loss: the loss there, scalar.
        grad: the gradient there, `(size,)`.
        readings: as `protocols.Iterate` has them, `(readings,)`, or `None`.
    """

    theta: Tensor
    loss: Scalar
    grad: Tensor
    readings: Tensor | None = None


class Arrival(NamedTuple):
    """The evaluation of a point that a run accepts.

    Attributes:
        is_start: whether it is the start, rather than an accepted trial.
        good: whether the step there shows a curvature beyond rounding.
        theta: the point, `(size,)`.
        loss: the loss there, scalar.
        grad: the gradient there, `(size,)`.
        moved: the change of the parameters, `(size,)`.
        turned: the change of the gradient, `(size,)`.
        step: `moved`, in the units of the parameters.
        change: `turned`, in these units.
        readings: as `protocols.Iterate` has them, `(readings,)`, or `None`.
    """

    is_start: Scalar
    good: Scalar
    theta: Tensor
    loss: Scalar
    grad: Tensor
    moved: Tensor
    turned: Tensor
    step: Tensor
    change: Tensor
    readings: Tensor | None = None

    def row(self, cells: Sequence[Scalar], rows: Tensor) -> Tensor:
        """A row of `State.rows`: the cells, and then the readings.

        For an evaluation outside of the compiled loop, the readings are NaN.
        They are not read then, because the objective keeps its latest
        evaluations.
        """
        row = stack([to_float(cell, like=self.loss) for cell in cells])
        count, readings = rows.shape[1] - len(cells), self.readings
        if not count:
            return row
        if is_eager(self.loss):
            nan = np.full(count, np.nan)
            mine = nan if readings is None else backend.to_numpy(readings)
            return np.concatenate([row, mine])
        if readings is None:
            readings = as_tensor(np.full(count, np.nan))
        return ops.concatenate([row, readings])


class Course(NamedTuple):
    """The next search of a run, in the units of the parameters.

    Attributes:
        known: what is known of the curvature.
        direction: the direction of the next search, `(size,)`.
        slope: the directional derivative along it, scalar.
        far: the distance along the gradient at which a linear loss would be
            zero, scalar; zero if neither the memory was cleared nor a probe
            follows.
        begins: whether the memory was cleared, bool scalar.
        lost: whether it was cleared because the direction was useless, bool
            scalar.
    """

    known: Structure
    direction: Tensor
    slope: Scalar
    far: Scalar
    begins: Scalar
    lost: Scalar
