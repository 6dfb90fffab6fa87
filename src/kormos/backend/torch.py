"""Differentiation with PyTorch, which runs eagerly."""

import contextlib
import functools
import warnings

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from kormos.backend import common
from kormos.backend.common import as_tensor
from kormos.backend.common import values_and_jacobian
from kormos.backend.torch_operations import differentiable


def compile(fn, xla=False):
    del xla  # `torch.compile` takes longer than most whole fits.

    @functools.wraps(fn)
    def call(*args):
        with torch.no_grad():
            return fn(*map(as_tensor, args))

    return call


def compile_loop(fn):
    def call(state, *args):
        # The numbers stay NumPy's: logic on tensors would take longer than a
        # small model.
        arrays = [as_tensor(array) for array in state[0]]
        with torch.no_grad():
            return fn((arrays, *state[1:]), *args)

    return call


def on_cpu():
    return not torch.cuda.is_available()


def chunk_numbers():
    # Of a layer's outputs: eager calls want more of them than a cache holds.
    return 2**20 if on_cpu() else 2**24


def attempt(fn, *args):
    try:
        return fn(*args)
    except Exception as error:
        if not is_numerical(error):
            raise
    with _Lenient():
        return fn(*args)


dry_run = attempt


class _Lenient(TorchDispatchMode):
    """Runs what raises on its arguments on others of the same shapes."""

    def __torch_dispatch__(self, fn, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        try:
            return fn(*args, **kwargs)
        except torch.linalg.LinAlgError:
            if not fn._schema.returns:
                return None  # It only checks what another one has computed.
            ones = [torch.ones_like(a) if _is_float(a) else a for a in args]
            return fn(*ones, **kwargs)


def _is_float(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@contextlib.contextmanager
def parameters_met():
    met = {}

    class Noting(TorchFunctionMode):
        def __torch_function__(self, fn, types, args=(), kwargs=None):
            for leaf in pytree.tree_leaves((args, kwargs)):
                if isinstance(leaf, torch.nn.Parameter):
                    met[id(leaf)] = leaf
            return fn(*args, **(kwargs or {}))

    with Noting():
        yield met


@contextlib.contextmanager
def standing_in(pairs):
    # Kept, so that no other tensor takes their ids.
    others = {id(tensor): (tensor, other) for tensor, other in pairs}

    class StandingIn(TorchFunctionMode):
        # Modules stay as they are: other threads may call them.
        def __torch_function__(self, fn, types, args=(), kwargs=None):
            args, kwargs = pytree.tree_map(
                lambda leaf: others.get(id(leaf), (leaf, leaf))[1],
                (args, kwargs or {}),
            )
            return fn(*args, **kwargs)

    with StandingIn():
        yield


def is_numerical(error):
    return common.is_numerical(error, torch.linalg.LinAlgError)


def keeps_traces(fn, *args):
    return False


def own_trace():
    return contextlib.nullcontext()


def scalar(tensor):
    return np.float64(tensor.item())


def values(tensor):
    try:
        return common.view(tensor)
    except RuntimeError:
        return None  # Mapped over rows, where nothing can be read.


def dot(a, b):
    # Keras' own takes ten times as long for short vectors.
    return scalar(torch.dot(a, b))


arctan = torch.arctan


def set_row(matrix, index, row):
    matrix[index] = torch.as_tensor(row)
    return matrix


def wide():
    return contextlib.nullcontext()


@contextlib.contextmanager
def repeatable():
    # Keras' dropout without a seed draws from torch's global generators.
    # `torch.random.fork_rng` and `torch.manual_seed` take 100 microseconds.
    generators = [torch.default_generator, *torch.cuda.default_generators]
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(torch.initial_seed())
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def has_own_gradients(compiled):
    return False  # No operation is known whose second derivatives are wrong.


def value_and_grad(fn):
    fn = differentiable(fn, is_first=True)

    def wrapped(parts, *args):
        leaves = _leaves(parts)
        with torch.enable_grad():
            loss = fn(leaves, *args)
        return loss.detach(), _gradients(loss, leaves)

    return wrapped


# What torch says of what it can differentiate but once.
_ONCE = (
    (RuntimeError, "derivative for"),
    (RuntimeError, "differentiate twice"),
)


def hvp(fn):
    fn = differentiable(fn)

    def product(parts, tangents, *args):
        leaves = _leaves(parts)
        with torch.enable_grad():
            loss = fn(leaves, *args)
            gradients = _gradients(loss, leaves, create_graph=True)
            slope = sum(
                (g * t).sum() for g, t in zip(gradients, tangents, strict=True)
            )
        with common.refusing(*_ONCE):
            return _gradients(slope, leaves)

    return product


def jacobian(fn):
    fn = differentiable(fn, is_first=True)
    return lambda parts, *args: _jacobian(fn, parts, *args)[1]


def _jacobian(fn, parts, *args):
    """The values of a vector-valued function, and their derivatives."""
    leaves = _leaves(parts)
    with torch.enable_grad():
        values = fn(leaves, *args)
        entries = values.unbind()
    rows = [_gradients(v, leaves, retain_graph=True) for v in entries]
    columns = [torch.stack(column) for column in zip(*rows, strict=True)]
    return values.detach(), columns


def jvp(fn):
    fn = differentiable(fn)

    def product(parts, tangents, *args):
        values, derivatives = torch.func.jvp(
            lambda *p: fn(list(p), *args), tuple(parts), tuple(tangents)
        )
        return values, pytree.tree_map(_in_memory, derivatives)

    return product


def vjp(fn):
    fn = differentiable(fn, is_first=True)

    def product(parts, cotangents, *args):
        leaves = _leaves(parts)
        with torch.enable_grad():
            values = fn(leaves, *args)
        return _gradients(values, leaves, grad_outputs=cotangents)

    return product


def row_jacobian(fn, forward):
    differentiate = torch.func.jacfwd if forward else torch.func.jacrev
    fn = differentiable(fn)
    mapped = torch.func.vmap(
        values_and_jacobian(differentiate, fn),
        in_dims=(None, 0),
        # Layers draw what they do not use; what is used is found out.
        randomness="same",
    )
    is_mapped = None

    def wrapped(parts, rows):
        nonlocal is_mapped
        if is_mapped is not False:
            try:
                with warnings.catch_warnings():
                    # Of operations mapped in a loop, which only takes longer.
                    warnings.filterwarnings("ignore", "There is a performance")
                    values, derivatives = mapped(parts, rows)
                is_mapped = True
                return values, list(map(_in_memory, derivatives))
            except Exception as error:
                if is_mapped or is_numerical(error):
                    raise
                # An operation that `torch.func` cannot map.
        found = map_rows(functools.partial(_jacobian, fn, parts), rows)
        is_mapped = False
        return found

    return wrapped


def map_rows(fn, rows):
    count = pytree.tree_leaves(rows)[0].shape[0]
    found = [
        fn(pytree.tree_map(lambda array, i=i: array[i], rows))
        for i in range(count)
    ]
    return pytree.tree_map(lambda *values: torch.stack(values), *found)


def _in_memory(tensor):
    # A derivative that is zero may be a tensor without memory.
    return torch.zeros_like(tensor) if tensor._is_zerotensor() else tensor


def _leaves(parts):
    return [part.detach().requires_grad_(True) for part in parts]


def _gradients(value, leaves, **kwargs):
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    gradients = torch.autograd.grad(value, leaves, allow_unused=True, **kwargs)
    return [
        torch.zeros_like(leaf) if gradient is None else _in_memory(gradient)
        for gradient, leaf in zip(gradients, leaves, strict=True)
    ]
