"""The layout of Keras variables in one flat vector."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from kormos import backend
from kormos.arithmetic.vectors import rounding
from kormos.backend import ops
from kormos.backend.common import equal_arrays
from kormos.data.variables import assign
from kormos.types import Array
from kormos.types import Tensor
from kormos.types import Vector


class Packing:
    """The layout of a list of variables in one flat vector.

    The vector holds the variables in the given order, each flattened in C
    order.

    Args:
        variables: a list of built `keras.Variable`s, without repetition.
        dtype: the dtype in which values are evaluated. Defaults to that of
            each variable.

    Raises:
        ValueError: if there are no variables or they have no entries, if one
            is not floating point or not trainable, or if one is listed twice.

    Attributes:
        variables: the variables.
        shapes: their shapes.
        dtype: the `dtype` argument.
        dtypes: the dtype in which each variable is evaluated.
        size: the size of the flat vector.
    """

    def __init__(
        self, variables: Sequence[keras.Variable], dtype: str | None = None
    ) -> None:
        _check(variables)
        self.dtype = dtype
        self.variables = list(variables)
        self.shapes = [tuple(v.shape) for v in self.variables]
        self._stored = [
            keras.backend.standardize_dtype(v.dtype) for v in self.variables
        ]
        self.dtypes: list[str] = [dtype or stored for stored in self._stored]
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        self.size = sum(sizes)
        self._ends = [int(end) for end in np.cumsum(sizes)]

    def unpack(self, theta: Tensor) -> list[Tensor]:
        """Splits a flat tensor into tensors like the variables."""
        is_alike = len(set(self.dtypes)) == 1
        if is_alike:
            # On an eager backend the number of operations decides the time.
            theta = ops.cast(theta, self.dtypes[0])
        parts, start = [], 0
        for end, dtype, shape in zip(
            self._ends, self.dtypes, self.shapes, strict=True
        ):
            part = theta[start:end]
            part = part if is_alike else ops.cast(part, dtype)
            # On an eager backend a reshape takes as long as a small layer.
            parts.append(part if len(shape) == 1 else ops.reshape(part, shape))
            start = end
        return parts

    def pack(self, parts: Sequence[Tensor], dtype: Any) -> Tensor:
        """Joins tensors like the variables into one flat tensor."""
        flat = [ops.reshape(part, (-1,)) for part in parts]
        if len({part.dtype for part in flat}) > 1:
            flat = [ops.cast(part, dtype) for part in flat]
        joined = ops.concatenate(flat) if flat[1:] else flat[0]
        return ops.cast(joined, dtype)

    def split_array(self, theta: Vector) -> list[Array]:
        """Splits a flat NumPy array into arrays shaped like the variables."""
        parts = np.split(theta, self._ends[:-1])
        return [
            part.reshape(shape)
            for part, shape in zip(parts, self.shapes, strict=True)
        ]

    def join_arrays(self, arrays: Sequence[npt.ArrayLike]) -> Vector:
        """Joins arrays that broadcast to the variables' shapes, in float64."""
        return np.concatenate(
            [
                np.broadcast_to(np.asarray(a, "float64"), shape).reshape(-1)
                for a, shape in zip(arrays, self.shapes, strict=True)
            ]
        )

    def name_of(self, index: int) -> str:
        """The name of an entry of the flat vector.

        Args:
            index: its place in the vector.

        Returns:
            The path of its variable, with the entry's place in that.
        """
        which = int(np.searchsorted(self._ends, index, side="right"))
        start = self._ends[which - 1] if which else 0
        place = np.unravel_index(index - start, self.shapes[which] or (1,))
        inside = ", ".join(str(int(i)) for i in place)
        return f"{self.variables[which].path}[{inside}]"

    @property
    def widest(self) -> str:
        """The dtype of the variables with the most digits."""
        return min(self.dtypes, key=rounding)

    @property
    def storage_eps(self) -> float:
        """The machine epsilon of the coarsest variable."""
        return max(map(rounding, set(self._stored)))

    def read(self) -> Vector:
        """The variables' values as one flat float64 array."""
        return self.join_arrays(list(map(backend.to_numpy, self.variables)))

    def holds(self, theta: Vector) -> bool:
        """Whether the variables hold a flat array, rounded to their dtypes."""
        return all(
            equal_arrays(backend.to_numpy(variable), part.astype(dtype))
            for variable, dtype, part in zip(
                self.variables,
                self._stored,
                self.split_array(theta),
                strict=True,
            )
        )

    def write(self, theta: npt.ArrayLike) -> None:
        """Assigns a flat array to the variables, rounded to their dtypes."""
        parts = self.split_array(np.asarray(theta, "float64"))
        for variable, dtype, part in zip(
            self.variables, self._stored, parts, strict=True
        ):
            if dtype == "bfloat16":
                part = ops.cast(part, dtype)
            else:
                # JAX would compile a cast of a tensor.
                part = part.astype(dtype)
            if dtype != "float64":
                # JAX takes half the time to assign a tensor.
                part = ops.convert_to_tensor(part)
            assign(variable, part)


def _check(variables: Any) -> None:
    # Iterating over a variable of JAX never ends.
    if not isinstance(variables, (list, tuple)):
        raise ValueError(
            "Argument `variables` must be a list of `keras.Variable`s. "
            f"Received: {variables!r} (of type {type(variables).__name__})"
        )
    if not variables:
        raise ValueError(
            "There is nothing to optimize: expected at least one trainable "
            "variable. Set `trainable = True` on a layer. "
            "Received: 0 trainable variables"
        )
    for variable in variables:
        if not isinstance(variable, keras.Variable):
            raise ValueError(
                "Argument `variables` must hold `keras.Variable`s. "
                f"Received: {variable!r} (of type {type(variable).__name__})"
            )
        if not keras.backend.is_float_dtype(variable.dtype):
            raise ValueError(
                "Only floating-point variables can be optimized. "
                f"Received: {variable.path} with dtype {variable.dtype}"
            )
        if not variable.trainable:
            raise ValueError(
                "Variables to optimize must be trainable: set `trainable = "
                "True`, or leave the variable out, so that it keeps its "
                f"value. Received: {variable.path} with trainable=False"
            )
    if not sum(int(np.prod(v.shape)) for v in variables):
        raise ValueError(
            "There is nothing to optimize: expected variables with at least "
            f"one entry. Received: {[tuple(v.shape) for v in variables]}"
        )
    if len({id(v) for v in variables}) < len(variables):
        raise ValueError(
            "Argument `variables` must hold each variable once. "
            f"Received: {[v.path for v in variables]}"
        )
