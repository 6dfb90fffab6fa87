"""Processes that fit a model together, each on its own rows.

Every process runs the same solver on the same sums. The backend (PyTorch's
process group, JAX's devices, TensorFlow's strategy) only adds up a float64
vector over the processes, with a bit-identical result on each.

What only one process knows (its clock, an interrupt, an exception, a callback
that stops the fit) is sent with the sums, so that all processes take every
decision at the same point. Every exchange begins with a block of the same
length. So a process that fails anywhere can tell the others: it takes part in
the next exchange, whatever that is.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import pickle
import signal
import threading
import time
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import ParamSpec
from typing import TypeVar

import numpy as np
from keras import tree

from kormos import backend
from kormos.backend.common import causes
from kormos.failures import FINAL
from kormos.failures import NUMERICAL
from kormos.failures import OF_POINT
from kormos.failures import LostProcessError
from kormos.failures import OtherProcessFailed
from kormos.failures import drifted
from kormos.failures import lost
from kormos.failures import severity_of
from kormos.types import Array
from kormos.types import Structure
from kormos.types import Vector
from kormos.warn import muted

_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")

# Numbers in the first block of an exchange. Our choice: a block (8 KB) takes no
# longer than a few numbers, and the gradient of a small model fits into it.
_BLOCK = 1024
# The first entries are severities, an interrupt and a clock.
_OWN = 5


class Processes:
    """This process, among those that fit a model together.

    Args:
        group: the result of `backend.process_group`, or `None` for a single
            process.

    Attributes:
        index: the number of this process, from 0.
        count: the number of processes.
        exchanges: the number of vectors that were added up so far.
    """

    def __init__(self, group: Any = None):
        self._group = group
        self.index, self.count = 0, 1
        if group is not None:
            self.index, self.count = backend.place_in(group)
        self.exchanges = 0
        self._clock = 0.0
        self._is_interrupted = self._is_exchanging = False
        # The exception that the others know about.
        self._told: BaseException | None = None

    @property
    def is_alone(self) -> bool:
        return self.count == 1

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def now(self) -> float:
        """The first process' clock at the latest exchange, in seconds."""
        return time.perf_counter() if self.is_alone else self._clock

    # Sums.

    def total(
        self,
        compute: Callable[[], Structure],
        shapes: Sequence[tuple[int, ...]],
        at: Sequence[Array] = (),
        name: str = "a sum",
    ) -> Structure:
        """The sum over the processes of the arrays that a function returns.

        Args:
            compute: function of no arguments. If it raises an exception on one
                process, the others raise `OtherProcessFailed`.
            shapes: the shapes of its arrays, in order.
            at: arrays that must be the same on all processes: the point, for
                example.
            name: a description of what is summed.
        """
        if self.is_alone:
            return compute()
        values, error = None, None
        sizes = [math.prod(shape) for shape in shapes]
        flat: Array = np.zeros(sum(sizes))
        try:
            values = compute()
            arrays = [
                np.asarray(backend.view(v), "float64").reshape(-1)
                for v in tree.flatten(values)
            ]
            np.concatenate(arrays, out=flat)
        except BaseException as raised:
            error = raised
        token = zlib.crc32(repr((name, list(shapes))).encode())
        for array in at:
            token = zlib.crc32(np.ascontiguousarray(array).data, token)
        summed = self._exchange(flat, token, name, error)
        parts = np.split(summed, np.cumsum(sizes)[:-1])
        return tree.pack_sequence_as(
            values,
            [p.reshape(s) for p, s in zip(parts, shapes, strict=True)],
        )

    def sum(self, array: Any, name: str = "a count") -> Array:
        """The sum over the processes of an array, with one shape on all."""
        array = np.asarray(array, "float64")
        return np.asarray(self.total(lambda: array, [array.shape], name=name))

    def gather(self, array: Array) -> Array:
        """The arrays of all processes, in order, along the first axis."""
        if self.is_alone:
            return array
        lengths = np.zeros(self.count)
        lengths[self.index] = len(array)
        ends = np.cumsum(self.sum(lengths, "lengths")).astype(int)
        whole = np.zeros((ends[-1], *array.shape[1:]))
        end = ends[self.index]
        whole[end - len(array) : end] = array
        return self.sum(whole, "a matrix")

    # Agreement.

    def agree(self, flag: bool = False, name: str = "a decision") -> bool:
        """Whether a flag is set on any process."""
        return self.anywhere(lambda: flag, name)

    def anywhere(
        self, fn: Callable[[], bool], name: str = "a callback"
    ) -> bool:
        """Calls a function on every process; whether any result is true.

        Exceptions are handled as by `together`.
        """
        if self.is_alone:
            return fn()
        return bool(self.total(lambda: np.array(float(fn())), [()], name=name))

    def together(
        self, fn: Callable[[], _Result], name: str = "a callback"
    ) -> _Result:
        """Calls a function on every process.

        If it raises an exception on one process, the others raise
        `OtherProcessFailed`.
        """
        if self.is_alone:
            return fn()
        found: list[_Result] = []

        def compute() -> Array:
            found.append(fn())
            return np.zeros(())

        self.total(compute, [()], name=name)
        return found[0]

    def from_first(self, make: Callable[[], _Result]) -> _Result:
        """Sends a function's result on the first process to all of them.

        Args:
            make: function that is called only on the first process, and returns
                an object that can be pickled.
        """
        if self.is_alone:
            return make()
        data: Array = np.zeros(0, "uint32")

        def size() -> Array:
            nonlocal data
            if self.is_first:
                pickled = pickle.dumps(make())
                pickled += bytes(-len(pickled) % 4)
                data = np.frombuffer(pickled, "uint32")
            return np.array(float(data.size))

        length = int(self.total(size, [()], name="the size of a message"))
        whole = data if self.is_first else np.zeros(length, "uint32")
        sent = self.sum(whole, "a message").astype("uint32")
        # A pickle contains its own end, which is before the padding.
        return pickle.loads(sent.tobytes())

    # The scope of a fit.

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """A scope that all processes enter and leave together.

        An exception in one of them ends the scope on all. Ctrl-C waits for the
        next exchange. A second one is raised at once, unless an exchange is
        running, and the others receive it in the next one.
        """
        if self.is_alone or _current.get() is self:
            yield
            return
        self._told, self._is_interrupted = None, False
        token = _current.set(self)
        try:
            with (
                self._interrupts(),
                muted(not self.is_first),
                backend.unasked(),
            ):
                self.agree(name="the start of a fit")
                yield
                self.agree(name="the end of a fit")
        except BaseException as error:
            with contextlib.suppress(Exception):
                self.tell(error)
            raise
        finally:
            _current.reset(token)

    def tell(self, error: BaseException) -> None:
        """Tells the others about an exception that they do not know.

        Raises:
            OtherProcessFailed: if another process has failed in the meantime.
            LostProcessError: if the others cannot be reached.
        """
        if self.is_alone or self._is_told(error):
            return
        with contextlib.suppress(type(error), KeyboardInterrupt):
            self._exchange(np.zeros(0), 0, "an exception", error)

    @contextlib.contextmanager
    def _interrupts(self) -> Iterator[None]:
        """A scope in which Ctrl-C waits for the next exchange."""
        before = signal.getsignal(signal.SIGINT)
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or before is not signal.default_int_handler:
            yield  # A program's own handler of Ctrl-C is kept.
            return

        def note(signum: int, frame: Any) -> None:
            if self._is_interrupted and not self._is_exchanging:
                raise KeyboardInterrupt
            self._is_interrupted = True

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    # Exchanges.

    def _exchange(
        self,
        vector: Vector,
        token: int,
        name: str,
        error: BaseException | None = None,
    ) -> Vector:
        """The sum of a vector over the processes.

        Args:
            vector: a vector of the same length on all processes, unless one has
                failed.
            token: a number that must be the same on all of them.
            name: a description of what is summed.
            error: the exception of this process, or `None`.
        """
        if error is not None and self._is_told(error):
            raise error  # All processes have failed in an inner exchange.
        if isinstance(self._told, LostProcessError) and current() is self:
            raise self._told  # Every further exchange fails.
        block = np.zeros(max(_BLOCK, _OWN + 2 * self.count))
        room = len(block) - _OWN - self.count
        is_interrupt = isinstance(error, KeyboardInterrupt)
        if error is not None and not is_interrupt:
            block[severity_of(error) - 1] = 1
        block[3] = self._is_interrupted or is_interrupt
        block[4] = time.perf_counter() if self.is_first else 0.0
        block[_OWN + self.index] = token
        block[-room:][: len(vector)] = vector[:room]
        block = self._add_up(block, name)
        self._clock = float(block[4])
        self._raise(block, name, error)
        first, rest = block[-room:][: len(vector)], vector[room:]
        if len(rest):
            return np.concatenate([first, self._add_up(rest, name)])
        return first

    def _raise(
        self, block: Vector, name: str, error: BaseException | None
    ) -> None:
        """Raises the exception that the processes agreed on, if any.

        Args:
            block: the sum of the first blocks of all processes.
            name: a description of what is summed.
            error: the exception of this process, or `None`.
        """
        failed = [s for s in (NUMERICAL, OF_POINT, FINAL) if block[s - 1]]
        if failed:
            if error is not None and severity_of(error) == failed[-1]:
                raise self._noted(error)
            message = (
                f"{block[:3].sum():.0f} of {self.count} processes failed, and "
                f"report why themselves. This is process {self.index}."
            )
            raise self._noted(
                OtherProcessFailed(message, failed[-1])
            ) from error
        if block[3]:
            self._is_interrupted = False
            raise self._noted(KeyboardInterrupt())
        tokens = block[_OWN:][: self.count]
        unlike = np.flatnonzero(tokens != tokens[0]).tolist()
        if unlike:
            raise self._noted(drifted(name, unlike))

    def _add_up(self, vector: Vector, name: str) -> Vector:
        self.exchanges += 1
        self._is_exchanging = True
        try:
            return backend.add_up(self._group, vector)
        except Exception as error:
            said = backend.named_loss(self._group, error)
            place = f"process {self.index} of {self.count}"
            raise self._noted(lost(name, place, said)) from error
        finally:
            self._is_exchanging = False

    def _is_told(self, error: BaseException) -> bool:
        """Whether the others know about an exception."""
        return any(cause is self._told for cause in causes(error))

    def _noted(self, error: BaseException) -> BaseException:
        """Notes that the others know about an exception, and returns it."""
        self._told = error
        return error


ALONE = Processes()

# The processes of the present fit.
_current: contextvars.ContextVar[Processes] = contextvars.ContextVar(
    "kormos_processes", default=ALONE
)
_apart: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "kormos_apart", default=False
)
_latest = ALONE


def processes_of(owner: Any) -> Processes:
    """The processes that fit a model together.

    Args:
        owner: the model, or a list of variables.
    """
    global _latest
    group = None if _apart.get() else backend.process_group(owner)
    if group is None:
        return ALONE
    if _latest._group is not group:
        _latest = Processes(group)
    return _latest


def now() -> float:
    """Seconds, by a clock that all processes of a fit share.

    With one process, it is `time.perf_counter()`.
    """
    return _current.get().now()


def current() -> Processes:
    """The processes of the present fit."""
    return _current.get()


def shared(
    processes_for: Callable[..., Processes],
) -> Callable[[Callable[_Params, _Result]], Callable[_Params, _Result]]:
    """Decorates a function that all processes enter and leave together.

    Args:
        processes_for: function of the same arguments that returns the
            processes.
    """

    def decorate(fn: Callable[_Params, _Result]) -> Callable[_Params, _Result]:
        @functools.wraps(fn)
        def call(*args: _Params.args, **kwargs: _Params.kwargs) -> _Result:
            with processes_for(*args, **kwargs).shared():
                return fn(*args, **kwargs)

        return call

    return decorate


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """A scope in which this process evaluates its own rows alone."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)
