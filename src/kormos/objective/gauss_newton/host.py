"""The Gauss-Newton matrix for solvers that compute with NumPy."""

import functools
from collections.abc import Callable
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from kormos import backend
from kormos.arithmetic.vectors import number
from kormos.arithmetic.vectors import to_array
from kormos.objective.gauss_newton.compiled import GaussNewton
from kormos.objective.gauss_newton.factors import Factor
from kormos.objective.gauss_newton.factors import weighted
from kormos.objective.gauss_newton.kept_factors import KeptFactors
from kormos.objective.gauss_newton.linearization import Linearization
from kormos.objective.units import size_of
from kormos.solvers.protocols import Squares
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Scalar
from kormos.types import Tensor
from kormos.types import Vector

if TYPE_CHECKING:
    from kormos.objective.base import FlatObjective

# Jacobians of more bytes than this are not kept: a quarter of a gibibyte. Our
# choice: a larger limit would save the recomputation of J for larger data, but
# take memory that the user may need.
_MOST_BYTES_KEPT = 2**28

# If J has at most this many numbers, with one more column, every call for the
# loss also computes J. Our choice: that takes some microseconds more than the
# loss alone, and saves a second call at each accepted point.
_FEW_NUMBERS = 2**12

# If the root of an output's curvature is at most this, the curvature is zero:
# it is the tiny weight of `factors.py`.
_LEAST_ROOT = 2.0**-390


class HostGaussNewton:
    """The Gauss-Newton matrix of an objective's loss, at all of its data.

    Its methods take and return float64 arrays.

    Args:
        compiled: the compiled derivatives of the outputs.
        objective: the objective, which has the data.

    Attributes:
        outputs: the number of outputs of all rows of data.
    """

    can_bend = True

    def __init__(
        self, compiled: GaussNewton, objective: "FlatObjective"
    ) -> None:
        self._compiled = compiled
        self._objective = objective
        widths = [term.width for term in compiled.terms]
        counts = zip(widths, objective.row_counts, strict=True)
        self.outputs = sum(width * rows for width, rows in counts)
        self._kept = KeptFactors()
        # The roots of the curvatures of the latest `rows`, and its point.
        self._roots: list[Array] = []
        self._at_roots: Vector | None = None

    @property
    def has_penalty(self) -> bool:
        """Whether a part of the loss depends on more than the outputs."""
        return any(term.has_penalty for term in self._compiled.terms)

    @property
    def is_convex(self) -> bool:
        """Whether the loss is known to be convex in the outputs."""
        return all(term.is_convex for term in self._compiled.terms)

    @functools.cached_property
    def is_cheap(self) -> bool:
        """Whether the loss takes about as long with J as without it."""
        is_at_hand = self._objective.arguments.processes.is_alone
        is_at_hand &= not self._objective.is_streamed
        numbers = self.outputs * (self._objective.size + 1)
        return is_at_hand and numbers <= _FEW_NUMBERS

    def loss(self, theta: Vector) -> float:
        """The loss, from the same call as J; for use where J `is_cheap`."""
        return float(sum(f.loss for f in self._factors(theta, keep=True)))

    def normal_equations(
        self, theta: Vector, keep: bool = False
    ) -> tuple[float, Vector, Matrix]:
        """The loss, and the gradient and the matrix of the normal equations.

        Args:
            theta: the point.
            keep: whether to keep J for `bend`, where it is small.

        Returns:
            The loss, the gradient of shape `(size,)`, and the matrix of shape
            `(size, size)`, of which only the upper triangle is right.
        """
        arguments, size = self._objective.arguments, len(theta)
        shapes = [(), (size,), (size, size), (size,)]
        if backend.on_cpu():
            sums = arguments.processes.total(
                lambda: self._summed(theta, keep), shapes, [theta]
            )
        else:
            with backend.float64():
                total = arguments.total(
                    self._compiled.normal_equations, theta, shapes=shapes
                )
                sums = tuple(map(to_array, total))
        loss, grad, matrix, diagonal = sums
        matrix[np.diag_indices(size)] += _positive(diagonal)
        return number(loss), grad, matrix

    def _summed(
        self, theta: Vector, keep: bool
    ) -> tuple[Scalar, Vector, Matrix, Vector]:
        """The normal equations, computed by BLAS in half the time of XLA.

        Returns:
            Loss, gradient, the matrix without the Hessian's diagonal, and this
            diagonal.
        """
        size = len(theta)
        loss, total = 0.0, np.zeros((size + 1, size + 1))
        diagonal = np.zeros(size)
        matrix, grad = total[:-1, :-1], total[:-1, -1]
        for factor in self._factors(theta, keep):
            loss += factor.loss
            # NumPy computes only one triangle of such a product, M'M.
            total += factor.matrix.T @ factor.matrix
            grad += factor.grad
            diagonal += factor.diagonal
        return np.float64(loss), grad, matrix, diagonal

    def rows(
        self, theta: Vector, keep: bool = False
    ) -> tuple[float, Vector, Matrix]:
        """Loss, gradient and a matrix R; R'R is the Gauss-Newton matrix.

        Args:
            theta: the point.
            keep: whether to keep J for `bend`, where it is small.
        """
        size, processes = len(theta), self._objective.arguments.processes
        # All rows of data are in this process, unless there are others.
        whole = np.empty((self.outputs if processes.is_alone else 0, size + 1))
        self._roots, self._at_roots = [], np.array(theta)

        def sums() -> tuple[Scalar, Vector, Vector]:
            nonlocal whole
            loss, grad, count = 0.0, np.zeros(size), 0
            diagonal, parts = np.zeros(size), [whole[:0]]
            for factor in self._factors(theta, keep):
                loss += factor.loss
                grad += factor.grad
                diagonal += factor.diagonal
                self._roots.append(factor.roots)
                # A copy, because the array may be a view of the device's
                # memory.
                if processes.is_alone:
                    end = count + len(factor.matrix)
                    whole[count:end], count = factor.matrix, end
                else:
                    parts.append(np.array(factor.matrix))
            if not processes.is_alone:
                whole = np.concatenate(parts)
            grad += whole[:, :-1].T @ whole[:, -1].copy()
            return np.float64(loss), grad, diagonal

        shapes = [(), (size,), (size,)]
        loss, grad, diagonal = processes.total(sums, shapes, [theta])
        own = whole[:, :-1]
        if not processes.is_alone and len(own) > size:
            # With as many rows as columns, less has to be sent.
            own = np.asarray(np.linalg.qr(own, "r"))
        rows = processes.gather(own)
        if diagonal.any():
            root = np.diag(np.sqrt(_positive(diagonal)))
            rows = np.concatenate([rows, root])
        return number(loss), grad, rows

    def squares(self, theta: Vector) -> Squares | None:
        """The loss as a sum of squares; `None` if it cannot be one.

        The curvature of the loss in an output is twice the weight of its error.

        Args:
            theta: the point.
        """
        if self.has_penalty:
            return None

        def sums() -> tuple[Vector]:
            total = np.zeros(6)
            for factor in self._factors(theta, keep=False):
                roots, slopes = factor.roots, factor.matrix[:, -1]
                counted = roots[roots > _LEAST_ROOT].astype("float64")
                total += (
                    counted.size,
                    np.sum(counted**2) / 2,
                    2 * np.sum(np.log(counted)),
                    np.sum(slopes**2) / 2,
                    factor.loss,
                    roots.ndim > 2,
                )
            return (total,)

        processes = self._objective.arguments.processes
        (total,) = processes.total(sums, [(6,)], [theta])
        count, weights, logs, squares, loss, mixed = map(float, total)
        if mixed or not count:
            return None
        weight = weights / count
        logs -= count * np.log(2 * weight)
        return Squares(int(count), weight, logs, squares, loss)

    def _factors(self, theta: Vector, keep: bool) -> Iterator[Factor]:
        """Yields the `Factor` of each chunk."""
        arguments, keep = self._objective.arguments, keep or self.is_cheap
        known = self._kept.at(arguments, theta)
        if known is not None:
            yield from known
            return
        if not self.is_cheap:
            self._kept.clear()
        is_small = 8 * self.outputs * (len(theta) + 1) <= _MOST_BYTES_KEPT
        # Only one batch of a stream should be in memory.
        keep = keep and is_small and not self._objective.is_streamed
        factors = []
        with backend.float64():
            for piece in arguments.pieces():
                for factor in self._compiled.factors(theta, *piece):
                    if keep:
                        factors.append(factor)
                    yield factor
        if keep:
            self._kept.add(arguments, theta, factors)

    def linearizations(
        self, theta: Vector
    ) -> Iterator[tuple[int, Linearization]]:
        """Yields the derivatives of one chunk of rows after the other.

        They are those of this process: see `GaussNewton.linearized`.

        Args:
            theta: the point.
        """
        with backend.float64():
            for piece in self._objective.arguments.pieces():
                yield from self._compiled.linearized(theta, *piece)

    def product(self, theta: Vector, vector: Vector) -> Vector:
        """The matrix times a vector."""
        size = size_of(vector)
        return self._total(self._compiled.product, theta, vector / size) * size

    def bend(self, theta: Vector, vector: Vector) -> Vector:
        """J'H times the second derivative of the outputs along a vector.

        If J was kept for this point, or is cheap, only the second derivative is
        compiled. This only needs forward-mode differentiation, which compiles
        in half the time.
        """
        arguments = self._objective.arguments
        if self.is_cheap:
            factors: list[Factor] | None = list(self._factors(theta, True))
        else:
            factors = self._kept.at(arguments, theta)
        if factors is None:
            return self._total(self._compiled.bend, theta, vector)

        def own() -> Vector:
            kept, total = iter(factors), np.zeros(len(theta))
            with backend.float64():
                for piece in arguments.pieces():
                    for second in self._compiled.second(theta, vector, *piece):
                        total += next(kept).pulled_back(second)
            return total

        found = arguments.processes.total(own, [theta.shape], [theta, vector])
        return to_array(found)

    def bend_of_rows(self, theta: Vector, vector: Vector) -> Vector | None:
        """The vector w for which `bend` is R'w, with R of `rows`.

        It only needs the second derivative along the vector.

        Returns:
            w, `(rows,)`, or `None` at another point than that of the latest
            `rows`, and where other processes have a part of R.
        """
        arguments, at = self._objective.arguments, self._at_roots
        is_here = at is not None and np.array_equal(theta, at)
        if not (is_here and arguments.processes.is_alone) or self.has_penalty:
            return None
        roots, parts = iter(self._roots), []
        with backend.float64():
            for piece in arguments.pieces():
                for second in self._compiled.second(theta, vector, *piece):
                    parts.append(weighted(next(roots), second))
        return np.concatenate(parts)

    def _total(
        self, compiled: Callable[..., Tensor], *vectors: Vector
    ) -> Vector:
        with backend.float64():
            total = self._objective.arguments.total(
                compiled, *vectors, shapes=[vectors[0].shape]
            )
            return to_array(total)


def _positive(diagonal: Vector) -> Vector:
    """The positive part of the Hessian's diagonal, summed over all rows.

    A chunk's own diagonal may be negative, so it is not cut off chunk by chunk.
    """
    return np.maximum(diagonal, 0.0)
