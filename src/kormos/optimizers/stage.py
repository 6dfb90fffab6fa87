"""One run of one method, as an optimizer describes it."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from kormos.solvers.protocols import Solver


class Stage(NamedTuple):
    """One run of one method.

    Attributes:
        epochs: the most epochs of the stage, or `None` if not said.
        pretrain_fn: function of the model, called before the stage, or `None`.
        check: function of `(size, bounded, constraint_types)` that raises a
            `ValueError` if the method cannot honour what was asked.
        run: the `Solver`.
        uses_hessian: whether the method asks for Hessian products.
        uses_jacobian: whether it asks for derivatives of outputs.
        uses_batches: whether it takes its steps on batches of the data.
    """

    epochs: int | None
    pretrain_fn: Callable[[Any], object] | None
    check: Callable[[int, bool, list[str]], None]
    run: Solver
    uses_hessian: bool = False
    uses_jacobian: bool = False
    uses_batches: bool = False
