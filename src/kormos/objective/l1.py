"""L1 regularizers without their kinks: weights as differences of two parts.

A weight w with the penalty c |w| is p - q with p, q >= 0. Then

    f(p - q) + c (p + q - |p - q|)

is smooth, where f is the loss with its penalty, and has its minima where f has
them: one of the two parts is zero there. So weights become exactly zero.

M. Schmidt, G. Fung and R. Rosales, "Fast optimization methods for L1
regularization", ECML 2007, section 3.3, has this form of the problem.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Hashable
from typing import TYPE_CHECKING
from typing import Any
from typing import NoReturn

import keras
import numpy as np
from keras import ops

from kormos import backend
from kormos.backend.common import as_tensor
from kormos.solvers.protocols import ProblemObjective
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Structure
from kormos.types import Tensor
from kormos.types import Vector

if TYPE_CHECKING:
    from kormos.objective.base import FlatObjective

_WITH_L1 = (keras.regularizers.L1, keras.regularizers.L1L2)


def strength(variable: Any) -> float:
    """The factor of a variable's L1 penalty, which may be zero."""
    regularizer: Any = getattr(variable, "regularizer", None)
    if type(regularizer) not in _WITH_L1:
        return 0.0
    return float(backend.to_numpy(regularizer.l1))


def in_parts(
    objective: FlatObjective, lower: Vector | None, upper: Vector | None
) -> SplitObjective | None:
    """The loss with its L1 regularized weights in two parts.

    Args:
        objective: the loss of a Keras model.
        lower, upper: the bounds, `(size,)`, or `None`. A weight that they keep
            away from zero has no kink.

    Returns:
        The loss, or `None` if there is no such weight.
    """
    packing = objective.program.packing
    found = [strength(v) for v in packing.variables]
    if not any(found):
        return None
    factors = packing.join_arrays(
        [
            np.full(v.shape, factor)
            for v, factor in zip(packing.variables, found, strict=True)
        ]
    )
    chosen = factors > 0
    if lower is not None and upper is not None:
        chosen &= (lower <= 0) & (upper >= 0)
    places = np.flatnonzero(chosen)
    if not places.size:
        return None
    return SplitObjective(objective, places, factors[places])


@functools.cache
def _slope_at_zero() -> float:
    """The slope that the backend gives the absolute value at zero.

    It is one on JAX, and zero on the others.
    """
    slope = backend.jacobian(lambda parts: ops.abs(parts[0]))
    return float(backend.to_numpy(slope([ops.zeros((1,))])[0])[0, 0])


def _slopes(weights: Vector) -> Vector:
    """The slopes of the absolute values, as on the backend."""
    return np.where(weights == 0, _slope_at_zero(), np.sign(weights))


class SplitObjective:
    """A loss of weights in two parts; a `ProblemObjective`.

    Its vector has all weights, with the parts p in place of those that are
    split, and then the parts q.

    Args:
        objective: the loss f.
        places: the places of the weights that are split, `(k,)`.
        factors: the factors of their penalties, `(k,)`.
    """

    def __init__(
        self, objective: ProblemObjective, places: Array, factors: Vector
    ) -> None:
        self.whole = objective
        self._places, self._factors = places, factors
        self.size = objective.size + len(places)

    @property
    def program(self) -> Any:
        """The compiled functions of the loss."""
        return self.whole.program

    @property
    def evaluation_eps(self) -> float:
        """As that of the loss."""
        return self.whole.evaluation_eps

    @property
    def storage_eps(self) -> float:
        """As that of the loss."""
        return self.whole.storage_eps

    @property
    def is_streamed(self) -> bool:
        """As that of the loss."""
        return self.whole.is_streamed

    @property
    def is_hosted(self) -> bool:
        """As that of the loss."""
        return self.whole.is_hosted

    has_float64 = False

    @property
    def readings(self) -> int:
        """As those of the loss."""
        return self.whole.readings

    def name_of(self, index: int) -> str:
        """The name of an entry."""
        own = self.whole.size
        place = index if index < own else int(self._places[index - own])
        return self.whole.name_of(place)

    def parts_of(self, theta: Vector) -> Vector:
        """The vector of a point."""
        own = np.array(theta)
        split = own[self._places]
        own[self._places] = np.maximum(split, 0.0)
        return np.concatenate([own, np.maximum(-split, 0.0)])

    def point_of(self, parts: Vector) -> Vector:
        """The point of a vector."""
        own = np.array(parts[: self.whole.size])
        own[self._places] -= parts[self.whole.size :]
        return own

    def box_of(
        self, lower: Vector | None, upper: Vector | None
    ) -> tuple[Vector, Vector]:
        """The bounds of the vector, from those of the point."""
        size, count = self.whole.size, len(self._places)
        low = np.full(size, -np.inf) if lower is None else np.array(lower)
        high = np.full(size, np.inf) if upper is None else np.array(upper)
        most = np.maximum(-low[self._places], 0.0)
        low[self._places] = 0.0
        return (
            np.concatenate([low, np.zeros(count)]),
            np.concatenate([high, most]),
        )

    def columns_of(self, jacobian: Matrix) -> Matrix:
        """Derivatives with respect to the vector, from those for the point."""
        return np.hstack([jacobian, -jacobian[:, self._places]])

    def value(self, theta: Vector) -> float:
        """The loss."""
        point = self.point_of(theta)
        return float(self.whole.value(point)) + self.surplus(theta)

    def value_and_grad(self, theta: Vector) -> tuple[float, Vector]:
        """The loss and its gradient."""
        point = self.point_of(theta)
        loss, grad = self.whole.value_and_grad(point)
        slopes = self._smooth_slopes(point, grad)
        own = np.array(grad)
        own[self._places] = slopes + self._factors
        return (
            float(loss) + self.surplus(theta),
            np.concatenate([own, self._factors - slopes]),
        )

    def _smooth_slopes(self, point: Vector, grad: Vector) -> Vector:
        """The slopes of the weights that are split, without their penalty."""
        signs = _slopes(point[self._places])
        return grad[self._places] - self._factors * signs

    def least_subgradient(self, point: Vector) -> Vector:
        """The subgradient of least norm at a point, `(size,)`."""
        found = np.array(self.whole.value_and_grad(point)[1])
        weights, factors = point[self._places], self._factors
        smooth = self._smooth_slopes(point, found)
        found[self._places] = np.where(
            weights == 0,
            np.sign(smooth) * np.maximum(np.abs(smooth) - factors, 0.0),
            smooth + factors * np.sign(weights),
        )
        return found

    def hvp(self, theta: Vector, vector: Vector) -> NoReturn:
        """Refused, as `gauss_newton` is."""
        raise NotImplementedError

    def hessian(self, theta: Vector) -> NoReturn:
        """Refused, as `gauss_newton` is."""
        raise NotImplementedError

    def gauss_newton(self) -> NoReturn:
        """Refused, because methods that use it do not split weights."""
        raise NotImplementedError

    def reference(self, theta: Vector) -> tuple[Vector, float]:
        """The point as the variables round it, and the loss as written."""
        raise NotImplementedError

    def in_memory(self) -> SplitObjective:
        """The same loss; of the first rows only if data are streamed."""
        return SplitObjective(
            self.whole.in_memory(), self._places, self._factors
        )

    def in_float64(self) -> SplitObjective:
        """The same loss, evaluated in float64."""
        return SplitObjective(
            self.whole.in_float64(), self._places, self._factors
        )

    def traceable(
        self,
    ) -> tuple[Callable[..., tuple[Tensor, ...]], tuple[Structure, ...]]:
        """Loss and gradient for use inside a compiled function."""
        value_and_grad, arguments = self.whole.traceable()
        size, places = self.whole.size, self._places.astype("int32")
        at_zero = _slope_at_zero()

        def split(
            theta: Tensor, factors: Tensor, *arguments: Structure
        ) -> tuple[Tensor, ...]:
            where = ops.convert_to_tensor(places[:, None])
            other = theta[size:]
            point = ops.scatter_update(
                theta[:size],
                where,
                ops.take(theta[:size], places, axis=0) - other,
            )
            loss, grad, *readings = value_and_grad(point, *arguments)
            chosen = ops.take(point, places, axis=0)
            own = ops.take(theta[:size], places, axis=0)
            surplus = ops.sum(factors * (own + other - ops.abs(chosen)))
            slopes = ops.take(grad, places, axis=0)
            signs = ops.where(chosen == 0, at_zero, ops.sign(chosen))
            slopes = slopes - factors * signs
            grad = ops.scatter_update(grad, where, slopes + factors)
            return (
                loss + backend.scalar(surplus),
                ops.concatenate([grad, factors - slopes]),
                *readings,
            )

        return split, (as_tensor(self._factors), *arguments)

    def traceable_hvp(self) -> NoReturn:
        """Refused, as `gauss_newton` is."""
        raise NotImplementedError

    def traceable_gauss_newton(self) -> NoReturn:
        """Refused, as `gauss_newton` is."""
        raise NotImplementedError

    def compiled_loop(
        self, key: Hashable, fn: Callable[..., Structure]
    ) -> Callable[..., Structure]:
        """The function `fn(state, *args) -> state`, compiled once for a key."""
        places = self._places.tobytes()
        return self.whole.compiled_loop((key, "in two parts", places), fn)

    def in_parts(self, lower: Vector | None, upper: Vector | None) -> None:
        """Returns `None`: its weights are already in parts."""
        del lower, upper

    def surplus(self, theta: Vector) -> float:
        """c (p + q - |p - q|), which is zero where one part is zero."""
        least = np.minimum(theta[self._places], theta[self.whole.size :])
        return float(self._factors @ (2 * least))
