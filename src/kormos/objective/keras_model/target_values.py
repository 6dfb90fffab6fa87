"""The values that targets of a loss may have."""

from typing import NamedTuple

import keras
from keras import ops

from kormos import backend
from kormos.objective.keras_model.split_loss import is_of_keras
from kormos.types import Scalar
from kormos.types import Tensor

# Targets that exceed one by rounding are right.
_ROUNDING = 1e-6


class Limits(NamedTuple):
    """The values that the targets of a loss may have.

    Attributes:
        lowest: the lowest of them.
        highest: the highest of them.
        meaning: what they are, for messages.
        ignored: another value, of entries that the loss leaves out.
    """

    lowest: float
    highest: float
    meaning: str
    ignored: int | None = None

    def check(self, name: str, lowest: Scalar, highest: Scalar) -> None:
        """Refuses targets outside of the limits.

        Args:
            name: the name of the loss.
            lowest: the lowest target.
            highest: the highest target.

        Raises:
            ValueError: if one of the two is outside.
        """
        found = [float(backend.to_numpy(end)) for end in (lowest, highest)]
        if found[0] < self.lowest or found[1] > self.highest:
            raise ValueError(
                f"The targets of '{name}' must be {self.meaning}. "
                f"Received: targets from {found[0]:g} to {found[1]:g}"
            )


def limits_of(loss: keras.losses.Loss, outputs: Tensor) -> Limits | None:
    """The values that targets may have, or `None` if they may have any.

    Args:
        loss: the loss that compares the targets with the outputs.
        outputs: outputs of the model.
    """
    if not is_of_keras(loss) or not outputs.shape:
        return None
    name = getattr(getattr(loss, "fn", None), "__name__", "")
    options = getattr(loss, "_fn_kwargs", {})
    if name == "sparse_categorical_crossentropy":
        axis = options.get("axis", -1)
        if axis not in (-1, len(outputs.shape) - 1):
            return None
        classes = int(outputs.shape[-1])
        return Limits(
            0,
            classes - 1,
            f"classes from 0 to {classes - 1}, because the output has "
            f"{classes} entries for a target: pass `ignore_class` to the loss "
            "if another number marks targets to leave out",
            options.get("ignore_class"),
        )
    if options.get("label_smoothing"):
        return None
    if name in ("binary_crossentropy", "binary_focal_crossentropy"):
        return Limits(
            -_ROUNDING,
            1 + _ROUNDING,
            "from 0 to 1, because the loss has no minimum for others",
        )
    return None


def extremes(
    limits: Limits, targets: Tensor, sample_weight: Tensor | None
) -> tuple[Scalar, Scalar]:
    """The lowest and the highest target that counts.

    Args:
        limits: the values that the targets may have.
        targets: the targets.
        sample_weight: their weights, or `None`. A target of weight zero does
            not count.

    Returns:
        Two float64 scalar tensors.
    """
    values = ops.cast(targets, "float64")
    if 0 in values.shape:
        values = ops.zeros((1,), "float64")
    counts = ops.isfinite(values)
    if limits.ignored is not None:
        counts = ops.logical_and(counts, values != limits.ignored)
    if sample_weight is not None:
        weighted = _aligned(sample_weight != 0, tuple(values.shape))
        if weighted is not None:
            counts = ops.logical_and(counts, weighted)
    values = ops.where(counts, values, ops.zeros_like(values))
    return ops.min(values), ops.max(values)


def _aligned(weights: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Weights that broadcast to a shape, or `None` if they cannot."""
    own = tuple(weights.shape)
    while len(own) > 1 and own[-1] == 1 and own != shape[: len(own)]:
        own = own[:-1]
    if own != shape[: len(own)]:
        return None
    return ops.reshape(weights, own + (1,) * (len(shape) - len(own)))
