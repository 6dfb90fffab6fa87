"""The curvature of a Lagrangian, learned from steps: H, the inverse of B.

Powell's damping keeps B positive definite where the Lagrangian curves down: J.
Nocedal and S. J. Wright, "Numerical Optimization", 2nd edition, procedure
18.2.
"""

from typing import Protocol

import numpy as np

from kormos.types import Matrix
from kormos.types import Vector

# The curvature along a step is kept above this part of s'Bs, as in procedure
# 18.2.
_LEAST_CURVATURE = 0.2


class Curvature(Protocol):
    """An approximation of the inverse Hessian of a Lagrangian."""

    def product(self, vectors: Matrix) -> Matrix:
        """H times the columns of a matrix `(size, count)`."""

    def learn(self, step: Vector, change: Vector, force: Vector) -> None:
        """Learns from a step.

        Args:
            step: s, the step.
            change: y, the change of the Lagrangian's gradient.
            force: B s, `(size,)`.
        """

    def clear(self, scale: float) -> None:
        """Forgets all steps; H is then `scale` times the identity."""


def damped(step: Vector, change: Vector, force: Vector) -> Vector:
    """The change of the gradient, with enough curvature along the step."""
    curvature, known = float(step @ change), float(step @ force)
    if curvature >= _LEAST_CURVATURE * known:
        return change
    share = (1 - _LEAST_CURVATURE) * known / (known - curvature)
    return share * change + (1 - share) * force


class DenseCurvature:
    """BFGS with a dense matrix, a `Curvature`.

    Args:
        size: the number of parameters.
        scale: H is that times the identity at first.
    """

    def __init__(self, size: int, scale: float) -> None:
        self._size, self._is_fresh = size, True
        self.clear(scale)

    def product(self, vectors: Matrix) -> Matrix:
        return self._inverse @ vectors

    def learn(self, step: Vector, change: Vector, force: Vector) -> None:
        change = damped(step, change, force)
        curvature = float(step @ change)
        if not curvature > 0 or not np.isfinite(change).all():
            return
        if self._is_fresh:
            self.clear(curvature / float(change @ change))
            self._is_fresh = False
        turned = self._inverse @ change
        share = (1 + change @ turned / curvature) / curvature
        mixed = np.outer(step, turned) / curvature
        self._inverse += share * np.outer(step, step) - mixed - mixed.T

    def clear(self, scale: float) -> None:
        self._inverse = scale * np.eye(self._size)
        self._is_fresh = True


class LimitedCurvature:
    """L-BFGS, a `Curvature`: the two loops of Nocedal and Wright, 7.4.

    Args:
        size: the number of parameters.
        scale: H is that times the identity at first.
        memory: the number of pairs.
    """

    def __init__(self, size: int, scale: float, memory: int) -> None:
        self._memory = memory
        self._pairs: list[tuple[Vector, Vector, float]] = []
        self.clear(scale)

    def product(self, vectors: Matrix) -> Matrix:
        found = np.array(vectors)
        shares = []
        for step, change, curvature in reversed(self._pairs):
            share = step @ found / curvature
            found -= np.outer(change, share)
            shares.append(share)
        found *= self._scale
        for (step, change, curvature), share in zip(
            self._pairs, reversed(shares), strict=True
        ):
            found += np.outer(step, share - change @ found / curvature)
        return found

    def learn(self, step: Vector, change: Vector, force: Vector) -> None:
        change = damped(step, change, force)
        curvature = float(step @ change)
        if not curvature > 0 or not np.isfinite(change).all():
            return
        self._scale = curvature / float(change @ change)
        self._pairs = [*self._pairs, (step, change, curvature)]
        self._pairs = self._pairs[-self._memory :]

    def clear(self, scale: float) -> None:
        self._pairs, self._scale = [], scale
