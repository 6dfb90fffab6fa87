"""Dense quasi-Newton methods: BFGS and its self-scaled variants.

BFGS: Nocedal and Wright, "Numerical Optimization", 2nd edition, algorithm 6.1.
Self-scaling: M. Al-Baali, "Numerical experience with a class of self-scaling
quasi-Newton algorithms", J. Optim. Theory Appl. 96, 1998. SSBroyden: J. F.
Urbán, P. Stefanou and J. A. Pons, J. Comput. Phys. 523, 2025, 113656,
equations 10 to 23. All are members of

    H+ = (H - Hy y'H / y'Hy + phi v v') / tau + s s' / s'y,
    v = sqrt(y'Hy) (s / s'y - Hy / y'Hy).

Differs from them in:

1. the first H is the identity times the length of the first step over |g|, so
   that the loss times a constant takes the same steps;
2. Hy is a difference of two products Hg, so that an iteration reads H twice;
3. H starts again if y'Hy is not positive;
4. self-scaled methods first try the step that gains as much as the one before.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kormos import backend
from kormos.arithmetic.scalars import cond
from kormos.arithmetic.scalars import constant
from kormos.arithmetic.scalars import is_eager
from kormos.arithmetic.scalars import larger
from kormos.arithmetic.scalars import smaller
from kormos.arithmetic.scalars import where
from kormos.arithmetic.vectors import dot
from kormos.arithmetic.vectors import matvec
from kormos.arithmetic.vectors import norm
from kormos.backend import ops
from kormos.solvers.quasi_newton.state import Pair
from kormos.types import Matrix
from kormos.types import Scalar
from kormos.types import Tensor

# SSBroyden's formulas divide by a = b h - 1. It is zero if Hy and s are
# parallel, and then the whole family makes the same update. Below this value a
# counts as zero. Our choice: about a thousand roundings of b h.
_ZERO = 1e-12

# A function of b, h and the number of parameters that returns tau and phi.
Factors = Callable[[Scalar, Scalar, int], tuple[Scalar, Scalar]]


class PendingUpdate(NamedTuple):
    """A change of H that has not been made yet.

    Attributes:
        is_due: whether there is one, bool scalar.
        kept: the factor of H, scalar.
        factors: the factors of three corrections, scalars.
        vectors: three vectors `(size,)`; each factor multiplies the outer
            product of one of them with itself.
        identity: the factor of the identity, scalar.
    """

    is_due: Scalar
    kept: Scalar
    factors: tuple[Scalar, ...]
    vectors: tuple[Tensor, ...]
    identity: Scalar


class Dense:
    """The curvature of BFGS and its family, as `protocols.Curvature`.

    The store is the inverse Hessian H, `(size, size)`.

    Args:
        factors: function `(b, h, size) -> (tau, phi)`, with b = s'Bs / s'y
            and h = y'Hy / s'y.
    """

    def __init__(self, factors: Factors):
        self.key = factors.__name__.replace("_", " ")
        self._factors = factors
        # Self-scaling makes H larger.
        self.overshoots = factors is not bfgs

    def empty(
        self, size: int, dtype: str = "float64"
    ) -> tuple[Matrix, PendingUpdate]:
        # Updates add up, and so would the rounding of float32.
        del dtype
        one, zero = np.float64(1), np.float64(0)
        vectors = tuple(np.zeros(size) for _ in range(3))
        known = PendingUpdate(np.bool_(False), one, (zero,) * 3, vectors, zero)
        return np.zeros((size, size)), known

    def clear(self, known: PendingUpdate, scale: Scalar) -> PendingUpdate:
        zero = constant(0, like=scale)
        return known._replace(
            is_due=constant(True, like=known.is_due),
            kept=zero,
            factors=(zero,) * 3,
            vectors=tuple(ops.zeros_like(v) for v in known.vectors),
            identity=scale,
        )

    def record(
        self,
        store: Tensor,
        known: PendingUpdate,
        good: Scalar,
        step: Tensor,
        change: Tensor,
    ) -> Tensor:
        del known, good, step, change
        return store

    def settle(
        self, store: Tensor, known: PendingUpdate
    ) -> tuple[Tensor, PendingUpdate]:
        is_due, kept, factors, vectors, identity = known
        if is_eager(is_due) and not is_due:
            return store, known
        zero = constant(0, like=identity)
        store = _scaled(store, kept, identity)
        for factor, vector in zip(factors, vectors, strict=True):
            # An asymmetry would grow with every scaling.
            store = backend.add_outer(store, vector, factor)
        return store, PendingUpdate(
            is_due=constant(False, like=is_due),
            kept=constant(1, like=kept),
            factors=(zero,) * 3,
            vectors=vectors,
            identity=zero,
        )

    def update(
        self, store: Tensor, known: PendingUpdate, pair: Pair, grad: Tensor
    ) -> tuple[PendingUpdate, Tensor]:
        product = matvec(store, grad)
        return cond(
            pair.good,
            lambda: self._changed(known, product, pair, grad),
            lambda: (known, -product),
        )

    def product(
        self, store: Tensor, known: PendingUpdate, vector: Tensor
    ) -> Tensor:
        _, kept, factors, vectors, identity = known
        product = matvec(store, vector)
        # Infinity or NaN would survive a multiplication by zero.
        product = where(kept > 0, product, ops.zeros_like(product)) * kept
        product = product + vector * identity
        for factor, column in zip(factors, vectors, strict=True):
            product = product + column * (factor * dot(column, vector))
        return product

    def _changed(
        self,
        known: PendingUpdate,
        product: Tensor,
        pair: Pair,
        grad: Tensor,
    ) -> tuple[PendingUpdate, Tensor]:
        """The change that a pair makes, and the direction after it.

        Args:
            known: what is known before the pair.
            product: H times `grad`, `(size,)`, without the pair.
            pair: the pair.
            grad: the gradient at the new point, `(size,)`.
        """
        step, change = pair.step, pair.change
        sy = dot(step, change)
        # The first H has no scale yet: it takes that of the first step.
        ratio = norm(step) / norm(pair.direction)
        ratio = where(pair.is_first, ratio, ratio * 0 + 1)
        product = product * ratio
        pulled = product + pair.downhill * ratio
        spread = dot(change, pulled)
        energy = pair.energy / ratio
        tau, phi = self._factors(energy / sy, spread / sy, grad.shape[0])
        v = (step / sy - pulled / spread) * abs(spread) ** 0.5
        factors = (-1 / (spread * tau), phi / tau, 1 / sy)
        vectors = (pulled, v, step)
        product = product / tau
        for factor, vector in zip(factors, vectors, strict=True):
            product = product + vector * (factor * dot(vector, grad))
        known = known._replace(
            is_due=constant(True, like=known.is_due),
            kept=ratio / tau,
            factors=factors,
            vectors=vectors,
        )
        # A direction of zeros makes H start again.
        return known, where(spread > 0, -product, product * 0)


def _scaled(store: Tensor, kept: Scalar, identity: Scalar) -> Tensor:
    """`kept` times the store, plus `identity` times the identity."""
    if is_eager(kept) and kept == 1 and identity == 0:
        return store
    # Infinity or NaN would survive a multiplication by zero.
    store = where(kept > 0, store, ops.zeros_like(store)) * kept
    return store + ops.eye(store.shape[0], dtype=store.dtype) * identity


def bfgs(b: Scalar, h: Scalar, size: int) -> tuple[Scalar, Scalar]:
    """No scaling: tau = phi = 1."""
    del h, size
    one = constant(1, like=b)
    return one, one


def self_scaled_bfgs(b: Scalar, h: Scalar, size: int) -> tuple[Scalar, Scalar]:
    """Al-Baali's switch: tau = min(1, 1 / b), equation 11."""
    del h, size
    one = constant(1, like=b)
    return smaller(one, 1 / b), one


def self_scaled_broyden(
    b: Scalar, h: Scalar, size: int
) -> tuple[Scalar, Scalar]:
    """Equations 13 to 23, with the paper's choice of theta, equation 22."""
    one = constant(1, like=b)
    a = h * b - 1
    is_bfgs = a < _ZERO
    a = where(is_bfgs, one, a)
    c = (a / (1 + a)) ** 0.5
    rho = smaller(one, h * (1 - c))
    theta = larger((rho - 1) / a, smaller(1 / rho, (1 - b) / b))
    theta = where(is_bfgs, theta * 0, theta)
    sigma = 1 + a * theta
    phi = (1 - theta) / sigma
    tau = smaller(one, 1 / b)
    root = tau * sigma ** (-1 / max(size - 1, 1))
    return where(
        theta > 0, smaller(root, tau / theta), smaller(root, sigma)
    ), phi
