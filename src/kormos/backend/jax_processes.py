"""Processes that `jax.distributed` connects."""

import contextlib
import functools
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from kormos.backend.common import in_a_line
from kormos.types import Array
from kormos.types import Tensor
from kormos.types import Vector


def process_group(owner: Any) -> Any:
    del owner  # Keras' distribution applies to all models.
    distribution = keras.distribution.distribution()
    if distribution is None or jax.process_count() == 1:
        return None
    # One device of each process, in the order of the processes.
    firsts: dict[int, Any] = {}
    for device in distribution.device_mesh.backend_mesh.devices.flat:
        firsts.setdefault(device.process_index, device)
    if len(firsts) == 1:
        return None
    return _group(tuple(firsts[i] for i in sorted(firsts)))


@functools.lru_cache(maxsize=1)
def _group(devices: tuple[Any, ...]) -> Mesh:
    return Mesh(np.array(devices), "processes")


def place_in(group: Mesh) -> tuple[int, int]:
    order = [device.process_index for device in group.devices]
    return order.index(jax.process_index()), len(order)


@functools.lru_cache(maxsize=1)
def _summed(group: Mesh) -> Callable[[Tensor], Tensor]:
    alike = NamedSharding(group, PartitionSpec())
    return jax.jit(lambda rows: rows.sum(0), out_shardings=alike)


def add_up(group: Mesh, vector: Vector) -> Vector:
    by_process = NamedSharding(group, PartitionSpec("processes"))
    shape = group.size, len(vector)
    with jax.enable_x64(True):
        rows = jax.make_array_from_process_local_data(
            by_process, np.asarray(vector, "float64")[None], shape
        )
        return np.array(_summed(group)(rows).addressable_data(0))


def named_loss(group: Mesh, error: Exception) -> str:
    said = in_a_line(error)
    own, count = place_in(group)
    # If there are more than two processes, JAX's own service names the lost one
    # a few seconds later.
    return (
        f"no answer from processes [{1 - own}]: {said}" if count == 2 else said
    )


def local(tensor: Tensor) -> Tensor:
    if isinstance(tensor, jax.core.Tracer):
        return tensor  # Keras casts a variable while it is traced.
    if isinstance(tensor, jax.Array) and not tensor.is_fully_addressable:
        # An array of NumPy may go to any device of this process.
        return np.asarray(tensor.addressable_data(0))
    return tensor


def placed_like(array: Array, tensor: Tensor) -> Any:
    # Otherwise JAX would compare the arrays of all processes.
    if not isinstance(tensor, jax.Array) or tensor.is_fully_addressable:
        return array
    array = np.asarray(array, tensor.dtype)
    with jax.enable_x64(True):
        return jax.make_array_from_callback(
            array.shape, tensor.sharding, lambda index: array[index]
        )


@contextlib.contextmanager
def unasked() -> Iterator[None]:
    # When a process assigns a value, JAX compares it with those of all other
    # processes. One that has failed, or that restores a backup for all, would
    # not answer.
    ask = multihost_utils.assert_equal
    multihost_utils.assert_equal = lambda *args, **kwargs: None
    try:
        yield
    finally:
        multihost_utils.assert_equal = ask


@contextlib.contextmanager
def alone() -> Iterator[None]:
    before = keras.distribution.distribution()
    if before is None:
        yield
        return
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)
