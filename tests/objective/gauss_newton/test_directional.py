"""Derivatives along a line: exact, or differences without a forward mode."""

import numpy as np
import pytest
from keras import ops

from conftest import BACKEND
from kormos import backend
from kormos.objective.gauss_newton.directional import DirectionalDerivative

POINT, DIRECTION = np.array([0.3, -0.7]), np.array([1.0, 2.0])
# The derivatives of the hyperbolic tangent, of orders one and two.
TANH = np.tanh(POINT)
EXACT = {
    1: (1 - TANH**2) * DIRECTION,
    2: -2 * TANH * (1 - TANH**2) * DIRECTION**2,
}


def backward_only():
    """The hyperbolic tangent, as an operation that lacks a forward mode."""
    if BACKEND == "jax":
        import jax

        fn = jax.custom_vjp(ops.tanh)
        fn.defvjp(
            lambda x: (ops.tanh(x), ops.tanh(x)),
            lambda y, slope: (slope * (1 - y**2),),
        )
        return fn
    if BACKEND == "torch":
        import torch

        class Tanh(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return torch.tanh(x)

        return Tanh.apply

    def fn(x):
        return ops.while_loop(
            lambda i, y: i < 1,
            lambda i, y: (i + 1, ops.tanh(y)),
            (ops.zeros((), "int32"), x),
        )[1]

    return fn


class Failing:
    """The hyperbolic tangent, which fails in some of its calls."""

    def __init__(self, calls):
        self.calls, self.count = calls, 0

    def __call__(self, x):
        self.count += 1
        if self.count in self.calls:
            raise RuntimeError("an error of its own")
        return ops.tanh(x)


def along(derivative, order, fn):
    def at(point, direction):
        outputs = derivative(
            order, lambda parts: fn(parts[0]), [point], [direction]
        )
        return outputs[1]

    # A new trace each time.
    with backend.float64():
        found = backend.compile(at)(POINT, DIRECTION)
    return ops.convert_to_numpy(found)


@pytest.mark.parametrize("order", [1, 2])
def test_an_operation_without_a_forward_mode_is_differenced(order, float64):
    found = along(DirectionalDerivative(), order, backward_only())
    np.testing.assert_allclose(found, EXACT[order], rtol=1e-5)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("calls", [{1}, {1, 2}, {1, 2, 3}])
def test_an_error_of_a_function_is_raised_and_changes_nothing(
    order, calls, float64
):
    derivative, fn = DirectionalDerivative(), Failing(calls)
    with pytest.raises(RuntimeError, match="of its own"):
        along(derivative, order, fn)
    fn.calls = ()
    np.testing.assert_allclose(
        along(derivative, order, fn), EXACT[order], rtol=1e-13
    )


def test_an_error_later_is_raised_and_changes_nothing(float64):
    derivative, fn = DirectionalDerivative(), Failing(())
    along(derivative, 2, fn)
    fn.calls = {fn.count + 1}
    with pytest.raises(RuntimeError, match="of its own"):
        along(derivative, 2, fn)
    np.testing.assert_allclose(along(derivative, 2, fn), EXACT[2], rtol=1e-13)
