"""What a compiled method knows about the curvature."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any
from typing import Protocol

from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor

if TYPE_CHECKING:
    from kormos.solvers.quasi_newton.state import Pair


class Method(Protocol):
    """The state of a method's compiled loop, besides the point.

    Attributes:
        key: a name of the formulas and their options. Two methods of the same
            key share a compiled function and can resume each other's state.
    """

    key: str

    def empty(
        self, size: int, dtype: str = "float64"
    ) -> tuple[Structure, Structure]:
        """The store and what is known before the first step.

        Args:
            size: the number of parameters.
            dtype: `"float32"` if that is the precision of the gradients. The
                store may use it.

        Returns:
            A tuple of NumPy arrays, or of tuples of these, for large arrays;
            and a named tuple of NumPy arrays and scalars.
        """


class Curvature(Method, Protocol):
    """A quasi-Newton method's approximation of the inverse Hessian H.

    The object has the formulas; it holds no numbers of a run. What it knows is
    passed in and returned, so that a compiled function can carry it. It is in
    two parts: a *store* of large arrays, and the rest, *known*. A branch of a
    compiled loop copies every array that it returns. So only `record` and
    `settle`, which are called outside of branches, may return the store.

    An iteration calls `record`, then `update`, then perhaps `clear`, then
    `settle`. Arrays are float64, apart from the store: NumPy's in `empty`,
    tensors of the backend elsewhere. Vectors are `(size,)`. A scalar is a NumPy
    scalar on an eager backend and a tensor of shape `()` in a trace. The
    structure, shapes and dtypes of both parts must not change during a run.
    Steps and gradients are in the units of `State.units`.

    Attributes:
        key: a name of the formulas and their options. Two curvatures of the
            same key share a compiled function and can resume each other's
            state.
        overshoots: whether directions are often too long. If so, the line
            search first tries the part of the direction that would gain as
            much as the step before it.
    """

    key: str
    overshoots: bool

    def empty(
        self, size: int, dtype: str = "float64"
    ) -> tuple[Structure, Structure]:
        """The store and what is known before the first pair.

        Args:
            size: the number of parameters.
            dtype: `"float32"` if that is the precision of the gradients. The
                store may use it.

        Returns:
            Two structures of NumPy arrays and NumPy scalars; the store may be
            of arrays by `backend.spread_zeros` instead. What is known is a
            named tuple, whose names are those of saved states.
        """

    def clear(self, known: Any, scale: Scalar) -> Any:
        """What is known when H is `scale` times the identity.

        Args:
            known: what was known; its values are forgotten.
            scale: scalar, positive.

        Returns:
            What is known. The store may keep its values, if they no longer
            count.
        """

    def record(
        self,
        store: Any,
        known: Any,
        good: Scalar,
        step: Tensor,
        change: Tensor,
    ) -> Any:
        """The store with a pair, if that is good.

        It is called after every evaluation.

        Args:
            store: the store.
            known: what is known before the pair.
            good: bool scalar, whether the pair is to be used. If it is not,
                its entries may be infinite or NaN.
            step: s, the change of the parameters, `(size,)`.
            change: y, the change of the gradient, `(size,)`.

        Returns:
            The store.
        """

    def update(
        self, store: Any, known: Any, pair: Pair, grad: Tensor
    ) -> tuple[Any, Tensor]:
        """What is known after a pair, and the direction at a new point.

        Args:
            store: the store, in which the pair was recorded if it is good.
            known: what is known before the pair.
            pair: the latest step and its change; to be ignored if it is not
                good.
            grad: the gradient at the new point, `(size,)`.

        Returns:
            What is known, and the direction -H grad, `(size,)`. A direction of
            zeros, or one that is not finite, makes the caller `clear`.
        """

    def product(self, store: Any, known: Any, vector: Tensor) -> Tensor:
        """H times a vector `(size,)`; H includes pending changes."""

    def settle(self, store: Any, known: Any) -> tuple[Any, Any]:
        """Moves pending changes from `known` into the store.

        Returns:
            The store, and what is known.
        """
