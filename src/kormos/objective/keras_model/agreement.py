"""Whether a model is the same function in float64 as in its own dtype."""

from collections.abc import Callable
from collections.abc import Sequence

import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.data.memory import Data
from kormos.data.variables import float64_values
from kormos.data.variables import snapshot
from kormos.float64.choice import Float64Error
from kormos.objective.compiled import Compiler
from kormos.objective.keras_model.loss_terms import LossTerms
from kormos.objective.keras_model.stateless_model import StatelessModel
from kormos.types import Array
from kormos.types import Structure
from kormos.types import Tensor

# The results may differ by this many times the change that rounding of weights
# and inputs makes. Rounding happens in every operation, and may change the
# results ten times as much. Our choice: a smaller number would refuse deep
# models, a larger one might miss code that depends on the dtype.
_AMPLIFIED = 30
# The number of points, a rounding error away, at which that change is measured.
_PLACES = 3

# The loss may differ by at least this part of it, because Keras clips saturated
# outputs before it takes their logarithm. Our choice.
_CLIPPED = 0.05

# Each output may differ by at least this power of the rounding, as a part of
# the largest output: 2e-3 in float32. Our choice, for rounding inside of the
# layers that a change of weights and inputs does not show.
_SHARE_EXPONENT = 0.4


class Agreement:
    """A model's outputs and loss in its own dtype, to compare with float64.

    Args:
        stateless: the model, still in its own dtype.
        terms: the terms of its loss.
        head: the first rows, as tensors of that dtype.
        compile: function that compiles a function.
    """

    def __init__(
        self,
        stateless: StatelessModel,
        terms: LossTerms,
        head: Data,
        compile: Compiler,
    ) -> None:
        self._stateless = stateless
        self._terms = terms
        self._compile = compile
        self._frozen = snapshot(stateless.frozen_variables)
        parts = snapshot(stateless.variables)
        evaluation_eps = stateless.arithmetic.evaluation_eps
        outputs = compile(self._outputs)
        self._own = self._evaluated(outputs, parts, head)
        self._share = evaluation_eps**_SHARE_EXPONENT
        self._moved = []
        rng = np.random.default_rng(0)

        def move(tensor: Tensor) -> Tensor:
            array = backend.to_numpy(tensor)
            if array.dtype.kind != "f":
                return tensor
            signs = rng.choice([-1.0, 1.0], size=array.shape)
            moved = array * (1 + evaluation_eps * signs)
            return ops.cast(moved, tensor.dtype)

        for _ in range(_PLACES):
            place = [move(part) for part in parts]
            x = tree.map_structure(move, head.x)
            moved = self._evaluated(outputs, place, head._replace(x=x))
            self._moved.append(moved)

    def check(self, head: Data) -> None:
        """Refuses a model that is another function in float64.

        Args:
            head: the first rows in float64.

        Raises:
            Float64Error: if an output differs by more than rounding explains.
        """
        # A new function, because the compiled one does not have the dtype as an
        # argument.
        outputs = self._compile(lambda *args: self._outputs(*args))
        parts = float64_values(self._stateless.variables)
        wide = self._evaluated(outputs, parts, head)
        own = self._own
        moved = [results for results in self._moved if results is not None]
        if own is None or wide is None or len(moved) < _PLACES:
            return  # There are no numbers to compare.
        shares = [*[self._share] * (len(wide) - 1), _CLIPPED]
        difference = disagreement(own, wide, moved, shares)
        if difference is None:
            return
        place, before, after = difference
        name = "the loss" if place == len(wide) - 1 else "an output"
        raise Float64Error(
            "In float64 (`precision`), a model must compute the same "
            "function as in its own dtype, except for rounding: leave "
            "`precision` out, or remove code that depends on the dtype from "
            f"the model. Received: {name} that is {before:.6g} there and "
            f"{after:.6g} in float64"
        )

    def _outputs(
        self,
        parts: list[Tensor],
        frozen: list[Tensor],
        x: Structure,
        y: Structure,
        w: Structure,
    ) -> list[Tensor]:
        """The outputs and the loss, in the present dtype of the model."""
        with self._stateless.scope(parts, frozen):
            y_pred = self._stateless(x)
            ones = self._terms.ones("float64")
            total = self._terms.total(x, y, y_pred, w, ones)
            return [*tree.flatten(y_pred), total]

    def _evaluated(
        self,
        outputs: Callable[..., list[Tensor]],
        parts: list[Tensor],
        head: Data,
    ) -> list[Array] | None:
        """What `outputs` returns, or `None` if a computation fails."""
        try:
            with backend.float64():
                values = outputs(parts, self._frozen, *head)
        except Exception as error:
            if not backend.is_numerical(error):
                raise
            return None
        return [np.asarray(backend.to_numpy(v), "float64") for v in values]


def disagreement(
    own: list[Array],
    wide: list[Array],
    moved: list[list[Array]],
    shares: Sequence[float],
) -> tuple[int, float, float] | None:
    """A difference between two evaluations that rounding does not explain.

    Arrays that are not finite in the model's own dtype are not compared.

    Args:
        own: list of arrays, in the model's own dtype.
        wide: the same arrays in float64.
        moved: lists like `own`, with weights and inputs changed by a rounding.
        shares: for each array, the part of its largest number by which it may
            always differ.

    Returns:
        The place of an array in the list, and two numbers of it that differ,
        or `None`.
    """
    for place, (a, b) in enumerate(zip(own, wide, strict=True)):
        others = np.array([m[place] for m in moved])
        if not (np.isfinite(a).all() and np.isfinite(others).all()):
            continue
        noise = np.max(abs(others - a), initial=0)
        size = np.max(abs(a), initial=0)
        apart = np.nan_to_num(abs(a - b), nan=np.inf)
        if np.any(apart > _AMPLIFIED * noise + shares[place] * size):
            worst = np.argmax(apart)
            return place, float(a.flat[worst]), float(b.flat[worst])
    return None
