"""Whether float64 evaluates the function that the model's own dtype does."""

import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.data.variables import snapshot
from kormos.data.variables import wide_values
from kormos.float64.evaluation import Float64Error

# Rounding in every operation may change the results some ten times as much as
# a rounding of the weights and inputs does, or more.
_AMPLIFIED = 30
_PLACES = 3

# Clipping the logarithm of a saturated output may change the loss by this part.
_CLIPPED = 0.05


class Agreement:
    """A model's outputs and its loss in its own arithmetic, to compare with.

    Args:
        model_loss: the `ModelLoss`, still in its own arithmetic.
        head: the first rows, a `Data` of tensors in its dtype.
        compile: function that compiles a function.
    """

    def __init__(self, model_loss, head, compile):
        self._model_loss = model_loss
        self._compile = compile
        self._frozen = snapshot(model_loss.frozen_variables)
        parts = snapshot(model_loss.variables)
        outputs = compile(self._outputs)
        self._own = self._evaluated(outputs, parts, head)
        # Rounding inside a layer does not show when weights and inputs move.
        self._share = model_loss.epsilon**0.4
        self._moved = []
        rng = np.random.default_rng(0)

        def move(tensor):
            array = ops.convert_to_numpy(tensor)
            if array.dtype.kind != "f":
                return tensor
            signs = rng.choice([-1.0, 1.0], size=array.shape)
            moved = array * (1 + model_loss.epsilon * signs)
            return ops.cast(moved, tensor.dtype)

        for _ in range(_PLACES):
            place = [move(part) for part in parts]
            x = tree.map_structure(move, head.x)
            moved = self._evaluated(outputs, place, head._replace(x=x))
            self._moved.append(moved)

    def check(self, head):
        """Refuses a model that is another function in float64.

        Args:
            head: the first rows in float64.

        Raises:
            Float64Error: if an output differs by more than rounding explains.
        """
        # Compiled anew: the arithmetic is no argument.
        outputs = self._compile(lambda *args: self._outputs(*args))
        parts = wide_values(self._model_loss.variables)
        wide = self._evaluated(outputs, parts, head)
        results = [self._own, wide, *self._moved]
        if not all(results):
            return  # Where the numerics fail, nothing can be compared.
        shares = [*[self._share] * (len(wide) - 1), _CLIPPED]
        difference = disagreement(self._own, wide, self._moved, shares)
        if difference is None:
            return
        place, own, other = difference
        name = "the loss" if place == len(wide) - 1 else "an output"
        raise Float64Error(
            "In float64 (`precision`), a model must be the function that it is "
            "in its own dtype, to rounding: leave `precision` out, or take "
            "code that depends on the dtype out of the model. Received: "
            f"{name} that is {own:.6g} there and {other:.6g} in float64"
        )

    def _outputs(self, parts, frozen, x, y, w):
        """The outputs and the loss, in the arithmetic of the moment."""
        loss = self._model_loss
        with loss.scope(parts, frozen):
            y_pred = loss.predict(x)
            term_factors = ops.ones(
                (len(loss.term_weights) + 1,), dtype="float64"
            )
            total = loss.loss_of(x, y, y_pred, w, term_factors)
            return [*tree.flatten(y_pred), total]

    def _evaluated(self, outputs, parts, head):
        """What `outputs` returns, or `None` where the numerics fail."""
        try:
            with backend.wide():
                values = outputs(parts, self._frozen, *head)
        except Exception as error:
            if not backend.is_numerical(error):
                raise
            return None
        return [np.asarray(ops.convert_to_numpy(v), "float64") for v in values]


def disagreement(own, wide, moved, shares):
    """What rounding does not explain between two evaluations.

    Args:
        own: list of arrays, in the model's own arithmetic.
        wide: the same in float64.
        moved: lists of arrays, as `own`, at places a rounding away.
        shares: by which part of the largest number each may differ anyway.

    Returns:
        The place in the list and two numbers that differ, or `None`. What is
        not finite in the own arithmetic is not compared.
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
