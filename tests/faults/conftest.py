"""What every fault is asked for afterwards."""

import contextlib

import numpy as np
import pytest

from faults.models import loss


class Fault:
    """A fault that a test makes, and what it must leave alone.

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
            # Beside NaN or infinity at the start, anything is no worse.
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
    """Fits here end at their iteration limit, as they are meant to."""
