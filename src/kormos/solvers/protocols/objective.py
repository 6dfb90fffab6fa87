"""The losses that solvers minimize."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterator
from typing import TYPE_CHECKING
from typing import Any
from typing import Protocol
from typing import Self

import numpy as np

from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor
from kormos.types import Vector

if TYPE_CHECKING:
    from kormos.solvers.protocols.least_squares import GaussNewtonMatrix


class Objective(Protocol):
    """The protocol of an objective that the user has written.

    It has two optional methods. `hvp(theta, vector)` returns the product of the
    Hessian and a vector, an array of shape `(size,)`; methods such as
    `"newton"` and `"trust-ncg"` need it. `gauss_newton(theta)` returns the
    Gauss-Newton matrix, an array of shape `(size, size)`; `"lm"` and
    `"gauss-newton"` need it.

    Attributes:
        size: Integer, the number of parameters.
    """

    size: int

    def value_and_grad(self, theta: Vector) -> tuple[Scalar, Array]:
        """Computes the loss and its gradient.

        Args:
            theta: float64 array of shape `(size,)`.

        Returns:
            A tuple of the loss, a float, and the gradient, an array of shape
            `(size,)`.
        """


class Layout(Protocol):
    """Where each variable lies in the flat vector.

    Attributes:
        variables: the variables, in order.
        dtype: the dtype in which they are evaluated, or `None` for their own.
    """

    variables: Any
    dtype: Any

    def split_array(self, theta: Vector) -> list[Array]:
        """The array of each variable in a flat array."""

    def join_arrays(self, parts: list[Array]) -> Vector:
        """The flat array of arrays, one for each variable."""


class CompiledProgram(Protocol):
    """A loss that was compiled.

    Attributes:
        is_verified: whether it was compared with the loss as it was written.
    """

    is_verified: bool

    @property
    def packing(self) -> Layout:
        """The layout of the flat vector."""


class ComparableObjective(Protocol):
    """A compiled loss that can also be evaluated as the user wrote it."""

    @property
    def program(self) -> CompiledProgram:
        """The compiled program."""

    @property
    def evaluation_eps(self) -> float:
        """The machine epsilon of the evaluation's dtype."""

    @property
    def storage_eps(self) -> float:
        """The same for the variables that store the point."""

    def reference(self, theta: Vector) -> tuple[Vector, float]:
        """The point as the variables round it, and the loss as written."""


class ProblemObjective(ComparableObjective, Protocol):
    """The loss of a `Problem`.

    Points and vectors are float64 arrays of shape `(size,)`.
    """

    @property
    def size(self) -> int:
        """The number of parameters."""

    @property
    def is_streamed(self) -> bool:
        """Whether data are read again at every evaluation."""

    @property
    def has_float64(self) -> bool:
        """Whether `in_float64` can be called."""

    @property
    def is_hosted(self) -> bool:
        """Whether the loss cannot be a part of a compiled function."""

    @property
    def readings(self) -> int:
        """How many numbers `traceable` returns besides loss and gradient.

        They are metrics of a model, for example. Solvers pass them on with an
        iterate.
        """

    def name_of(self, index: int) -> str:
        """The name of an entry of the flat vector."""

    def value(self, theta: Vector) -> float:
        """The loss."""

    def value_and_grad(self, theta: Vector) -> tuple[float, Vector]:
        """The loss and its gradient."""

    def hvp(self, theta: Vector, vector: Vector) -> Vector:
        """The Hessian times a vector."""

    def hessian(self, theta: Vector) -> Matrix:
        """The Hessian, `(size, size)`."""

    def gauss_newton(self) -> GaussNewtonMatrix:
        """The Gauss-Newton matrix of the loss."""

    def in_memory(self) -> Self:
        """The same loss; of the first rows only if data are streamed."""

    def in_float64(self) -> ProblemObjective:
        """The same loss, evaluated in float64."""

    def traceable(
        self,
    ) -> tuple[Callable[..., tuple[Tensor, ...]], tuple[Structure, ...]]:
        """Loss and gradient for use inside a compiled function.

        Returns:
            A function `(theta, *arguments) -> (loss, gradient)` of tensors,
            and the arguments. Where there are `readings`, the function returns
            them too, `(readings,)`.
        """

    def traceable_hvp(self) -> Callable[..., Tensor]:
        """A function `(theta, vector, *arguments)`: the Hessian times it."""

    def traceable_gauss_newton(self) -> Callable[..., Tensor]:
        """Like `traceable_hvp`, with the Gauss-Newton matrix."""

    def compiled_loop(
        self, key: Hashable, fn: Callable[..., Structure]
    ) -> Callable[..., Structure]:
        """The function `fn(state, *args) -> state`, compiled once for a key."""

    def in_parts(
        self, lower: Vector | None, upper: Vector | None
    ) -> PartsObjective | None:
        """The loss without the kinks of L1 regularizers.

        Args:
            lower, upper: the bounds, `(size,)`, or `None`.

        Returns:
            The loss of weights in two parts, or `None` if no weight has an L1
            regularizer.
        """


class PartsObjective(ProblemObjective, Protocol):
    """A loss of weights in two parts: see `objective/l1.py`."""

    def parts_of(self, theta: Vector) -> Vector:
        """The vector of a point."""

    def point_of(self, parts: Vector) -> Vector:
        """The point of a vector."""

    def surplus(self, theta: Vector) -> float:
        """How much the loss of the vector exceeds the loss of its point."""

    def box_of(
        self, lower: Vector | None, upper: Vector | None
    ) -> tuple[Vector, Vector]:
        """The bounds of the vector, from those of the point."""

    def columns_of(self, jacobian: Matrix) -> Matrix:
        """Derivatives with respect to the vector, from those for the point."""

    def least_subgradient(self, point: Vector) -> Vector:
        """The subgradient of least norm at a point."""


class BatchedObjective(Protocol):
    """A loss of data that can be divided into batches."""

    def batches(self, rng: np.random.Generator) -> Iterator[ProblemObjective]:
        """The losses of batches of the data, in an order that `rng` draws."""


class OutputTerm(Protocol):
    """A part of a loss that is a function of outputs.

    The outputs are those of a model, or the residuals of a function. They are
    computed for the rows of a chunk of data, and the loss is a sum over the
    rows. Every method is called inside compiled functions, with tensors.

    In the methods' arguments, `parts` is the list of the values of the
    variables to optimize, and `frozen` that of the other variables that the
    loss reads. Each value has the shape of its variable and the dtype in
    which it is evaluated. `term_factors` is a float64 vector of the factors
    by which the terms of the loss are multiplied. `chunk` holds arrays with
    the same number of rows, `n`, as their first dimension.

    Attributes:
        width: the number of outputs of a row, `k`.
        is_diagonal: whether the Hessian of the loss in the outputs of a row
            is diagonal.
        is_convex: whether the loss is known to be convex in the outputs.
        is_residual: whether the outputs are residuals, so that the loss is
            smallest where they are zero.
        has_penalty: whether a part of the loss does not depend on the outputs
            only. `penalty` is called only in this case.
    """

    width: int
    is_diagonal: bool
    is_convex: bool
    is_residual: bool
    has_penalty: bool

    def rows(self, chunk: Structure) -> Structure:
        """The arrays of a chunk that `outputs` needs.

        Args:
            chunk: the chunk.

        Returns:
            Arrays in any structure, of shapes `(n, ...)`, or `None`.
        """
        ...

    def outputs(
        self, parts: list[Tensor], frozen: list[Tensor], rows: Structure
    ) -> Tensor:
        """The outputs of rows.

        Args:
            parts: values of the variables.
            frozen: values of the other variables.
            rows: what `rows` returns, or a single row of that, `n = 1`.

        Returns:
            A tensor of shape `(n, k)`, in the dtype of the model or function.
        """
        ...

    def loss(
        self,
        values: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunk: Structure,
    ) -> Scalar:
        """What a chunk adds to the loss, as a function of its outputs.

        Args:
            values: the outputs, of shape `(n, k)`, in the dtype of the
                outputs or in float64.
            frozen: values of the other variables.
            term_factors: the factors of the terms.
            chunk: the chunk.
        """
        ...

    def penalty(
        self,
        parts: list[Tensor],
        frozen: list[Tensor],
        term_factors: Tensor,
        chunk: Structure,
    ) -> Scalar:
        """The other contributions of a chunk to the loss: regularizers.

        Args:
            parts: values of the variables.
            frozen: values of the other variables.
            term_factors: the factors of the terms.
            chunk: the chunk.
        """
        ...
