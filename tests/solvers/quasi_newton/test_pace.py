"""The iterations of a call follow from what calls and iterations cost."""

import pytest

from kormos.solvers.quasi_newton.pace import Burst


def counts(call, iteration, calls=12):
    """The iterations of each call, from the seconds of a call and of each."""
    burst, found = Burst(), []
    for _ in range(calls):
        found.append(burst.count)
        burst.note(burst.count, call + iteration * burst.count)
    return found


def test_calls_that_cost_nothing_last_a_tenth_of_a_second():
    assert counts(0.0, 0.01)[-1] == 10
    # Even one iteration takes longer.
    assert counts(0.0, 0.7)[-1] == 1


@pytest.mark.parametrize("call", [0.04, 0.2])
def test_calls_that_cost_more_than_an_iteration_are_longer(call):
    """The calls take about a fifth of the time, and iterations the rest."""
    count = counts(call, 0.02)[-1]
    assert 0.19 <= call / (call + 0.02 * count) <= 0.21


def test_the_first_calls_are_short():
    """The first one compiles, and the others show what iterations cost."""
    assert counts(0.0, 1e-6)[:5] == [1, 1, 8, 64, 512]
    assert counts(0.2, 0.02)[:4] == [1, 1, 2, 16]
