"""A way down from a saddle point, at which a run may end.

Where the gradient is zero, a method that uses only gradients stays; where the
derivatives J of the outputs are singular, Gauss-Newton steps have no part in
the directions in which J is zero. The Hessian may be negative there. A few
steps of Lanczos' method (Golub and Van Loan, "Matrix Computations", 4th
edition, section 10.1) show that, with products of the Hessian from differences
of the gradient.
"""

from collections.abc import Callable

import numpy as np

from kormos.arithmetic.vectors import norm
from kormos.solvers import convergence
from kormos.solvers.surroundings import Evaluate
from kormos.solvers.surroundings import Point
from kormos.types import Array
from kormos.types import Vector

# The most products of the Hessian. Our choice: two are enough if one direction
# is left, and each takes a gradient.
_MOST_PRODUCTS = 6
# An eigenvalue is negative, and a vector not zero, if it is more than this part
# of the largest one, and more than this many times the rounding of differences.
# Our choice: smaller ones are tried in vain too often.
_LEAST, _ROUNDINGS = 1e-5, 30.0
# The lengths of the steps that are tried, as parts of the parameters' own. The
# size of parameters that are all zero is a guess, so lengths differ widely.
_LENGTHS = 0.1, 0.01, 1.0, 10.0, 1e2, 1e-3, 1e3, 1e-4, 1e4


def way_down(
    evaluate: Evaluate,
    here: Point,
    start: Vector,
    sizes: Vector,
    evaluation_eps: float,
    project: Callable[[Vector], Vector] = np.asarray,
) -> Point | None:
    """A lower point beside a saddle point; `None` if there is none.

    Args:
        evaluate: loss and gradient as a function of a float64 array `(size,)`.
        here: a point from which a run gains nothing.
        start: the first vector of Lanczos' method, in sizes, `(size,)`.
        sizes: the sizes of the parameters, `(size,)`; zero for those that stay.
        evaluation_eps: the machine epsilon of the evaluation's dtype.
        project: function that moves a point into the bounds.
    """
    if not norm(start) > 0:
        return None
    theta, loss, grad = here
    own = theta / np.where(sizes > 0, sizes, np.inf)
    reach = float(norm(own)) or 1.0
    rounding = evaluation_eps**0.5
    step = rounding * reach

    def product(vector: Vector) -> Vector:
        _, there = evaluate(project(theta + step * sizes * vector))
        return sizes * (there - grad) / step

    least = max(_LEAST, _ROUNDINGS * rounding)
    direction = _most_negative(product, start / norm(start), least)
    if direction is None:
        return None
    for length in _LENGTHS:
        for sign in (1.0, -1.0):
            point = project(theta + sign * length * reach * sizes * direction)
            found = Point(point, *evaluate(point))
            if convergence.is_gain(loss, found.loss, evaluation_eps):
                return found
    return None


def beside(
    evaluate: Evaluate,
    here: Point,
    is_inside: Array,
    sizes: Vector,
    evaluation_eps: float,
    project: Callable[[Vector], Vector],
) -> Point | None:
    """A lower point, where some entries of the gradient are exactly zero.

    They are if a symmetry of the loss holds a run at a saddle point: no
    gradient leads away from weights that are all zero, for example.

    Args:
        evaluate: see `way_down`.
        here: the end of a run.
        is_inside: a mask of the parameters that are within their bounds.
        sizes: the sizes of the parameters, `(size,)`.
        evaluation_eps: see `way_down`.
        project: see `way_down`.
    """
    start = np.random.default_rng(0).normal(size=sizes.size)
    start = np.where(is_inside & (here.grad == 0), start, 0.0)
    sizes = np.where(is_inside, sizes, 0.0)
    return way_down(evaluate, here, start, sizes, evaluation_eps, project)


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
