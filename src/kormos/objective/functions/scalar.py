"""Losses that a function computes from Keras variables."""

from collections.abc import Callable

import keras

from kormos import backend
from kormos.arithmetic.vectors import rounding
from kormos.float64.choice import check_precision
from kormos.float64.choice import decide
from kormos.float64.choice import starts_in_float64
from kormos.objective.base import FlatObjective
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import ChunkLoss
from kormos.objective.compiled import Program
from kormos.objective.functions.kept import kept
from kormos.objective.functions.stateless import StatelessFunction
from kormos.objective.layout import Packing
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor


class FunctionObjective(FlatObjective):
    """The loss that a function computes from variables.

    Args:
        loss_fn: backend-neutral function of no arguments that reads
            `keras.Variable`s and returns a scalar tensor.
        variables: list of the `keras.Variable`s to optimize.
        precision: `None`, `"float64"` or `"auto"`, as in `kormos.minimize`.
    """

    def __init__(
        self,
        loss_fn: Callable[[], Scalar],
        variables: list[keras.Variable],
        precision: str | None = None,
    ) -> None:
        check_precision(precision)
        packing = Packing(variables)
        variables = packing.variables
        self._kept = kept(
            loss_fn, variables, "loss", lambda: _scalar(loss_fn, variables)
        )
        self._function = self._kept.function
        self.unused_variables = self._function.unused_variables
        self._compile(None)
        self.has_float64 = decide(precision, self._prepare_float64)
        if self.has_float64 and starts_in_float64(precision, packing.dtypes):
            self.go_on_in_float64()

    @property
    def evaluation_eps(self) -> float:
        """The machine epsilon of the arithmetic of the loss."""
        packing = self.program.packing
        if packing.dtype is not None:
            return rounding(packing.dtype)
        # Keras' operations may return a narrower dtype for float64.
        return max(super().evaluation_eps, rounding(self._function.dtype))

    def _prepare_float64(self) -> None:
        # Refuse a function that fails in float64 now, not during the fit.
        _ = self._kept.in_float64

    def _once(self, fn: Callable[..., Structure]) -> Callable[..., Structure]:
        # The first call of the function has compiled each of its operations,
        # so that a direct call is fastest, unless it calls functions that are
        # traced again each time.
        return super()._once(fn) if self._function.keeps_traces else fn

    def _go_on_in_float64(self) -> None:
        self._function = self._kept.in_float64
        self._compile("float64")

    def _compile(self, dtype: str | None) -> None:
        """Compiles the function, or takes what was compiled before.

        Args:
            dtype: `"float64"`, or `None` for the dtypes of the variables.
        """
        self.program = self._kept.made(dtype, _program, _moved)
        self.refresh()


def _scalar(
    loss_fn: Callable[[], Scalar], variables: list[keras.Variable]
) -> StatelessFunction:
    function = StatelessFunction(loss_fn, variables, "loss_fn")
    if function.shape != ():
        raise ValueError(
            "Function `loss_fn` must return a scalar; use a sum or a mean "
            f"of its terms. Received: a tensor of shape {function.shape}"
        )
    return function


def _program(function: StatelessFunction, packing: Packing) -> Program:
    return Program(
        packing,
        function.frozen_variables,
        [_chunk_loss(function)],
        backend.compile,
    )


def _moved(
    program: Program, function: StatelessFunction, packing: Packing
) -> Program:
    return program.moved(packing, [_chunk_loss(function)])


def _chunk_loss(function: StatelessFunction) -> ChunkLoss:
    def chunk_loss(
        parts: list[Tensor] | None,
        frozen: list[Tensor] | None,
        term_factors: Tensor,
        chunk: Chunk,
    ) -> Scalar:
        del term_factors, chunk
        return function(parts, frozen)

    return chunk_loss
