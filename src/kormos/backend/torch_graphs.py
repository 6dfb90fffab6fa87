"""Functions of PyTorch tensors as graphs of operations, without Python code.

A call of a small model spends most of its time in the code of Keras and in the
bookkeeping of automatic differentiation. Here the operations that a function
calls, including those of its derivatives, are recorded once, and then called
again in the same order. So the results are bit-identical.

A graph is recorded from tensors without values. A function is called as before
if it takes decisions on values, draws random numbers, or keeps a tensor: it
cannot be recorded. As in compiled functions of JAX and TensorFlow, values that
a function reads besides its arguments are constants of the graph. But changes
of tensors in place have an effect.
"""

import contextlib
import functools
import threading
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import TypeVar

import keras
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kormos.backend.torch_kept import watched
from kormos.backend.torch_recording import Recorder
from kormos.backend.torch_recording import Unrecordable
from kormos.backend.torch_recording import is_recording
from kormos.backend.torch_recording import mapped
from kormos.backend.torch_source import compiled
from kormos.types import Structure
from kormos.types import Tensor

try:
    # `keras.backend.result_type` takes a tenth of the time of a small model.
    from keras.src.backend.common.dtypes import BIT64_TO_BIT32_DTYPE
except ImportError:
    BIT64_TO_BIT32_DTYPE = {}

_Result = TypeVar("_Result")

# A function is recorded after this many calls: with values, or without them if
# that fails. Our choice: recording takes as long as a few calls with values. It
# takes as long as 30 to 60 calls without, which is not worth it for a function
# that is called a few times only.
_CALLS_BEFORE = {True: 3, False: 11}
# A function has at most this many graphs, for different shapes and dtypes. Our
# choice: a function with more shapes probably has new ones at every call.
_MOST_GRAPHS = 8

_state = threading.local()


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """A scope in which no graph is recorded or called."""
    before = getattr(_state, "is_eager", False)
    _state.is_eager = True
    try:
        yield
    finally:
        _state.is_eager = before


class Graphs:
    """The graphs of functions that belong together, such as those of a loss."""

    def __init__(self) -> None:
        self._recorded: list[_Recorded] = []

    def recorded(self, fn: Callable[..., _Result]) -> Callable[..., _Result]:
        """`fn`, replaced by a graph of its operations once that is recorded.

        Args:
            fn: a function of structures (lists, tuples and dicts) of tensors,
                which returns such a structure. Numbers among its arguments are
                constants of a graph. It has no side effects, and it is not
                differentiated.
        """
        self._recorded.append(_Recorded(fn))
        return self._recorded[-1]

    @property
    def in_use(self) -> int:
        """The number of graphs that are called in place of functions."""
        return sum(recorded.in_use for recorded in self._recorded)

    def clear(self) -> None:
        """Forgets all graphs, because what the functions read has changed."""
        for recorded in self._recorded:
            recorded.clear()


class _Recorded:
    """A function and its graphs, by the shapes and dtypes of its arguments."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        self._graphs: dict[Any, _Graph] = {}

    def __call__(self, *args: Structure) -> Any:
        if not _is_plain():
            return self._fn(*args)
        leaves: list[Any] = []
        try:
            key = (_flattened(args, leaves), *map(_kind, leaves), *_settings())
            graph = self._graphs.get(key)
        except Exception:  # A leaf cannot be hashed, or has no strides.
            return self._fn(*args)
        if graph is None:
            if len(self._graphs) >= _MOST_GRAPHS:
                return self._fn(*args)
            graph = self._graphs.setdefault(key, _Graph(self._fn))
        call = graph.call  # Another thread may remove it.
        if call is None:
            return graph.next(args, leaves)
        with contextlib.suppress(Exception):
            return call(leaves)
        return graph.without(args)

    @property
    def in_use(self) -> int:
        """The number of recorded graphs that run instead of the function."""
        return sum(g.call is not None for g in [*self._graphs.values()])

    def clear(self) -> None:
        """Forgets all graphs."""
        self._graphs = {}


class _Graph:
    """A function for arguments of one kind, and its graph.

    The graph is used after its results at two points were bit-identical to
    those of the function.

    Attributes:
        call: function of the leaves of the arguments, or `None` while the
            function itself is called.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        self._calls = 0
        self._is_watched = False
        # Whether the next recording is made on tensors with values. That is
        # tried first.
        self._has_values = True
        self._tried: Callable[[list[Any]], Any] | None = None
        self._is_refused = False
        self._turn = threading.Lock()
        self.call: Callable[[list[Any]], Any] | None = None

    def next(self, args: tuple[Structure, ...], leaves: list[Any]) -> Any:
        """Calls the function, and records or tries the graph."""
        self._calls += 1
        is_due = self._calls >= _CALLS_BEFORE[self._has_values]
        is_due = is_due and not self._is_refused
        if not (is_due and self._turn.acquire(blocking=False)):
            return self._fn(*args)
        try:
            if not self._is_watched:
                return self._watch(args)
            found = self._fn(*args)
            self._go_on(args, leaves, found)
            return found
        finally:
            self._turn.release()

    def without(self, args: tuple[Structure, ...]) -> Any:
        """Calls the function after an error of the graph.

        The function may raise the error itself. If it does not, a tensor that
        it reads has another shape now, and it is called from now on.
        """
        found = self._fn(*args)
        self._refuse()
        return found

    def _watch(self, args: tuple[Structure, ...]) -> Any:
        found, keeps = watched(
            functools.partial(self._fn, *args),
            functools.partial(_with_leaves, _copied),
        )
        self._is_watched = True
        self._is_refused = keeps
        return found

    def _go_on(
        self, args: tuple[Structure, ...], leaves: list[Any], found: Any
    ) -> None:
        try:
            if self._tried is None:
                self._tried = _record(self._fn, args, self._has_values)
                is_right = _agree(self._tried(leaves), found)
            else:
                is_right = _agree(self._tried(leaves), found)
                self.call = self._tried if is_right else None
        except Exception:
            # Whatever the reason, the function itself gives the result.
            is_right = False
        if is_right:
            return
        if self._has_values:
            self._has_values, self._tried = False, None
        else:
            self._refuse()

    def _refuse(self) -> None:
        self.call, self._tried, self._is_refused = None, None, True


def _is_plain() -> bool:
    """Whether no mode or hook of this thread intercepts operations now."""
    return not (
        is_recording()
        or getattr(_state, "is_eager", False)
        or torch.is_grad_enabled()
        or torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
    )


def _settings() -> tuple[Any, ...]:
    """The settings on which the operations of a function may depend."""
    return (
        keras.config.floatx(),
        BIT64_TO_BIT32_DTYPE.get("float64"),
        torch.get_default_dtype(),
    )


def _flattened(value: Any, leaves: list[Any]) -> Any:
    """Appends the leaves of a structure, and returns a key of the structure."""
    kind = type(value)
    if kind is list or kind is tuple or hasattr(kind, "_fields"):
        return kind, *[_flattened(item, leaves) for item in value]
    if kind is dict:
        own = [(key, _flattened(item, leaves)) for key, item in value.items()]
        return kind, *own
    leaves.append(value)
    return None


def _kind(leaf: Any) -> Any:
    """The properties of a leaf of the arguments on which a graph depends."""
    if isinstance(leaf, torch.Tensor):
        return (
            type(leaf),
            leaf.shape,
            leaf.stride(),
            leaf.dtype,
            leaf.device,
            leaf.requires_grad,
        )
    return type(leaf), leaf


def _record(
    fn: Callable[..., Any], args: tuple[Structure, ...], has_values: bool
) -> Callable[[list[Any]], Any]:
    """The graph of a function, as a function of the leaves of its arguments.

    Args:
        fn: the function.
        args: its arguments.
        has_values: whether to record it on tensors with values. That takes less
            time, but it needs more memory, and does not always succeed.

    Raises:
        Unrecordable: if there is no such graph.
        Exception: whatever the function raises for tensors without values.
    """
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    scope = contextlib.nullcontext() if has_values else fakes
    recorder = Recorder(has_values)
    stand_ins: list[Any] = []

    def stand_in(leaf: Any) -> Any:
        own = leaf
        if isinstance(leaf, torch.Tensor):
            # The conjugate of a view is lazy, and its operation is not
            # recorded.
            is_lazy = leaf.is_conj() or leaf.is_neg()
            is_plain = type(leaf) is torch.Tensor and not leaf.requires_grad
            if is_lazy or not is_plain:
                raise Unrecordable
            own = leaf.detach() if has_values else fakes.from_tensor(leaf)
        stand_ins.append(own)
        return own

    copies = _with_leaves(stand_in, args)
    recorder.begin(stand_ins)
    with scope, recorder:
        found = fn(*copies)
    if recorder.has_failed:
        raise Unrecordable
    return compiled(recorder, found)


def _with_leaves(fn: Callable[[Any], Any], value: Any) -> Any:
    """Replaces each leaf of a structure (see `_flattened`) by `fn` of it."""
    kind = type(value)
    if kind in (list, tuple, dict) or hasattr(kind, "_fields"):
        return mapped(functools.partial(_with_leaves, fn), value)
    return fn(value)


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf


def _agree(a: Any, b: Any) -> bool:
    """Whether two structures of tensors are bit-identical."""
    ours: list[Any] = []
    theirs: list[Any] = []
    if _flattened(a, ours) != _flattened(b, theirs):
        return False
    return all(map(_same, ours, theirs))


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return type(a) is type(b) and bool(a == b)
    return (
        (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
        and a.device == b.device
        and _bits_agree(a, b)
    )


def _bits_agree(a: Tensor, b: Tensor) -> bool:
    is_same = a == b
    if a.is_floating_point() or a.is_complex():
        is_same = is_same | ((a != a) & (b != b))
    return bool(is_same.all())
