"""A function of residuals, and which data each of its blocks is made of."""

import keras
import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.backend.common import as_tensor
from kormos.data.variables import ReadRecorder
from kormos.float64.evaluation import Arithmetic
from kormos.float64.modules import refuse_hidden_reads
from kormos.objective.functions.broadcasts import HINT
from kormos.objective.functions.conversions import naming_conversions
from kormos.objective.functions.scalar import VariableReader
from kormos.objective.functions.scalar import read
from kormos.objective.functions.scalar import takes
from kormos.solvers.verification import RANDOM


class ResidualFunction(VariableReader):
    """A function that reads Keras variables, as a function of their values.

    Arrays of data with the same number of rows make a group. A block of
    residuals with as many rows belongs to the group, and its rows must depend
    on the same rows of the data alone; every other block belongs to no data.

    Args:
        fn: function of the data, or of nothing, that returns a tensor or a
            dict, list or tuple of tensors.
        variables: the variables whose values become arguments.
        data: arrays in any structure, or `None`.
        points: the `Points` of the data.

    Attributes:
        points: likewise.
        names: of the blocks.
        widths: residuals of a row of each block, or of the whole block.
        block_groups: the group of each block, or `None`.
        groups: the groups that have blocks; `None` is one of them.
    """

    def __init__(self, fn, variables, data, points):
        self._fn = fn
        self.variables = list(variables)
        self.points = points
        self._has_data = not points.is_empty
        if not takes(fn, int(self._has_data)):
            raise ValueError(
                "Argument `residual_fn` must be a function "
                + ("of the data" if self._has_data else "of no arguments")
                + " that reads variables and returns residuals; points that "
                f"it is evaluated at are given as `data`. Received: {fn!r}"
            )
        self._heads = [a[:3] for a in points.arrays(data)]
        arithmetic = Arithmetic()
        with arithmetic.learning(), ReadRecorder() as scope:
            head = self._head([])
            blocks = arithmetic.first_call(backend.dry_run, self._call, head)
        _check_blocks(blocks)
        super().__init__(variables, scope, arithmetic)
        refuse_hidden_reads(
            self.unused_variables,
            lambda: arithmetic.call(backend.attempt, self._call, head),
        )
        self._find_groups(blocks, points.count)

    def __call__(self, parts, frozen, group, rows):
        """The blocks of a group's rows: list of tensors, in order.

        Args:
            parts: values of the variables.
            frozen: values of `frozen_variables`.
            group: the number of the group, or `None`.
            rows: list of arrays, the group's; whatever without a group.
        """
        leaves, given = [], iter(rows)
        for head, leaf_group in zip(
            self._heads, self.points.leaf_groups, strict=True
        ):
            # Of other groups a row will do: their blocks are not used.
            is_mine = group is not None and leaf_group == group
            leaves.append(next(given) if is_mine else as_tensor(head[:1]))
        with self.scope(parts, frozen):
            blocks = self._call(leaves)
            return [blocks[name] for name in self.names]

    def widened(self):
        """The same, evaluated in float64 on data in float64."""
        other = super().widened()
        other.points = self.points.widened()
        other._heads = [
            h.astype("float64") if h.dtype.kind == "f" else h
            for h in self._heads
        ]
        return other

    def check_width(self):
        """Refuses blocks that do not compute in the function's precision."""
        for group in self.groups:
            heads = zip(self._heads, self.points.leaf_groups, strict=True)
            with backend.wide():
                rows = [as_tensor(h) for h, g in heads if g == group]
            super().check_width(group, rows)

    def check_rows(self):
        """Refuses residuals that depend on other rows than their own."""
        if not self._has_data:
            return

        heads = [as_tensor(h) for h in self._heads]
        try:
            found = self._at([heads, [h[:1] for h in heads]])
        except Exception as error:
            if backend.is_numerical(error):
                return  # A fit from here ends at its start, and says so.
            raise
        for name, group, long, short in zip(
            self.names, self.block_groups, *found, strict=True
        ):
            long = long if group is None else long[:1]
            if not np.allclose(long, short, rtol=1e-3, equal_nan=True):
                self._refuse_rows(name, heads)

    def _at(self, batches):
        """The blocks at batches of data: for each a list of NumPy arrays."""

        def blocks_at(*batches):
            found = []
            for leaves in batches:
                # Of its own, so that random numbers are the same.
                with self.scope(None, None):
                    blocks = self._call(leaves)
                found.append([blocks[name] for name in self.names])
            return found

        with backend.wide():
            found = backend.compile(blocks_at)(*batches)
        return tree.map_structure(ops.convert_to_numpy, found)

    def _refuse_rows(self, name, heads):
        once, again = self._at([heads, heads])
        if self.draws or not all(map(np.array_equal, once, again)):
            raise ValueError(
                f"{RANDOM} Received: block '{name}', a row of which is "
                "another one when it is computed anew"
            )
        raise ValueError(
            "A row of residuals must depend on the same row of the "
            "data alone, and a block that is made of no data on none. "
            "Give points that belong together as one row. Received: "
            f"block '{name}', which changes with other rows"
        )

    def grouped(self, data):
        """The arrays of data, by group, in NumPy."""
        rows = self.points.grouped(data)
        # Of what belongs to no data, one row.
        nothing = [np.zeros((1, 1), dtype="float32")]
        return [nothing if g is None else rows[g] for g in self.groups]

    def shapes(self):
        """Name, group and shape of each block; of two rows, in a group."""
        return zip(self.names, self.block_groups, self._shapes, strict=True)

    def _call(self, leaves):
        """The blocks by name."""
        with naming_conversions("residual_fn", self.variables):
            if self._has_data:
                blocks = self.points.given_to(self._fn, leaves)
            else:
                blocks = self._fn()
        if isinstance(blocks, dict):
            blocks = {str(name): block for name, block in blocks.items()}
        elif isinstance(blocks, (list, tuple)):
            blocks = {f"block_{i}": block for i, block in enumerate(blocks)}
        else:
            blocks = {"residuals": blocks}
        # A trace may return them in another order.
        self.names = list(blocks)
        return {name: read(block) for name, block in blocks.items()}

    def _head(self, longer):
        """The first rows: two of each array, three of some groups."""
        return [
            as_tensor(np.resize(h, (3 if g in longer else 2, *h.shape[1:])))
            for h, g in zip(self._heads, self.points.leaf_groups, strict=True)
        ]

    def _find_groups(self, blocks, count):
        shapes = {name: tuple(block.shape) for name, block in blocks.items()}
        found = dict.fromkeys(self.names)
        for group in range(count):
            with ReadRecorder():
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
                        "A block of residuals must have one row for each row "
                        "of the data that it is made of, or be made of no "
                        f"data. Received: block '{name}' of shape "
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


def _check_blocks(blocks):
    for name, block in blocks.items():
        if not ops.is_tensor(block) or not keras.backend.is_float_dtype(
            keras.backend.standardize_dtype(block.dtype)
        ):
            raise ValueError(
                "Function `residual_fn` must return a tensor of floating-"
                "point numbers, or a dict, list or tuple of these. "
                f"Received: {name}={block!r}"
            )
