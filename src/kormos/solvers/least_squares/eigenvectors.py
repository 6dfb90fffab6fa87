"""Eigenvectors of a symmetric matrix, for products with vectors.

A matrix is made tridiagonal by reflections, T = Q'AQ = V diag(s) V' (Golub and
Van Loan, "Matrix Computations", 4th edition, section 8.3). The eigenvectors QV
are not multiplied out, which would take as long as all the rest: a product with
a vector is one with V and one with each of the reflections.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from kormos.types import Matrix
from kormos.types import Vector

# Matrices of at most this many rows are diagonalized directly: they take almost
# no time either way.
_SMALL = 64


class Eigenvectors(NamedTuple):
    """The matrix QV, orthonormal columns of shape `(size, rank)`.

    Attributes:
        vectors: V.
        reflectors: the vectors of the reflections, as LAPACK's `dsytrd` has
            them, below the first row; or `None` where Q is the identity.
        factors: the scalar factors of the reflections, LAPACK's `tau`.
    """

    vectors: Matrix
    reflectors: Matrix | None = None
    factors: Vector | None = None

    def along(self, vector: Vector) -> Vector:
        """`(QV)' vector`."""
        return self.vectors.T @ self._reflected(vector, "T")

    def back(self, slopes: Vector) -> Vector:
        """`QV slopes`."""
        return self._reflected(self.vectors @ slopes, "N")

    def _reflected(self, vector: Vector, transposed: str) -> Vector:
        if self.reflectors is None:
            return vector
        # The smallest workspace: with a larger one LAPACK works by blocks,
        # which takes four times as long for one vector.
        rest, _, _ = lapack.dormqr(
            "L", transposed, self.reflectors, self.factors, vector[1:, None], 1
        )
        return np.concatenate([vector[:1], rest[:, 0]])


class RowEigenvectors(NamedTuple):
    """Eigenvectors of R'R from those of RR': R'QV / roots, for wide R.

    Attributes:
        rows: R, of shape `(rows, size)`.
        of_rows: the `Eigenvectors` of RR'.
        roots: the square roots of its eigenvalues; infinite for those that
            are zero, whose columns are zero.
    """

    rows: Matrix
    of_rows: Eigenvectors
    roots: Vector

    def along(self, vector: Vector) -> Vector:
        """The products of the eigenvectors with a vector, `(rank,)`."""
        return self.of_rows.along(self.rows @ vector) / self.roots

    def back(self, slopes: Vector) -> Vector:
        """The sum of the eigenvectors with these weights, `(size,)`."""
        return self.of_rows.back(slopes / self.roots) @ self.rows


def eigenvectors(matrix: Matrix) -> tuple[Vector, Eigenvectors]:
    """Eigenvalues, ascending, and their `Eigenvectors`.

    Args:
        matrix: `(size, size)`, in C order, of which only the upper triangle
            is read. It is overwritten.

    Raises:
        numpy.linalg.LinAlgError: if LAPACK does not find them.
    """
    size = len(matrix)
    if size <= _SMALL:
        values, vectors = scipy.linalg.eigh(
            matrix.T, check_finite=False, driver="evd"
        )
        return values, Eigenvectors(vectors)
    workspace, _ = lapack.dsytrd_lwork(size, lower=1)
    reduced, diagonal, beside, factors, _ = lapack.dsytrd(
        matrix.T, lower=1, lwork=int(workspace), overwrite_a=1
    )
    values, vectors, failed = lapack.dstevd(diagonal, beside)
    if failed:
        raise np.linalg.LinAlgError("Eigenvalues did not converge.")
    reflectors = np.asfortranarray(reduced[1:, :-1])
    return values, Eigenvectors(vectors, reflectors, factors)
