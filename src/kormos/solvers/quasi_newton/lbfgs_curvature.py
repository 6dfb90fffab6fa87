"""Limited-memory BFGS.

Nocedal and Wright, "Numerical Optimization", 2nd edition, section 7.2: the
inverse Hessian in the compact form of equation 7.24 (R. H. Byrd, J. Nocedal
and R. B. Schnabel, Mathematical Programming 63, 1994, theorem 2.2),

    H = gamma I + [S, gamma Y] W [S, gamma Y]'.

Differs from it in:

1. pairs lie in a ring with one free slot, into which every trial writes; the
   inverse of the triangle R is kept and updated by a column, so that no
   triangular system is solved and pairs are never sorted;
2. S'y and Y'y are differences of S'g and Y'g at two points, so that an
   iteration reads the pairs twice;
3. the pairs lie in blocks, and blocks that are still empty are not read: a
   short run only takes the time for its own pairs;
4. gamma lies between s'y / y'y and |s| / |y|, the geometric mean of the two
   lengths of Barzilai and Borwein. The mean takes far fewer evaluations on
   networks, but many trials where it is too large. So gamma adapts to the steps
   that the line search accepts.
"""

from typing import NamedTuple

import numpy as np

from kormos import backend
from kormos.arithmetic.scalars import both
from kormos.arithmetic.scalars import cond
from kormos.arithmetic.scalars import constant
from kormos.arithmetic.scalars import is_eager
from kormos.arithmetic.scalars import larger
from kormos.arithmetic.scalars import smaller
from kormos.arithmetic.scalars import where
from kormos.arithmetic.vectors import dot
from kormos.arithmetic.vectors import matvec
from kormos.arithmetic.vectors import norm
from kormos.arithmetic.vectors import vecmat
from kormos.backend import ops
from kormos.solvers.quasi_newton.state import Pair
from kormos.types import Scalar
from kormos.types import Tensor

Store = tuple[Tensor, ...]

# A block has at most this many slots. Our choice: smaller blocks add branches,
# each of which takes as long as reading a few slots; larger ones make short
# runs read empty slots.
_BLOCK = 26

# The adaptive gamma is multiplied by this after a step of the whole direction,
# and by the square of the step's length after a shorter one. Our choice: a
# larger factor takes fewer iterations, and more evaluations in each.
_GROWTH = 4 / 3
# A step of at least one minus this counts as a whole step.
_ROUNDING = 1e-6


class MiddleMatrix(NamedTuple):
    """The middle matrix W, in parts.

    Attributes:
        inverse: inverse of the triangle of `s_i'y_j` for i not newer than j,
            `(slots, slots)`, zero where there is no pair.
        squares: `y_i'y_j`, `(slots, slots)`.
        curvatures: `s_i'y_i`, `(slots,)`.
        scale: gamma, scalar.
        place: the free slot, where the next pair goes, int32.
        used: the number of slots that have held a pair, int32.
        products: the products of all `s` and `y` with the gradient, `(slots,
            2)`.
    """

    inverse: Tensor
    squares: Tensor
    curvatures: Tensor
    scale: Scalar
    place: Scalar
    used: Scalar
    products: Tensor


class LimitedMemory:
    """The curvature of L-BFGS, as `protocols.Curvature`.

    The store has a slot for each pair `s, y` and a free one, in blocks, each of
    shape `(slots, 2, size)`. If it is spread over devices, each device has a
    part of every vector, and the vectors are padded with zeros.

    Args:
        memory: the number of pairs.
        scaling: `"usual"` for gamma = s'y / y'y, `"geometric"` for |s| / |y|,
            `"adaptive"` for a gamma between the two.
        is_spread: whether to spread the store over the devices.
    """

    overshoots = False

    def __init__(self, memory: int, scaling: str, is_spread: bool = False):
        self.key = f"l-bfgs, memory={memory}, scaling={scaling}"
        self._is_spread = is_spread
        self._slots = memory + 1
        count = -(-self._slots // _BLOCK)
        ends = [self._slots * i // count for i in range(count + 1)]
        # The first slot of each block, and the one after its last.
        self._blocks = list(zip(ends, ends[1:], strict=False))
        self._scaling = scaling

    def empty(self, size: int) -> tuple[Store, MiddleMatrix]:
        square = np.zeros((self._slots, self._slots))
        known = MiddleMatrix(
            inverse=square,
            squares=square.copy(),
            curvatures=np.zeros(self._slots),
            scale=np.float64(1),
            place=np.int32(0),
            used=np.int32(0),
            products=np.zeros((self._slots, 2)),
        )
        zeros = backend.spread_zeros if self._is_spread else np.zeros
        store = tuple(
            zeros((end - first, 2, size)) for first, end in self._blocks
        )
        return store, known

    def clear(self, known: MiddleMatrix, scale: Scalar) -> MiddleMatrix:
        # A pair without its row of the inverse has no effect.
        inverse = ops.zeros_like(known.inverse)
        return known._replace(inverse=inverse, scale=scale)

    def record(
        self,
        store: Store,
        known: MiddleMatrix,
        good: Scalar,
        step: Tensor,
        change: Tensor,
    ) -> Store:
        pair = ops.stack([step, change])
        # A pair that is not good may not even be finite.
        pair = where(good, pair, ops.zeros_like(pair))
        return tuple(
            self._recorded(block, known.place - first, pair)
            for block, (first, _) in zip(store, self._blocks, strict=True)
        )

    def _recorded(self, block: Tensor, slot: Scalar, pair: Tensor) -> Tensor:
        """The block with the pair in a slot, if it has that slot.

        Args:
            block: the block, `(slots, 2, size)`.
            slot: the number of the slot within the block, which may be outside
                of it.
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

    def settle(
        self, store: Store, known: MiddleMatrix
    ) -> tuple[Store, MiddleMatrix]:
        return store, known

    def update(
        self, store: Store, known: MiddleMatrix, pair: Pair, grad: Tensor
    ) -> tuple[MiddleMatrix, Tensor]:
        used = larger(known.used, known.place + 1)
        known = known._replace(used=used)
        products = self._products(store, used, grad)
        differences = products - known.products
        known = cond(
            pair.good,
            lambda: self._extended(known, pair, differences),
            lambda: known,
        )
        known = known._replace(products=products)
        return known, self._direction(store, known, grad)

    def product(
        self, store: Store, known: MiddleMatrix, vector: Tensor
    ) -> Tensor:
        products = self._products(store, known.used, vector)
        known = known._replace(products=products)
        return -self._direction(store, known, vector)

    def _products(self, store: Store, used: Scalar, vector: Tensor) -> Tensor:
        """The products of all pairs with a vector, `(slots, 2)`.

        Args:
            store: the store.
            used: the number of slots that have held a pair.
            vector: the vector, `(size,)`.
        """
        vector, found = _as_long_as(store[0], vector), []
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
        return ops.concatenate(found)

    def _combined(
        self, store: Store, used: Scalar, weights: Tensor, total: Tensor
    ) -> Tensor:
        """`total` plus the pairs times their weights `(slots, 2)`.

        Args:
            store: the store.
            used: the number of slots that have held a pair.
            weights: the weights, `(slots, 2)`.
            total: a vector, `(size,)`.
        """
        size, is_spread = total.shape[0], _is_spread(store[0], total)
        if is_spread:
            total = backend.keep_spread(_as_long_as(store[0], total))
        for block, (first, end) in zip(store, self._blocks, strict=True):

            def added(
                block: Tensor = block,
                own: Tensor = weights[first:end],
                total: Tensor = total,
            ) -> Tensor:
                return total + vecmat(ops.reshape(own, (-1,)), _rows(block))

            total = cond(used > first, added, lambda total=total: total)
        return backend.gather(total)[:size] if is_spread else total

    def _extended(
        self, known: MiddleMatrix, pair: Pair, differences: Tensor
    ) -> MiddleMatrix:
        """The middle matrix with a pair that was recorded in the store.

        Args:
            known: the middle matrix without it.
            pair: the pair.
            differences: products of the store with the pair's change.
        """
        sy, yy = dot(pair.step, pair.change), dot(pair.change, pair.change)
        with_s, with_y = differences[:, 0], differences[:, 1]
        none = ops.zeros_like(with_s)
        place, free = known.place, known.place + 1
        free = where(free < self._slots, free, constant(0, like=free))
        # The rows and columns of a free slot are zero; so were those of this
        # slot.
        inverse = backend.set_row(known.inverse, free, none)
        inverse = backend.set_column(inverse, free, none)
        filled = matvec(inverse, with_s) / -sy
        filled = backend.set_row(filled, place, 1 / sy)
        with_y = backend.set_row(with_y, place, yy)
        squares = backend.set_row(known.squares, place, with_y)
        return known._replace(
            inverse=backend.set_column(inverse, place, filled),
            squares=backend.set_column(squares, place, with_y),
            curvatures=backend.set_row(known.curvatures, place, sy),
            scale=self._scale(known.scale, pair, sy, yy),
            place=free,
        )

    def _scale(self, old: Scalar, pair: Pair, sy: Scalar, yy: Scalar) -> Scalar:
        """gamma after a pair.

        Args:
            old: gamma before the pair.
            pair: the pair.
            sy: s'y.
            yy: y'y.
        """
        usual, geometric = sy / yy, norm(pair.step) / yy**0.5
        if self._scaling == "usual":
            return usual
        if self._scaling == "geometric":
            return geometric
        accepted = norm(pair.step) / norm(pair.direction)
        is_shorter = accepted < 1 - _ROUNDING
        factor = where(is_shorter, accepted**2, accepted * 0 + _GROWTH)
        # The first direction has no scale yet: it takes that of its step.
        followed = old * where(pair.is_first, accepted, factor)
        return smaller(geometric, larger(usual, followed))

    def _direction(
        self, store: Store, known: MiddleMatrix, grad: Tensor
    ) -> Tensor:
        """-H times the gradient, of which `known` has the products."""
        inverse, squares, curvatures, gamma, _, used, products = known
        p, q = products[:, 0], products[:, 1]
        u = matvec(inverse, p)
        inner = curvatures * u + (matvec(squares, u) - q) * gamma
        weights = ops.stack([vecmat(inner, inverse), -u * gamma], axis=1)
        return -self._combined(store, used, weights, grad * gamma)


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
