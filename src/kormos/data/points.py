"""The data of residuals: arrays in groups that have a row for each point."""

import copy
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.data.arrays import refuse_ragged
from kormos.types import Array
from kormos.types import Structure


class Points:
    """The argument `data` of `kormos.least_squares`, as checked arrays.

    Arrays with the same number of rows make a group.

    Args:
        data: arrays in any structure, or `None`.
        name: the name of the argument in messages.
        dtype: dtype of floating-point numbers.
        omits_missing: whether points with NaN are left out.

    Attributes:
        is_empty: whether there are no data at all.
        leaf_groups: the number of the group of each array.
        count: the number of groups.
        lengths: the number of rows of each group, in the data at hand.
    """

    def __init__(
        self,
        data: Structure,
        name: str,
        dtype: str | None,
        omits_missing: bool,
    ) -> None:
        self._has_frames = any(map(is_frame, tree.flatten(data)))
        self._structure = data = with_columns(data)
        self._name = name
        self._dtype = dtype
        self._omits_missing = omits_missing
        self.is_empty = data is None
        arrays = self._all_rows(data)
        counts = [len(array) for array in arrays]
        self.lengths = list(dict.fromkeys(counts))
        self.leaf_groups = [self.lengths.index(count) for count in counts]
        self.count = len(self.lengths)
        self._rows = [(a.shape[1:], a.dtype.name) for a in arrays]
        # The objects with these points are kept for later calls, but must not
        # keep the data.
        if not self.is_empty:
            self._structure = tree.map_structure(
                lambda leaf: np.broadcast_to(np.zeros(()), np.shape(leaf)),
                data,
            )

    @property
    def layout(self) -> Hashable:
        """Everything about these points except for the numbers."""
        return (
            repr(tree.map_structure(lambda _: 0, self._structure)),
            tuple(zip(self.leaf_groups, self._rows, strict=True)),
            self._has_frames,
            self._name,
            self._dtype,
            self._omits_missing,
        )

    def in_float64(self) -> "Points":
        """A copy that returns arrays in float64."""
        other = copy.copy(self)
        other._dtype = "float64"
        return other

    def arrays(self, data: Structure) -> list[Array]:
        """The NumPy arrays of data with this structure, in order."""
        arrays = self._all_rows(data)
        if not self._omits_missing:
            return arrays
        for group in range(self.count):
            places = [i for i, g in enumerate(self.leaf_groups) if g == group]
            if len({len(arrays[i]) for i in places}) > 1:
                continue  # `grouped` will raise an error for it.
            missing = np.any([_has(np.isnan, arrays[i]) for i in places], 0)
            if missing.all():
                raise ValueError(
                    f"Argument `{self._name}` must hold at least one point "
                    "without NaN, because `nan_policy='omit'` keeps only "
                    f"such points. Received: NaN in each of {len(missing)} "
                    "rows"
                )
            if missing.any():
                for i in places:
                    arrays[i] = arrays[i][~missing]
        return arrays

    def grouped(self, data: Structure) -> dict[int, list[Array]]:
        """The arrays of data with this structure, by the number of a group."""
        rows: dict[int, list[Array]] = {}
        arrays = self.arrays(data)
        for array, group in zip(arrays, self.leaf_groups, strict=True):
            rows.setdefault(group, []).append(array)
        for members in rows.values():
            if len({len(a) for a in members}) > 1:
                raise ValueError(
                    "Arrays that have the same number of rows in `data` must "
                    "also have the same number of rows in new data. "
                    f"Received: lengths {[len(a) for a in members]}"
                )
        return rows

    def group_of(self, key: Any) -> int:
        """The number of the group of `data[key]`, or of the data if `None`."""
        numbers = range(len(self.leaf_groups))
        entries = tree.pack_sequence_as(self._structure, list(numbers))
        entry = entries if key is None else entries[key]
        return self.leaf_groups[tree.flatten(entry)[0]]

    def given_to(
        self, fn: Callable[[Structure], Any], leaves: Sequence[Any]
    ) -> Any:
        """Calls `fn` with arrays or tensors in the structure of the data."""
        given = tree.pack_sequence_as(self._structure, leaves)
        try:
            return fn(given)
        except (AttributeError, KeyError, TypeError) as error:
            if not self._has_frames:
                has_integers = any("int" in dtype for _, dtype in self._rows)
                if has_integers and keras.backend.backend() == "tensorflow":
                    error.add_note(
                        "TensorFlow does not combine integers and floats: "
                        "cast the integers in `data` by `keras.ops.cast`, "
                        "or pass floats."
                    )
                raise
            raise ValueError(
                "Function `residual_fn` receives a DataFrame as a dict of "
                "its columns, `data['name']`; pass `to_numpy()` for a "
                f"matrix. Received: `residual_fn`, which raises {error!r}"
            ) from error

    def check_structure(self, data: Structure) -> None:
        """Refuses data whose structure differs from its own."""
        try:
            tree.assert_same_structure(self._structure, with_columns(data))
        except (TypeError, ValueError):
            raise ValueError(
                "Other data (`validation_data`, or what a `Resample` draws) "
                "must have the same structure as `data`. Received: shapes "
                f"{_shapes(data)} for {_shapes(self._structure)}"
            ) from None

    def refuse_missing(
        self,
        data: Structure,
        group: int,
        is_usable: Callable[[list[Array]], Array],
    ) -> None:
        """Refuses values that are not finite and make residuals useless.

        They are allowed if the function of the residuals masks them.

        Args:
            data: the data.
            group: the number of a group.
            is_usable: function of arrays of the group that returns, for each
                row, whether its residuals can be used.
        """
        arrays = self.grouped(data)[group]
        rows = np.flatnonzero(np.any([_has(_not_finite, a) for a in arrays], 0))
        if not len(rows):
            return
        rows = rows[~is_usable([array[rows] for array in arrays])]
        if not len(rows):
            return
        row = rows[0]
        for name, array in zip(self._names(group), arrays, strict=True):
            if _has(_not_finite, array)[row]:
                raise ValueError(
                    f"Argument `{name}` must be finite in {array.dtype}, or "
                    "`residual_fn` must mask the other values: remove or "
                    "impute NaN and infinite values, or leave out the rows "
                    "with NaN by `nan_policy='omit'`. "
                    f"Received: {int(_not_finite(array).sum())} such values; "
                    f"row {row} has residuals, or derivatives of them, that "
                    "are not finite"
                )

    def _names(self, group: int) -> list[str]:
        """The names of the arrays of a group, such as `"data['t']"`."""
        leaves = tree.flatten_with_path(self._structure)
        return [
            _path(self._name, path)
            for (path, _), g in zip(leaves, self.leaf_groups, strict=True)
            if g == group
        ]

    def _all_rows(self, data: Structure) -> list[Array]:
        if self.is_empty:
            return []
        self.check_structure(data)
        return [
            self._array(leaf, _path(self._name, path))
            for path, leaf in tree.flatten_with_path(with_columns(data))
        ]

    def _array(self, leaf: Any, name: str) -> Array:
        refuse_ragged(leaf, name)
        array = backend.to_numpy(leaf) if ops.is_tensor(leaf) else leaf
        array = np.asarray(array)
        if array.ndim == 0 or array.dtype.kind not in "fiub" or not len(array):
            found = (
                f"{array.dtype} of shape {array.shape}"
                if array.ndim
                else repr(leaf)
            )
            raise ValueError(
                f"Argument `{name}` must hold arrays of real numbers, with a "
                "row for each point (convert lists by `numpy.array`). "
                f"Received: {type(leaf).__name__}, {found}"
            )
        return array.astype(self._dtype) if array.dtype.kind == "f" else array


def with_columns(data: Structure) -> Structure:
    """The data, with a dict of columns in place of each DataFrame."""
    return tree.map_structure(
        lambda leaf: (
            {name: leaf[name] for name in leaf.columns}
            if is_frame(leaf)
            else leaf
        ),
        data,
    )


def is_frame(leaf: Any) -> bool:
    """Whether it is a DataFrame of any library."""
    return hasattr(leaf, "columns") and hasattr(leaf, "to_numpy")


def _path(name: str, path: Sequence[Any]) -> str:
    return name + "".join(f"[{key!r}]" for key in path)


def _has(test: Callable[[Array], Array], array: Array) -> Array:
    """For each row of an array, whether any number in it passes a test."""
    if array.dtype.kind != "f":
        return np.zeros(len(array), bool)
    return np.any(test(array).reshape(len(array), -1), axis=1)


def _not_finite(array: Array) -> Array:
    return ~np.isfinite(array)


def _shapes(data: Structure) -> Structure:
    return tree.map_structure(lambda a: str(np.shape(a)), data)
