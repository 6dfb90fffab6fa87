"""Fixtures of the tests of faults."""

import contextlib

import numpy as np
import pytest

from faults.models import loss


class Fault:
    """A fault that a test makes, and a check that the weights survive it.

    Args:
        record: function of a name and a value, for the table.
    """

    def __init__(self, record):
        self.record = record

    @contextlib.contextmanager
    def spares(self, model, x, y):
        """Asserts that the weights in it end finite and no worse."""
        before = loss(model, x, y)
        try:
            yield
        finally:
            after = loss(model, x, y)
            is_finite = all(np.isfinite(w).all() for w in model.get_weights())
            # If the loss is NaN or infinite at the start, no end is worse.
            is_worse = after > before * (1 + 1e-6) or (
                np.isnan(after) and not np.isnan(before)
            )
            if is_worse or not is_finite:
                self.record("lost", 1)
            assert is_finite
            assert not is_worse, f"{after} > {before}"


@pytest.fixture
def fault(request, record_property):
    record_property("fault", request.module.KIND)
    return Fault(record_property)


@pytest.fixture(autouse=True)
def calm(unconverged):
    """Fits here are meant to end at their iteration limit."""
