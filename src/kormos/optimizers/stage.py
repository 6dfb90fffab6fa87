"""One run of one method, as an optimizer describes it."""

from collections.abc import Callable
from typing import NamedTuple


class Stage(NamedTuple):
    """One run of one method.

    Attributes:
        epochs: the most epochs of the stage, or `None` if not said.
        pretrain_fn: function of the model, called before the stage, or `None`.
        check: function of `(size, bounded, constraint_types)` that raises a
            `ValueError` if the method cannot honour what was asked.
        run: function of `(problem, theta, report)` that returns an `Outcome`.
            `report(theta, loss, grad, **logs)` is told the start and every
            accepted iterate, and returns whether to stop. `grad` is the
            gradient, or its 2-norm after the start, or `None`; `theta` is
            `None` for iterates that a compiled call has left behind; `logs`
            are more numbers for the History.
        uses_hessian: whether the method asks for Hessian products.
        uses_jacobian: whether it asks for derivatives of outputs.
        uses_batches: whether it takes its steps on batches of the data.
    """

    epochs: int | None
    pretrain_fn: Callable | None
    check: Callable
    run: Callable
    uses_hessian: bool = False
    uses_jacobian: bool = False
    uses_batches: bool = False
