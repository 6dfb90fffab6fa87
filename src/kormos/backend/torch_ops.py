"""Operations of `keras.ops` that solvers call, on PyTorch tensors.

A function of `keras.ops` takes ten times as long as one of PyTorch, because it
looks for symbolic tensors and for values to convert. These functions return the
same values. They call Keras for arguments that are not tensors.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import torch

from kormos.types import Tensor

# Solvers rarely call these.
cond = keras.ops.cond
convert_to_tensor = keras.ops.convert_to_tensor
copy = keras.ops.copy
eye = keras.ops.eye
fori_loop = keras.ops.fori_loop
pad = keras.ops.pad
while_loop = keras.ops.while_loop


def _of_tensor(
    own: Callable[..., Tensor], other: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """A function that calls the first one for tensors, else the other."""

    def call(x: Any, *args: Any, **kwargs: Any) -> Tensor:
        fn = own if isinstance(x, torch.Tensor) else other
        return fn(x, *args, **kwargs)

    return call


abs = _of_tensor(torch.abs, keras.ops.abs)
max = _of_tensor(torch.max, keras.ops.max)
ones_like = _of_tensor(torch.ones_like, keras.ops.ones_like)
square = _of_tensor(torch.square, keras.ops.square)
zeros_like = _of_tensor(torch.zeros_like, keras.ops.zeros_like)
expand_dims = _of_tensor(torch.unsqueeze, keras.ops.expand_dims)
reshape = _of_tensor(torch.reshape, keras.ops.reshape)


def sum(x: Any, *args: Any, **kwargs: Any) -> Tensor:
    is_known = isinstance(x, torch.Tensor) and x.is_floating_point()
    if is_known and not args and not kwargs:
        return torch.sum(x)
    return keras.ops.sum(x, *args, **kwargs)


def cast(x: Any, dtype: Any) -> Tensor:
    if not isinstance(x, torch.Tensor):
        return keras.ops.cast(x, dtype)
    if not isinstance(dtype, torch.dtype):
        dtype = getattr(torch, dtype)
    return x.to(dtype)


def where(condition: Any, a: Any, b: Any) -> Tensor:
    if all(isinstance(x, torch.Tensor) for x in (condition, a, b)):
        return torch.where(condition, a, b)
    return keras.ops.where(condition, a, b)


def concatenate(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    if all(isinstance(x, torch.Tensor) for x in tensors):
        return torch.cat([*tensors], axis)
    return keras.ops.concatenate(tensors, axis)


def stack(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    if all(isinstance(x, torch.Tensor) for x in tensors):
        return torch.stack([*tensors], axis)
    return keras.ops.stack(tensors, axis)


def zeros(shape: Sequence[int], dtype: Any) -> Tensor:
    if not isinstance(dtype, torch.dtype) or not _is_on_cpu():
        return keras.ops.zeros(shape, dtype)
    return torch.zeros(shape, dtype=dtype)


def arange(stop: int, dtype: str) -> Tensor:
    if not _is_on_cpu():
        return keras.ops.arange(stop, dtype=dtype)
    return torch.arange(stop, dtype=getattr(torch, dtype))


def einsum(subscripts: str, a: Any, b: Any) -> Tensor:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if subscripts == "ij,j->i":
            return torch.mv(a, b)
        if subscripts == "i,ij->j":
            return torch.mv(b.t(), a)
    return keras.ops.einsum(subscripts, a, b)


def _is_on_cpu() -> bool:
    return not torch.cuda.is_available()
