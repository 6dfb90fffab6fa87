"""Bounds and constraints, from the user's variables to the flat vector."""

import re

import keras
import numpy as np

from kormos.objective.function import VectorFunction


def resolve_bounds(bounds, packing):
    """Bounds of the flat vector.

    Args:
        bounds: dict from a variable's path, or a regular expression that
            matches all of a path, to `(low, high)`; or a list of pairs
            `(key, (low, high))`, where a key may be a variable too (Keras'
            variables cannot be keys of a dict); or `None`. `None` inside a
            pair is no bound. A later entry overrides an earlier one.
        packing: the `Packing` of the variables.

    Returns:
        `(lower, upper)`, float64 arrays of shape `(size,)`, or `(None, None)`
        if nothing is bounded. `NonNeg` constraints of variables count.

    Raises:
        ValueError: if an entry matches no variable, does not broadcast, or
            leaves no room; or a variable has another constraint than `NonNeg`.
    """
    constrained = [_constraint_bounds(v) for v in packing.variables]
    pairs = list(constrained)
    for key, pair in _items(bounds):
        found = _matches(key, packing.variables)
        low, high = _pair(key, pair)
        for i in found:
            shape = packing.shapes[i]
            low_i = _broadcast(key, low, -np.inf, shape)
            high_i = _broadcast(key, high, np.inf, shape)
            # A `NonNeg` constraint goes on holding.
            pairs[i] = np.maximum(low_i, constrained[i][0]), high_i
    lower = packing.join_arrays([low for low, _ in pairs])
    upper = packing.join_arrays([high for _, high in pairs])
    if np.isinf(lower).all() and np.isinf(upper).all():
        return None, None
    if (lower > upper).any():
        raise ValueError(
            "Every lower bound must be at most its upper bound. "
            f"Received: bounds={bounds!r}"
        )
    return lower, upper


def resolve_constraints(constraints, packing, make):
    """Constraints on the flat vector.

    Args:
        constraints: a dict `{"type": "eq" or "ineq", "fun": fn}`, a list of
            these, or `None`.
        packing: the `Packing` of the variables.
        make: called with `(type, fun, jac)`.

    Raises:
        ValueError: if an entry has another form.
    """
    if constraints is None:
        return []
    if isinstance(constraints, dict):
        constraints = [constraints]
    resolved = []
    for constraint in constraints:
        if (
            not isinstance(constraint, dict)
            or set(constraint) != {"type", "fun"}
            or constraint["type"] not in ("eq", "ineq")
        ):
            raise ValueError(
                "A constraint must be a dict with the keys 'type', 'eq' or "
                "'ineq', and 'fun', a function of no arguments that reads "
                "variables. Derivatives are taken automatically. "
                f"Received: {constraint!r}"
            )
        fn = VectorFunction(constraint["fun"], packing, "constraint")
        resolved.append(make(constraint["type"], fn.value, fn.jacobian))
    return resolved


def _items(bounds):
    if bounds is None:
        return []
    items = bounds.items() if isinstance(bounds, dict) else bounds
    try:
        return [(key, pair) for key, pair in items]
    except (TypeError, ValueError):
        raise ValueError(
            "Argument `bounds` must be a dict from a variable's path, or a "
            "regular expression on paths, to `(low, high)`, or a list of pairs "
            f"`(variable, (low, high))`. Received: bounds={bounds!r}"
        ) from None


def _matches(key, variables):
    if isinstance(key, keras.Variable):
        found = [i for i, v in enumerate(variables) if v is key]
    elif isinstance(key, str):
        found = [
            i
            for i, v in enumerate(variables)
            if v.path == key or re.fullmatch(key, v.path)
        ]
    else:
        found = []
    if not found:
        raise ValueError(
            "A key of `bounds` matches no variable that is optimized. "
            f"Expected one of {[v.path for v in variables]}, or a regular "
            "expression that matches all of a path. "
            f"Received: {getattr(key, 'path', key)!r}"
        )
    return found


def _pair(key, pair):
    try:
        low, high = pair
    except (TypeError, ValueError):
        raise ValueError(
            "A bound must be a pair `(low, high)`. "
            f"Received: {pair!r} for {getattr(key, 'path', key)!r}"
        ) from None
    return low, high


def _broadcast(key, bound, none, shape):
    bound = np.asarray(none if bound is None else bound, dtype="float64")
    if np.isnan(bound).any():
        raise ValueError(
            "Bounds must not be NaN. "
            f"Received: {bound} for {getattr(key, 'path', key)!r}"
        )
    try:
        return np.broadcast_to(bound, shape)
    except ValueError:
        raise ValueError(
            f"A bound must broadcast to its variable's shape, {shape}. "
            f"Received: shape {bound.shape} for {getattr(key, 'path', key)!r}"
        ) from None


def _constraint_bounds(variable):
    constraint = variable.constraint
    if constraint is None:
        return -np.inf, np.inf
    if isinstance(constraint, keras.constraints.NonNeg):
        return 0.0, np.inf
    raise ValueError(
        "Of Keras' constraints `NonNeg` alone can be kept during a full-batch "
        "optimization; use `bounds` or `constraints` for others. "
        f"Received: {type(constraint).__name__} on {variable.path}"
    )
