"""Fits in a row: nothing is compiled again, and nothing is kept."""

import gc
import os
import pathlib

import pytest

import kormos
from faults.models import FAMILIES
from faults.models import data
from faults.models import shared
from native import compilations

KIND = "fits in a row"

# Before that, the allocator still takes memory from the system.
WARM_UP, FITS = 60, 50


def resident_bytes():
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("method", FAMILIES)
def test_fifty_fits(method, fault):
    model, (x, y) = shared(method), data()
    weights = model.get_weights()
    for i in range(WARM_UP + FITS):
        model.set_weights(weights)
        with fault.spares(model, x, y):
            history = model.fit(x, y, epochs=3, verbose=0)
        if i == 0:
            losses = history.history["loss"]
        assert history.history["loss"] == losses
        if i == WARM_UP:
            program = kormos.Objective(model, x, y).program
            compiled = compilations(program)
            gc.collect()
            before = resident_bytes()
    gc.collect()
    grown = resident_bytes() - before
    assert kormos.Objective(model, x, y).program is program
    assert compilations(program) == compiled
    assert grown < 4 * 2**20, f"{grown / 2**20:.1f} MB"
