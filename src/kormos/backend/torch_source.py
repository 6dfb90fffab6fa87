"""Recorded PyTorch operations as Python code that calls them again."""

from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import torch

from kormos.backend.torch_recording import Call
from kormos.backend.torch_recording import Recorder
from kormos.backend.torch_recording import Ref
from kormos.backend.torch_recording import numbers
from kormos.backend.torch_simplification import Simplified

_aten = torch.ops.aten

# PyTorch's functions parse arguments in a third less time than its operations
# of the same name.
_FUNCTIONS = frozenset(
    """abs add addmm amax amin bmm cat clamp clone cos cumsum div eq erf exp
    expm1 ge gt le log log1p logical_and logical_not logical_or lt maximum mean
    minimum mm mul ne neg permute pow reciprocal relu rsqrt select sigmoid sign
    sin sqrt square squeeze stack sub sum t tanh transpose unsqueeze
    where""".split()
)
_METHODS = frozenset(("expand", "view"))
# Operations on each entry that can write into the memory of the first argument.
_IN_PLACE = frozenset(
    """abs add cos div exp mul neg reciprocal relu sigmoid sin sqrt square sub
    tanh""".split()
)


def compiled(recorder: Recorder, found: Any) -> Callable[[list[Any]], Any]:
    """A function of the inputs of a recording that computes its result.

    It frees every tensor after its last use.

    Args:
        recorder: the recording.
        found: what the recorded code returned.
    """
    source = _Source(Simplified(recorder, found), recorder.inputs)
    names = source.names
    exec("\n".join(source.lines()), names)
    # Without its own name among the globals, the function is not part of a
    # reference cycle, and is freed at once.
    graph: Callable[[list[Any]], Any] = names.pop("graph")
    return graph


class _Source:
    """The code of a graph.

    Args:
        simplified: the calls.
        inputs: the numbers of the inputs; `None` for one that is not a tensor.

    Attributes:
        names: the values of the names that it reads.
    """

    def __init__(
        self, simplified: Simplified, inputs: list[int | None]
    ) -> None:
        self._simplified = simplified
        self._inputs = inputs
        self.names: dict[str, Any] = {
            _name(number): tensor
            for number, tensor in simplified.constants.items()
        }
        # For each tensor, by its number, the place of the last call that reads
        # or makes it; and the same for all tensors that share its memory.
        self._last: dict[int, int] = {}
        self._last_in: dict[int | None, int] = {}
        for place, call in enumerate(simplified.calls):
            for number in call.given | set(numbers(call.found)):
                self._last[number] = place
                self._last_in[simplified.reusable(number)] = place

    def lines(self) -> Iterator[str]:
        """Yields the lines."""
        names = ["_" if n is None else _name(n) for n in self._inputs]
        yield "def graph(leaves):"
        yield f"    [{', '.join(names)}] = leaves"
        yield "    del leaves"
        result = self._simplified.result
        kept = {*numbers(result), *self._simplified.constants}
        for place, call in enumerate(self._simplified.calls):
            yield f"    {self._line(place, call)}"
            met = [*call.given, *numbers(call.found)]
            dead = [n for n in met if self._last[n] == place and n not in kept]
            if dead:
                yield "    " + " = ".join(map(_name, dead)) + " = None"
        yield f"    return {self._text(result)}"

    def _line(self, place: int, call: Call) -> str:
        fn, args, kwargs = _function(call)
        in_place = self._in_place(place, call)
        given = [*map(self._text, args)]
        given += [f"{key}={self._text(item)}" for key, item in kwargs.items()]
        text = f"{self._text(in_place or fn)}({', '.join(given)})"
        target = _target(call.found)
        return text if target == "_" else f"{target} = {text}"

    def _in_place(self, place: int, call: Call) -> Any:
        """The function that computes in the memory of the first argument."""
        name = call.operation._schema.name.removeprefix("aten::")
        is_known = name in _IN_PLACE and isinstance(call.args[0], Ref)
        if not is_known or not isinstance(call.found, Ref):
            return None
        meta = self._simplified.meta
        given, found = meta(call.args[0].number), meta(call.found.number)
        own = self._simplified.reusable(call.args[0].number)
        is_free = own is not None and self._last_in[own] == place
        is_alike = (given.shape, given.stride(), given.dtype) == (
            found.shape,
            found.stride(),
            found.dtype,
        )
        is_dense = given.numel() * given.element_size() == (
            given.untyped_storage().nbytes()
        )
        others = [
            ref.number
            for ref in call.args[1:]
            if isinstance(ref, Ref)
            and self._simplified.reusable(ref.number) == own
        ]
        if not (is_free and is_alike and is_dense) or others:
            return None
        return getattr(torch.Tensor, name + "_")

    def _text(self, value: Any) -> str:
        if isinstance(value, Ref):
            return _name(value.number)
        if isinstance(value, (list, tuple)):
            inner = "".join(f"{self._text(item)}, " for item in value)
            if hasattr(value, "_fields"):
                return f"{self._text(type(value))}({inner})"
            return f"[{inner}]" if isinstance(value, list) else f"({inner})"
        if isinstance(value, dict):
            pairs = value.items()
            items = [f"{self._text(k)}: {self._text(v)}" for k, v in pairs]
            return "{" + ", ".join(items) + "}"
        if value is None or isinstance(value, (bool, int, str)):
            return repr(value)
        name = f"c{len(self.names)}"
        self.names[name] = value
        return name


def _name(number: int) -> str:
    return f"v{number}"


def _target(found: Any) -> str:
    """The names to which the result of a call is bound."""
    if isinstance(found, Ref):
        return _name(found.number)
    if isinstance(found, (list, tuple)) and numbers(found):
        return "[" + ", ".join(map(_target, found)) + "]"
    return "_"


def _function(call: Call) -> tuple[Callable[..., Any], Any, dict[str, Any]]:
    """The fastest function that calls an operation, and its arguments."""
    operation, args, kwargs = call.operation, call.args, call.kwargs
    name = operation._schema.name.removeprefix("aten::")
    if name in _FUNCTIONS:
        return getattr(torch, name), args, kwargs
    if name in _METHODS:
        return getattr(torch.Tensor, name), args, kwargs
    if operation is _aten._to_copy.default and [*kwargs] == ["dtype"]:
        return torch.Tensor.to, (*args, kwargs["dtype"]), {}
    return getattr(operation, "_op", operation), args, kwargs
