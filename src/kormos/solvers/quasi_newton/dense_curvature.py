"""Dense quasi-Newton methods: BFGS and its self-scaled relatives.

BFGS: Nocedal and Wright, "Numerical Optimization", 2nd edition, algorithm 6.1.
Self-scaling: M. Al-Baali, "Numerical experience with a class of self-scaling
quasi-Newton algorithms", J. Optim. Theory Appl. 96, 1998. SSBroyden: J. F.
Urban, P. Stefanou and J. A. Pons, J. Comput. Phys. 523, 2025, 113656,
equations 10 to 23. All are members of

    H+ = (H - Hy y'H / y'Hy + phi v v') / tau + s s' / s'y,
    v = sqrt(y'Hy) (s / s'y - Hy / y'Hy).

Differs from them in:

1. the first H is the identity times the length of the first step over |g|, so
   that the loss times a constant takes the same steps;
2. Hy is a difference of Hg, so that H is read twice an iteration;
3. a memory that lost y'Hy > 0 starts again;
4. self-scaled methods first try the step that gains as much as the one before.
"""

from typing import Any
from typing import NamedTuple

import numpy as np
from keras import ops

from kormos.arithmetic.scalars import cond
from kormos.arithmetic.scalars import constant
from kormos.arithmetic.scalars import is_eager
from kormos.arithmetic.scalars import larger
from kormos.arithmetic.scalars import smaller
from kormos.arithmetic.scalars import where
from kormos.arithmetic.vectors import dot
from kormos.arithmetic.vectors import matvec
from kormos.arithmetic.vectors import norm
from kormos.arithmetic.vectors import outer


class Curvature(NamedTuple):
    """A change of H that waits to be made.

    Attributes:
        is_due: whether there is one.
        kept: by what H is multiplied, scalar.
        factors: of the three corrections, each a scalar.
        vectors: three vectors `(size,)`, whose outer products they multiply.
        identity: by what the identity is multiplied, scalar.
    """

    is_due: Any
    kept: Any
    factors: tuple
    vectors: tuple
    identity: Any


class Dense:
    """The curvature of BFGS and its family; see `state.init`.

    The store is the inverse Hessian H, `(size, size)`.

    Args:
        factors: function `(b, h, size) -> (tau, phi)`, with b = s'Bs / s'y
            and h = y'Hy / s'y.
    """

    def __init__(self, factors):
        self.key = factors.__name__.replace("_", " ")
        self._factors = factors
        # Scaling makes H larger.
        self.overshoots = factors is not bfgs

    def empty(self, size):
        one, zero = np.float64(1), np.float64(0)
        vectors = tuple(np.zeros(size) for _ in range(3))
        curvature = Curvature(np.bool_(False), one, (zero,) * 3, vectors, zero)
        return np.zeros((size, size)), curvature

    def clear(self, curvature, scale):
        zero = constant(0, like=scale)
        return curvature._replace(
            is_due=constant(True, like=curvature.is_due),
            kept=zero,
            factors=(zero,) * 3,
            vectors=tuple(ops.zeros_like(v) for v in curvature.vectors),
            identity=scale,
        )

    def record(self, store, curvature, good, step, change):
        del curvature, good, step, change
        return store

    def settle(self, store, curvature):
        is_due, kept, factors, vectors, identity = curvature
        if is_eager(is_due) and not is_due:
            return store, curvature
        zero = constant(0, like=identity)
        eye = ops.eye(store.shape[0], dtype=store.dtype)
        # Zero times what is not finite would stay so.
        store = ops.where(kept > 0, store, ops.zeros_like(store)) * kept
        store = store + eye * identity
        for factor, vector in zip(factors, vectors, strict=True):
            # In this order the sum stays symmetric to the bit; what is not
            # grows with every scaling.
            store = store + outer(vector, vector) * factor
        return store, Curvature(
            is_due=constant(False, like=is_due),
            kept=constant(1, like=kept),
            factors=(zero,) * 3,
            vectors=vectors,
            identity=zero,
        )

    def update(self, store, curvature, pair, grad):
        product = matvec(store, grad)
        return cond(
            pair.good,
            lambda: self._changed(curvature, product, pair, grad),
            lambda: (curvature, -product),
        )

    def _changed(self, curvature, product, pair, grad):
        """The change that a pair makes, and the direction after it."""
        step, change = pair.step, pair.change
        sy = dot(step, change)
        # The first H has no scale yet: it takes that of the first pair.
        ratio = norm(step) / norm(pair.direction)
        ratio = where(pair.is_first, ratio, ratio * 0 + 1)
        product = product * ratio
        pulled = product + pair.direction * ratio
        spread = dot(change, pulled)
        energy = pair.energy / ratio
        tau, phi = self._factors(energy / sy, spread / sy, grad.shape[0])
        v = (step / sy - pulled / spread) * abs(spread) ** 0.5
        factors = (-1 / (spread * tau), phi / tau, 1 / sy)
        vectors = (pulled, v, step)
        product = product / tau
        for factor, vector in zip(factors, vectors, strict=True):
            product = product + vector * (factor * dot(vector, grad))
        curvature = curvature._replace(
            is_due=constant(True, like=curvature.is_due),
            kept=ratio / tau,
            factors=factors,
            vectors=vectors,
        )
        # No direction at all makes H start again.
        return curvature, where(spread > 0, -product, product * 0)


def bfgs(b, h, size):
    """No scaling: tau = phi = 1."""
    del h, size
    one = constant(1, like=b)
    return one, one


def self_scaled_bfgs(b, h, size):
    """Al-Baali's switch: tau = min(1, 1 / b), equation 11."""
    del h, size
    one = constant(1, like=b)
    return smaller(one, 1 / b), one


def self_scaled_broyden(b, h, size):
    """Equations 13 to 23, with the paper's choice of theta, equation 22."""
    one = constant(1, like=b)
    a = h * b - 1
    is_bfgs = a < 1e-12
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
