"""Checks of the arguments of `kormos.fit` that say how rows are used."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kormos.checks import check_count
from kormos.data.datasets import is_dataset
from kormos.data.datasets import needs_steps
from kormos.optimizers.stage import Stage


def check_batch_sizes(
    stages: Sequence[Stage],
    batch_size: int | None,
    validation_batch_size: int | None,
) -> None:
    """Refuses a batch size that is not a positive integer, or is missing.

    Args:
        stages: the stages of the fit.
        batch_size, validation_batch_size: see `kormos.fit`.

    Raises:
        ValueError: with what was expected.
    """
    for name, value in (
        ("batch_size", batch_size),
        ("validation_batch_size", validation_batch_size),
    ):
        if value is not None:
            check_count(name, value, 1)
    is_stochastic = any(s.uses_batches and not s.assigns for s in stages)
    if batch_size is None and is_stochastic:
        raise ValueError(
            "With `stochastic=True`, a step is taken on each batch of rows: "
            "pass `batch_size`. Received: batch_size=None"
        )


def check_steps(
    steps_per_epoch: int | None,
    validation_steps: int | None,
    validation_data: Any,
) -> None:
    """Refuses steps that are not positive integers, or that change nothing.

    Args:
        steps_per_epoch, validation_steps, validation_data: see `kormos.fit`.

    Raises:
        ValueError: with what was expected.
    """
    if validation_steps is not None and not needs_steps(validation_data):
        raise ValueError(
            "Validation uses all of its data: leave `validation_steps` out. "
            f"Received: validation_steps={validation_steps}"
        )
    for name, value in (
        ("steps_per_epoch", steps_per_epoch),
        ("validation_steps", validation_steps),
    ):
        if value is not None:
            check_count(name, value, 1)


def check_split(
    x: Any, validation_split: float, validation_data: Any, stream: bool
) -> None:
    """Refuses a share of the rows that cannot be set aside for validation.

    Args:
        x, validation_split, validation_data, stream: see `kormos.fit`.

    Raises:
        ValueError: with what was expected.
    """
    if not isinstance(validation_split, (int, float, np.number)):
        raise ValueError(
            "Argument `validation_split` must be a number: the share of the "
            "rows to validate on. "
            f"Received: validation_split={validation_split!r}"
        )
    if not validation_split:
        return
    if validation_data is not None:
        raise ValueError(
            "Give `validation_split` or `validation_data`, not both. "
            f"Received: validation_split={validation_split}"
        )
    if is_dataset(x) or stream:
        raise ValueError(
            "Argument `validation_split` can only split arrays in memory; "
            "pass `validation_data`. Received: "
            + ("stream=True" if stream else f"x of type {type(x).__name__}")
        )
