"""A step of the trust-region Newton method, and the evaluation after it.

Both are made within the compiled loop, or outside of it if the loss is summed
up in Python. Within bounds, parameters that the gradient presses against a
bound are held, and the step is projected (C. Kanzow, N. Yamashita and M.
Fukushima, J. Comput. Appl. Math. 172(2), 2004).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from keras import tree

from kormos import backend
from kormos.arithmetic.scalars import constant
from kormos.arithmetic.scalars import where
from kormos.arithmetic.vectors import dot
from kormos.arithmetic.vectors import norm
from kormos.arithmetic.vectors import to_array
from kormos.backend.common import as_tensor
from kormos.solvers.newton.method import NewtonMethod
from kormos.solvers.newton.steihaug import Path
from kormos.solvers.newton.steihaug import step_within
from kormos.solvers.problem import Problem
from kormos.solvers.quasi_newton.region import Region
from kormos.solvers.quasi_newton.state import STARTING
from kormos.solvers.quasi_newton.state import State
from kormos.types import Scalar
from kormos.types import Tensor
from kormos.types import Vector

# The product of the matrix at a point and a vector.
Product = Callable[[Tensor, Tensor], Tensor]


class Attempt(NamedTuple):
    """A step, and the loss after it.

    Attributes:
        step: the step in units, `(size,)`, before it is projected.
        square: the square of its length in the norm of the preconditioner's
            inverse, scalar.
        promise: the decrease that the model predicts, scalar.
        guess: the decrease that the preconditioner predicts, scalar.
        products: the number of products that were made, a float scalar.
        leaves: whether the step is as long as the radius, bool scalar.
        is_bent: whether it was projected, bool scalar.
        theta: the point, `(size,)`.
        loss: the loss there, scalar.
        grad: the gradient there, `(size,)`.
        readings: see `protocols.Iterate`, `(readings,)`, or `None`.
    """

    step: Tensor
    square: Scalar
    promise: Scalar
    guess: Scalar
    products: Scalar
    leaves: Scalar
    is_bent: Scalar
    theta: Tensor
    loss: Scalar
    grad: Tensor
    readings: Tensor | None = None


def attempt(
    method: NewtonMethod,
    region: Region,
    value_and_grad: Callable[[Tensor], tuple[Tensor, ...]],
    hvp: Product,
    state: State,
) -> Attempt:
    """The attempt from a state, within the compiled loop.

    Args:
        method: the method.
        region: where it may evaluate.
        value_and_grad: loss and gradient, and readings if there are some, as
            a function of a flat tensor.
        hvp: the matrix.
        state: the state.
    """
    path, guess = _path(
        method,
        state,
        hvp,
        lambda vector: method.memory.product(
            state.store, state.curvature.memory, vector
        ),
        lambda vector: region.free(state.theta, state.grad, vector),
    )
    ahead = state.theta + path.step * state.units
    theta = region.point(ahead)
    loss, grad, *readings = value_and_grad(theta)
    return Attempt(
        step=path.step,
        square=path.square,
        promise=path.promise,
        guess=guess,
        products=path.products,
        leaves=path.leaves,
        is_bent=dot(theta - ahead, theta - ahead) > 0,
        theta=theta,
        loss=backend.scalar(loss),
        grad=grad,
        readings=readings[0] if readings else None,
    )


def attempt_outside(
    method: NewtonMethod, problem: Problem, product: Product, state: State
) -> tuple[Tensor, ...]:
    """Makes the attempt from a state; its numbers as tensors, for `given`.

    Args:
        method: the method.
        problem: the problem.
        product: the matrix, in NumPy.
        state: the state, with NumPy scalars.
    """
    theta, grad = to_array(state.theta), to_array(state.grad)
    ours = state._replace(theta=theta, grad=grad, units=to_array(state.units))
    # They are NumPy arrays in a state that has not run.
    memory, store = tree.map_structure(
        as_tensor, (state.curvature.memory, state.store)
    )

    def precondition(vector: Vector) -> Vector:
        return to_array(method.memory.product(store, memory, as_tensor(vector)))

    held = problem.held(theta, grad)
    with np.errstate(all="ignore"):
        path, guess = _path(
            method,
            ours,
            product,
            precondition,
            lambda vector: np.where(held, 0.0, vector),
        )
    ahead = theta + path.step * ours.units
    point = problem.project(ahead)
    loss, gradient = problem.evaluate(point)
    numbers = [path.square, path.promise, guess, path.products, path.leaves]
    numbers += [(point != ahead).any(), loss]
    arrays = path.step, np.array(numbers, "float64"), point, gradient
    return tuple(as_tensor(np.array(array)) for array in arrays)


def given(
    theta: Tensor, step: Tensor, numbers: Tensor, point: Tensor, grad: Tensor
) -> Attempt:
    """The `Attempt` from the tensors of `attempt_outside`.

    Args:
        theta: the point to evaluate, which is not used.
        step: the step, `(size,)`.
        numbers: the scalars of the attempt, `(7,)`.
        point: the point after the step, `(size,)`.
        grad: the gradient there, `(size,)`.
    """
    del theta
    scalars = [backend.scalar(numbers[i]) for i in range(7)]
    square, promise, guess, products, leaves, is_bent, loss = scalars
    return Attempt(
        step=step,
        square=square,
        promise=promise,
        guess=guess,
        products=products,
        leaves=leaves > 0,
        is_bent=is_bent > 0,
        theta=point,
        loss=loss,
        grad=grad,
    )


def _path(
    method: NewtonMethod,
    state: State,
    hvp: Product,
    precondition: Callable[[Tensor], Tensor],
    free: Callable[[Tensor], Tensor],
) -> tuple[Path, Scalar]:
    """The next step, and the decrease that the preconditioner predicts.

    Args:
        method: the method.
        state: the state.
        hvp: the matrix.
        precondition: the preconditioner.
        free: function that sets a vector's entries of held parameters to zero.
    """
    units, one = state.units, constant(1, like=state.loss)

    def product(vector: Tensor) -> Tensor:
        vector = vector * units
        # In the model's own dtype a short vector could underflow.
        size = norm(vector)
        size = where(size > 0, size, one)
        return free(hvp(state.theta, vector / size) * units * size)

    return step_within(
        state.curvature.radius,
        free(state.grad * units),
        product,
        lambda vector: free(precondition(vector)),
        state.status == STARTING,
        method.most_products,
    )
