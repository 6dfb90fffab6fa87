"""The region of a quasi-Newton run: everywhere, or within bounds.

Within bounds, a run follows the projection of a line into the box: D. P.
Bertsekas, "Projected Newton methods for optimization problems with simple
constraints", SIAM J. Control Optim. 20(2), 1982. A parameter at a bound against
which the gradient presses is held there. The direction of the others is the
quasi-Newton direction on this face of the box: that of H with the held
parameters eliminated, as in the subspace minimization of R. H. Byrd, P. Lu, J.
Nocedal and C. Zhu, SIAM J. Sci. Comput. 16(5), 1995, section 5.

Differs from them in:

1. which other parameters will reach their bounds is found from the direction
   itself: if the whole direction takes a parameter downhill to its bound, it is
   sent there and held, too;
2. H is only ever multiplied with vectors. Conjugate gradients eliminate the
   held parameters, so that any curvature can be used, and each of their
   iterates is a descent direction.
"""

from collections.abc import Callable
from typing import NamedTuple
from typing import Protocol

from kormos import backend
from kormos.arithmetic.scalars import both
from kormos.arithmetic.scalars import cond
from kormos.arithmetic.scalars import constant
from kormos.arithmetic.scalars import where
from kormos.arithmetic.scalars import while_loop
from kormos.arithmetic.vectors import dot
from kormos.backend import ops
from kormos.solvers.quasi_newton.arrival import Arrival
from kormos.solvers.quasi_newton.arrival import Course
from kormos.solvers.quasi_newton.state import Pair
from kormos.solvers.quasi_newton.state import State
from kormos.types import Scalar
from kormos.types import Tensor

# A direction is computed at most this often, because each time more parameters
# may reach their bounds. Our choice: most directions need two, and the
# remaining parameters are projected.
_MOST_PASSES = 5
# Conjugate gradients stop when this part of the held parameters' motion is
# left, or after this many steps. Our choice: each step takes a product with H,
# and a more exact direction saves no evaluations.
_LEFT, _MOST_STEPS = 1e-2, 20
# The step of a parameter that is sent to a bound is multiplied by this, so that
# rounding does not keep it from the bound.
_BEYOND = 1 + 2.0**-40

# H times a vector.
Product = Callable[[Tensor], Tensor]


class Region(Protocol):
    """The points at which a run may evaluate, and the paths among them."""

    is_bounded: bool

    def point(self, theta: Tensor) -> Tensor:
        """The nearest point of the region, `(size,)`."""

    def ahead(self, theta: Tensor, direction: Tensor) -> Tensor:
        """A direction, zero for parameters that bounds stop, `(size,)`."""

    def pull(self, theta: Tensor, grad: Tensor) -> Tensor:
        """The gradient, zero for parameters that it presses against bounds."""

    def free(self, theta: Tensor, grad: Tensor, vector: Tensor) -> Tensor:
        """A vector, zero for parameters that are pressed against bounds."""

    def active(self, theta: Tensor, grad: Tensor) -> Scalar:
        """How many parameters are held at bounds, scalar."""

    def pair(self, pair: Pair, state: State, theta: Tensor) -> Pair:
        """A pair, corrected if bounds have bent the step.

        Args:
            pair: the pair as it is without bounds.
            state: the state before the step.
            theta: the point after it.
        """

    def downhill(self, pair: Pair, grad: Tensor, product: Product) -> Pair:
        """The pair with -H times the gradient before the step.

        Args:
            pair: the pair.
            grad: the gradient before the step, in units.
            product: H before the step.
        """

    def steer(
        self,
        theta: Tensor,
        slopes: Tensor,
        units: Tensor,
        direction: Tensor,
        product: Product,
    ) -> Tensor:
        """The direction within the region, in units, `(size,)`.

        Args:
            theta: the point.
            slopes: the gradient, in units.
            units: the units of the parameters.
            direction: -H times the gradient.
            product: H.
        """

    def hasten(
        self, course: Course, state: State, arrival: Arrival, length: Scalar
    ) -> Course:
        """A course whose short first trial reaches bounds, too.

        Args:
            course: the course, whose whole direction reaches them.
            state: the state before.
            arrival: where the course begins.
            length: the first trial, as a part of the whole direction.
        """


class Everywhere:
    """The region without bounds, as `Region`: nothing is computed for it."""

    is_bounded = False

    def point(self, theta: Tensor) -> Tensor:
        return theta

    def ahead(self, theta: Tensor, direction: Tensor) -> Tensor:
        del theta
        return direction

    def pull(self, theta: Tensor, grad: Tensor) -> Tensor:
        del theta
        return grad

    def free(self, theta: Tensor, grad: Tensor, vector: Tensor) -> Tensor:
        del theta, grad
        return vector

    def active(self, theta: Tensor, grad: Tensor) -> Scalar:
        raise NotImplementedError

    def pair(self, pair: Pair, state: State, theta: Tensor) -> Pair:
        del state, theta
        return pair

    def downhill(self, pair: Pair, grad: Tensor, product: Product) -> Pair:
        del grad, product
        return pair

    def steer(
        self,
        theta: Tensor,
        slopes: Tensor,
        units: Tensor,
        direction: Tensor,
        product: Product,
    ) -> Tensor:
        del theta, slopes, units, product
        return direction

    def hasten(
        self, course: Course, state: State, arrival: Arrival, length: Scalar
    ) -> Course:
        del state, arrival, length
        return course


class Box:
    """The points within bounds, as `Region`.

    Args:
        lower, upper: the bounds, `(size,)`, which may be infinite.
    """

    is_bounded = True

    def __init__(self, lower: Tensor, upper: Tensor):
        self._lower, self._upper = lower, upper

    def point(self, theta: Tensor) -> Tensor:
        theta = ops.where(theta < self._lower, self._lower, theta)
        return ops.where(theta > self._upper, self._upper, theta)

    def ahead(self, theta: Tensor, direction: Tensor) -> Tensor:
        stopped = (theta <= self._lower) & (direction < 0)
        stopped = stopped | ((theta >= self._upper) & (direction > 0))
        return ops.where(stopped, ops.zeros_like(direction), direction)

    def pull(self, theta: Tensor, grad: Tensor) -> Tensor:
        return self.free(theta, grad, grad)

    def free(self, theta: Tensor, grad: Tensor, vector: Tensor) -> Tensor:
        held = self._held(theta, grad)
        return ops.where(held, ops.zeros_like(vector), vector)

    def active(self, theta: Tensor, grad: Tensor) -> Scalar:
        return _count(self._held(theta, grad), grad)

    def pair(self, pair: Pair, state: State, theta: Tensor) -> Pair:
        # A step that bounds have bent is not a multiple of a product with H, so
        # s'Bs is unknown. With s'y in its place, H is not scaled.
        reached = self._at_bound(theta) & ~self._at_bound(state.theta)
        is_straight = _count(reached, theta) == 0
        usual = dot(pair.step, pair.change)
        return pair._replace(
            energy=where(is_straight, pair.energy, usual),
            direction=pair.step / state.search.step,
        )

    def downhill(self, pair: Pair, grad: Tensor, product: Product) -> Pair:
        return pair._replace(downhill=-product(grad))

    def steer(
        self,
        theta: Tensor,
        slopes: Tensor,
        units: Tensor,
        direction: Tensor,
        product: Product,
    ) -> Tensor:
        down, up = (self._lower - theta) / units, (self._upper - theta) / units
        held = self._held(theta, slopes)
        one = constant(1, like=dot(slopes, slopes))

        def on_face(course: _Course) -> _Course:
            fixed = course.fixed > 0
            found = cond(
                course.fresh > 0,
                lambda: _eliminated(slopes, fixed, product),
                lambda: direction,
            )
            hits = (found < down) & (slopes > 0)
            hits = (hits | ((found > up) & (slopes < 0))) & ~fixed
            return _Course(
                direction=found,
                fixed=ops.where(hits, ops.ones_like(found), course.fixed),
                fresh=_count(hits, found),
                passes=course.passes + 1,
            )

        first = _Course(
            direction=direction,
            fixed=ops.where(
                held, ops.ones_like(slopes), ops.zeros_like(slopes)
            ),
            fresh=_count(held, slopes),
            passes=one * 0,
        )
        course = while_loop(
            lambda course: (
                (course.passes < 1)
                | both(course.fresh > 0, course.passes < _MOST_PASSES)
            ),
            on_face,
            first,
        )
        sent = (course.fixed > 0) & ~held
        target = ops.where(slopes > 0, down, up) * _BEYOND
        return ops.where(
            sent,
            target,
            ops.where(held, ops.zeros_like(slopes), course.direction),
        )

    def hasten(
        self, course: Course, state: State, arrival: Arrival, length: Scalar
    ) -> Course:
        theta, units = arrival.theta, state.units
        down, up = (self._lower - theta) / units, (self._upper - theta) / units
        slopes, direction = arrival.grad * units, course.direction
        sent = (direction <= down) & (slopes > 0)
        sent = sent | ((direction >= up) & (slopes < 0))
        direction = ops.where(sent, direction / length, direction)
        return course._replace(
            direction=direction, slope=dot(slopes, direction)
        )

    def _at_bound(self, theta: Tensor) -> Tensor:
        return (theta <= self._lower) | (theta >= self._upper)

    def _held(self, theta: Tensor, grad: Tensor) -> Tensor:
        """A mask of the parameters that the gradient presses against bounds."""
        low = (theta <= self._lower) & (grad >= 0)
        return low | ((theta >= self._upper) & (grad <= 0))


class _Course(NamedTuple):
    """A direction during its computation.

    Attributes:
        direction: the direction, `(size,)`.
        fixed: one for parameters whose motion is fixed, else zero, `(size,)`.
        fresh: the number of these that `direction` does not include yet,
            scalar.
        passes: the number of times that it was computed, scalar.
    """

    direction: Tensor
    fixed: Tensor
    fresh: Scalar
    passes: Scalar


class _Elimination(NamedTuple):
    """Conjugate gradients that remove the motion of fixed parameters.

    Attributes:
        direction: the direction so far, `(size,)`; its entries of fixed
            parameters are the residual.
        search: the search direction, zero for other parameters, `(size,)`.
        square: the squared 2-norm of the residual, scalar.
        steps: the number of steps that were made, scalar.
    """

    direction: Tensor
    search: Tensor
    square: Scalar
    steps: Scalar


def _eliminated(slopes: Tensor, fixed: Tensor, product: Product) -> Tensor:
    """-H' times the gradient, with the H' of the parameters that are not fixed.

    With H = B^-1, H' is the inverse of the block of B for these parameters. The
    product is -H times a gradient with other entries for the fixed parameters,
    which are chosen so that these do not move.

    Args:
        slopes: the gradient, `(size,)`.
        fixed: bool, `(size,)`.
        product: H.
    """
    zeros = ops.zeros_like(slopes)
    free = -product(ops.where(fixed, zeros, slopes))
    residual = ops.where(fixed, free, zeros)
    square = dot(residual, residual)

    def step(at: _Elimination) -> _Elimination:
        turned = product(at.search)
        length = at.square / dot(at.search, turned)
        direction = at.direction - turned * length
        residual = ops.where(fixed, direction, zeros)
        square = dot(residual, residual)
        search = residual + at.search * (square / at.square)
        return _Elimination(direction, search, square, at.steps + 1)

    found = while_loop(
        lambda at: both(at.square > _LEFT**2 * square, at.steps < _MOST_STEPS),
        step,
        _Elimination(free, residual, square, square * 0),
    )
    return ops.where(fixed, zeros, found.direction)


def _count(mask: Tensor, like: Tensor) -> Scalar:
    """How many entries of a mask are true, a float scalar."""
    return backend.scalar(ops.sum(ops.cast(mask, like.dtype)))
