"""Functions that are compiled to be called on one chunk after the other."""

from collections.abc import Callable
from collections.abc import Iterator

import numpy as np

from kormos.objective.compiled import ChunkPair
from kormos.objective.compiled import Compiler
from kormos.objective.compiled import leading_size
from kormos.objective.compiled import take
from kormos.types import Scalar
from kormos.types import Structure


class ByChunk:
    """A compiled function of a chunk, called on each chunk of a pair.

    Args:
        fn: function of a chunk and further arguments.
        compile: function that compiles a function.
    """

    def __init__(self, fn: Callable[..., Structure], compile: Compiler) -> None:
        def of_stacked(
            stacked: Structure, index: Scalar, *known: Structure
        ) -> Structure:
            # The chunk is taken inside of the compiled function: outside, JAX
            # takes as long for the slice as for the function.
            return fn(take(stacked, index), *known)

        self._of_chunk = compile(fn)
        self._of_stacked = compile(of_stacked)

    def __call__(
        self, pair: ChunkPair, *known: Structure
    ) -> Iterator[Structure]:
        """Yields what the function returns for each of the chunks.

        Args:
            pair: the chunks.
            *known: the further arguments.
        """
        stacked, last = pair
        if stacked is not None:
            for i in range(leading_size(stacked)):
                yield self._of_stacked(stacked, np.array(i, "int32"), *known)
        if last is not None:
            yield self._of_chunk(last, *known)
