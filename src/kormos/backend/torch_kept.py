"""Detects whether code keeps PyTorch tensors that it computes."""

import gc
import weakref
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import TypeVar

from torch.utils._python_dispatch import TorchDispatchMode

from kormos.backend.torch_recording import tensors
from kormos.types import Tensor

_Result = TypeVar("_Result")


def watched(
    fn: Callable[[], _Result], copied: Callable[[_Result], _Result]
) -> tuple[_Result, bool]:
    """Calls a function, and finds whether it keeps a tensor.

    Examples are a hook that collects activations, and a layer with a cache. A
    graph would no longer store the tensors, and recording it would store a
    tensor without values.

    Args:
        fn: the function.
        copied: function that returns a copy of a result.

    Returns:
        A copy of the result, and whether a tensor of the call is alive.
    """
    mode = _Noting()
    with mode:
        found = fn()
    found = copied(found)
    keeps = mode.any_alive()
    if keeps:
        gc.collect()  # It may only be alive as part of a reference cycle.
        keeps = mode.any_alive()
    return found, keeps


class _Noting(TorchDispatchMode):
    """Notes the tensors that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[weakref.ref[Tensor]] = []

    def any_alive(self) -> bool:
        """Whether one of them is still in memory."""
        return any(made() is not None for made in self._made)

    def __torch_dispatch__(
        self,
        fn: Any,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        found = fn(*args, **(kwargs or {}))
        self._made.extend(map(weakref.ref, tensors(found)))
        return found
