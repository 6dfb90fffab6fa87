"""Scalars of solvers: NumPy numbers on an eager backend, tensors in a trace.

A solver makes about a hundred decisions on scalars for every evaluation. When
compiled, they cost nothing. As tensors of an eager backend they would take
longer than the evaluation of a small model. The functions here, and the usual
operators, work on both kinds.
"""

import functools
import operator
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import TypeVar

import numpy as np
from keras import tree

from kormos.backend import ops
from kormos.types import Scalar
from kormos.types import Tensor

_INFINITY = float("inf")

# A scalar, a tensor, or a tuple of these.
_Value = TypeVar("_Value")
# A named tuple of scalars and tensors, the state of a loop.
_State = TypeVar("_State", bound=tuple[Any, ...])


def is_eager(scalar: Scalar) -> bool:
    """Whether a scalar is a number rather than a tensor."""
    return isinstance(scalar, (bool, np.generic))


def constant(value: float, like: Scalar) -> Scalar:
    """`value` as a scalar of the same kind and dtype as `like`."""
    if isinstance(like, np.generic):
        return like.dtype.type(value)
    return ops.convert_to_tensor(value, dtype=like.dtype)


def where(condition: Scalar, a: _Value, b: _Value) -> _Value:
    """`a` if the condition holds, else `b`: scalars, tensors or tuples."""
    if is_eager(condition):
        return a if condition else b
    return tree.map_structure(lambda p, q: ops.where(condition, p, q), a, b)


def cond(
    condition: Scalar,
    true_fn: Callable[..., _Value],
    false_fn: Callable[..., _Value],
) -> _Value:
    """`true_fn()` if the condition holds, else `false_fn()`."""
    if is_eager(condition):
        return true_fn() if condition else false_fn()
    return ops.cond(condition, true_fn, false_fn)


def while_loop(
    goes_on: Callable[[_State], Scalar],
    body: Callable[[_State], _State],
    state: _State,
) -> _State:
    """Applies `state = body(state)`, a named tuple, while `goes_on(state)`."""
    if is_eager(goes_on(state)):
        with np.errstate(all="ignore"):
            while goes_on(state):
                state = body(state)
        return state
    kind: Callable[..., _State] = type(state)
    return kind(
        *ops.while_loop(
            lambda *leaves: goes_on(kind(*leaves)),
            lambda *leaves: tuple(body(kind(*leaves))),
            tuple(state),
        )
    )


def stack(scalars: Sequence[Scalar]) -> Tensor:
    """A vector of scalars."""
    if is_eager(scalars[0]):
        return np.array(scalars)
    return ops.stack(scalars)


def to_float(scalar: Scalar, like: Scalar) -> Scalar:
    """An integer scalar in the dtype of another scalar."""
    if is_eager(scalar):
        return like.dtype.type(scalar)
    return ops.cast(scalar, like.dtype)


def both(*conditions: Scalar) -> Scalar:
    """Whether all conditions hold."""
    return functools.reduce(operator.and_, conditions)


def either(*conditions: Scalar) -> Scalar:
    """Whether any condition holds."""
    return functools.reduce(operator.or_, conditions)


def larger(a: Scalar, b: Scalar) -> Scalar:
    """The larger of two scalars, where `ops.maximum` may lose float64."""
    return where(a > b, a, b)


def smaller(a: Scalar, b: Scalar) -> Scalar:
    """The smaller of two scalars, where `ops.minimum` may lose float64."""
    return where(a < b, a, b)


def is_finite(*scalars: Scalar) -> Scalar:
    """Whether all scalars are finite."""
    return both(*(abs(s) < _INFINITY for s in scalars))
