"""Compiled steps of a Keras optimizer, and bounds on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence

import keras

from kormos import backend
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Layout
from kormos.types import Array


def compiled_update(
    optimizer: keras.optimizers.Optimizer,
) -> Callable[[Sequence[Array]], None]:
    """A function of the gradients that makes a step of a built optimizer."""
    variables = optimizer._trainable_variables
    own = optimizer.variables
    if keras.backend.backend() == "jax":
        stateless = backend.compile(optimizer.stateless_apply)

        def step(grads: list[keras.KerasTensor]) -> None:
            found = stateless(
                [v.value for v in own], grads, [v.value for v in variables]
            )
            for target, values in zip((variables, own), found, strict=True):
                for variable, value in zip(target, values, strict=True):
                    variable.assign(value)

    else:
        # TensorFlow's optimizers assign to variables in places where Keras does
        # not.
        applied = backend.compile(lambda *grads: optimizer.apply(list(grads)))

        def step(grads: list[keras.KerasTensor]) -> None:
            applied(*grads)

    def update(grads: Sequence[Array]) -> None:
        step(
            [
                keras.ops.convert_to_tensor(grad, dtype=variable.dtype)
                for grad, variable in zip(grads, variables, strict=True)
            ]
        )

    return update


class _Inside(keras.constraints.Constraint):
    """Keeps a variable within bounds, after its own constraint if any."""

    def __init__(
        self,
        lower: Array,
        upper: Array,
        earlier: Callable[[keras.KerasTensor], keras.KerasTensor] | None,
    ):
        self._lower = lower
        self._upper = upper
        self._earlier = earlier

    def __call__(self, value: keras.KerasTensor) -> keras.KerasTensor:
        if self._earlier is not None:
            value = self._earlier(value)
        dtype = keras.backend.standardize_dtype(value.dtype)
        return keras.ops.clip(
            value, self._lower.astype(dtype), self._upper.astype(dtype)
        )


@contextlib.contextmanager
def kept_in_box(problem: Problem, packing: Layout) -> Iterator[None]:
    """A scope in which Keras' optimizers keep variables within the bounds.

    Args:
        problem: the problem, which has the bounds.
        packing: the layout of its variables.
    """
    if not problem.is_bounded:
        yield
        return
    lower, upper = map(packing.split_array, problem.box)
    variables = packing.variables
    earlier = [variable.constraint for variable in variables]
    try:
        for variable, *bounds in zip(
            variables, lower, upper, earlier, strict=True
        ):
            variable.constraint = _Inside(*bounds)
        yield
    finally:
        for variable, constraint in zip(variables, earlier, strict=True):
            variable.constraint = constraint
