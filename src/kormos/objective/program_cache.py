"""Compiled functions, kept with the object that they were compiled for."""

import collections
from collections.abc import Callable
from collections.abc import Hashable
from typing import Any
from typing import TypeVar

import keras

from kormos.float64.settings import is_true_float64

_Made = TypeVar("_Made")

# The most entries of a cache. Our choice: a model that is frozen in stages, or
# fitted in both precisions, needs several entries, and each one keeps compiled
# functions in memory.
_MOST_ENTRIES = 8


class ProgramCache:
    """The latest compiled functions of an object.

    A copy of it is empty, and so is one that was pickled: the owner can be
    copied and pickled as if it had no cache.
    """

    def __init__(self) -> None:
        self._entries: collections.OrderedDict[Hashable, Any]
        self._entries = collections.OrderedDict()

    def get(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """The value of `make` for this key and the present settings of Keras.

        Args:
            key: what the compiled functions depend on, besides Keras' settings.
            make: function that compiles them.
        """
        found = self.find(key)
        if found is None:
            found = make()
            self.keep(key, found)
        return found

    def find(self, key: Hashable) -> Any | None:
        """What is kept for this key and the present settings, or `None`."""
        key = _with_settings(key)
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def keep(self, key: Hashable, made: Any) -> None:
        """Keeps compiled functions for this key and the present settings."""
        while len(self._entries) >= _MOST_ENTRIES:
            self._entries.popitem(last=False)
        self._entries[_with_settings(key)] = made

    def clear(self) -> None:
        """Frees all functions."""
        self._entries.clear()

    def __reduce__(self) -> tuple[type["ProgramCache"], tuple[()]]:
        return ProgramCache, ()


def _with_settings(key: Hashable) -> Hashable:
    config = keras.config
    settings = config.floatx(), config.epsilon(), config.image_data_format()
    return key, settings, is_true_float64()
