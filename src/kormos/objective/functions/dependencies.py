"""What a user's function, class or layer depends on, part by part.

`fingerprint.py` hashes these parts. Where it cannot be known what a function
reads, an error is raised: it is then compiled at each call.
"""

import dis
import functools
import sys
import sysconfig
import types
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import keras

# Packages whose functions do not depend on anything that a user changes.
_FIXED = frozenset(
    ("jax", "jaxlib", "keras", "kormos", "numpy", "scipy", "tensorflow")
)
_FOLDERS = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib")})
# Modules, attributes and builtin functions by which a function may read what
# cannot be compared: files, the environment, the time, or any name.
_CHANGING_MODULES = frozenset(
    (
        "datetime",
        "glob",
        "importlib",
        "io",
        "os",
        "pathlib",
        "random",
        "secrets",
        "socket",
        "subprocess",
        "time",
        "urllib",
        "uuid",
    )
)
_CHANGING_ATTRIBUTES = frozenset(
    (
        "fromfile",
        "genfromtxt",
        "loadtxt",
        "memmap",
        "read_bytes",
        "read_csv",
        "read_excel",
        "read_json",
        "read_parquet",
        "read_pickle",
        "read_text",
    )
)
_CHANGING_BUILTINS = frozenset(
    ("__import__", "eval", "exec", "globals", "input", "locals", "open", "vars")
)
# Attributes of a class or a function that do not affect what it computes.
_OF_CLASSES = frozenset(
    (
        "__annotations__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__module__",
        "__static_attributes__",
        "__weakref__",
    )
)
_OF_CLASSES_STARTS = "__dataclass_", "_abc_", "_kormos_"
# Attributes that Keras stores in a layer, and those that it stores in a model.
_OF_LAYERS = frozenset(("build", "call_signature_parameters", "quantize"))
_OF_MODELS = frozenset(
    (
        "history",
        "optimizer",
        "predict_function",
        "steps_per_execution",
        "stop_training",
        "test_function",
        "train_function",
    )
)
_CACHED = type(functools.cache(len))
_BOUND = types.BuiltinMethodType, types.MethodWrapperType


class Unknown(Exception):
    """It is not known what a function reads."""


def package_of(module: str | None) -> str:
    """The package of a module, or an empty string for code in C."""
    return (module or "").partition(".")[0]


@functools.cache
def is_installed(package: str) -> bool:
    """Whether a package is installed, and is not the user's code."""
    if package == "__main__":
        return False
    if package in _FIXED or package in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(package), "__file__", None)
    return not package or (file is not None and file.startswith(_FOLDERS))


def is_of_library(fn: types.FunctionType) -> bool:
    """Whether a function with a closure is one that a library defines.

    Otherwise it may be one that a library made from a function of the user.
    """
    return _is_fixed(fn) and _named(fn) is fn


def is_unbound(fn: types.BuiltinFunctionType) -> bool:
    """Whether a builtin function is not the method of an object."""
    return fn.__self__ is None or isinstance(fn.__self__, types.ModuleType)


def parts_of(obj: Any) -> list[Any] | None:
    """The parts of an object, or `None` if the pickler finds them itself.

    Raises:
        Unknown: if a part is unknown.
    """
    if isinstance(obj, types.FunctionType):
        if _is_fixed(obj):
            return [obj.__code__, *(obj.__closure__ or ())]
        return list(_parts_of_function(obj))
    if isinstance(obj, types.MethodType):
        return [obj.__func__, obj.__self__]
    if isinstance(obj, _BOUND):
        return [obj.__name__, obj.__self__]
    if isinstance(obj, _CACHED):
        # It is empty after `cache_clear`, and then calls the function again.
        return [obj.__wrapped__, obj.cache_info().currsize]
    if isinstance(obj, type):
        kind = [] if type(obj) is type else [type(obj)]
        return [obj.__qualname__, obj.__bases__, _own(vars(obj)), *kind]
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
    if isinstance(obj, keras.losses.Loss):
        return [type(obj), dict(vars(obj))]
    if type(obj).__reduce__ is keras.Layer.__reduce__:
        # Keras would save it, with the values of its variables.
        return [type(obj), _own_of_layer(obj)]
    if _hides(obj):
        return [type(obj), dict(vars(obj))]
    # A list or a dict of Keras that knows the layer whose attribute it is.
    if type(obj).__module__.startswith("keras.") and hasattr(obj, "tracker"):
        return [dict(obj) if isinstance(obj, dict) else [*obj]]
    return None


class _Names(NamedTuple):
    """What code names, and the functions that are defined in it.

    Attributes:
        variables: the global and builtin names that it reads.
        attributes: the attributes.
        imports: the modules that it imports.
    """

    variables: frozenset[str]
    attributes: frozenset[str]
    imports: frozenset[str]


@functools.cache
def _names_in(code: types.CodeType) -> _Names:
    names, imports = set(), set()
    attributes = set(code.co_names)
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(instruction.argval)
        if instruction.opname == "IMPORT_NAME":
            imports.add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = _names_in(constant)
            names |= inner.variables
            attributes |= inner.attributes
            imports |= inner.imports
    return _Names(frozenset(names), frozenset(attributes), frozenset(imports))


def _parts_of_function(fn: types.FunctionType) -> Iterator[Any]:
    names = _names_in(fn.__code__)
    known = fn.__globals__
    unknown = names.attributes & _CHANGING_ATTRIBUTES
    unknown |= (names.variables & _CHANGING_BUILTINS) - known.keys()
    if unknown:
        raise Unknown(f"it may read anything by {sorted(unknown)}")
    yield fn.__code__
    for cell in fn.__closure__ or ():
        [content] = _cell_contents(cell) or [None]
        is_module = isinstance(content, types.ModuleType)
        yield _read_of(content, names.attributes) if is_module else cell
    yield fn.__defaults__
    yield fn.__kwdefaults__
    yield _own(vars(fn))
    for name in sorted(names.variables):
        if name not in known:
            continue  # A builtin function, or a name without a value yet.
        value = known[name]
        yield name
        is_module = isinstance(value, types.ModuleType)
        yield _read_of(value, names.attributes) if is_module else value
    for name in sorted(names.imports):
        yield name
        yield _read_of(_imported(name, fn), names.attributes)


def _hides(obj: Any) -> bool:
    """Whether an object of the user may leave attributes out of its pickle."""
    kind = type(obj)
    if is_installed(package_of(kind.__module__)) or not hasattr(
        obj, "__dict__"
    ):
        return False
    return kind.__base__ is object and any(
        name in vars(kind)
        for name in ("__getstate__", "__reduce__", "__reduce_ex__")
    )


def _imported(name: str, fn: types.FunctionType) -> types.ModuleType:
    """A module that a function imports."""
    package = fn.__globals__.get("__package__")
    for full in (name, f"{package}.{name}".rstrip("."), package):
        if full and full in sys.modules:
            return sys.modules[full]
    raise Unknown(f"module {name} is not imported yet")


def _read_of(
    module: types.ModuleType,
    attributes: frozenset[str],
    outer: tuple[types.ModuleType, ...] = (),
) -> Any:
    """What a function may read of a module: the values of these attributes.

    Args:
        module: the module.
        attributes: the attributes that the function names.
        outer: the modules of whose attributes it is one.
    """
    package = package_of(module.__name__)
    if package in _CHANGING_MODULES:
        raise Unknown(f"it may read anything by {module.__name__}")
    if is_installed(package) or module in outer:
        return module.__name__
    found = vars(module)
    return {
        name: _read_of(found[name], attributes, (*outer, module))
        if isinstance(found[name], types.ModuleType)
        else found[name]
        for name in sorted(attributes & found.keys())
    }


def _cell_contents(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:
        return []  # The variable has no value yet.


def _is_fixed(fn: types.FunctionType) -> bool:
    package = package_of(fn.__module__)
    return package in _FIXED or package in sys.stdlib_module_names


def _named(fn: types.FunctionType) -> Any:
    """What the name of a function refers to in its module."""
    found: Any = sys.modules.get(fn.__module__)
    for name in fn.__qualname__.split("."):
        found = getattr(found, name, None)
    return found


def _own(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that matter, of a user's function or class."""
    return {
        name: value
        for name, value in attributes.items()
        if name not in _OF_CLASSES
        and not name.startswith(_OF_CLASSES_STARTS)
        and not isinstance(value, types.GetSetDescriptorType)
    }


def _own_of_layer(layer: Any) -> dict[str, Any]:
    """The attributes that matter, of a layer or another object of Keras'."""
    is_of_library = is_installed(package_of(type(layer).__module__))
    stored = _OF_LAYERS
    if isinstance(layer, keras.Model):
        stored |= _OF_MODELS
    found = {
        name: value
        for name, value in _own(vars(layer)).items()
        if name not in stored
        and not (
            name.startswith("_")
            and (is_of_library or name in _names_of_every_model())
        )
    }
    found["layers"] = getattr(layer, "_layers", None)
    found["trainable"] = getattr(layer, "trainable", None)
    policy = getattr(layer, "dtype_policy", None)
    found["dtype_policy"] = getattr(policy, "name", None)
    return found


@functools.cache
def _names_of_every_model() -> frozenset[str]:
    return frozenset(vars(keras.Model(name="kormos")))
