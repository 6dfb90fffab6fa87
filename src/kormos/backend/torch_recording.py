"""Records the operations that code calls on PyTorch tensors."""

import logging
import threading
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from kormos.types import Tensor


class Unrecordable(Exception):
    """The operations of a function depend on more than shapes and dtypes."""


class Ref(NamedTuple):
    """Stands for the tensor of a number, in the arguments of an operation."""

    number: int


class Call(NamedTuple):
    """A call of an operation.

    Attributes:
        operation: the operation, a `torch._ops.OpOverload`.
        args: its arguments, with a `Ref` in place of every tensor.
        kwargs: its keyword arguments, likewise.
        found: its result, likewise.
    """

    operation: Any
    args: Any
    kwargs: dict[str, Any]
    found: Any

    @property
    def given(self) -> set[int]:
        """The numbers of the tensors among its arguments."""
        return {*numbers(self.args), *numbers(self.kwargs)}


# A function that calls more operations than this is not recorded. Our choice:
# recording this many takes seconds.
_MOST_CALLS = 10_000

_state = threading.local()

# With values, a recording keeps all tensors until it ends. It is given up if
# they take more than this many bytes, 32 MiB. Our choice: for code with such
# tensors, a recording without values takes less time than a few calls.
_MOST_BYTES = 2**25

# The results of these have other shapes for other values.
_DEPENDS_ON_VALUES = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
}

# PyTorch logs an error if an operation needs values, which is no error here.
logging.getLogger("torch._subclasses.fake_tensor").addFilter(
    lambda record: not is_recording()
)


def is_recording() -> bool:
    """Whether this thread records operations at the moment."""
    return getattr(_state, "is_recording", False)


# These read the values of a tensor without calling an operation that a
# dispatch mode would see.
_READERS = frozenset(
    (
        torch.Tensor.__array__,
        torch.Tensor.__dlpack__,
        torch.Tensor.data_ptr,
        torch.Tensor.item,
        torch.Tensor.numpy,
        torch.Tensor.tolist,
    )
)


class Recorder(TorchDispatchMode):
    """A mode that records operations on tensors, with or without values.

    With values, the operations are carried out, which takes much less time than
    PyTorch needs to find the shapes of results without values.

    Args:
        has_values: whether the inputs have values.

    Attributes:
        calls: the calls, in order.
        metas: the tensors of inputs and results, by their numbers.
        inputs: the numbers of the inputs; `None` for one that is not a tensor.
        constants: the tensors with values among the arguments of operations, by
            their numbers.
        changes: whether an operation changes a tensor.
        foreign: the memory that other code sees: that of inputs and constants.
    """

    def __init__(self, has_values: bool) -> None:
        super().__init__()
        self._has_values = has_values
        # The memory of inputs and results, and its bytes.
        self._own: set[int] = set()
        self._bytes = 0
        # Tensors that were made from numbers alone, by their ids.
        self._known: dict[int, Tensor] = {}
        self.calls: list[Call] = []
        self.metas: list[Tensor] = []
        self.inputs: list[int | None] = []
        self.constants: dict[int, Tensor] = {}
        self.changes = False
        # Numbers by the ids of tensors, all of which are in `metas`, so that
        # no new tensor gets the id of one.
        self._numbers: dict[int, int] = {}
        self.foreign: set[int] = set()
        self._has_raised = False
        self._readers = _Readers()

    @property
    def has_failed(self) -> bool:
        """Whether the recording raised an error that the code may have caught.

        Without a recording, the code would have continued in another way.
        """
        return self._has_raised or self._readers.has_refused

    def begin(self, inputs: Sequence[Any]) -> None:
        """Notes the arguments of the code."""
        for value in inputs:
            is_tensor = isinstance(value, torch.Tensor)
            self.inputs.append(self._number(value) if is_tensor else None)
            if is_tensor:
                self.foreign.add(memory(value))
                self._own.add(memory(value))

    def __enter__(self) -> "Recorder":
        self._readers.__enter__()
        _state.is_recording = True
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        _state.is_recording = False
        super().__exit__(*error)
        self._readers.__exit__(*error)

    def __torch_dispatch__(
        self,
        fn: Any,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        try:
            return self._recorded(fn, args, kwargs or {})
        except Exception:
            self._has_raised = True
            raise

    def _recorded(
        self, fn: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Calls an operation, and notes the call."""
        if not isinstance(fn, torch._ops.OpOverload):
            raise Unrecordable
        if torch.Tag.nondeterministic_seeded in fn.tags:
            raise Unrecordable
        if len(self.calls) >= _MOST_CALLS:
            raise Unrecordable
        is_known = self._is_known(args, kwargs)
        is_read = fn is torch.ops.aten._local_scalar_dense.default
        depends = is_read or not _DEPENDS_ON_VALUES.isdisjoint(fn.tags)
        if depends and not is_known:
            raise Unrecordable
        own_args, own_kwargs = self.refs(args), self.refs(kwargs)
        self._check(fn, args, kwargs)
        found = fn(*args, **kwargs)
        if self._has_values:
            is_made = fn is torch.ops.aten.lift_fresh.default
            self._keep(found, is_known or is_made)
            if is_made:
                # It returns its argument, which code has just made of numbers.
                return found
        self._note_memory(fn, args, found)
        call = Call(fn, own_args, own_kwargs, self._noted(found))
        self.calls.append(call)
        return found

    def refs(self, value: Any) -> Any:
        """A structure with a `Ref` in place of every tensor."""
        if isinstance(value, torch.Tensor):
            number = self._numbers.get(id(value))
            if number is None:
                number = self._constant(value)
            return Ref(number)
        return mapped(self.refs, value)

    def _noted(self, value: Any) -> Any:
        """Like `refs`, for the result of an operation."""
        if isinstance(value, torch.Tensor):
            return Ref(self._number(value))
        return mapped(self._noted, value)

    def _number(self, tensor: Tensor) -> int:
        if id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = len(self.metas)
            self.metas.append(tensor)
        return self._numbers[id(tensor)]

    def _constant(self, tensor: Tensor) -> int:
        is_foreign = isinstance(tensor, torch._subclasses.FakeTensor)
        if is_foreign or memory(tensor) in self._own:
            # The tensor belongs to another recording, or is a view of one of
            # this recording that was made without an operation.
            raise Unrecordable
        number = self._number(tensor)
        self.constants[number] = tensor
        self.foreign.add(memory(tensor))
        return number

    def _is_known(self, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether all tensors among the arguments were made from numbers."""
        given = tensors([*args, *kwargs.values()])
        if self._has_values:
            return all(id(tensor) in self._known for tensor in given)
        return all(getattr(t, "constant", None) is not None for t in given)

    def _keep(self, found: Any, is_known: bool) -> None:
        """Notes results: whether their values are known, and their memory."""
        for tensor in tensors(found):
            if is_known:
                self._known[id(tensor)] = tensor
            else:
                self._known.pop(id(tensor), None)
            place = memory(tensor)
            if place not in self._own and place not in self.foreign:
                self._own.add(place)
                self._bytes += tensor.untyped_storage().nbytes()
        if self._bytes > _MOST_BYTES:
            raise Unrecordable

    def _check(self, fn: Any, args: Sequence[Any], kwargs: Any) -> None:
        """Refuses to change a tensor that other code sees."""
        schema = fn._schema
        if not schema.is_mutable:
            return
        self.changes = True
        given = [*args, *kwargs.values()]
        names = [a.name for a in schema.arguments[: len(args)]] + [*kwargs]
        writes = {
            a.name
            for a in schema.arguments
            if a.alias_info is not None and a.alias_info.is_write
        }
        for name, value in zip(names, given, strict=True):
            if name not in writes:
                continue
            for tensor in tensors(value):
                number = self._numbers[id(tensor)]
                is_constant = number in self.constants
                if is_constant or memory(tensor) in self.foreign:
                    raise Unrecordable

    def _note_memory(self, fn: Any, args: Sequence[Any], found: Any) -> None:
        """Notes that views of constants lie in the constants' memory."""
        is_view = any(a.alias_info is not None for a in fn._schema.arguments)
        if is_view and any(
            self._numbers.get(id(t)) in self.constants for t in tensors(args)
        ):
            self.foreign.update(map(memory, tensors(found)))


class _Readers(TorchFunctionMode):
    """Refuses code that reads the values of a tensor.

    Attributes:
        has_refused: whether it has refused code, which may have caught that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.has_refused = False

    def __torch_function__(
        self,
        fn: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if fn in _READERS:
            self.has_refused = True
            raise Unrecordable
        return fn(*args, **(kwargs or {}))


def mapped(fn: Callable[[Any], Any], value: Any) -> Any:
    """A list, a tuple or a dict with `fn` of each item; other values as is."""
    if hasattr(value, "_fields"):
        return type(value)(*map(fn, value))
    if isinstance(value, (list, tuple)):
        return type(value)([fn(item) for item in value])
    if isinstance(value, dict):
        return {key: fn(item) for key, item in value.items()}
    return value


def tensors(value: Any) -> list[Tensor]:
    """The tensors in the arguments or the result of an operation."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors(item)]
    return []


def memory(tensor: Tensor) -> int:
    """A key that tensors in the same memory share."""
    return tensor.untyped_storage()._cdata


def numbers(value: Any) -> list[int]:
    """The numbers of all tensors in a structure with a `Ref` for each."""
    if isinstance(value, Ref):
        return [value.number]
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in numbers(item)]
    return []
