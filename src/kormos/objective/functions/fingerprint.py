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

import dis
import functools
import hashlib
import math
import pickle
import sys
import sysconfig
import types
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
from keras import ops

# Types that the pickler handles itself, and which are most common.
_PLAIN = frozenset(
    (type(None), bool, int, float, complex, str, bytes, tuple, list, dict)
)
# Types whose objects are compared only by their identity.
_IDENTICAL = (
    keras.Variable,
    types.BuiltinFunctionType,
    types.CodeType,
    types.ModuleType,
)
# Packages whose functions do not depend on anything that a user changes.
_FIXED = frozenset(
    ("jax", "jaxlib", "keras", "kormos", "numpy", "scipy", "tensorflow")
)
_FOLDERS = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib")})
# At most this many bytes are hashed, in a quarter of a second. Our choice:
# larger arrays are better given as `data`, or as tensors, which do not change.
_MOST_BYTES = 2**28
# Attributes that do not affect what a class or a layer computes. For a layer,
# these are attributes that Keras and its `fit` store.
_IRRELEVANT = frozenset(
    (
        "__annotations__",
        "__dict__",
        "__doc__",
        "__module__",
        "__weakref__",
        "build",
        "call_signature_parameters",
        "history",
        "optimizer",
        "quantize",
        "steps_per_execution",
        "stop_training",
    )
)
_IRRELEVANT_STARTS = "__dataclass_", "_abc_", "_kormos_"


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
        The fingerprint. It is `None` if the function reads an object that
        cannot be pickled, such as an open file, whose state is unknown; or if
        it reads arrays so large that hashing them would take as long as
        compiling.
    """
    writer = _Digest()
    package = _package(getattr(fn, "__module__", None))
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
        parts = _parts(obj)
        if parts is None:
            return NotImplemented
        # A function may hold itself. The pickler remembers it only when all of
        # its parts are written.
        self._met[id(obj)] = len(self._met)
        self.held.append(obj)
        return _parts, tuple(parts)

    def _counts_by_identity(self, obj: Any) -> bool:
        """Whether an object is compared only by its identity."""
        if isinstance(obj, types.FunctionType) and obj.__closure__:
            package = _package(obj.__module__)
            return package in _FIXED or package in sys.stdlib_module_names
        if isinstance(obj, (type, types.FunctionType)):
            package = _package(obj.__module__)
            return package != self._package and _is_installed(package)
        return isinstance(obj, _IDENTICAL) or ops.is_tensor(obj)


def _nbytes(obj: Any) -> int:
    """About how much memory a tensor or a variable takes."""
    is_array = ops.is_tensor(obj) or isinstance(obj, keras.Variable)
    return 8 * math.prod(obj.shape) if is_array else 0


def _package(module: str | None) -> str:
    """The package of a module, or an empty string for code in C."""
    return (module or "").partition(".")[0]


@functools.cache
def _is_installed(package: str) -> bool:
    """Whether a package is installed, and is not the user's code."""
    if package == "__main__":
        return False
    if package in _FIXED or package in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(package), "__file__", None)
    return not package or (file is not None and file.startswith(_FOLDERS))


def _parts(obj: Any) -> list[Any] | None:
    """The parts of an object, or `None` if the pickler finds them itself."""
    if isinstance(obj, types.FunctionType):
        return list(_parts_of_function(obj))
    if isinstance(obj, types.MethodType):
        return [obj.__func__, obj.__self__]
    if isinstance(obj, type):
        return [obj.__qualname__, obj.__bases__, _own(vars(obj))]
    if isinstance(obj, property):
        return [obj.fget]
    if isinstance(obj, (staticmethod, classmethod)):
        return [obj.__func__]
    if isinstance(obj, functools.cached_property):
        return [obj.func]
    if isinstance(obj, types.CellType):
        return _cell_contents(obj)
    if isinstance(obj, types.MappingProxyType):
        return [dict(obj)]
    if type(obj).__reduce__ is keras.Layer.__reduce__:
        # Keras would save it, with the values of its variables.
        return [type(obj), _own_of_layer(obj)]
    # A list or a dict of Keras that knows the layer whose attribute it is.
    if type(obj).__module__.startswith("keras.") and hasattr(obj, "tracker"):
        return [dict(obj) if isinstance(obj, dict) else [*obj]]
    return None


def _parts_of_function(fn: types.FunctionType) -> Iterator[Any]:
    code = fn.__code__
    yield code
    yield fn.__closure__
    yield fn.__defaults__
    yield fn.__kwdefaults__
    yield _own(vars(fn))
    names, attributes = _names_in(code)
    for name in names:
        if name not in fn.__globals__:
            continue  # A builtin function, or a name without a value yet.
        value = fn.__globals__[name]
        yield name
        yield value
        if isinstance(value, types.ModuleType):
            if not _is_installed(_package(value.__name__)):
                found = vars(value)
                yield {a: found[a] for a in attributes if a in found}


@functools.cache
def _names_in(code: types.CodeType) -> tuple[list[str], list[str]]:
    """The names of the globals that code reads, and those of attributes.

    The code includes that of the functions that are defined in it.
    """
    names, attributes = set(), set(code.co_names)
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner, more = _names_in(constant)
            names.update(inner)
            attributes.update(more)
    return sorted(names), sorted(attributes)


def _cell_contents(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:
        return []  # The variable has no value yet.


def _own(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that matter, of a user's function or class."""
    return {
        name: value
        for name, value in attributes.items()
        if name not in _IRRELEVANT
        and not name.startswith(_IRRELEVANT_STARTS)
        and not isinstance(value, types.GetSetDescriptorType)
    }


def _own_of_layer(layer: Any) -> dict[str, Any]:
    """The attributes that matter, of a layer or another object of Keras'."""
    is_of_library = _is_installed(_package(type(layer).__module__))
    found = {
        name: value
        for name, value in _own(vars(layer)).items()
        if not name.endswith("_function")
        and not (
            name.startswith("_")
            and (is_of_library or name in _names_of_every_model())
        )
    }
    found["layers"] = getattr(layer, "_layers", None)
    policy = getattr(layer, "dtype_policy", None)
    found["dtype_policy"] = getattr(policy, "name", None)
    return found


@functools.cache
def _names_of_every_model() -> frozenset[str]:
    return frozenset(vars(keras.Model(name="kormos")))
