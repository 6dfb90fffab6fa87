"""A function of residuals, and the data that each of its blocks depends on."""

import contextlib
import copy
import functools
import math
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NoReturn
from typing import Self

import keras
import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.backend.common import as_tensor
from kormos.data.points import Points
from kormos.data.variables import ReadRecorder
from kormos.data.variables import snapshot
from kormos.float64.evaluation import Arithmetic
from kormos.float64.modules import refuse_hidden_reads
from kormos.objective.functions.broadcasts import HINT
from kormos.objective.functions.conversions import naming_conversions
from kormos.objective.functions.stateless import VariableReader
from kormos.objective.functions.stateless import read
from kormos.objective.functions.stateless import takes
from kormos.solvers.verification import RANDOM
from kormos.solvers.verification import moved_parts
from kormos.types import Array
from kormos.types import Structure
from kormos.types import Tensor

# The part by which a row may differ between two batches. Our choice: a batch of
# another size rounds differently, in float32 and in bfloat16, and a row that
# depends on other rows differs by far more.
_SAME = 1e-3

# The name of a single block, by the name of the function.
_ONLY = {"residual_fn": "residuals", "loss_fn": "losses"}


class ResidualFunction(VariableReader):
    """A function that reads Keras variables, as a function of their values.

    Arrays of data with the same number of rows make a group. A block of
    residuals that has a row for each row of a group belongs to that group, and
    each of its rows must depend only on the same row of the data. All other
    blocks depend on no data, and their group is `None`.

    Args:
        fn: function of the data, or of nothing, that returns a tensor or a
            dict, list or tuple of tensors.
        variables: the variables whose values become arguments.
        data: arrays in any structure, or `None`.
        points: the `Points` of the data.
        name: the name of `fn` in errors.

    Attributes:
        points: the `Points` of the data.
        names: the names of the blocks.
        widths: the number of residuals in a row of each block, or in the whole
            block if its group is `None`.
        block_groups: the group of each block.
        groups: the groups that have blocks.
    """

    def __init__(
        self,
        fn: Callable[..., Structure],
        variables: Sequence[keras.Variable],
        data: Structure,
        points: Points,
        name: str = "residual_fn",
    ) -> None:
        self.fn = fn
        self._name = name
        self.variables = list(variables)
        self.points = points
        self._has_data = not points.is_empty
        if not takes(fn, int(self._has_data)):
            raise ValueError(
                f"Argument `{name}` must be a function "
                + ("of the data" if self._has_data else "of no arguments")
                + (
                    " that reads variables. Pass the points at which it is "
                    f"evaluated as `data`. Received: {fn!r}"
                )
            )
        # The first rows of each array, with which the function is tried.
        self._heads = [a[:3] for a in points.arrays(data)]
        arithmetic = Arithmetic()
        with arithmetic.learning(), ReadRecorder() as scope:
            head = self._head([])
            try:
                blocks = arithmetic.first_call(
                    backend.dry_run, self._call, head
                )
            except Exception as error:
                if self._has_data:
                    error.add_note(
                        f"kormos has called `{name}` with two rows of each "
                        "array of the data. It must take any number of rows."
                    )
                raise
        _check_blocks(blocks, name)
        super().__init__(fn, variables, scope, arithmetic)
        refuse_hidden_reads(
            self.unused_variables,
            lambda: arithmetic.call(backend.attempt, self._call, head),
        )
        self._find_groups(blocks, points.count)

    def __call__(
        self,
        parts: list[Tensor] | None,
        frozen: list[Tensor] | None,
        group: int | None,
        rows: Sequence[Tensor],
    ) -> list[Tensor]:
        """All blocks, of which only those of the group are valid.

        Args:
            parts: values of the variables, or `None` for their present ones.
            frozen: values of `frozen_variables`, or `None` with `parts`.
            group: the number of the group, or `None`.
            rows: rows of the arrays of the group. They are not used if the
                group is `None`.

        Returns:
            The blocks in the order of `names`. Those of the group have a row
            for each of `rows`.
        """
        leaves, given = [], iter(rows)
        for head, leaf_group in zip(
            self._heads, self.points.leaf_groups, strict=True
        ):
            # One row of other groups is enough, as their blocks are not used.
            is_mine = group is not None and leaf_group == group
            leaves.append(next(given) if is_mine else as_tensor(head[:1]))
        # Another thread may put an equal function in its place meanwhile.
        now = copy.copy(self)
        with now.scope(parts, frozen):
            blocks = now._call(leaves)
            return [blocks[name] for name in now.names]

    def in_float64(self) -> Self:
        """A copy that is evaluated in float64, on data in float64."""
        other = super().in_float64()
        other.points = self.points.in_float64()
        other._heads = [
            h.astype("float64") if h.dtype.kind == "f" else h
            for h in self._heads
        ]
        return other

    def check_width(self) -> None:
        """Refuses blocks that are not computed in the function's precision."""
        for group in self.groups:
            heads = zip(self._heads, self.points.leaf_groups, strict=True)
            with backend.float64():
                rows = [as_tensor(h) for h, g in heads if g == group]
            self._check_width(functools.partial(self, group=group, rows=rows))

    def check_rows(self) -> None:
        """Refuses residuals that depend on other rows of the data."""
        if not self._has_data:
            return

        parts = snapshot(self.variables)
        try:
            # At a solution the terms of a row may cancel up to rounding, and
            # with variables of zero all rows may be equal. The values are moved
            # away from both.
            mixed = self._mixed(_moved(parts, 0.1))
            if mixed:
                again = self._mixed(_moved(parts, 0.2))
                mixed = [name for name in mixed if name in again]
        except Exception as error:
            if backend.is_numerical(error):
                return  # The fit fails at its start, and reports it.
            raise
        if mixed:
            self._refuse_rows(mixed[0])

    def _mixed(self, parts: list[Tensor]) -> list[str]:
        """The blocks whose rows change when other rows move or are left out.

        A mean shows when a row is left out, differences of neighbors and
        random numbers when rows change places.

        Args:
            parts: values of the variables.
        """
        heads = self._heads
        found = self._at([heads, list(map(_fewer, heads))], parts)
        return [
            name
            for name, group, long, short in zip(
                self.names, self.block_groups, *found, strict=True
            )
            if not np.allclose(
                long if group is None else _fewer(long),
                short,
                rtol=_SAME,
                equal_nan=True,
            )
        ]

    def _at(
        self, batches: list[list[Array]], parts: list[Tensor]
    ) -> list[list[Array]]:
        """The blocks at some values of the variables, compiled.

        Args:
            batches: for each batch the arrays of the data.
            parts: the values.

        Returns:
            For each batch the blocks, as NumPy arrays in the order of `names`.
        """

        frozen = snapshot(self.frozen_variables)

        def blocks_at(
            parts: list[Tensor], *batches: list[Tensor]
        ) -> list[list[Tensor]]:
            found = []
            for leaves in batches:
                # Random numbers are the same in each scope.
                with self.scope(parts, frozen):
                    blocks = self._call(leaves)
                found.append([blocks[name] for name in self.names])
            return found

        with backend.float64():
            tensors = tree.map_structure(as_tensor, batches)
            found = backend.compile(blocks_at)(parts, *tensors)
        return tree.map_structure(backend.to_numpy, found)

    def _refuse_rows(self, name: str) -> NoReturn:
        """Refuses a block with a row that differs between two batches.

        Args:
            name: the name of the block.
        """
        parts = snapshot(self.variables)
        once, again = self._at([self._heads, self._heads], parts)
        if self.draws or not all(map(np.array_equal, once, again)):
            raise ValueError(
                f"{RANDOM} Received: block '{name}', which has a row that "
                "changes when it is computed again"
            )
        raise ValueError(
            f"Function `{self._name}` must return a value, or several, for "
            "each row of the data, not a sum or a mean of them, and each "
            "must depend only on its row. Put points that belong together "
            f"into one row. Received: block '{name}', which changes with "
            "other rows"
        )

    def grouped(self, data: Structure) -> list[list[Array]]:
        """The arrays of each group, in the order of `groups`."""
        rows = self.points.grouped(data)
        # Blocks that depend on no data are computed once, for one row.
        nothing = [np.zeros((1, 1), dtype="float32")]
        return [nothing if g is None else rows[g] for g in self.groups]

    def shapes(self) -> Iterator[tuple[str, int | None, tuple[int, ...]]]:
        """The name, group and shape of each block, for two rows of data."""
        return zip(self.names, self.block_groups, self._shapes, strict=True)

    def _call(self, leaves: Sequence[Tensor]) -> dict[str, Tensor]:
        """The blocks by name."""
        with naming_conversions(self._name, self.variables):
            if self._has_data:
                blocks = self.points.given_to(self.fn, leaves)
            else:
                blocks = self.fn()
        if isinstance(blocks, dict):
            blocks = {str(name): block for name, block in blocks.items()}
        elif isinstance(blocks, (list, tuple)):
            blocks = {f"block_{i}": block for i, block in enumerate(blocks)}
        else:
            blocks = {_ONLY[self._name]: blocks}
        # The order in which the function returns the blocks. The backend may
        # sort the dict that this method returns when it traces it.
        self.names = list(blocks)
        return {name: read(block) for name, block in blocks.items()}

    def _head(self, longer: Sequence[int]) -> list[Tensor]:
        """The first two rows of each array, and three in some groups.

        Args:
            longer: the groups with three rows.
        """
        # Without this scope, JAX would warn of integers of 64 bits.
        with backend.float64():
            return [
                as_tensor(np.resize(h, (3 if g in longer else 2, *h.shape[1:])))
                for h, g in zip(
                    self._heads, self.points.leaf_groups, strict=True
                )
            ]

    @contextlib.contextmanager
    def _naming_lengths(self) -> Iterator[None]:
        """Explains errors where arrays of several lengths are combined."""
        try:
            yield
        except Exception as error:
            if self.points.count < 2:
                raise
            raise ValueError(
                f"Function `{self._name}` must combine only arrays with the "
                "same number of rows. Received: arrays with "
                f"{' and '.join(map(str, self.points.lengths))} rows, for "
                f"which it raises {error!r}"
            ) from error

    def _find_groups(self, blocks: dict[str, Tensor], count: int) -> None:
        """Finds the group of each block by giving that group one more row.

        Args:
            blocks: the blocks for two rows in each group.
            count: the number of groups.
        """
        shapes = {name: tuple(block.shape) for name, block in blocks.items()}
        found: dict[str, int | None] = dict.fromkeys(self.names)
        for group in range(count):
            with ReadRecorder(), self._naming_lengths():
                longer = backend.dry_run(self._call, self._head([group]))
            for name, block in longer.items():
                shape = tuple(block.shape)
                if shape == shapes[name]:
                    continue
                if (
                    found[name] is not None
                    or (shape[0], shapes[name][0]) != (3, 2)
                    or shape[1:] != shapes[name][1:]
                ):
                    raise ValueError(
                        f"A block of `{self._name}` must have one row for "
                        "each row of the data that it depends on, or depend "
                        f"on no data. Received: block '{name}' of shape "
                        f"{shapes[name]} for 2 rows and {shape} for 3"
                        + (f"; {HINT}" if shape == (3, 3) else "")
                    )
                found[name] = group
        self._shapes = [shapes[name] for name in self.names]
        self.block_groups = [found[name] for name in self.names]
        self.groups = list(dict.fromkeys(self.block_groups))
        self.widths = [
            int(np.prod(shapes[name] if group is None else shapes[name][1:]))
            for name, group in found.items()
        ]


def _fewer(rows: Array) -> Array:
    """All rows but the last, if there are several, in the reverse order."""
    return rows[: max(1, len(rows) - 1)][::-1]


def _moved(parts: list[Tensor], part: float) -> list[Tensor]:
    """Values that differ by up to this part of their size."""
    moved = moved_parts(map(backend.to_numpy, parts), part)
    return [
        ops.cast(values, part.dtype)
        for values, part in zip(moved, parts, strict=True)
    ]


def _check_blocks(blocks: dict[str, Tensor], name: str) -> None:
    """Refuses blocks that are not tensors of floating-point numbers."""
    for key, block in blocks.items():
        if not ops.is_tensor(block) or not keras.backend.is_float_dtype(
            keras.backend.standardize_dtype(block.dtype)
        ):
            raise ValueError(
                f"Function `{name}` must return a tensor of floating-"
                "point numbers, or a dict, list or tuple of these. "
                f"Received: {key}={block!r}"
            )
    if not any(math.prod(block.shape) for block in blocks.values()):
        raise ValueError(
            f"Function `{name}` must return at least one residual. "
            f"Received: shapes {[tuple(b.shape) for b in blocks.values()]}"
        )
