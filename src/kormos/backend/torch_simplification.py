"""Removes recorded PyTorch operations; results stay bit-identical."""

from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

import torch

from kormos.backend.torch_recording import Call
from kormos.backend.torch_recording import Recorder
from kormos.backend.torch_recording import Ref
from kormos.backend.torch_recording import mapped
from kormos.backend.torch_recording import memory
from kormos.backend.torch_recording import numbers
from kormos.types import Tensor

_aten = torch.ops.aten

# They return their argument, in the same memory.
_ALIASES = frozenset(
    (_aten.alias.default, _aten.detach.default, _aten.lift_fresh.default)
)
# They return their argument, in new memory, if the dtype and the layout are the
# same.
_COPIES = frozenset(
    (
        _aten._to_copy.default,
        _aten.clone.default,
        _aten.lift_fresh_copy.default,
    )
)
# Their results do not depend on the values of their arguments.
_FACTORIES = frozenset(
    (
        _aten.arange.default,
        _aten.arange.start,
        _aten.arange.start_step,
        _aten.eye.default,
        _aten.full.default,
        _aten.full_like.default,
        _aten.ones.default,
        _aten.ones_like.default,
        _aten.scalar_tensor.default,
        _aten.zeros.default,
        _aten.zeros_like.default,
    )
)
# Tensors of at most this many numbers are made once rather than at every call.
# Our choice: it is the memory that a graph may keep for each of them.
_MOST_KEPT = 4096


class Simplified:
    """The operations of a recording that its result needs.

    Args:
        recorder: the recording.
        found: what the recorded code returned.

    Attributes:
        calls: the calls.
        result: what the code returned, with a `Ref` in place of every tensor.
        constants: tensors by their numbers: those of the recording, and those
            that are made once.
    """

    def __init__(self, recorder: Recorder, found: Any) -> None:
        self._recorder = recorder
        self._same: dict[int, int] = {}
        # The tensors that share memory because a copy was left out.
        self._joined: dict[int, int] = {}
        self.constants = dict(recorder.constants)
        self._foreign = set(recorder.foreign)
        self.result = recorder.refs(found)
        self._returned = {self._place(n) for n in numbers(self.result)}
        calls = self._needed(recorder.calls)
        if not recorder.changes:
            calls = self._needed(list(self._simplified(calls)))
        self.calls = calls

    def meta(self, number: int) -> Tensor:
        """The tensor of a number, without its values."""
        return self._recorder.metas[number]

    def reusable(self, number: int) -> int | None:
        """The memory of a tensor, if it may be written to after its last use.

        Returns:
            A number that tensors in the same memory share, or `None`.
        """
        place = self._place(number)
        is_seen = place in self._returned or place in self._foreign
        return None if is_seen else place

    def _needed(self, calls: list[Call]) -> list[Call]:
        """The calls on which the result depends, and those that only check."""
        wanted = set(numbers(self.result))
        kept = []
        for call in reversed(calls):
            schema = call.operation._schema
            is_wanted = not wanted.isdisjoint(numbers(call.found))
            if is_wanted or schema.is_mutable or not schema.returns:
                kept.append(call)
                wanted.update(call.given)
        return kept[::-1]

    def _simplified(self, calls: Iterable[Call]) -> Iterator[Call]:
        known: dict[str, Any] = {}
        for call in calls:
            call = call._replace(
                args=self._replaced(call.args),
                kwargs=self._replaced(call.kwargs),
            )
            if self._is_identity(call):
                self._join(call.found.number, call.args[0].number)
            elif self._is_constant(call):
                self._compute(call)
            elif self._is_returned(call) or not numbers(call.found):
                yield call
            else:
                text = f"{call.operation}{call.args!r}{call.kwargs!r}"
                if text in known:
                    pairs = numbers(call.found), numbers(known[text])
                    for number, earlier in zip(*pairs, strict=True):
                        self._join(number, earlier)
                else:
                    known[text] = call.found
                    yield call
        self.result = self._replaced(self.result)

    def _join(self, number: int, other: int) -> None:
        """Makes a tensor the same as an earlier one."""
        self._same[number] = other
        ours, theirs = self._place(number), self._place(other)
        if ours != theirs:
            self._joined[ours] = theirs

    def _place(self, number: int) -> int:
        place = memory(self.meta(number))
        while place in self._joined:
            place = self._joined[place]
        return place

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return Ref(self._same.get(value.number, value.number))
        return mapped(self._replaced, value)

    def _is_returned(self, call: Call) -> bool:
        """Whether the memory of a call's result is returned to other code."""
        return any(
            self._place(n) in self._returned for n in numbers(call.found)
        )

    def _is_identity(self, call: Call) -> bool:
        """Whether a call returns its first argument."""
        is_single = isinstance(call.found, Ref) and bool(call.args)
        if not is_single or not isinstance(call.args[0], Ref):
            return False
        if call.operation in _ALIASES:
            return True
        given, found = (
            self.meta(ref.number) for ref in (call.args[0], call.found)
        )
        if _layout(given) != _layout(found):
            return False
        if memory(given) == memory(found):
            return given.storage_offset() == found.storage_offset()
        is_power = call.operation is _aten.pow.Tensor_Scalar
        is_copy = is_power and call.args[1] == 1
        is_copy = is_copy or call.operation in _COPIES
        return is_copy and not self._is_returned(call)

    def _is_constant(self, call: Call) -> bool:
        """Whether a small tensor is the same at every call."""
        is_factory = call.operation in _FACTORIES
        if not (is_factory and isinstance(call.found, Ref)):
            return False
        is_small = self.meta(call.found.number).numel() <= _MOST_KEPT
        return is_small and not self._is_returned(call)

    def _compute(self, call: Call) -> None:
        def empty(value: Any) -> Any:
            if not isinstance(value, Ref):
                return value
            meta = self.meta(value.number)
            return torch.empty_strided(
                meta.shape, meta.stride(), dtype=meta.dtype, device=meta.device
            )

        made = call.operation(*map(empty, call.args), **call.kwargs)
        self.constants[call.found.number] = made
        self._foreign.add(self._place(call.found.number))


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return (
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        tensor.device,
        tensor.is_conj(),
        tensor.is_neg(),
    )
