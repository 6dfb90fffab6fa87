"""Scalars of solvers: NumPy's on an eager backend, tensors in a trace.

A solver decides by a hundred operations on scalars an evaluation. Compiled,
they cost nothing; as tensors of an eager backend they would take longer than
the evaluation of a small model. What is here, and the operators, serve both.
"""

import functools
import operator

import numpy as np
from keras import ops
from keras import tree

_INFINITY = float("inf")


def is_eager(scalar):
    """Whether a scalar is a number rather than a tensor."""
    return isinstance(scalar, (bool, np.generic))


def constant(value, like):
    """`value` as a scalar of the kind and dtype of another."""
    if isinstance(like, np.generic):
        return like.dtype.type(value)
    return ops.convert_to_tensor(value, dtype=like.dtype)


def where(condition, a, b):
    """`a` if the condition holds, else `b`: scalars, tensors or tuples."""
    if is_eager(condition):
        return a if condition else b
    return tree.map_structure(lambda p, q: ops.where(condition, p, q), a, b)


def cond(condition, true_fn, false_fn):
    """`true_fn()` if the condition holds, else `false_fn()`."""
    if is_eager(condition):
        return true_fn() if condition else false_fn()
    return ops.cond(condition, true_fn, false_fn)


def while_loop(goes_on, body, state):
    """Applies `state = body(state)`, a named tuple, while `goes_on(state)`."""
    if is_eager(goes_on(state)):
        with np.errstate(all="ignore"):
            while goes_on(state):
                state = body(state)
        return state
    kind = type(state)
    return kind(
        *ops.while_loop(
            lambda *leaves: goes_on(kind(*leaves)),
            lambda *leaves: tuple(body(kind(*leaves))),
            tuple(state),
        )
    )


def stack(scalars):
    """A vector of scalars."""
    if is_eager(scalars[0]):
        return np.array(scalars)
    return ops.stack(scalars)


def to_float(scalar, like):
    """An integer scalar in the dtype of another."""
    if is_eager(scalar):
        return like.dtype.type(scalar)
    return ops.cast(scalar, like.dtype)


def both(*conditions):
    """Whether all conditions hold."""
    return functools.reduce(operator.and_, conditions)


def either(*conditions):
    """Whether any condition holds."""
    return functools.reduce(operator.or_, conditions)


def larger(a, b):
    """The larger of two scalars; `ops.maximum` may lose float64."""
    return where(a > b, a, b)


def smaller(a, b):
    return where(a < b, a, b)


def is_finite(*scalars):
    return both(*(abs(s) < _INFINITY for s in scalars))
