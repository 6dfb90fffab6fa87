"""Data sets: how many batches they have, and their batches in order."""

import itertools
import sys

import keras
import numpy as np

from kormos.data.arrays import is_array
from kormos.data.memory import leaves

# As much as this is read of a data set that does not tell its length: so many
# batches, and so many bytes to be kept in memory.
MOST_BATCHES = 2**15
MOST_BYTES = 2**32
# Nor is it read on where the same few batches have come again so often.
_ROUNDS, _FEWEST = 16, 512

_ENDLESS = np.inf


def is_dataset(x):
    """Whether `x` yields batches instead of being arrays."""
    if x is None or isinstance(x, (list, tuple, dict, str)) or is_array(x):
        return False
    return hasattr(x, "__iter__") or hasattr(x, "__getitem__")


def needs_steps(x):
    """Whether `x` is a data set that does not say that it has an end."""
    return is_dataset(x) and _length(x) in (None, _ENDLESS)


class BatchReader:
    """The batches of a data set, and how to tell that they do not end.

    Args:
        dataset: the data set.
        argument: what to call it.
        steps: how many batches to take where there may be no end, or `None`.
        steps_name: the argument that gives `steps`, or `None`.
        is_stream: whether it is to be read more than once, and not kept.

    Raises:
        ValueError: if it cannot be read to an end, or not again.
    """

    def __init__(self, dataset, argument, steps, steps_name, is_stream):
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
                "and end, which a generator cannot promise. Give arrays, a "
                "`keras.utils.PyDataset`, a `tf.data.Dataset` or a torch "
                f"`DataLoader`{self._or_steps()}. "
                f"Received: {argument} of type {self._kind}"
            )
        if steps is None and self._length == _ENDLESS:
            self._refuse("without an end")

    def _or_steps(self):
        if self._steps_name is None or self._is_stream:
            return ""
        return f", or say by `{self._steps_name}` how many batches to take"

    def _refuse(self, found):
        raise ValueError(
            f"Argument `{self._argument}` must end: a full-batch method needs "
            "all of the data. Cut the data set with `take(n)`, leave out "
            f"`repeat()`, or give it a length{self._or_steps()}. "
            f"Received: {self._argument} of type {self._kind}, {found}"
        )

    def __call__(self, convert):
        """Yields every batch.

        Args:
            convert: function of a batch that returns arrays in structures.
        """
        batches = map(convert, _batches(self._dataset, self._argument))
        if self._length not in (None, _ENDLESS):
            yield from batches
        elif self._steps is None:
            yield from self._guarded(batches)
        else:
            yield from itertools.islice(batches, self._steps)

    def _guarded(self, batches):
        """Yields batches until there are too many to be all of them."""
        seen, size = set(), 0
        for count, batch in enumerate(batches, 1):
            arrays = leaves(batch)
            size += sum(a.nbytes for a in arrays)
            seen.add(hash(tuple(a.tobytes() for a in arrays)))
            is_round = count >= _FEWEST and _ROUNDS * len(seen) <= count
            is_too_much = size > MOST_BYTES and not self._is_stream
            if is_round or is_too_much or count > MOST_BATCHES:
                again = f", {len(seen):,} of them different" if is_round else ""
                self._refuse(
                    f"which does not tell its length and has not ended after "
                    f"{count:,} batches{again}"
                )
            yield batch


def _length(dataset):
    """How many batches there are, infinity, or `None` where it is unknown."""
    if isinstance(dataset, keras.utils.PyDataset):
        count = dataset.num_batches
        return _ENDLESS if count is None else count
    if hasattr(dataset, "cardinality"):
        count = int(dataset.cardinality())
        return {-1: _ENDLESS, -2: None}.get(count, count)
    try:
        count = len(dataset)
    except Exception:
        # Each library raises its own: PyTorch's loaders ask what they load.
        return None
    # What repeats for ever has the largest length that there is, over the size
    # of its batches.
    return _ENDLESS if count >= sys.maxsize >> 24 else count


def _batches(dataset, argument):
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
            f"Argument `{argument}` must be arrays or a data set of batches; "
            "put a torch `Dataset` into a `DataLoader`. "
            f"Received: {argument} of type {type(dataset).__name__}"
        )
