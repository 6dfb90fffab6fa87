"""A run of limited memory, which changes the units of badly scaled parameters.

A few pairs cannot learn that each parameter has its own scale. The changes of
the gradient show it after some hundred iterations.
"""

import numpy as np

from kormos.arithmetic.vectors import to_array
from kormos.solvers.parameter_units import units_of
from kormos.solvers.quasi_newton.loop import QuasiNewtonRun

# The units are looked at after this many iterations, and each time their number
# has doubled. Our choice: a run that is as long has problems with its scale, or
# can afford to learn its curvature anew.
_FIRST = 500
# They change if half of the parameters have units that differ by more than this
# power of two. Our choice: those of networks differ by less, and their runs
# would only lose what they have learned.
_FAR = 4


class LimitedMemoryRun(QuasiNewtonRun):
    """One run, as `QuasiNewtonRun`."""

    _looked_at = 0

    def _next_goal(self, first: int) -> int:
        done = int(self._state.iterations)
        return min(super()._next_goal(first), _look_after(done))

    def _advance(self) -> bool:
        done = int(self._state.iterations)
        is_due = done and _look_after(done - 1) == done
        if is_due and done != self._looked_at and not self._is_in_trial:
            self._looked_at = done
            self._change_units()
        return super()._advance()

    def _change_units(self) -> None:
        """Begins anew in other units, if these differ enough.

        Within bounds it does not: the gradient may hardly change where a
        parameter is held, which says nothing about its scale.
        """
        if self._problem.is_bounded:
            return
        units = units_of(to_array(self._state.spread))
        powers = np.log2(units / to_array(self._state.units))
        if np.median(np.abs(powers - np.median(powers))) >= _FAR:
            self._loop.begin_anew(to_array(self._state.theta), units)
            self._call()


def _look_after(iterations: int) -> int:
    """The count of iterations at which the units are looked at next."""
    count = _FIRST
    while count <= iterations:
        count *= 2
    return count
