"""What kormos needs of PyTorch, which runs eagerly, beside derivatives."""

import contextlib
import functools
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import TypeVar

import keras
import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from kormos.backend import common
from kormos.backend.common import as_tensor
from kormos.types import Array
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor

_Result = TypeVar("_Result")


def compile(
    fn: Callable[..., _Result], xla: bool = False
) -> Callable[..., _Result]:
    del xla  # `torch.compile` takes longer than most whole fits.

    @functools.wraps(fn)
    def call(*args: Structure) -> _Result:
        with torch.no_grad():
            return fn(*map(as_tensor, args))

    return call


def compile_loop(fn: Callable[..., _Result]) -> Callable[..., _Result]:
    def call(state: Sequence[Structure], *args: Structure) -> _Result:
        # The numbers stay NumPy arrays, because decisions on tensors would take
        # longer than the evaluation of a small model.
        arrays = [as_tensor(array) for array in state[0]]
        with torch.no_grad():
            return fn((arrays, *state[1:]), *args)

    return call


def on_cpu() -> bool:
    return not torch.cuda.is_available()


def chunk_numbers() -> int:
    # On a CPU, these numbers exceed its cache. Smaller chunks would make more
    # eager calls, which would take longer than the cache saves.
    return 2**20 if on_cpu() else 2**24


def narrow_from() -> float:
    # Measured on a CPU. The conversion takes several eager calls.
    return 2**14


def attempt(fn: Callable[..., _Result], *args: Structure) -> _Result:
    try:
        return fn(*args)
    except Exception as error:
        if not is_numerical(error):
            raise
    with _Lenient():
        return fn(*args)


dry_run = attempt


class _Lenient(TorchDispatchMode):
    """If an operation raises an error, calls it with ones as arguments."""

    def __torch_dispatch__(
        self,
        fn: Any,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        try:
            return fn(*args, **kwargs)
        except torch.linalg.LinAlgError:
            if not fn._schema.returns:
                return None  # It only checks another result.
            ones = [torch.ones_like(a) if _is_float(a) else a for a in args]
            return fn(*ones, **kwargs)


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@contextlib.contextmanager
def parameters_met() -> Iterator[dict[int, Tensor]]:
    met: dict[int, Tensor] = {}

    class Noting(TorchFunctionMode):
        def __torch_function__(
            self,
            fn: Callable[..., Any],
            types: Iterable[type],
            args: Sequence[Any] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:
            for leaf in pytree.tree_leaves((args, kwargs)):
                if isinstance(leaf, torch.nn.Parameter):
                    met[id(leaf)] = leaf
            return fn(*args, **(kwargs or {}))

    with Noting():
        yield met


@contextlib.contextmanager
def standing_in(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    # The dict keeps the tensors, so that no new tensor gets the id of one.
    others = {id(tensor): (tensor, other) for tensor, other in pairs}

    class StandingIn(TorchFunctionMode):
        # The modules themselves do not change: other threads may call them.
        def __torch_function__(
            self,
            fn: Callable[..., Any],
            types: Iterable[type],
            args: Sequence[Any] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:
            args, kwargs = pytree.tree_map(
                lambda leaf: others.get(id(leaf), (leaf, leaf))[1],
                (args, kwargs or {}),
            )
            return fn(*args, **kwargs)

    with StandingIn():
        yield


def is_numerical(error: BaseException) -> bool:
    return common.is_numerical(error, torch.linalg.LinAlgError)


def keeps_traces(fn: Callable[..., Structure], *args: Structure) -> bool:
    return False


def own_trace() -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


def scalar(tensor: Tensor) -> Scalar:
    return np.float64(tensor.item())


def to_numpy(value: Any) -> Array:
    if isinstance(value, keras.Variable):
        value = value.value
    if not isinstance(value, torch.Tensor):
        return common.to_numpy(value)
    if value.dtype == torch.bfloat16:  # NumPy does not have the tensor's dtype.
        return value.float().numpy(force=True).astype("bfloat16")
    # `keras.ops.convert_to_numpy` makes NumPy warn of PyTorch's `__array__`.
    return np.array(value.numpy(force=True))


def view(tensor: Tensor) -> Array:
    return to_numpy(tensor)


def values(tensor: Tensor) -> Array | None:
    try:
        return view(tensor)
    except RuntimeError:
        return None  # The tensor is mapped over rows.


def held(tensor: Tensor) -> Tensor | None:
    del tensor
    # PyTorch counts assignments, but not those to `tensor.data`.
    return None


def is_held(tensor: Tensor, held: Tensor | None) -> bool:
    del tensor, held
    return False


def copied(tensor: Tensor, memory: Tensor | None = None) -> Tensor:
    own = tensor.detach()
    # To take memory anew takes longer than the copy.
    return own.clone() if memory is None else memory.copy_(own)


def equal(tensor: Tensor, other: Tensor) -> bool:
    tensor, other = tensor.detach(), other.detach()
    if tensor.is_cpu and tensor.dtype != torch.bfloat16:
        # It takes half the time of `torch.equal`.
        return common.equal_arrays(tensor.numpy(), other.numpy())
    same = torch.equal(tensor, other)
    return same or common.equal_arrays(to_numpy(tensor), to_numpy(other))


def dot(a: Tensor, b: Tensor) -> Scalar:
    # `keras.ops.dot` takes ten times as long for short vectors.
    return scalar(torch.dot(a, b))


def arctan(tensor: Tensor) -> Tensor:
    return torch.arctan(tensor)


def set_row(matrix: Tensor, index: Scalar, row: Tensor) -> Tensor:
    matrix[index] = torch.as_tensor(row)
    return matrix


def set_column(matrix: Tensor, index: Scalar, column: Tensor) -> Tensor:
    matrix[:, index] = column
    return matrix


def add_outer(matrix: Tensor, vector: Tensor, factor: Scalar) -> Tensor:
    # `addr_` would multiply one of the two vectors first: not symmetric.
    return matrix.add_(torch.outer(vector, vector), alpha=float(factor))


def float64() -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    # Keras' dropout without a seed draws from torch's global generators.
    # `torch.random.fork_rng` and `torch.manual_seed` would do the same, but
    # take 100 microseconds.
    generators = [torch.default_generator, *torch.cuda.default_generators]
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(torch.initial_seed())
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def has_own_gradients(compiled: Callable[..., Structure]) -> bool:
    return False  # No operation is known whose second derivatives are wrong.
