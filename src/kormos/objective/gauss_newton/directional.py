"""Derivatives of a model's outputs along a line through its parameters."""

from keras import ops

from kormos import backend
from kormos.arithmetic.vectors import rounding

# The longest part of a step at which second derivatives are differences.
_LONGEST = 0.1


class DirectionalDerivative:
    """The outputs of a function, and a derivative of them along a line.

    It is exact, or a central difference where a layer has no forward mode on
    this backend, as the first call of an order finds out.
    """

    def __init__(self):
        self._is_exact = {}

    def __call__(self, order, outputs, parts, tangents):
        """The outputs at `parts`, and their derivative of order 1 or 2.

        Args:
            order: 1 or 2.
            outputs: function of a list of tensors.
            parts: the point, a list of tensors.
            tangents: the direction, of the same shapes.
        """
        if order not in self._is_exact:
            found = _tried(order, outputs, parts, tangents)
            self._is_exact[order] = found is not None
            if found is not None:
                return found
        rule = _exact if self._is_exact[order] else _by_differences
        return rule(order, outputs, parts, tangents)


def _tried(order, outputs, parts, tangents):
    """As `_exact`; `None` without a forward mode. Other errors are raised."""

    def attempt():
        found = _exact(order, outputs, parts, tangents)
        backend.check_forward_mode(outputs, parts, tangents)
        return found

    try:
        return attempt()
    except Exception:
        outputs(parts)  # Raises as well if it is the function that fails.
        try:
            attempt()
        except Exception:
            return None
        raise  # It failed once, for a reason of its own.


def _exact(order, outputs, parts, tangents):
    if order == 1:
        return backend.jvp(outputs)(parts, tangents)

    def slope(parts):
        return backend.jvp(outputs)(parts, tangents)

    (values, _), (_, second) = backend.jvp(slope)(parts, tangents)
    return values, second


def _by_differences(order, outputs, parts, tangents):
    h = _distance(order, parts, tangents)

    def at(distance):
        return outputs(
            [p + distance * t for p, t in zip(parts, tangents, strict=True)]
        )

    behind, values, ahead = at(-h), outputs(parts), at(h)
    if order == 1:
        return values, (ahead - behind) / (2 * h)
    return values, (ahead - 2 * values + behind) / h**2


def _distance(order, parts, tangents):
    """The part of a step that balances rounding with what it leaves out."""
    epsilon = max(rounding(p.dtype) for p in parts)
    length, reach = (
        sum(ops.sum(ops.square(a)) for a in arrays) ** 0.5
        for arrays in (tangents, parts)
    )
    reach = ops.where(reach > 0, reach, ops.ones_like(reach))
    length = ops.where(length > 0, length, ops.ones_like(length))
    if order == 1:
        return epsilon ** (1 / 3) * reach / length
    h = epsilon ** (1 / 4) * reach / length
    return ops.where(h < _LONGEST, h, ops.full_like(h, _LONGEST))
