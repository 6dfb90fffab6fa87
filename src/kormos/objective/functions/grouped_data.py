"""The data of residuals, in groups of arrays with the same number of rows."""

from collections.abc import Sequence

import numpy as np

from kormos.data.memory import Data
from kormos.data.points import with_columns
from kormos.objective.compiled import ChunkPair
from kormos.objective.compiled import Chunks
from kormos.objective.compiled import SpreadPair
from kormos.objective.functions.residual_blocks import ResidualFunction
from kormos.types import Array
from kormos.types import Structure
from kormos.types import Vector


class GroupedData:
    """The arrays of data that each group of residual blocks depends on.

    Args:
        function: the function of the residuals.
        data: arrays in the structure that the function takes.

    Attributes:
        data: the data, with a dict of columns for each DataFrame.
        groups: the arrays of each group, in the order of the function's
            `groups`.
    """

    def __init__(self, function: ResidualFunction, data: Structure) -> None:
        self._function = function
        self.data = with_columns(data)
        self.groups = function.grouped(self.data)

    def counts(self, is_first: bool) -> Vector:
        """The number of residuals of each block.

        Args:
            is_first: see `chunks`.
        """
        function = self._function
        rows = [
            len(self._of(group)[0]) if group is not None or is_first else 0
            for group in function.block_groups
        ]
        return np.multiply(rows, function.widths, dtype="float64")

    def _of(self, group: int | None) -> list[Array]:
        """The arrays of a group."""
        return self.groups[self._function.groups.index(group)]

    def chunks(
        self,
        batch_size: int | None,
        widths: Sequence[int | None],
        is_first: bool,
        devices: tuple[str, ...] = (),
    ) -> Chunks:
        """The data as tensors, in a pair of chunks for each group.

        Args:
            batch_size: the most rows of a chunk, or `None`.
            widths: for each group, the number of values that are computed for a
                row, if chunks must be so small that these fit into memory.
            is_first: whether this is the first of the processes that fit
                together. The others leave out blocks that depend on no data.
            devices: see `Data.chunk_rows`.
        """
        chunks: list[SpreadPair] = []
        for group, arrays, width in zip(
            self._function.groups, self.groups, widths, strict=True
        ):
            if group is None and not is_first:
                chunks.append((None, None))
                continue
            data = Data(tuple(arrays), None, None)
            # Blocks that depend on no data have no rows to share.
            shared = () if group is None else devices
            pair = data.chunks(batch_size, width, devices=shared)
            chunks.append(_inputs(pair))
        return tuple(chunks)

    def squares(self) -> dict[str, int]:
        """The number of rows of each block that is a square matrix, by name."""
        sizes = {}
        for name, group, shape in self._function.shapes():
            if group is not None:
                shape = len(self._of(group)[0]), *shape[1:]
            if len(shape) == 2 and shape[0] == shape[1]:
                sizes[name] = shape[0]
        return sizes


def _inputs(pair: SpreadPair) -> SpreadPair:
    """The chunks of `Data`, without targets and weights."""

    def inputs(stacked: Structure, last: Structure) -> ChunkPair:
        return stacked and stacked[0], last and last[0]

    if isinstance(pair, dict):
        return {device: inputs(*own) for device, own in pair.items()}
    return inputs(*pair)
