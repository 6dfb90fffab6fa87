"""A quadratic model of a loss from differences of its gradient.

It is for few parameters: each column of the Hessian takes one evaluation of the
gradient, or two where one does not show the small eigenvalues.
"""

from collections.abc import Callable

import numpy as np

from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Vector

# Steps are the cube root of the spacing, in sizes of the parameters: the length
# at which a central difference loses as much to rounding as to higher
# derivatives. Over them, a one-sided difference is wrong by about the same
# power of the spacing, and a central one by its square.
_STEP, _ONE_SIDED_ERROR, _CENTRAL_ERROR = 1 / 3, 1 / 3, 2 / 3
# An eigenvalue of the scaled Hessian counts as hidden if it is at most this
# many times these errors. Our choice: a smaller number trusts eigenvalues that
# are rounding, a larger one takes more evaluations and makes shorter steps.
_ROOM = 10.0
# A step that is too short or too long is changed by this factor, at most this
# often. Our choice: two changes cover twelve powers of ten.
_FARTHER, _MOST_CHANGES = 1e3, 2
# A change of the gradient by at most this many roundings is not visible. Our
# choice: the column then keeps three digits.
_VISIBLE = 1e3

Grad = Callable[[Vector], Vector | None]


class DifferenceModel:
    """A model of the loss around a point, in a box.

    Args:
        gradient: function from a point to the gradient there, or to `None` if
            that is not finite.
        theta: the point.
        loss: the loss there.
        grad: the gradient there.
        evaluation_eps: the machine epsilon of the evaluation's dtype.
        sizes: the size of each parameter.
        free: a mask of the parameters that the model may move.
        lower, upper: the bounds.

    Attributes:
        flat: a step of the parameters, `(size,)`, along whose own axes the
            differences show no curvature; downhill, zero for all others.
    """

    def __init__(
        self,
        gradient: Grad,
        theta: Vector,
        loss: float,
        grad: Vector,
        evaluation_eps: float,
        sizes: Vector,
        free: Array,
        lower: Vector,
        upper: Vector,
    ):
        self._gradient = gradient
        self._theta, self._loss, self._grad = theta, loss, grad
        self._epsilon = evaluation_eps
        self._lower, self._upper = lower, upper
        self._free = np.flatnonzero(free)
        self._sizes = sizes
        self._steps = evaluation_eps**_STEP * sizes
        columns = [self._column(i) for i in self._free]
        self._set(np.array(columns))
        self.flat = self._flat_step(np.array(columns))
        coarse = _ROOM * evaluation_eps**_ONE_SIDED_ERROR
        if len(columns) > 1 and self._least < coarse:
            others = [self._behind(i) for i in self._free]
            pairs = zip(columns, others, strict=True)
            means = [a if b is None else (a + b) / 2 for a, b in pairs]
            self._set(np.array(means))

    @property
    def hessian(self) -> Matrix:
        """The model's positive definite Hessian of the free parameters."""
        return self._matrix * self._scale * self._scale[:, None]

    def step(self, theta: Vector, grad: Vector) -> tuple[Vector, float]:
        """The step to the model's minimum in the box, and its decrease.

        Args:
            theta: a point.
            grad: the gradient there.
        """
        free, scale = self._free, self._scale
        low = (self._lower - theta)[free] * scale
        high = (self._upper - theta)[free] * scale
        slope = grad[free] / scale
        scaled = _least_in_box(self._matrix, slope, low, high)
        promise = -(slope @ scaled + scaled @ self._matrix @ scaled / 2)
        step = np.zeros_like(theta)
        step[free] = scaled / scale
        return step, max(0.0, float(promise))

    def _column(self, i: np.intp) -> Vector:
        """A column of the Hessian, from a step long enough to show it."""
        for _ in range(_MOST_CHANGES):
            column = self._difference(i, self._inward(i))
            if column is None:
                self._steps[i] /= _FARTHER
                continue
            step = self._steps[i]
            change = np.abs(column) * step
            if not self._is_visible(change).any():
                self._steps[i] = _FARTHER * step
                continue
            most = self._epsilon**_STEP * abs(self._loss)
            if self._theta[i] == 0 and change[i] * step > most > 0:
                # The size of a parameter that is zero was a guess. Its step
                # should change the loss by this part.
                part = self._epsilon ** (2 * _STEP) * abs(self._loss)
                self._steps[i] = np.sqrt(part * step / change[i])
                continue
            return column
        column = self._difference(i, self._inward(i))
        return np.zeros_like(self._grad) if column is None else column

    def _is_visible(self, change: Vector) -> Array:
        """Which changes of the gradient are more than its rounding."""
        return change > _VISIBLE * self._epsilon * np.abs(self._grad)

    @property
    def _reach(self) -> Vector:
        """The sizes of the parameters, or longer steps that were tried."""
        return np.maximum(self._sizes, self._steps)

    def _flat_step(self, columns: Matrix) -> Vector:
        """The step `flat`, from the columns of the free parameters."""
        change = np.zeros_like(self._grad)
        change[self._free] = np.abs(np.diagonal(columns[:, self._free]))
        is_flat = ~self._is_visible(change * self._steps)
        step = np.zeros_like(self._grad)
        downhill = -np.sign(self._grad) * self._reach
        step[self._free] = np.where(is_flat, downhill, 0.0)[self._free]
        return step

    def _behind(self, i: np.intp) -> Vector | None:
        """The column from the opposite step; `None` if a bound stops it."""
        step = -self._inward(i)
        ahead = self._theta[i] + step
        if not self._lower[i] <= ahead <= self._upper[i]:
            return None
        return self._difference(i, step)

    def _inward(self, i: np.intp) -> float:
        """A step that stays in the box, as long as there is room for it."""
        above = self._upper[i] - self._theta[i]
        below = self._theta[i] - self._lower[i]
        if above >= min(self._steps[i], below):
            self._steps[i] = min(self._steps[i], above)
            return self._steps[i]
        self._steps[i] = min(self._steps[i], below)
        return -self._steps[i]

    @np.errstate(over="ignore", invalid="ignore")
    def _difference(self, i: np.intp, step: float) -> Vector | None:
        theta = self._theta.copy()
        theta[i] += step
        grad = self._gradient(theta)
        if grad is None or theta[i] == self._theta[i]:
            return None
        return (grad - self._grad) / (theta[i] - self._theta[i])

    @np.errstate(over="ignore", divide="ignore", invalid="ignore")
    def _set(self, columns: Matrix) -> None:
        """Makes the matrix of the model, which is positive definite."""
        square = columns[:, self._free]
        hessian = (square + square.T) / 2
        diagonal = np.abs(np.diagonal(hessian)).copy()
        # A parameter without visible curvature gets an artificial one: enough
        # to move it by its own size, or by the longest step that showed none.
        flat = diagonal == 0
        slopes = np.abs(self._grad) / self._reach
        diagonal[flat] = slopes[self._free][flat]
        diagonal[diagonal == 0] = 1.0
        hessian[flat, flat] = diagonal[flat]
        self._scale = np.sqrt(diagonal)
        scaled = hessian / self._scale / self._scale[:, None]
        values, vectors = np.linalg.eigh(scaled)
        self._least = np.abs(values).min(initial=1.0)
        least = _ROOM * self._epsilon**_CENTRAL_ERROR
        # Absolute values, so that the step is downhill along directions of
        # negative curvature too.
        self._matrix = (vectors * np.maximum(np.abs(values), least)) @ vectors.T


def _least_in_box(
    matrix: Matrix, slope: Vector, low: Vector, high: Vector
) -> Vector:
    """Minimizes a convex quadratic, with the violated bounds made active.

    The result is exact unless a bound that was made active should be released.

    Args:
        matrix: the Hessian, positive definite, `(n, n)`.
        slope: the gradient, `(n,)`.
        low, high: the bounds on the step, `(n,)`.
    """
    step = np.zeros_like(slope)
    inside = np.ones(slope.size, dtype=bool)
    while inside.any():
        fixed = matrix[:, ~inside] @ step[~inside]
        right = -(slope + fixed)[inside]
        step[inside] = np.linalg.solve(matrix[inside][:, inside], right)
        violated = inside & ((step < low) | (step > high))
        if not violated.any():
            break
        step = np.where(violated, np.clip(step, low, high), step)
        inside &= ~violated
    return step
