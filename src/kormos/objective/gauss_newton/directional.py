"""Directional derivatives of a model's outputs in its parameters."""

from collections.abc import Callable
from typing import TypeAlias

from keras import ops

from kormos import backend
from kormos.arithmetic.vectors import rounding
from kormos.types import Scalar
from kormos.types import Tensor

# A function of a list of tensors, `parts -> outputs`.
_Outputs: TypeAlias = Callable[[list[Tensor]], Tensor]

# The longest step of second differences, as a part of the direction. Our
# choice: directions are the steps of a solver, and the second derivative should
# describe the outputs within a tenth of a step. A larger value would mix in
# higher derivatives, and a smaller one more rounding.
_LONGEST_STEP = 0.1


class DirectionalDerivative:
    """The outputs of a function, and a directional derivative of them.

    The derivative is exact, or a central difference where an operation has no
    forward-mode differentiation on this backend. The first call for each order
    finds out which.
    """

    def __init__(self) -> None:
        self._is_exact: dict[int, bool] = {}

    def __call__(
        self,
        order: int,
        outputs: _Outputs,
        parts: list[Tensor],
        tangents: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The outputs at a point, and their derivative of order 1 or 2.

        Args:
            order: 1 or 2.
            outputs: the function.
            parts: the point.
            tangents: the direction, in tensors of the same shapes.
        """
        if order not in self._is_exact:
            found = _tried(order, outputs, parts, tangents)
            self._is_exact[order] = found is not None
            if found is not None:
                return found
        rule = _exact if self._is_exact[order] else _by_differences
        return rule(order, outputs, parts, tangents)


def _tried(
    order: int, outputs: _Outputs, parts: list[Tensor], tangents: list[Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Like `_exact`, or `None` where an operation has no forward mode.

    An error of the function itself is raised.
    """

    def attempt() -> tuple[Tensor, Tensor]:
        found = _exact(order, outputs, parts, tangents)
        backend.check_forward_mode(outputs, parts, tangents)
        return found

    try:
        return attempt()
    except Exception:
        outputs(parts)  # If the function itself fails, this raises too.
        try:
            attempt()
        except Exception:
            return None
        raise  # Forward mode was not the reason of the error.


def _exact(
    order: int, outputs: _Outputs, parts: list[Tensor], tangents: list[Tensor]
) -> tuple[Tensor, Tensor]:
    if order == 1:
        return backend.jvp(outputs)(parts, tangents)

    def slope(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
        return backend.jvp(outputs)(parts, tangents)

    (values, _), (_, second) = backend.jvp(slope)(parts, tangents)
    return values, second


def _by_differences(
    order: int, outputs: _Outputs, parts: list[Tensor], tangents: list[Tensor]
) -> tuple[Tensor, Tensor]:
    h = _distance(order, parts, tangents)

    def at(distance: Scalar) -> Tensor:
        return outputs(
            [p + distance * t for p, t in zip(parts, tangents, strict=True)]
        )

    behind, values, ahead = at(-h), outputs(parts), at(h)
    if order == 1:
        return values, (ahead - behind) / (2 * h)
    return values, (ahead - 2 * values + behind) / h**2


def _distance(
    order: int, parts: list[Tensor], tangents: list[Tensor]
) -> Scalar:
    """The step of central differences, as a part of the direction.

    With these usual powers of `evaluation_eps`, the error of rounding is about
    as large as that of the derivatives that the differences neglect.
    """
    evaluation_eps = max(rounding(p.dtype) for p in parts)
    length, reach = (
        sum(ops.sum(ops.square(a)) for a in arrays) ** 0.5
        for arrays in (tangents, parts)
    )
    reach = ops.where(reach > 0, reach, ops.ones_like(reach))
    length = ops.where(length > 0, length, ops.ones_like(length))
    if order == 1:
        return evaluation_eps ** (1 / 3) * reach / length
    h = evaluation_eps ** (1 / 4) * reach / length
    return ops.where(h < _LONGEST_STEP, h, ops.full_like(h, _LONGEST_STEP))
