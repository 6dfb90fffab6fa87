"""Derivatives with PyTorch."""

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from kormos.backend import common
from kormos.backend.common import values_and_jacobian
from kormos.backend.torch import is_numerical
from kormos.backend.torch_operations import differentiable
from kormos.backend.torch_recording import Unrecordable
from kormos.backend.torch_recording import is_recording
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor

# The levels of PyTorch's forward mode belong to the process, not to a thread:
# two threads would end each other's levels.
_forward_mode = threading.RLock()


def value_and_grad(
    fn: Callable[..., Any], has_others: bool = False
) -> Callable[..., tuple[Any, list[Tensor]]]:
    fn = differentiable(fn, is_first=True)

    def wrapped(
        parts: list[Tensor], *args: Structure
    ) -> tuple[Any, list[Tensor]]:
        leaves = _leaves(parts)
        with torch.enable_grad():
            found = fn(leaves, *args)
        loss = found[0] if has_others else found
        gradients = _gradients(loss, leaves)
        return pytree.tree_map(torch.detach, found), gradients

    return wrapped


# Parts of the messages of errors of operations without a second derivative.
_NO_SECOND = (
    (RuntimeError, "derivative for"),
    (RuntimeError, "differentiate twice"),
)


def hvp(fn: Callable[..., Scalar]) -> Callable[..., list[Tensor]]:
    fn = differentiable(fn)

    def product(
        parts: list[Tensor], tangents: list[Tensor], *args: Structure
    ) -> list[Tensor]:
        leaves = _leaves(parts)
        with torch.enable_grad():
            loss = fn(leaves, *args)
            gradients = _gradients(loss, leaves, create_graph=True)
            slope = sum(
                (g * t).sum() for g, t in zip(gradients, tangents, strict=True)
            )
        with common.refusing(*_NO_SECOND):
            return _gradients(slope, leaves)

    return product


def jacobian(fn: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    fn = differentiable(fn, is_first=True)
    return lambda parts, *args: _jacobian(fn, parts, *args)[1]


def _jacobian(
    fn: Callable[..., Tensor], parts: list[Tensor], *args: Structure
) -> tuple[Tensor, list[Tensor]]:
    """The values of a vector-valued function, and their derivatives."""
    leaves = _leaves(parts)
    with torch.enable_grad():
        values = fn(leaves, *args)
        entries = values.unbind()
    rows = [_gradients(v, leaves, retain_graph=True) for v in entries]
    columns = [torch.stack(column) for column in zip(*rows, strict=True)]
    return values.detach(), columns


def jvp(
    fn: Callable[..., Structure],
) -> Callable[..., tuple[Structure, Structure]]:
    fn = differentiable(fn)

    def product(
        parts: list[Tensor], tangents: list[Tensor], *args: Structure
    ) -> tuple[Structure, Structure]:
        with _forward_mode:
            values, derivatives = torch.func.jvp(
                lambda *p: fn(list(p), *args), tuple(parts), tuple(tangents)
            )
        return values, pytree.tree_map(_in_memory, derivatives)

    return product


def vjp(fn: Callable[..., Structure]) -> Callable[..., list[Tensor]]:
    fn = differentiable(fn, is_first=True)

    def product(
        parts: list[Tensor], cotangents: Structure, *args: Structure
    ) -> list[Tensor]:
        leaves = _leaves(parts)
        with torch.enable_grad():
            values = fn(leaves, *args)
        return _gradients(values, leaves, grad_outputs=cotangents)

    return product


def row_jacobian(
    fn: Callable[..., Tensor], forward: bool
) -> Callable[..., tuple[Tensor, list[Tensor]]]:
    differentiate = torch.func.jacfwd if forward else torch.func.jacrev
    fn = differentiable(fn)
    mapped = torch.func.vmap(
        values_and_jacobian(differentiate, fn),
        in_dims=(None, 0),
        # Some layers draw random numbers that they do not use. Random numbers
        # that change the result are detected elsewhere.
        randomness="same",
    )
    is_mapped: bool | None = None
    turn = _forward_mode if forward else contextlib.nullcontext()

    def wrapped(
        parts: list[Tensor], rows: Structure
    ) -> tuple[Tensor, list[Tensor]]:
        nonlocal is_mapped
        if is_mapped is not False:
            try:
                with turn, warnings.catch_warnings():
                    # PyTorch warns of operations that it maps in a loop, which
                    # only takes longer.
                    warnings.filterwarnings("ignore", "There is a performance")
                    values, derivatives = mapped(parts, rows)
                is_mapped = True
                return values, list(map(_in_memory, derivatives))
            except Exception as error:
                if is_mapped or is_recording() or is_numerical(error):
                    raise
                # `torch.func` cannot map one of the operations.
        found = map_rows(functools.partial(_jacobian, fn, parts), rows)
        is_mapped = False
        return found

    return wrapped


# A loop over more rows is not recorded. Our choice: it may call hundreds of
# operations for each.
_MOST_RECORDED = 32


def map_rows(
    fn: Callable[[Structure], Structure], rows: Structure
) -> Structure:
    count = pytree.tree_leaves(rows)[0].shape[0]
    if is_recording() and count > _MOST_RECORDED:
        raise Unrecordable
    found = [
        fn(pytree.tree_map(lambda array, i=i: array[i], rows))
        for i in range(count)
    ]
    return pytree.tree_map(lambda *values: torch.stack(values), *found)


def _in_memory(tensor: Tensor) -> Tensor:
    # PyTorch may represent a derivative that is zero without memory.
    return torch.zeros_like(tensor) if tensor._is_zerotensor() else tensor


def _leaves(parts: list[Tensor]) -> list[Tensor]:
    return [part.detach().requires_grad_(True) for part in parts]


def _gradients(
    value: Tensor, leaves: list[Tensor], **kwargs: Any
) -> list[Tensor]:
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    gradients = torch.autograd.grad(value, leaves, allow_unused=True, **kwargs)
    return [
        torch.zeros_like(leaf) if gradient is None else _in_memory(gradient)
        for gradient, leaf in zip(gradients, leaves, strict=True)
    ]
