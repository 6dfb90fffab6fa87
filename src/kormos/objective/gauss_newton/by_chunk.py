"""Functions that are compiled to be called on one chunk after the other."""

from collections.abc import Callable
from collections.abc import Iterator

import numpy as np

from kormos import backend
from kormos.objective.compiled import Compiler
from kormos.objective.compiled import SpreadPair
from kormos.objective.compiled import by_device
from kormos.objective.compiled import leading_size
from kormos.objective.compiled import take
from kormos.types import Scalar
from kormos.types import Structure


class ByChunk:
    """A compiled function of a chunk, called on each chunk of a pair.

    Args:
        fn: function of a chunk and further arguments.
        compile: function that compiles a function.
        graphs: what an eager backend records of it.
    """

    def __init__(
        self,
        fn: Callable[..., Structure],
        compile: Compiler,
        graphs: backend.Graphs,
    ) -> None:
        fn = graphs.recorded(fn)

        def of_stacked(
            stacked: Structure, index: Scalar, *known: Structure
        ) -> Structure:
            # The chunk is taken inside of the compiled function: outside, JAX
            # takes as long for the slice as for the function.
            return fn(take(stacked, index), *known)

        self._fns = fn, of_stacked
        self._compile = compile
        # The two functions, compiled for each device, by its name.
        self._compiled: dict[str | None, list[Callable[..., Structure]]] = {}

    def __call__(
        self, pair: SpreadPair, *known: Structure
    ) -> Iterator[Structure]:
        """Yields what the function returns for each of the chunks.

        Args:
            pair: the chunks.
            *known: the further arguments.
        """
        for device, (stacked, last) in by_device(pair):
            of_chunk, of_stacked = self._on(device)
            if stacked is not None:
                for i in range(leading_size(stacked)):
                    yield of_stacked(stacked, np.array(i, "int32"), *known)
            if last is not None:
                yield of_chunk(last, *known)

    def _on(self, device: str | None) -> list[Callable[..., Structure]]:
        """The two functions, compiled for a device."""
        if device in self._compiled:
            return self._compiled[device]

        def placed(fn: Callable[..., Structure]) -> Callable[..., Structure]:
            def call(*args: Structure) -> Structure:
                with backend.on_device(device):
                    return fn(*args)

            return self._compile(call)

        self._compiled[device] = [*map(placed, self._fns)]
        return self._compiled[device]
