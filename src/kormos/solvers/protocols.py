"""What the parts of the house expect of one another, written down."""

from typing import Protocol

from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor


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
        """What a chunk adds to the loss besides `loss`: regularizers, say.

        Args:
            parts: values of the variables.
            frozen: values of the other variables.
            term_factors: the factors of the terms.
            chunk: the chunk.
        """
        ...
