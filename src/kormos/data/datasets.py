"""Datasets: the number of their batches, and the batches in order."""

import itertools
import math
import sys
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import NoReturn

import keras

from kormos.data.arrays import is_array
from kormos.data.memory import leaves
from kormos.types import Structure

# A dataset without a known length counts as endless after this many batches, or
# after this many bytes that must stay in memory. Both are our choices: smaller
# values refuse large data sets that do end, larger ones let an endless one fill
# the memory or run for longer.
MOST_BATCHES = 2**15
MOST_BYTES = 2**32
# It also counts as endless if it has yielded `_FEWEST_BATCHES` or more, and
# each different one `_REPETITIONS` times on average. Our choices: smaller
# values would refuse finite data with many equal batches.
_REPETITIONS, _FEWEST_BATCHES = 16, 512

_ENDLESS = math.inf


def is_dataset(x: object) -> bool:
    """Whether `x` yields batches instead of being arrays."""
    if x is None or isinstance(x, (list, tuple, dict, str)) or is_array(x):
        return False
    return hasattr(x, "__iter__") or hasattr(x, "__getitem__")


def needs_steps(x: object) -> bool:
    """Whether `x` is a data set whose end is unknown, or that has none."""
    return is_dataset(x) and _length(x) in (None, _ENDLESS)


class BatchReader:
    """Reads the batches of a data set, and refuses a data set without an end.

    Args:
        dataset: the data set.
        argument: its name in messages.
        steps: the number of batches to take of a data set that may have no end,
            or `None`.
        steps_name: the argument that gives `steps`, or `None`.
        is_stream: whether the batches are read more than once and not kept.

    Raises:
        ValueError: if the data set has no end, or cannot be read again.
    """

    def __init__(
        self,
        dataset: Any,
        argument: str,
        steps: int | None,
        steps_name: str | None,
        is_stream: bool,
    ) -> None:
        self._dataset = dataset
        self._argument = argument
        self._steps = steps
        self._steps_name = steps_name
        self._is_stream = is_stream
        self._length = _length(dataset)
        self._kind = type(dataset).__name__
        if hasattr(dataset, "__next__") and (is_stream or steps is None):
            raise ValueError(
                f"Argument `{argument}` must be data that can be read again "
                "and that end, which a generator cannot guarantee. Pass "
                "arrays, a `keras.utils.PyDataset`, a `tf.data.Dataset` or a "
                f"torch `DataLoader`{self._or_steps()}. Received: {argument} "
                f"of type {self._kind}"
            )
        if steps is None and self._length == _ENDLESS:
            self._refuse("without an end")

    def _or_steps(self) -> str:
        if self._steps_name is None or self._is_stream:
            return ""
        return f", or set `{self._steps_name}`, the number of batches to take"

    def _refuse(self, found: str) -> NoReturn:
        raise ValueError(
            f"Argument `{self._argument}` must end: a full-batch method "
            "needs all of the data. Limit the dataset with `take(n)`, leave "
            f"out `repeat()`, or give it a length{self._or_steps()}. "
            f"Received: {self._argument} of type {self._kind}, {found}"
        )

    def __call__(
        self, convert: Callable[[Any], list[Structure]]
    ) -> Iterator[list[Structure]]:
        """Yields every batch.

        Args:
            convert: function from a batch to its arrays, in structures.
        """
        batches = map(convert, _batches(self._dataset, self._argument))
        if self._length not in (None, _ENDLESS):
            yield from batches
        elif self._steps is None:
            yield from self._guarded(batches)
        else:
            yield from itertools.islice(batches, self._steps)

    def _guarded(
        self, batches: Iterator[list[Structure]]
    ) -> Iterator[list[Structure]]:
        """Yields batches, and refuses the data set if they do not seem to end.

        A hash of every batch tells how many different ones there are.
        """
        seen: set[int] = set()
        size = 0
        for count, batch in enumerate(batches, 1):
            arrays = leaves(batch)
            size += sum(a.nbytes for a in arrays)
            seen.add(hash(tuple(a.tobytes() for a in arrays)))
            repeats = (
                count >= _FEWEST_BATCHES and _REPETITIONS * len(seen) <= count
            )
            is_too_much = size > MOST_BYTES and not self._is_stream
            if repeats or is_too_much or count > MOST_BATCHES:
                again = f", {len(seen):,} of them different" if repeats else ""
                self._refuse(
                    "which has no known length and has not ended after "
                    f"{count:,} batches{again}"
                )
            yield batch


def _length(dataset: Any) -> float | None:
    """The number of batches, infinity, or `None` if it is unknown."""
    if isinstance(dataset, keras.utils.PyDataset):
        count = dataset.num_batches
        return _ENDLESS if count is None else count
    if hasattr(dataset, "cardinality"):
        count = int(dataset.cardinality())
        return {-1: _ENDLESS, -2: None}.get(count, count)
    try:
        count = len(dataset)
    except Exception:
        # Each library raises a different error, and a PyTorch `DataLoader`
        # raises that of the user's `Dataset`.
        return None
    # Data that repeat for ever report the largest possible length, divided by
    # the batch size, which hardly exceeds 2**24.
    return _ENDLESS if count >= sys.maxsize >> 24 else count


def _batches(dataset: Any, argument: str) -> Iterator[Any]:
    if isinstance(dataset, keras.utils.PyDataset):
        dataset.on_epoch_begin()
        count = dataset.num_batches
        indices = itertools.count() if count is None else range(count)
        for index in indices:
            yield dataset[index]
        dataset.on_epoch_end()
    elif hasattr(dataset, "__iter__"):
        yield from dataset
    else:
        raise ValueError(
            f"Argument `{argument}` must be arrays or a dataset of batches; "
            f"wrap a torch `Dataset` in a `DataLoader`. Received: {argument} "
            f"of type {type(dataset).__name__}"
        )
