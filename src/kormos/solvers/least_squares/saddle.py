"""A way down from a saddle point, at which Gauss-Newton steps may end.

Where J is singular, Gauss-Newton steps have no part in the directions in which
it is zero. The Hessian also has the second derivatives of the residuals, and
may be negative there. A few steps of Lanczos' method (Golub and Van Loan,
"Matrix Computations", 4th edition, section 10.1) show that, with products of
the Hessian from differences of the gradient.
"""

from collections.abc import Callable

import numpy as np

from kormos.arithmetic.vectors import norm
from kormos.solvers import convergence
from kormos.solvers.least_squares.local_models import Linearized
from kormos.solvers.least_squares.local_models import LocalModels
from kormos.solvers.least_squares.step_search import Found
from kormos.solvers.problem import Problem
from kormos.types import Vector

# The most products of the Hessian. Our choice: two are enough if one direction
# is left, and each takes a Jacobian.
_MOST_PRODUCTS = 6
# An eigenvalue is negative, and a vector not zero, if it is more than this part
# of the largest one, and more than this many times the rounding of differences.
# Our choice: smaller ones are tried in vain too often.
_LEAST, _ROUNDINGS = 1e-5, 30.0
# The lengths of the steps that are tried, as parts of the parameters' own.
_LENGTHS = 0.1, 0.01


def way_down(
    problem: Problem, models: LocalModels, here: Linearized
) -> Found | None:
    """A lower point beside a saddle point; `None` if there is none.

    Args:
        problem: the problem, without bounds.
        models: makes models of the loss.
        here: what is known at a point where Gauss-Newton steps gain nothing.
    """
    model, theta = here.model, here.theta
    start = model.flat(np.random.default_rng(0).normal(size=theta.size))
    if start is None or not norm(start) > 0:
        return None
    reach = model.scaled(theta) or 1.0
    inverse = 1 / model.scale
    rounding = problem.evaluation_eps**0.5
    step = rounding * reach

    def product(vector: Vector) -> Vector:
        _, grad = models.evaluate(theta + step * inverse * vector)
        return inverse * (grad - here.grad) / step

    least = max(_LEAST, _ROUNDINGS * rounding)
    direction = _most_negative(product, start / norm(start), least)
    if direction is None:
        return None
    for length in _LENGTHS:
        for sign in (1.0, -1.0):
            point = theta + sign * length * reach * inverse * direction
            loss = problem.value(point)
            if convergence.is_gain(here.loss, loss, problem.evaluation_eps):
                there = models.at(point, loss)
                if there is not None:
                    return Found(there, float(norm(point - theta)), 1)
    return None


def _most_negative(
    product: Callable[[Vector], Vector], start: Vector, least: float
) -> Vector | None:
    """A unit vector along which a matrix is negative, or `None`.

    Args:
        product: function that multiplies a vector by the matrix.
        start: a unit vector.
        least: the smallest part of the largest eigenvalue that counts.
    """
    basis: list[Vector] = [start]
    products: list[Vector] = []
    while True:
        found = product(basis[-1])
        if not np.isfinite(found).all():
            return None
        products.append(found)
        space = np.array(basis)
        matrix = space @ np.array(products).T
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        if values[0] < -least * np.abs(values).max():
            direction = vectors[:, 0] @ space
            return np.asarray(direction / norm(direction))
        # What is orthogonal to all vectors so far, twice because of rounding.
        rest = found - (space @ found) @ space
        rest = rest - (space @ rest) @ space
        is_new = norm(rest) > least * norm(found)
        if not is_new or len(basis) >= min(_MOST_PRODUCTS, start.size):
            return None
        basis.append(rest / norm(rest))
