"""Inner products and norms that keep the dtype of their arguments.

Unless Keras computes in true float64, `keras.ops` rounds `dot`, `matmul`,
`norm`, `mean` and `maximum` of float64 tensors to float32 on some backends.
`sum`, `einsum`, `where` and the operators keep float64.
"""

import keras
import numpy as np

from kormos import backend
from kormos.backend import ops
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Scalar
from kormos.types import Tensor


def dot(a: Tensor, b: Tensor) -> Scalar:
    """The inner product of two vectors, a scalar; a number for NumPy arrays."""
    if isinstance(a, np.ndarray):
        return a.dot(b)
    return backend.dot(a, b)


def norm(a: Tensor) -> Scalar:
    """The 2-norm of a vector, a scalar; a number for NumPy arrays."""
    if isinstance(a, np.ndarray):
        # A power of 0.5 rounds differently in other units.
        return np.sqrt(a.dot(a))
    return dot(a, a) ** 0.5


def largest(a: Tensor) -> Scalar:
    """The largest absolute entry, a scalar."""
    return backend.scalar(ops.max(ops.abs(a)))


def matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    """`matrix @ vector`."""
    return ops.einsum("ij,j->i", matrix, vector)


def vecmat(vector: Tensor, matrix: Tensor) -> Tensor:
    """`vector @ matrix`."""
    return ops.einsum("i,ij->j", vector, matrix)


# Columns of a block of `gram`. Our choice: a larger block computes more of the
# lower triangle, which is not used; smaller ones make more calls.
_BLOCK_COLUMNS = 128


def gram(a: Tensor, b: Tensor) -> Tensor:
    """The upper triangle of `a' b`, for matrices `(rows, size)`.

    Entries below the diagonal are either right or zero.
    """
    size = a.shape[1]
    if size <= _BLOCK_COLUMNS:
        return ops.einsum("mp,mq->pq", a, b)
    blocks = []
    for start in range(0, size, _BLOCK_COLUMNS):
        product = ops.einsum(
            "mp,mq->pq", a[:, start : start + _BLOCK_COLUMNS], b[:, start:]
        )
        blocks.append(ops.pad(product, ((0, 0), (start, 0))))
    return ops.concatenate(blocks, axis=0)


def symmetric(upper: Matrix) -> Matrix:
    """The symmetric matrix whose upper triangle is that of a NumPy array."""
    return np.triu(upper) + np.triu(upper, 1).T


def to_array(tensor: Tensor) -> Array:
    """A tensor as a float64 NumPy array."""
    # A copy, because SciPy writes into the arrays that it receives.
    return np.array(backend.view(tensor), dtype="float64")


def number(tensor: Tensor) -> float:
    """A scalar tensor as a Python float."""
    # JAX's own `float` takes ten times as long.
    return float(backend.view(tensor))


# A dtype whose rounding is above this is narrower than float64. Any number
# between float64's 2**-52 and float32's 2**-23 distinguishes the two.
NARROW = 2.0**-40


def rounding(dtype: str) -> float:
    """The machine epsilon of a floating-point dtype."""
    dtype = keras.backend.standardize_dtype(dtype)
    return 2.0**-7 if dtype == "bfloat16" else float(np.finfo(dtype).eps)
