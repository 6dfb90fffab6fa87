"""The pairs of L-BFGS: steps s, and the changes y of the gradient along them.

They lie in a ring with one free slot, into which every trial writes. The ring
is cut into blocks, and blocks that are still empty are not read: a short run
only takes the time for its own pairs.

Reading the pairs takes most of the time of an iteration. So they are in float32
if the gradients are, where that saves time: their other digits are rounding
then. Such pairs are unit vectors, and their lengths are kept apart, because a
loss in other units could leave the range of float32.
"""

from typing import Any

import numpy as np

from kormos import backend
from kormos.arithmetic.scalars import both
from kormos.arithmetic.scalars import cond
from kormos.arithmetic.scalars import is_eager
from kormos.arithmetic.scalars import where
from kormos.arithmetic.vectors import matvec
from kormos.arithmetic.vectors import vecmat
from kormos.backend import ops
from kormos.types import Scalar
from kormos.types import Tensor

Store = tuple[Tensor, ...]

# It makes no difference to a length other than zero.
_TINIEST = 1e-300

# A block has at most this many slots. Our choice: smaller blocks add branches,
# each of which takes as long as reading a few slots; larger ones make short
# runs read empty slots.
_BLOCK = 26


class PairStore:
    """The formulas of the store, which is passed in and returned.

    The store has blocks of shape `(slots, 2, size)`. If it is spread over
    devices, each device has a part of every vector, and the vectors are padded
    with zeros.

    Args:
        slots: the number of slots.
        is_spread: whether to spread the store over the devices.
    """

    def __init__(self, slots: int, is_spread: bool):
        self._is_spread = is_spread
        count = -(-slots // _BLOCK)
        ends = [slots * i // count for i in range(count + 1)]
        # The first slot of each block, and the one after its last.
        self._blocks = list(zip(ends, ends[1:], strict=False))

    def empty(self, size: int, dtype: str) -> Store:
        """The store without pairs, for gradients of a dtype."""
        # Where parts of vectors are on several devices, each sum over a vector
        # is an exchange, and their lengths would need more of them.
        if self._is_spread or size < backend.narrow_from():
            dtype = "float64"
        zeros = backend.spread_zeros if self._is_spread else np.zeros
        return tuple(
            zeros((end - first, 2, size), dtype) for first, end in self._blocks
        )

    def recorded(self, store: Store, place: Scalar, pair: Tensor) -> Store:
        """The store with a pair in a slot.

        Args:
            store: the store.
            place: the number of the slot.
            pair: the rows of `kept`, `(2, size)`.
        """
        return tuple(
            _recorded(block, place - first, pair)
            for block, (first, _) in zip(store, self._blocks, strict=True)
        )

    def products(
        self, store: Store, lengths: Tensor, used: Scalar, vector: Tensor
    ) -> Tensor:
        """The products of all pairs with a vector, `(slots, 2)`.

        Args:
            store: the store.
            lengths: the lengths of its vectors, `(slots, 2)`.
            used: the number of slots that have held a pair.
            vector: the vector, `(size,)`.
        """
        dtype, found = vector.dtype, []
        vector, length = kept(vector, store[0].dtype)
        vector = _as_long_as(store[0], vector)
        for block, (first, _) in zip(store, self._blocks, strict=True):
            found.append(
                cond(
                    used > first,
                    lambda block=block: ops.reshape(
                        matvec(_rows(block), vector), (-1, 2)
                    ),
                    lambda block=block: ops.zeros(
                        block.shape[:2], dtype=vector.dtype
                    ),
                )
            )
        return ops.cast(ops.concatenate(found), dtype) * (lengths * length)

    def combined(
        self,
        store: Store,
        lengths: Tensor,
        used: Scalar,
        weights: Tensor,
        total: Tensor,
    ) -> Tensor:
        """`total` plus the pairs times their weights `(slots, 2)`.

        Args:
            store: see `products`.
            lengths: see `products`.
            used: see `products`.
            weights: the weights, `(slots, 2)`.
            total: a vector, `(size,)`.
        """
        size, is_spread = total.shape[0], _is_spread(store[0], total)
        weights, length = kept(
            ops.reshape(weights * lengths, (-1,)), store[0].dtype
        )
        if is_spread:
            total = backend.keep_spread(_as_long_as(store[0], total))
        for block, (first, end) in zip(store, self._blocks, strict=True):

            def added(
                block: Tensor = block,
                own: Tensor = weights[2 * first : 2 * end],
                total: Tensor = total,
            ) -> Tensor:
                part = ops.cast(vecmat(own, _rows(block)), total.dtype)
                return total + part * length

            total = cond(used > first, added, lambda total=total: total)
        return backend.gather(total)[:size] if is_spread else total


def kept(vectors: Tensor, dtype: Any) -> tuple[Tensor, Tensor | float]:
    """Vectors as a store of a dtype keeps them, and their lengths.

    In float64 they stay as they are, and the length is one.

    Args:
        vectors: the vectors, along the last axis.
        dtype: the dtype of the store.

    Returns:
        The vectors, and the lengths by which they are to be multiplied, with a
        last axis of one.
    """
    if dtype == vectors.dtype:
        return vectors, 1.0
    squares = ops.sum(vectors * vectors, axis=-1, keepdims=True)
    lengths = squares**0.5 + _TINIEST
    return ops.cast(vectors / lengths, dtype), lengths


def _recorded(block: Tensor, slot: Scalar, pair: Tensor) -> Tensor:
    """The block with the pair in a slot, if it has that slot.

    Args:
        block: the block, `(slots, 2, size)`.
        slot: the number of the slot within the block, which may be outside of
            it.
        pair: the rows s and y, `(2, size)`.
    """
    has_it = both(slot >= 0, slot < block.shape[0])
    if is_eager(has_it) and not has_it:
        return block
    is_spread, pair = _is_spread(block, pair), _as_long_as(block, pair)
    slot = where(has_it, slot, slot * 0)
    # A single write, because with two of them XLA would copy the block.
    block = backend.set_row(block, slot, where(has_it, pair, block[slot]))
    return backend.keep_spread(block) if is_spread else block


def _is_spread(block: Tensor, vectors: Tensor) -> bool:
    """Whether a block of the store is spread over devices, unlike vectors."""
    return bool(block.shape[-1] > vectors.shape[-1])


def _as_long_as(block: Tensor, vectors: Tensor) -> Tensor:
    """Vectors, padded with zeros to the length of those of a block."""
    if not _is_spread(block, vectors):
        return vectors
    before = [(0, 0)] * (len(vectors.shape) - 1)
    missing = block.shape[-1] - vectors.shape[-1]
    return ops.pad(vectors, [*before, (0, missing)])


def _rows(block: Tensor) -> Tensor:
    """The vectors of a block, `(2 slots, size)`."""
    return ops.reshape(block, (-1, block.shape[-1]))
