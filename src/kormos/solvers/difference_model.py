"""A quadratic model of a loss from differences of its gradient.

For few parameters: a column of the Hessian takes one evaluation of the
gradient, or two where one cannot tell the small eigenvalues.
"""

from collections.abc import Callable

import numpy as np

# Eigenvalues of the scaled Hessian that one-sided differences do not show, in
# units of the cube root of the spacing, and those that no difference shows, in
# units of its square.
_ONE_SIDED = 10.0
_HIDDEN = 10.0
# How often a step is changed that is too short or too long.
_MOST_CHANGES, _FARTHER = 2, 1e3
# A change of a gradient by fewer roundings does not show.
_VISIBLE = 1e3

Grad = Callable[[np.ndarray], np.ndarray | None]


class DifferenceModel:
    """A model of the loss around a point, in a box.

    Args:
        gradient: function of a point to the gradient there, or to `None` where
            that is not finite.
        theta: the point.
        loss: the loss there.
        grad: the gradient there.
        epsilon: the spacing of numbers near one in the evaluation's dtype.
        sizes: the size of each parameter.
        free: which parameters the model is of, a mask.
        lower, upper: the box.

    Attributes:
        is_flat: whether the differences show no curvature at all.
    """

    def __init__(
        self,
        gradient: Grad,
        theta: np.ndarray,
        loss: float,
        grad: np.ndarray,
        epsilon: float,
        sizes: np.ndarray,
        free: np.ndarray,
        lower: np.ndarray,
        upper: np.ndarray,
    ):
        self._gradient = gradient
        self._theta, self._loss, self._grad = theta, loss, grad
        self._epsilon = epsilon
        self._lower, self._upper = lower, upper
        self._free = np.flatnonzero(free)
        self._sizes = sizes
        self._steps = epsilon ** (1 / 3) * sizes
        columns = [self._column(i) for i in self._free]
        self._set(np.array(columns))
        coarse = _ONE_SIDED * epsilon ** (1 / 3)
        if len(columns) > 1 and self._least < coarse:
            others = [self._behind(i) for i in self._free]
            pairs = zip(columns, others, strict=True)
            means = [a if b is None else (a + b) / 2 for a, b in pairs]
            self._set(np.array(means))

    @property
    def hessian(self) -> np.ndarray:
        """The model's positive definite Hessian of the free parameters."""
        return self._matrix * self._scale * self._scale[:, None]

    def step(
        self, theta: np.ndarray, grad: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """The step to the model's minimum in the box, and what it promises.

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

    def _column(self, i: np.intp) -> np.ndarray:
        """A column of the Hessian, by a step of a length that shows it."""
        for _ in range(_MOST_CHANGES):
            column = self._difference(i, self._inward(i))
            if column is None:
                self._steps[i] /= _FARTHER
                continue
            step = self._steps[i]
            change = np.abs(column) * step
            if not (change > _VISIBLE * self._epsilon * abs(self._grad)).any():
                self._steps[i] = _FARTHER * step
                continue
            most = self._epsilon ** (1 / 3) * abs(self._loss)
            if self._theta[i] == 0 and change[i] * step > most > 0:
                # It was not known how far a step from zero is.
                part = self._epsilon ** (2 / 3) * abs(self._loss)
                self._steps[i] = np.sqrt(part * step / change[i])
                continue
            return column
        column = self._difference(i, self._inward(i))
        return np.zeros_like(self._grad) if column is None else column

    def _behind(self, i: np.intp) -> np.ndarray | None:
        """The column by a step the other way, if there is room for it."""
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
    def _difference(self, i: np.intp, step: float) -> np.ndarray | None:
        theta = self._theta.copy()
        theta[i] += step
        grad = self._gradient(theta)
        if grad is None or theta[i] == self._theta[i]:
            return None
        return (grad - self._grad) / (theta[i] - self._theta[i])

    @np.errstate(over="ignore", divide="ignore", invalid="ignore")
    def _set(self, columns: np.ndarray) -> None:
        """Makes the matrix of the model, which is positive definite."""
        square = columns[:, self._free]
        hessian = (square + square.T) / 2
        diagonal = np.abs(np.diagonal(hessian)).copy()
        # Where no curvature is seen, as much as takes a parameter its size, or
        # as far as none was seen.
        flat = diagonal == 0
        self.is_flat = bool(flat.all())
        grad, reach = np.abs(self._grad), np.maximum(self._sizes, self._steps)
        diagonal[flat] = (grad / reach)[self._free][flat]
        diagonal[diagonal == 0] = 1.0
        hessian[flat, flat] = diagonal[flat]
        self._scale = np.sqrt(diagonal)
        scaled = hessian / self._scale / self._scale[:, None]
        values, vectors = np.linalg.eigh(scaled)
        self._least = np.abs(values).min(initial=1.0)
        least = _HIDDEN * self._epsilon ** (2 / 3)
        # Along a direction of negative curvature too the loss falls.
        self._matrix = (vectors * np.maximum(np.abs(values), least)) @ vectors.T


def _least_in_box(
    matrix: np.ndarray, slope: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """The minimizer of a convex quadratic, its violated bounds made active."""
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
