"""Bounds and constraints, from the user's variables to the flat vector."""

import contextlib
import re
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import TypeVar

import keras
import numpy as np
import scipy.optimize

from kormos.objective.flat_bounds import flat_bounds
from kormos.objective.flat_bounds import linear_rows
from kormos.objective.functions.vector import VectorFunction
from kormos.objective.layout import Packing
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Vector

# A constraint in the form that a solver takes.
_Made = TypeVar("_Made")


@contextlib.contextmanager
def moved_into_bounds(
    variables: Sequence[keras.Variable],
    bounds: Any,
    frozen: Sequence[keras.Variable] = (),
) -> Iterator[None]:
    """A scope in which no variable lies outside its bounds.

    Objectives are made in it, so that they are evaluated only within bounds.
    The variables keep the values that they were moved to, unless an error
    leaves the scope.

    Args:
        variables: list of the variables.
        bounds: see `resolve_bounds`.
        frozen: see `resolve_bounds`.
    """
    packing = Packing(variables)
    lower, upper = resolve_bounds(bounds, packing, frozen)
    before = packing.read()
    inside = before if lower is None else np.clip(before, lower, upper)
    if np.array_equal(inside, before):
        yield
        return
    packing.write(inside)
    try:
        yield
    except BaseException:
        packing.write(before)
        raise


def resolve_bounds(
    bounds: Any, packing: Packing, frozen: Sequence[keras.Variable] = ()
) -> tuple[Vector, Vector] | tuple[None, None]:
    """Bounds of the flat vector.

    Args:
        bounds: dict from a variable's path, or a regular expression that
            matches all of a path, to `(low, high)`; or a list of pairs
            `(key, (low, high))`, where a key may also be a variable (Keras'
            variables cannot be keys of a dict); or bounds of the flat vector,
            in SciPy's forms; or `None`. `None` inside a pair is no bound. A
            later entry overrides an earlier one.
        packing: the `Packing` of the variables.
        frozen: other variables that keys may name, because a later stage of
            the optimization trains them. Their bounds are not used here.

    Returns:
        `(lower, upper)`, float64 arrays of shape `(size,)`, or `(None, None)`
        if nothing is bounded. `NonNeg` constraints of variables are bounds
        too.

    Raises:
        ValueError: if an entry matches no variable, does not broadcast, or
            allows no value; or if a variable has a constraint other than
            `NonNeg`.
    """
    constrained = [_constraint_bounds(v) for v in packing.variables]
    pairs = list(constrained)
    flat = flat_bounds(bounds, packing.size)
    if flat is not None:
        sides = map(packing.split_array, flat)
        pairs_of = zip(*sides, strict=True)
        bounds = list(zip(packing.variables, pairs_of, strict=True))
    for key, pair in items_of(bounds):
        found = matches(key, packing.variables)
        known = found or matches(key, frozen)
        if not known:
            found = _matches_end(key, packing.variables)
            known = found or _matches_end(key, frozen)
        if not known:
            raise ValueError(
                "A key of `bounds` matches no variable that is optimized. "
                f"Expected one of {[v.path for v in packing.variables]}, or "
                "a regular expression that matches a whole path. Received: "
                f"{getattr(key, 'path', key)!r}"
            )
        low, high = _pair(key, pair)
        for i in found:
            shape = packing.shapes[i]
            low_i = _broadcast(key, low, -np.inf, shape)
            high_i = _broadcast(key, high, np.inf, shape)
            # A `NonNeg` constraint holds in addition to the bounds.
            pairs[i] = np.maximum(low_i, constrained[i][0]), high_i
            _check_room(packing.variables[i], *pairs[i])
    lower = packing.join_arrays([low for low, _ in pairs])
    upper = packing.join_arrays([high for _, high in pairs])
    if (lower == -np.inf).all() and (upper == np.inf).all():
        return None, None
    return lower, upper


class VectorConstraint(NamedTuple):
    """A constraint that is a function of the flat vector.

    Attributes:
        type: `"eq"` or `"ineq"`.
        fun: function from a vector to an array of shape `(m,)`.
        jac: function from a vector to an array of shape `(m, size)`.
    """

    type: str
    fun: Callable[[Vector], Vector]
    jac: Callable[[Vector], Matrix]


def resolve_constraints(
    constraints: Any, packing: Packing, make: Callable[..., _Made]
) -> list[_Made]:
    """Constraints on the flat vector.

    Args:
        constraints: a dict `{"type": "eq" or "ineq", "fun": fn}`, a
            `scipy.optimize.LinearConstraint` of the flat vector, a list of
            these, or `None`.
        packing: the `Packing` of the variables.
        make: function that makes a constraint from its type (`"eq"` or
            `"ineq"`), a function from a vector to its values, one to their
            derivatives, and, unless it is linear, a function that reads again
            the variables that it keeps fixed and returns whether they have
            changed.

    Returns:
        What `make` returns for each constraint.

    Raises:
        ValueError: if an entry has another form.
    """
    if constraints is None:
        return []
    if not isinstance(constraints, (list, tuple)):
        constraints = [constraints]
    resolved = []
    for constraint in constraints:
        if isinstance(constraint, scipy.optimize.LinearConstraint):
            resolved += [
                make(*r) for r in linear_rows(constraint, packing.size)
            ]
            continue
        if isinstance(constraint, VectorConstraint):
            resolved.append(make(*constraint))
            continue
        if (
            not isinstance(constraint, dict)
            or set(constraint) != {"type", "fun"}
            or constraint["type"] not in ("eq", "ineq")
        ):
            raise ValueError(
                "A constraint must be a dict with the keys 'type', 'eq' or "
                "'ineq', and 'fun', a function of no arguments that reads "
                "variables, not a vector: `lambda: 1 - v[0]`. Derivatives are "
                "computed automatically. It can also be a "
                f"`scipy.optimize.LinearConstraint`. Received: {constraint!r}"
            )
        fn = VectorFunction(constraint["fun"], packing, "fun")
        resolved.append(
            make(constraint["type"], fn.value, fn.jacobian, fn.refresh)
        )
    return resolved


def items_of(
    given: Any, name: str = "bounds", value: str = "(low, high)"
) -> list[tuple[Any, Any]]:
    """The entries of a dict or a list of pairs.

    Args:
        given: the argument.
        name: what errors call it.
        value: what errors call the second part of an entry.
    """
    if given is None:
        return []
    items = given.items() if isinstance(given, dict) else given
    try:
        return [(key, pair) for key, pair in items]
    except (TypeError, ValueError):
        raise ValueError(
            f"Argument `{name}` must be a dict from a variable's path, or a "
            f"regular expression for paths, to `{value}`, or a list of pairs "
            f"`(variable, {value})`. Received: {name}={given!r}"
        ) from None


def matches(key: Any, variables: Sequence[keras.Variable]) -> list[int]:
    """The places of the variables that a key names."""
    if not isinstance(key, str):
        return [i for i, v in enumerate(variables) if v is key]
    return [
        i
        for i, v in enumerate(variables)
        if v.path == key or _fits(key, v.path)
    ]


def _matches_end(key: Any, variables: Sequence[keras.Variable]) -> list[int]:
    """The place of the one variable whose path a key ends with, if any.

    A path that was saved may begin with the name of the model, but the paths
    of a loaded model do not.
    """
    found = [
        i
        for i, v in enumerate(variables)
        if isinstance(key, str) and key.endswith("/" + v.path)
    ]
    return found if len(found) == 1 else []


def _fits(pattern: str, path: str) -> bool:
    try:
        return re.fullmatch(pattern, path) is not None
    except re.error:
        return False


def _pair(key: Any, pair: Any) -> tuple[Any, Any]:
    try:
        low, high = pair
    except (TypeError, ValueError):
        raise ValueError(
            "A bound must be a pair `(low, high)`. "
            f"Received: {pair!r} for {getattr(key, 'path', key)!r}"
        ) from None
    return low, high


def _broadcast(
    key: Any, bound: Any, none: float, shape: tuple[int, ...]
) -> Array:
    name = getattr(key, "path", key)
    given = bound
    try:
        bound = np.asarray(given)
        if bound.dtype == object:
            # `None` means no bound, also for a single entry.
            numbers = [none if b is None else b for b in bound.flat]
            bound = np.reshape(numbers, bound.shape)
        bound = bound.astype("float64")
    except (TypeError, ValueError):
        raise ValueError(
            "A bound must be numbers, or `None` for none. "
            f"Received: {given!r} for {name!r}"
        ) from None
    if np.isnan(bound).any():
        raise ValueError(
            f"Bounds must not be NaN. Received: {bound} for {name!r}"
        )
    try:
        return np.broadcast_to(bound, shape)
    except ValueError:
        raise ValueError(
            "A bound must be broadcastable to its variable's shape, "
            f"{shape}. Received: shape {bound.shape} for {name!r}"
        ) from None


def _check_room(variable: keras.Variable, low: Array, high: Array) -> None:
    empty = (low > high) | (low == np.inf) | (high == -np.inf)
    if empty.any():
        raise ValueError(
            "Every lower bound, and the zero of a `NonNeg` constraint, must "
            "not be above the upper bound, and there must be a finite number "
            f"between them. Received: ({low[empty][0]}, {high[empty][0]}) "
            f"for an entry of {variable.path}"
        )


def _constraint_bounds(variable: keras.Variable) -> tuple[Any, Any]:
    constraint = variable.constraint
    if constraint is None:
        return -np.inf, np.inf
    if isinstance(constraint, keras.constraints.NonNeg):
        return 0.0, np.inf
    raise ValueError(
        "`NonNeg` is the only one of Keras' constraints that a full-batch "
        "method supports; use `bounds` or `constraints` for others. "
        f"Received: {type(constraint).__name__} on {variable.path}"
    )
