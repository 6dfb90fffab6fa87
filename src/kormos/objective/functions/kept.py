"""Functions of variables and their programs, kept from one call to the next."""

import copy
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
from kormos.objective.layout import Packing
from kormos.objective.program_cache import ProgramCache

_Reader = TypeVar("_Reader", bound=VariableReader)
_Made = TypeVar("_Made")

# The attribute of a function, or of the object whose method it is, that holds
# what was compiled for it.
_ATTRIBUTE = "_kormos_functions"

# Functions that hold more than this many bytes are not kept for equal ones:
# a loop may define many of them, and each would keep its data in memory. Our
# choice.
_MOST_BYTES = 2**24


# What was made from the latest plain functions, by what they depend on.
_plain = ProgramCache()


class _Compiled(Generic[_Reader]):
    """What equal functions share: what was compiled, and what it calls.

    Compiled code may be traced again, for a new method or new shapes. Then it
    has to call the function that is in use. An earlier one that was equal need
    not be so any more: a global that both of them name may hold another
    variable now.

    Args:
        function: the first of the functions.

    Attributes:
        made: what was made, by dtype and key.
    """

    def __init__(self, function: _Reader) -> None:
        self.made: dict[tuple[str | None, Hashable], Any] = {}
        self._readers: dict[str | None, _Reader] = {None: copy.copy(function)}

    def call(self, function: _Reader) -> None:
        """Makes an equal function the one that is called from now on."""
        for reader in self._readers.values():
            reader.become(function)

    def reader(self, dtype: str | None) -> _Reader:
        """What compiled code calls in a dtype, `"float64"` or `None`.

        Raises:
            Float64Error: if the function cannot be evaluated in float64.
        """
        if dtype not in self._readers:
            reader = self._readers[None].in_float64()
            reader.check_width()
            self._readers[dtype] = reader
        return self._readers[dtype]


class KeptFunction(Generic[_Reader]):
    """A function of variables, and the objects that were made from it.

    Args:
        function: the function, in the dtypes of the variables.
        shared: what equal functions share, or `None` if this is the first.
    """

    def __init__(
        self, function: _Reader, shared: _Compiled[_Reader] | None = None
    ) -> None:
        self.function = function
        self._shared = shared or _Compiled(function)
        self._made: dict[tuple[str | None, Hashable], Any] = {}

    def use(self) -> None:
        """Makes this the function that compiled code calls if it is traced."""
        self._shared.call(self.function)

    @functools.cached_property
    def in_float64(self) -> _Reader:
        """The function in float64.

        Raises:
            Float64Error: if it cannot be evaluated in float64.
        """
        own = copy.copy(self._shared.reader("float64"))
        own.become(self.function)
        return own

    def made(
        self,
        dtype: str | None,
        make: Callable[[_Reader, Packing], _Made],
        move: Callable[[_Made, _Reader, Packing], _Made],
        key: Hashable = None,
    ) -> _Made:
        """What `make` returns for a dtype and a key. It is called once.

        Args:
            dtype: `"float64"`, or `None` for the dtypes of the variables.
            make: function of the function in that dtype and of the `Packing` of
                its variables.
            move: function that turns what was made from an equal function into
                that of this one. Its other arguments are those of `make`.
            key: what else it depends on.
        """
        if (dtype, key) not in self._made:
            function = self.function if dtype is None else self.in_float64
            packing = Packing(function.variables, dtype)
            shared = self._shared
            if (dtype, key) in shared.made:
                made = move(shared.made[dtype, key], function, packing)
            else:
                made = make(shared.reader(dtype), packing)
                shared.made[dtype, key] = made
            self._made[dtype, key] = made
        return self._made[dtype, key]

    def moved(
        self, fn: Callable[..., Any], variables: Sequence[keras.Variable]
    ) -> "KeptFunction[_Reader]":
        """Returns what was made, for an equal function of other variables."""
        return KeptFunction(self.function.moved(fn, variables), self._shared)


class _FunctionCache:
    """The programs of a function as it was when they were made.

    A copy of it is empty, like that of a `ProgramCache`.
    """

    def __init__(self) -> None:
        self._programs = ProgramCache()
        self._fingerprint: Fingerprint | None = None

    def find(self, present: Fingerprint | None, key: Hashable) -> Any | None:
        """What is kept for the function as it is now, or `None`.

        Args:
            present: the present fingerprint.
            key: what else the programs depend on.
        """
        self._note(present)
        return self._programs.find(key)

    def keep(
        self, present: Fingerprint | None, key: Hashable, made: Any
    ) -> None:
        """Keeps what was made. The arguments are those of `find`."""
        self._note(present)
        self._programs.keep(key, made)

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

    It is kept with the function, and is freed with it. What was made from the
    latest plain functions is also kept for equal ones: code that defines a
    function and its variables anew for each fit compiles once.

    Args:
        fn: the function as the user gave it.
        variables: the variables of the flat vector.
        key: what else the result depends on.
        make: function that returns it as a function of variables.
    """
    # PyTorch compiles nothing.
    if keras.backend.backend() == "torch":
        return KeptFunction(make())
    present = fingerprint(fn, variables)
    own = key, tuple(id(v) for v in variables)
    cache = _cache_of(fn)
    found = None if cache is None else cache.find(present, own)
    if found is not None:
        found.use()
        return found
    shared = _shared_key(present, key, variables)
    known = None if shared is None else _plain.find(shared)
    if known is not None:
        equal, _ = known
        found = equal.moved(fn, variables)
        found.use()
    else:
        found = KeptFunction(make())
        # The first call of a function may change what it depends on: it may
        # build a layer. Then earlier programs are outdated.
        present = fingerprint(fn, variables)
        is_same = shared == _shared_key(present, key, variables)
        if shared is not None and is_same and found.function.is_plain:
            # The fingerprint holds the objects whose identity it contains.
            _plain.keep(shared, (found, present))
    if cache is not None:
        cache.keep(present, own, found)
    return found


def _shared_key(
    present: Fingerprint | None,
    key: Hashable,
    variables: Sequence[keras.Variable],
) -> Hashable | None:
    """The key of all functions that are equal to one, if it holds little.

    Args:
        present: the present fingerprint of the function.
        key: what else the programs depend on.
        variables: the variables of the flat vector.
    """
    if present is None or present.nbytes > _MOST_BYTES:
        return None
    layout = tuple((tuple(v.shape), str(v.dtype)) for v in variables)
    return present.digest, key, layout


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
