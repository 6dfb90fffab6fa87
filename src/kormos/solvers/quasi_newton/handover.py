"""The curvature of L-BFGS as the inverse Hessian of a dense method."""

from __future__ import annotations

import numpy as np

from kormos.solvers.quasi_newton.dense_curvature import Dense
from kormos.solvers.solver_state import SolverState
from kormos.types import Array
from kormos.types import Matrix

_LIMITED = "l-bfgs,"
_STORE = "store"
_KNOWN = "curvature."


def is_limited(state: SolverState) -> bool:
    """Whether a state comes from L-BFGS without constraints."""
    if not state.key.startswith(_LIMITED):
        return False
    return f"{_KNOWN}inverse" in state.arrays()


def as_dense(state: SolverState, method: Dense) -> SolverState:
    """Converts a state of L-BFGS to one of a dense method.

    The point, the gradient, the line search and the next direction stay the
    same.

    Args:
        state: the state of L-BFGS.
        method: the dense method.
    """
    arrays = state.arrays()
    size = arrays["theta"].size
    store, known = method.empty(size)
    kept = {
        name: array
        for name, array in arrays.items()
        if not name.startswith((_STORE, _KNOWN))
    }
    kept[_STORE] = inverse_hessian(arrays)
    for name, value in zip(known._fields, known, strict=True):
        parts = value if isinstance(value, tuple) else None
        if parts is None:
            kept[_KNOWN + name] = np.array(value)
        else:
            for i, part in enumerate(parts):
                kept[f"{_KNOWN}{name}.{i}"] = np.array(part)
    return state.of_method(method.key, kept)


def inverse_hessian(arrays: dict[str, Array]) -> Matrix:
    """The matrix H of `lbfgs_curvature`, `(size, size)`.

    Args:
        arrays: the arrays of a state of L-BFGS.
    """
    blocks: list[Array] = []
    while f"{_STORE}.{len(blocks)}" in arrays:
        blocks.append(arrays[f"{_STORE}.{len(blocks)}"])
    pairs = np.concatenate(blocks)
    pairs = pairs * arrays[f"{_KNOWN}lengths"][:, :, None]
    s, y = pairs[:, 0], pairs[:, 1]
    inverse = arrays[f"{_KNOWN}inverse"]
    squares = arrays[f"{_KNOWN}squares"]
    curvatures = arrays[f"{_KNOWN}curvatures"]
    gamma = float(arrays[f"{_KNOWN}scale"])
    u = inverse @ s
    inner = curvatures[:, None] * u + gamma * (squares @ u - y)
    found = s.T @ (inverse.T @ inner) - gamma * (y.T @ u)
    found[np.diag_indices_from(found)] += gamma
    return (found + found.T) / 2
