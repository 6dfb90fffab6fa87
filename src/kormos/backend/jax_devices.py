"""Arrays on several devices of this process, set by Keras' distribution.

JAX splits an array over devices only in equal parts. Compiled functions have no
such limit: XLA leaves the rest of the last part out of every sum. So arrays in
memory are padded, and `whole` cuts the padding off inside of a compiled
function, where that moves and copies nothing. A function then computes the same
as with all rows on one device, even where rows depend on each other, as in
batch normalization.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple
from typing import TypeVar

import jax
import keras
import numpy as np
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from kormos.types import Array
from kormos.types import Structure
from kormos.types import Tensor

_State = TypeVar("_State")


class Devices(NamedTuple):
    """The devices of this process that Keras' distribution names.

    Attributes:
        mesh: the devices.
        rows: the axis of the mesh over which rows are spread.
    """

    mesh: Mesh
    rows: str

    def layout(self, axis: int | None, names: Any = None) -> NamedSharding:
        """The layout of an array that is spread along an axis.

        Args:
            axis: the axis, or `None` for an array that each device has.
            names: the axes of the mesh. Defaults to that of the rows.
        """
        before = [None] * (0 if axis is None else axis)
        own = [] if axis is None else [names or self.rows]
        return NamedSharding(self.mesh, PartitionSpec(*before, *own))

    def along_last(self, dimensions: int) -> NamedSharding:
        """The layout over all devices along the last of some dimensions."""
        return self.layout(dimensions - 1, self.mesh.axis_names)


@jax.tree_util.register_pytree_node_class
class SpreadArray:
    """An array whose rows lie on several devices, padded to equal parts.

    Code that reads it sees the array without padding.

    Args:
        padded: the array with its padding.
        axis: the axis that is spread.
        rows: the size of that axis without padding.
        layout: the layout of `padded`.
        is_divided: whether it holds stacked chunks without padding, so that
            each device may sum up its own rows of a chunk.
    """

    def __init__(
        self,
        padded: Tensor,
        axis: int,
        rows: int,
        layout: NamedSharding,
        is_divided: bool = False,
    ) -> None:
        self.padded = padded
        self.layout = layout
        self.is_divided = is_divided
        self._static = axis, rows, layout, is_divided

    def tree_flatten(self) -> tuple[tuple[Tensor], tuple[Any, ...]]:
        """The parts that JAX traces, and those that it does not."""
        return (self.padded,), self._static

    @classmethod
    def tree_unflatten(
        cls, static: tuple[Any, ...], leaves: tuple[Tensor]
    ) -> "SpreadArray":
        """The array from the parts that `tree_flatten` returns."""
        return cls(leaves[0], *static)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape without padding."""
        axis, rows, *_ = self._static
        shape = tuple(self.padded.shape)
        return (*shape[:axis], rows, *shape[axis + 1 :])

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """The dtype."""
        return self.padded.dtype

    def whole(self) -> Tensor:
        """The array without padding, spread as before if this is traced."""
        axis, rows, layout, _ = self._static
        cut = jax.lax.slice_in_dim(self.padded, 0, rows, axis=axis)
        if not isinstance(cut, jax.core.Tracer):
            return cut
        return jax.lax.with_sharding_constraint(cut, layout)

    def __getitem__(self, index: Any) -> Any:
        axis, rows, layout, _ = self._static
        if not axis or not isinstance(index, int):
            return self.whole()[index]
        spec = PartitionSpec(*layout.spec[1:])
        layout = NamedSharding(layout.mesh, spec)
        return SpreadArray(self.padded[index], axis - 1, rows, layout)

    def __len__(self) -> int:
        return self.shape[0]

    def __jax_array__(self) -> Tensor:
        return self.whole()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        array = np.array(self.whole())
        return array if dtype is None else array.astype(dtype)


def whole(structure: Structure) -> Structure:
    """The structure with arrays in place of each `SpreadArray`."""
    return _opened(structure, lambda array: True)


def without_padding(structure: Structure) -> Structure:
    """Like `whole`, but divisible chunks stay as they are."""
    return _opened(structure, lambda array: not array.is_divided)


def _opened(
    structure: Structure, is_meant: Callable[[SpreadArray], bool]
) -> Structure:
    def opened(value: Any) -> Any:
        return value.whole() if _is_spread(value) and is_meant(value) else value

    return jax.tree.map(opened, structure, is_leaf=_is_spread)


def _is_spread(value: Any) -> bool:
    return isinstance(value, SpreadArray)


def sum_by_device(
    fn: Callable[[Structure, _State], _State], stacked: Structure, total: _State
) -> _State:
    arrays = jax.tree.leaves(stacked, is_leaf=_is_spread)
    if not all(_is_spread(a) and a.is_divided for a in arrays):
        return fn(stacked, total)
    mesh, spec = arrays[0].layout.mesh, arrays[0].layout.spec

    def own(stacked: Structure) -> _State:
        zeros = jax.tree.map(jax.numpy.zeros_like, total)
        return jax.lax.psum(fn(stacked, zeros), mesh.axis_names)

    # One exchange for all chunks. XLA would make one for each chunk.
    summed = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=spec,
        out_specs=PartitionSpec(),
        check_vma=False,
    )(jax.tree.map(lambda a: a.padded, stacked, is_leaf=_is_spread))
    return jax.tree.map(jax.numpy.add, total, summed)


def found_devices() -> Devices | None:
    """The devices of this process, or `None` if it computes on one."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    mesh = distribution.device_mesh.backend_mesh
    rows = distribution.batch_dim_name
    process = jax.process_index()
    own = [d for d in mesh.devices.flat if d.process_index == process]
    if len(own) < mesh.size:
        mesh = Mesh(own, (rows,))
    return Devices(mesh, rows) if len(own) > 1 else None


def devices() -> int:
    found = found_devices()
    return 1 if found is None else found.mesh.size


def row_devices() -> int:
    found = found_devices()
    return 1 if found is None else found.mesh.shape[found.rows]


def spread_rows(
    array: Array,
    axis: int,
    put: Callable[[Array], Tensor],
    is_divisible: bool = False,
) -> Tensor:
    found = found_devices()
    if found is None:
        return put(array)
    rows, parts = array.shape[axis], found.mesh.shape[found.rows]
    padded = list(array.shape)
    padded[axis] = -(-rows // parts) * parts
    layout, dtype = found.layout(axis), put(array[:0]).dtype

    def part(index: tuple[slice, ...]) -> Array:
        own = array[index].astype(dtype, copy=False)
        wanted = padded[axis] // parts
        missing = [(0, 0)] * array.ndim
        missing[axis] = (0, wanted - own.shape[axis])
        # The values do not matter, because nothing reads them.
        return np.pad(own, missing) if own.shape[axis] < wanted else own

    # Otherwise, JAX would round float64 to float32.
    with jax.enable_x64(True):
        spread = jax.make_array_from_callback(tuple(padded), layout, part)
    is_padded = padded[axis] > rows
    has_rows_only = parts == found.mesh.size
    is_divided = is_divisible and has_rows_only and not is_padded
    if not (is_padded or is_divided):
        return spread
    return SpreadArray(spread, axis, rows, layout, is_divided)


def spread_zeros(shape: tuple[int, ...], dtype: str) -> Tensor:
    found = found_devices()
    if found is None:
        return np.zeros(shape, dtype)
    size = (shape[-1] // found.mesh.size + 1) * found.mesh.size
    layout = found.along_last(len(shape))

    def part(index: tuple[slice, ...]) -> Array:
        return np.zeros((*shape[:-1], size // found.mesh.size), dtype)

    with jax.enable_x64(True):
        return jax.make_array_from_callback((*shape[:-1], size), layout, part)


def keep_spread(tensor: Tensor) -> Tensor:
    found = found_devices()
    if found is None:
        return tensor
    layout = found.along_last(len(tensor.shape))
    return jax.lax.with_sharding_constraint(tensor, layout)


def gather(tensor: Tensor) -> Tensor:
    found = found_devices()
    if found is None:
        return tensor
    return jax.lax.with_sharding_constraint(tensor, found.layout(None))


def laid_out(array: Array, like: Tensor) -> Tensor:
    if not isinstance(like, jax.Array) or len(like.sharding.device_set) < 2:
        return array
    missing = like.shape[-1] - array.shape[-1]
    if 0 < missing <= len(like.sharding.device_set):
        array = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)])
    with jax.enable_x64(True):
        return jax.device_put(array, like.sharding)


def placing(loop: Callable[..., _State]) -> Callable[..., _State]:
    """A compiled loop whose state is on all devices from the first call.

    JAX would compile the loop once for a state of NumPy arrays, and once more
    for the state that the loop returns.
    """
    found = found_devices()
    if found is None:
        return loop
    layout = found.layout(None)

    def put(leaf: Any) -> Tensor:
        is_placed = isinstance(leaf, jax.Array)
        if is_placed and len(leaf.sharding.device_set) > 1:
            return leaf
        return jax.device_put(leaf, layout)

    def placed(state: _State, *args: Any) -> _State:
        with jax.enable_x64(True):
            state = jax.tree.map(put, state)
        return loop(state, *args)

    return placed
