"""Limited-memory BFGS.

Nocedal and Wright, "Numerical Optimization", 2nd edition, section 7.2: the
inverse Hessian in the compact form of equation 7.24 (R. H. Byrd, J. Nocedal
and R. B. Schnabel, Mathematical Programming 63, 1994, theorem 2.2),

    H = gamma I + [S, gamma Y] W [S, gamma Y]'.

Differs from it in:

1. pairs lie in a ring with a free slot, which takes every trial in; the
   inverse of the triangle R is kept and updated by a column, so that no
   triangular system is solved and no order is restored;
2. S'y and Y'y are differences of S'g and Y'g, so that the pairs are read
   twice an iteration;
3. the pairs lie in blocks, and those that are empty yet are not read: a short
   run pays for its own pairs alone;
4. gamma lies between s'y / y'y and the geometric mean |s| / |y| of the two
   lengths of Barzilai and Borwein, which takes far fewer evaluations on
   networks but many trials where it is too long: it follows the steps that the
   line search accepts.
"""

from typing import Any
from typing import NamedTuple

import numpy as np
from keras import ops

from kormos import backend
from kormos.arithmetic.scalars import both
from kormos.arithmetic.scalars import cond
from kormos.arithmetic.scalars import constant
from kormos.arithmetic.scalars import larger
from kormos.arithmetic.scalars import smaller
from kormos.arithmetic.scalars import where
from kormos.arithmetic.vectors import dot
from kormos.arithmetic.vectors import matvec
from kormos.arithmetic.vectors import norm
from kormos.arithmetic.vectors import vecmat

# Slots of a block, at most: a branch costs as much as reading a few of them.
_BLOCK = 26


# By this the adaptive gamma grows when the line search takes a whole step; by
# the square of the step it shrinks. Larger ones take fewer iterations and more
# evaluations each.
_GROWTH = 4 / 3


class Curvature(NamedTuple):
    """The middle matrix W, in parts.

    Attributes:
        inverse: inverse of the triangle of `s_i'y_j` for i not newer than j,
            `(slots, slots)`, zero where there is no pair.
        squares: `y_i'y_j`, `(slots, slots)`.
        curvatures: `s_i'y_i`, `(slots,)`.
        scale: gamma, scalar.
        place: the free slot, where the next pair goes, int32.
        used: the slots that have held a pair, int32.
        products: of all `s` and `y` with the gradient, `(slots, 2)`.
    """

    inverse: Any
    squares: Any
    curvatures: Any
    scale: Any
    place: Any
    used: Any
    products: Any


class LimitedMemory:
    """The curvature of L-BFGS, as `state.init` describes it.

    The store has a slot for each pair `s, y` and a free one, in blocks, each
    of shape `(slots, 2, size)`.

    Args:
        memory: the number of pairs.
        scaling: `"usual"` for gamma = s'y / y'y, `"geometric"` for |s| / |y|,
            `"adaptive"` for what lies between.
    """

    overshoots = False

    def __init__(self, memory, scaling):
        self.key = f"l-bfgs, memory={memory}, scaling={scaling}"
        self._slots = memory + 1
        count = -(-self._slots // _BLOCK)
        ends = [self._slots * i // count for i in range(count + 1)]
        # The first slot of each block, and the one after its last.
        self._blocks = list(zip(ends, ends[1:], strict=False))
        self._scaling = scaling

    def empty(self, size):
        square = np.zeros((self._slots, self._slots))
        curvature = Curvature(
            inverse=square,
            squares=square.copy(),
            curvatures=np.zeros(self._slots),
            scale=np.float64(1),
            place=np.int32(0),
            used=np.int32(0),
            products=np.zeros((self._slots, 2)),
        )
        store = tuple(
            np.zeros((end - first, 2, size)) for first, end in self._blocks
        )
        return store, curvature

    def clear(self, curvature, scale):
        # Without its row of the inverse a pair counts for nothing.
        inverse = ops.zeros_like(curvature.inverse)
        return curvature._replace(inverse=inverse, scale=scale)

    def record(self, store, curvature, good, step, change):
        pair = ops.stack([step, change])
        # What is not good may not even be finite.
        pair = where(good, pair, ops.zeros_like(pair))
        return tuple(
            self._recorded(block, curvature.place - first, pair)
            for block, (first, _) in zip(store, self._blocks, strict=True)
        )

    def _recorded(self, block, slot, pair):
        """The block with the pair, if it has the slot."""
        has_it = both(slot >= 0, slot < block.shape[0])
        slot = where(has_it, slot, slot * 0)
        # One write: of two, XLA copies the block.
        return backend.set_row(block, slot, where(has_it, pair, block[slot]))

    def settle(self, store, curvature):
        return store, curvature

    def update(self, store, curvature, pair, grad):
        used = larger(curvature.used, curvature.place + 1)
        curvature = curvature._replace(used=used)
        products = self._products(store, used, grad)
        differences = products - curvature.products
        curvature = cond(
            pair.good,
            lambda: self._extended(curvature, pair, differences),
            lambda: curvature,
        )
        curvature = curvature._replace(products=products)
        return curvature, self._direction(store, curvature, grad)

    def _products(self, store, used, vector):
        """Of all pairs with a vector, `(slots, 2)`."""
        found = []
        for block, (first, _) in zip(store, self._blocks, strict=True):
            none = ops.zeros(block.shape[:2], dtype=vector.dtype)
            found.append(
                cond(
                    used > first,
                    lambda block=block: ops.reshape(
                        matvec(_rows(block), vector), (-1, 2)
                    ),
                    lambda none=none: none,
                )
            )
        return ops.concatenate(found)

    def _combined(self, store, used, weights, total):
        """`total` and the sum of all pairs by their weights, `(slots, 2)`."""
        for block, (first, end) in zip(store, self._blocks, strict=True):

            def added(block=block, own=weights[first:end], total=total):
                return total + vecmat(ops.reshape(own, (-1,)), _rows(block))

            total = cond(used > first, added, lambda total=total: total)
        return total

    def _extended(self, curvature, pair, differences):
        """The curvature with the pair that is in its place in the store.

        Args:
            curvature: the `Curvature` before it.
            pair: the `Pair`.
            differences: products of the store with the pair's change.
        """
        sy, yy = dot(pair.step, pair.change), dot(pair.change, pair.change)
        with_s, with_y = differences[:, 0], differences[:, 1]
        zero = with_s * 0
        place, free = curvature.place, curvature.place + 1
        free = where(free < self._slots, free, constant(0, like=free))
        slots = ops.arange(self._slots, dtype="int32")
        is_new, is_free = slots == place, slots == free
        column, row = ops.expand_dims(is_new, 0), ops.expand_dims(is_new, 1)
        left = ops.expand_dims(is_free, 0) | ops.expand_dims(is_free, 1)
        kept = curvature.inverse
        kept = ops.where(left | row | column, kept * 0, kept)
        filled = matvec(kept, ops.where(is_new, zero, with_s)) / -sy
        filled = ops.where(is_new, zero + 1 / sy, filled)
        with_y = ops.where(is_new, zero + yy, with_y)
        squares = ops.where(row, ops.expand_dims(with_y, 0), curvature.squares)
        return curvature._replace(
            inverse=ops.where(column, ops.expand_dims(filled, 1), kept),
            squares=ops.where(column, ops.expand_dims(with_y, 1), squares),
            curvatures=ops.where(is_new, zero + sy, curvature.curvatures),
            scale=self._scale(curvature.scale, pair, sy, yy),
            place=free,
        )

    def _scale(self, old, pair, sy, yy):
        usual, geometric = sy / yy, norm(pair.step) / yy**0.5
        if self._scaling == "usual":
            return usual
        if self._scaling == "geometric":
            return geometric
        accepted = norm(pair.step) / norm(pair.direction)
        factor = where(accepted < 1 - 1e-6, accepted**2, accepted * 0 + _GROWTH)
        # The first direction has no scale yet: the step that was taken has.
        followed = old * where(pair.is_first, accepted, factor)
        return smaller(geometric, larger(usual, followed))

    def _direction(self, store, curvature, grad):
        inverse, squares, curvatures, gamma, _, used, products = curvature
        p, q = products[:, 0], products[:, 1]
        u = matvec(inverse, p)
        inner = curvatures * u + (matvec(squares, u) - q) * gamma
        weights = ops.stack([vecmat(inner, inverse), -u * gamma], axis=1)
        return -self._combined(store, used, weights, grad * gamma)


def _rows(block):
    return ops.reshape(block, (-1, block.shape[-1]))
