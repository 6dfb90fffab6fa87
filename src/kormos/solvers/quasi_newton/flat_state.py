"""Packs a solver's state into few arrays, because each argument takes time."""

from typing import Any
from typing import NamedTuple

import numpy as np
from keras import tree

from kormos import backend
from kormos.arithmetic.scalars import is_eager
from kormos.backend import ops
from kormos.types import Structure
from kormos.types import Tensor


class Packed(NamedTuple):
    """A state with its scalars in vectors.

    Attributes:
        arrays: the leaves that are not scalars.
        floats: the float64 scalars, a vector.
        integers: the other scalars, an int32 vector.
    """

    arrays: list[Tensor]
    floats: Tensor
    integers: Tensor


def pack(state: Structure) -> Packed:
    """Packs a named tuple of arrays, scalars and such tuples."""
    arrays, floats, integers = [], [], []
    for leaf in tree.flatten(state):
        if len(leaf.shape):
            arrays.append(leaf)
        elif _is_float(leaf):
            floats.append(leaf)
        else:
            integers.append(leaf)
    if is_eager(floats[0]):
        return Packed(arrays, np.array(floats), np.array(integers, "int32"))
    integers = [ops.cast(i, "int32") for i in integers]
    return Packed(arrays, ops.stack(floats), ops.stack(integers))


def _is_float(scalar: Any) -> bool:
    if is_eager(scalar):
        return isinstance(scalar, np.floating)
    return "float" in str(scalar.dtype)


def skeleton(state: Structure) -> Structure:
    """The structure of a NumPy state without its arrays, for `unpack`."""
    return tree.map_structure(
        lambda leaf: np.empty((0,) * leaf.ndim, leaf.dtype)[()], state
    )


def unpack(packed: Packed, skeleton: Structure) -> Any:
    """The state in `packed`, with the structure of `skeleton`."""
    counts = [0, 0, 0]

    def leaf_like(leaf: Any) -> Tensor:
        kind = 0 if leaf.ndim else 1 if leaf.dtype.kind == "f" else 2
        value = packed[kind][counts[kind]]
        counts[kind] += 1
        return value > 0 if leaf.dtype.kind == "b" else value

    return tree.map_structure(leaf_like, skeleton)


def on_host(packed: Packed) -> Packed:
    """The same, with its scalars in NumPy arrays."""
    floats, integers = map(backend.to_numpy, packed[1:])
    return Packed(packed.arrays, floats, integers)
