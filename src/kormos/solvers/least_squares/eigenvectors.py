"""Eigenvectors of a symmetric matrix, for products with vectors.

A matrix is made tridiagonal by reflections, T = Q'AQ = V diag(s) V' (Golub and
Van Loan, "Matrix Computations", 4th edition, section 8.3). The eigenvectors QV
are not multiplied out, which would take as long as all the rest: a product with
a vector is one with V and one with each of the reflections.
"""

from typing import Any
from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

# Smaller matrices take no time either way.
_SMALL = 64


class Eigenvectors(NamedTuple):
    """The matrix QV, orthonormal columns of shape `(size, rank)`.

    Attributes:
        vectors: V.
        reflectors: the vectors of the reflections, as LAPACK's `dsytrd` has
            them, below the first row; or `None` where Q is the identity.
        factors: their factors.
    """

    vectors: np.ndarray
    reflectors: Any = None
    factors: Any = None

    def along(self, vector):
        """`(QV)' vector`."""
        return self.vectors.T @ self._reflected(vector, "T")

    def back(self, slopes):
        """`QV slopes`."""
        return self._reflected(self.vectors @ slopes, "N")

    def _reflected(self, vector, transposed):
        if self.reflectors is None:
            return vector
        # The least workspace: by blocks, one vector takes four times as long.
        rest, _, _ = lapack.dormqr(
            "L", transposed, self.reflectors, self.factors, vector[1:, None], 1
        )
        return np.concatenate([vector[:1], rest[:, 0]])


class RowEigenvectors(NamedTuple):
    """Those of R'R, from those of RR': R'QV / roots, for wide matrices R.

    Attributes:
        rows: R, of shape `(rows, size)`.
        of_rows: the `Eigenvectors` of RR'.
        roots: the square roots of its eigenvalues; infinite for those that
            are zero, whose columns are zero.
    """

    rows: np.ndarray
    of_rows: Eigenvectors
    roots: np.ndarray

    def along(self, vector):
        """Their products with a vector."""
        return self.of_rows.along(self.rows @ vector) / self.roots

    def back(self, slopes):
        """Their sum by these weights."""
        return self.of_rows.back(slopes / self.roots) @ self.rows


def eigenvectors(matrix):
    """Eigenvalues, ascending, and `Eigenvectors`.

    Args:
        matrix: `(size, size)`, in C order, whose upper triangle counts. It is
            overwritten.

    Raises:
        numpy.linalg.LinAlgError: if LAPACK finds none.
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
