"""Functions of variables and their programs, kept from one call to the next."""

import functools
import types
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Sequence
from typing import Any
from typing import Generic
from typing import TypeVar

import keras

from kormos.objective.functions.fingerprint import Fingerprint
from kormos.objective.functions.fingerprint import fingerprint
from kormos.objective.functions.stateless import VariableReader
from kormos.objective.program_cache import ProgramCache

_Reader = TypeVar("_Reader", bound=VariableReader)
_Made = TypeVar("_Made")

# The attribute of a function, or of the object whose method it is, that holds
# what was compiled for it.
_ATTRIBUTE = "_kormos_functions"


class KeptFunction(Generic[_Reader]):
    """A function of variables, and the objects that were made from it.

    Args:
        function: the function, in the dtypes of the variables.
    """

    def __init__(self, function: _Reader) -> None:
        self.function = function
        self._made: dict[Hashable, Any] = {}

    @functools.cached_property
    def in_float64(self) -> _Reader:
        """The function in float64.

        Raises:
            Float64Error: if it cannot be evaluated in float64.
        """
        function = self.function.in_float64()
        function.check_width()
        return function

    def made(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """The value of `make` for this key, which is called once."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class _FunctionCache:
    """The programs of a function as it was when they were made.

    A copy of it is empty, like that of a `ProgramCache`.
    """

    def __init__(self) -> None:
        self._programs = ProgramCache()
        self._fingerprint: Fingerprint | None = None

    def get(
        self, fn: Callable[..., Any], key: Hashable, make: Callable[[], _Made]
    ) -> _Made:
        """The value of `make` for this key and the present function.

        Args:
            fn: the function.
            key: what else the programs depend on.
            make: function that makes them.
        """

        def make_anew() -> _Made:
            made = make()
            # The first call of a function may change what it depends on: it may
            # build a layer. Then earlier programs are outdated.
            self._note(fingerprint(fn))
            return made

        self._note(fingerprint(fn))
        return self._programs.get(key, make_anew)

    def _note(self, present: Fingerprint | None) -> None:
        """Notes what the function depends on, and frees outdated programs."""
        known, self._fingerprint = self._fingerprint, present
        if present is None or known is None or present.digest != known.digest:
            self._programs.clear()

    def __reduce__(self) -> tuple[type["_FunctionCache"], tuple[()]]:
        return _FunctionCache, ()


def kept(
    fn: Callable[..., Any],
    variables: Sequence[keras.Variable],
    key: Hashable,
    make: Callable[[], _Reader],
) -> KeptFunction[_Reader]:
    """What was made from a function, if the function has not changed.

    It is kept with the function, and is freed with it.

    Args:
        fn: the function as the user gave it.
        variables: the variables of the flat vector.
        key: what else the result depends on.
        make: function that returns it as a function of variables.
    """

    def made() -> KeptFunction[_Reader]:
        return KeptFunction(make())

    # PyTorch compiles nothing.
    is_kept = keras.backend.backend() != "torch"
    cache = _cache_of(fn) if is_kept else None
    if cache is None:
        return made()
    return cache.get(fn, (key, tuple(id(v) for v in variables)), made)


def _cache_of(fn: Any) -> _FunctionCache | None:
    """The cache of a function, or `None` if it has no place for one."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    owner = fn.__self__ if isinstance(fn, types.MethodType) else fn
    if not hasattr(owner, "__dict__") or isinstance(owner, type):
        return None
    caches = owner.__dict__.setdefault(_ATTRIBUTE, {})
    name = getattr(fn, "__qualname__", "__call__")
    return caches.setdefault(name, _FunctionCache())
