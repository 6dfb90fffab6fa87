"""Inner products and norms that keep the dtype they are given.

Outside of true float64, `keras.ops` computes `dot`, `matmul`, `norm`, `mean`
and `maximum` of float64 tensors in float32 on some backends. `sum`, `einsum`,
`where` and the operators do not.
"""

import keras
import numpy as np
from keras import ops

from kormos import backend


def dot(a, b):
    """The inner product of two vectors, a scalar."""
    return backend.dot(a, b)


def norm(a):
    """The 2-norm of a vector, a scalar."""
    return dot(a, a) ** 0.5


def largest(a):
    """The largest absolute entry, a scalar."""
    return backend.scalar(ops.max(ops.abs(a)))


def matvec(matrix, vector):
    """`matrix @ vector`."""
    return ops.einsum("ij,j->i", matrix, vector)


def vecmat(vector, matrix):
    """`vector @ matrix`."""
    return ops.einsum("i,ij->j", vector, matrix)


def outer(a, b):
    """The matrix of all products of entries."""
    return ops.expand_dims(a, 1) * ops.expand_dims(b, 0)


# Columns of a block: a whole product computes the lower triangle for nothing.
_BLOCK = 128


def gram(a, b):
    """`a' b` of matrices `(rows, size)`, of which the upper triangle is right.

    The rest is zero, or right.
    """
    size = a.shape[1]
    if size <= _BLOCK:
        return ops.einsum("mp,mq->pq", a, b)
    blocks = []
    for start in range(0, size, _BLOCK):
        product = ops.einsum(
            "mp,mq->pq", a[:, start : start + _BLOCK], b[:, start:]
        )
        blocks.append(ops.pad(product, ((0, 0), (start, 0))))
    return ops.concatenate(blocks, axis=0)


def to_array(tensor):
    """A float64 NumPy array of a tensor."""
    # A copy: SciPy writes into arrays that it is given.
    return np.array(backend.view(tensor), dtype="float64")


def number(tensor):
    """The Python float of a scalar tensor."""
    # JAX's own `float` takes ten times as long.
    return float(backend.view(tensor))


# What rounds more than this is narrower than float64.
NARROW = 2.0**-40


def rounding(dtype):
    """The spacing of numbers near one in a floating-point dtype."""
    dtype = keras.backend.standardize_dtype(dtype)
    return 2.0**-7 if dtype == "bfloat16" else float(np.finfo(dtype).eps)
