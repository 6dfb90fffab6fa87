"""A point at which a quasi-Newton run arrives, and its course from there."""

from typing import NamedTuple

from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor


class Arrival(NamedTuple):
    """An evaluation at which a run arrives.

    Attributes:
        is_start: whether it is the start, rather than an accepted trial.
        good: whether the step there shows the curvature, beyond rounding.
        theta: the point, `(size,)`.
        loss: the loss there, scalar.
        grad: the gradient there, `(size,)`.
    """

    is_start: Scalar
    good: Scalar
    theta: Tensor
    loss: Scalar
    grad: Tensor


class Course(NamedTuple):
    """Where a run goes from a point; in the units of the parameters.

    Attributes:
        known: what is known of the curvature.
        direction: the direction of the next search, `(size,)`.
        slope: the directional derivative along it, scalar.
        far: how far along the gradient the loss would fall to zero, scalar.
        begins: whether the memory was cleared, bool scalar.
        lost: whether that was because the direction was of no use, bool scalar.
    """

    known: Structure
    direction: Tensor
    slope: Scalar
    far: Scalar
    begins: Scalar
    lost: Scalar
