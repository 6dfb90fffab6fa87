"""Conjugate gradients within a trust radius.

Nocedal and Wright, "Numerical Optimization", 2nd edition, algorithm 7.2 (T.
Steihaug, SIAM J. Numer. Anal. 20(3), 1983), with a preconditioner H. Differs
from it in:

1. lengths are measured in the norm of the inverse of H, in which the iterates
   grow. They follow from numbers that the iteration computes anyway: A. R.
   Conn, N. I. M. Gould and P. L. Toint, "Trust-Region Methods", 2000, section
   7.5.1;
2. it ends where one more product would add little to the predicted decrease (S.
   G. Nash and A. Sofer, Oper. Res. Lett. 9(4), 1990). The size of the remaining
   gradient says little about that where parameters are badly scaled.
"""

from collections.abc import Callable
from typing import NamedTuple

from kormos.arithmetic.scalars import both
from kormos.arithmetic.scalars import constant
from kormos.arithmetic.scalars import either
from kormos.arithmetic.scalars import larger
from kormos.arithmetic.scalars import where
from kormos.arithmetic.scalars import while_loop
from kormos.arithmetic.vectors import dot
from kormos.types import Scalar
from kormos.types import Tensor

# The method ends where the latest product's part of the predicted decrease,
# times the number of products, is below this. Our choice: Nash and Sofer have
# 0.5. A smaller number leads to longer steps, for which the predictions of
# networks still hold; a far smaller one only adds products.
_LEAST_PART = 1e-3


class Path(NamedTuple):
    """The iterates of the method.

    Attributes:
        step: the step so far, `(size,)`.
        residual: the gradient of the model there, `(size,)`.
        search: the next direction, `(size,)`.
        square: the square of the length of the step, scalar.
        cross: the inner product of step and direction in that norm, scalar.
        search_square: the square of the length of the direction, scalar.
        slope: minus the slope along the direction, scalar.
        promise: the decrease that the model predicts, scalar.
        products: the number of products that were made, a float scalar.
        leaves: whether the step is as long as the radius, bool scalar.
        ends: whether it is the last iterate, bool scalar.
    """

    step: Tensor
    residual: Tensor
    search: Tensor
    square: Scalar
    cross: Scalar
    search_square: Scalar
    slope: Scalar
    promise: Scalar
    products: Scalar
    leaves: Scalar
    ends: Scalar


def step_within(
    radius: Scalar,
    grad: Tensor,
    product: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    is_idle: Scalar,
    most_products: int,
) -> tuple[Path, Scalar]:
    """A step that lowers the model g'p + p'Bp / 2 within a radius.

    Along a direction of negative or no curvature, the step goes to the radius.

    Args:
        radius: the longest step, scalar.
        grad: g, `(size,)`.
        product: B.
        precondition: H, positive definite.
        is_idle: whether no step is wanted.
        most_products: the most products with B.

    Returns:
        The last iterate, and g'Hg / 2: what the preconditioner predicts.
    """
    ahead = precondition(grad)
    slope = dot(grad, ahead)
    zero = slope * 0

    def advance(path: Path) -> Path:
        image = product(path.search)
        bend = dot(path.search, image)
        # Where a product is NaN, the direction itself may still be useful.
        bend = where(bend == bend, bend, zero)
        is_convex = bend > 0
        one = constant(1, like=bend)
        length = path.slope / where(is_convex, bend, one)
        longer = path.square + length * (
            2 * path.cross + length * path.search_square
        )
        leaves = either(~is_convex, ~(longer < radius * radius))
        length = where(leaves, _to_radius(path, radius), length)
        gain = length * (path.slope - length * bend / 2)
        promise = path.promise + gain
        residual = path.residual + image * length
        ahead = precondition(residual)
        slope = dot(residual, ahead)
        ratio = slope / path.slope
        products = path.products + 1
        ends = either(
            leaves,
            products * gain <= _LEAST_PART * promise,
            products >= most_products,
            ~(slope > 0),
        )
        cross = path.cross + length * path.search_square
        return Path(
            step=path.step + path.search * length,
            residual=residual,
            search=path.search * ratio - ahead,
            square=where(leaves, radius * radius, longer),
            cross=ratio * cross,
            search_square=slope + ratio * ratio * path.search_square,
            slope=slope,
            promise=promise,
            products=products,
            leaves=leaves,
            ends=ends,
        )

    start = Path(
        step=grad * 0,
        residual=grad,
        search=-ahead,
        square=zero,
        cross=zero,
        search_square=slope,
        slope=slope,
        promise=zero,
        products=zero,
        leaves=both(is_idle, ~is_idle),
        ends=either(is_idle, ~(slope > 0)),
    )
    return while_loop(lambda path: ~path.ends, advance, start), slope / 2


def _to_radius(path: Path, radius: Scalar) -> Scalar:
    """The factor of the search direction at which a step meets the radius."""
    left = larger(radius * radius - path.square, path.square * 0)
    root = (path.cross**2 + path.search_square * left) ** 0.5
    return left / (path.cross + root)
