"""Finds what a user's function depends on, besides variables.

A compiled function has the values that Python code read while it was traced
as constants. Two fingerprints of a function are equal only if these values are
still the same: what its closure holds, its default arguments, the globals that
it names, the attributes of objects, and all of that for the functions that it
calls.

A pickler does the work: it walks through an object and writes what it finds.
What it writes is hashed, not kept. Variables, tensors, modules and what
libraries define count as the same as long as they are the same objects: the
values of variables are arguments of a compiled function, and tensors do not
change. The variables to optimize count by their places in a list, so that two
functions may be equal although each has its own variables.
"""

import hashlib
import math
import pickle
import types
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
from keras import ops

from kormos.objective.functions import dependencies

# Types that the pickler handles itself, and which are most common.
_PLAIN = frozenset(
    (type(None), bool, int, float, complex, str, bytes, tuple, list, dict)
)
# Types whose objects are compared only by their identity.
_IDENTICAL = keras.Variable, types.CodeType, types.ModuleType
# At most this many bytes are hashed, in a quarter of a second. Our choice:
# larger arrays are better given as `data`, or as tensors, which do not change.
_MOST_BYTES = 2**28


class Fingerprint(NamedTuple):
    """The values that a function depended on at one time.

    Attributes:
        digest: the hash of all values.
        held: the objects whose identity is a part of the digest. While they
            are held no other object can have the identity of one of them.
        nbytes: about how much memory the values and the objects take.
    """

    digest: bytes
    held: list[Any]
    nbytes: int


def fingerprint(
    fn: Any, variables: Sequence[keras.Variable] = ()
) -> Fingerprint | None:
    """The values that a function depends on now.

    Args:
        fn: the function, or a tuple of models, losses and functions.
        variables: variables that count by their places in this list.

    Returns:
        The fingerprint. It is `None` if the function may read a file or
        something else that cannot be compared; or an object that cannot be
        pickled, such as an open file, whose state is unknown; or arrays so
        large that hashing them would take as long as compiling.
    """
    writer = _Digest()
    package = dependencies.package_of(getattr(fn, "__module__", None))
    walker = _Walker(writer, package, variables)
    try:
        walker.dump(fn)
    except Exception:
        return None
    nbytes = writer.count + sum(map(_nbytes, walker.held))
    return Fingerprint(writer.hash.digest(), walker.held, nbytes)


class _Digest:
    """A file that hashes what is written to it.

    Attributes:
        hash: the hash of what was written.
        count: the number of bytes that were written.
    """

    def __init__(self) -> None:
        self.hash = hashlib.blake2b()
        self.count = 0

    def write(self, data: bytes | memoryview) -> int:
        """Hashes bytes.

        Raises:
            OverflowError: if that would take too long.
        """
        count = memoryview(data).nbytes
        self.count += count
        if self.count > _MOST_BYTES:
            raise OverflowError
        self.hash.update(data)
        return count

    def take(self, buffer: pickle.PickleBuffer) -> None:
        """Hashes an array. `None` tells the pickler not to write it, too."""
        self.write(buffer.raw())


class _Walker(pickle.Pickler):
    """A pickler of functions, layers and what they hold.

    Args:
        writer: the file.
        package: the package of the user's function, which counts as the
            user's code even if it is installed.
        variables: variables that are written by their places in this list.

    Attributes:
        held: the objects that were written by their identity.
    """

    def __init__(
        self,
        writer: _Digest,
        package: str,
        variables: Sequence[keras.Variable],
    ) -> None:
        super().__init__(
            writer,
            protocol=5,
            buffer_callback=writer.take,
        )
        self.held: list[Any] = []
        self._package = package
        self._met: dict[int, int] = {}
        self._places = {id(v): i for i, v in enumerate(variables)}

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) in _PLAIN:
            return None
        if id(obj) in self._met:
            return "met", self._met[id(obj)]
        if id(obj) in self._places:
            return "variable", self._places[id(obj)]
        if self._counts_by_identity(obj):
            self.held.append(obj)
            return id(obj)
        return None

    def reducer_override(self, obj: Any) -> Any:
        parts = dependencies.parts_of(obj)
        if parts is None:
            return NotImplemented
        # A function may hold itself. The pickler remembers it only when all of
        # its parts are written.
        self._met[id(obj)] = len(self._met)
        self.held.append(obj)
        return dependencies.parts_of, tuple(parts)

    def _counts_by_identity(self, obj: Any) -> bool:
        """Whether an object is compared only by its identity.

        Raises:
            Unknown: if that would say nothing.
        """
        if isinstance(obj, types.FunctionType) and obj.__closure__:
            # What a library returned, such as `jax.vmap(f)`, holds the user's
            # function.
            return dependencies.is_of_library(obj)
        if isinstance(obj, (type, types.FunctionType)):
            package = dependencies.package_of(obj.__module__)
            return package != self._package and dependencies.is_installed(
                package
            )
        if isinstance(obj, types.BuiltinFunctionType):
            return dependencies.is_unbound(obj)
        if isinstance(obj, types.ModuleType) and not dependencies.is_installed(
            dependencies.package_of(obj.__name__)
        ):
            raise dependencies.Unknown("which attributes are read is unknown")
        return isinstance(obj, _IDENTICAL) or ops.is_tensor(obj)


def _nbytes(obj: Any) -> int:
    """About how much memory a tensor or a variable takes."""
    is_array = ops.is_tensor(obj) or isinstance(obj, keras.Variable)
    return 8 * math.prod(obj.shape) if is_array else 0
