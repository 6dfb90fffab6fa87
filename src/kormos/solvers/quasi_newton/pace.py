"""How much work a call of the compiled loop is given."""

import math
import time

# No limit of iterations or evaluations, as an int32.
NO_LIMIT = 2**31 - 1

# A call lasts about this many seconds, unless one iteration takes longer, and
# makes at most the second number times the iterations of the call before. Our
# choice: interrupts and the progress line wait for the end of a call.
_CALL, _LONGER = 0.1, 8
# A call also costs time besides its iterations: TensorFlow copies the whole
# state. The iterations take at least this many times as long, and calls last
# longer for that if necessary. Our choice.
_OF_ITERATIONS = 4
# The time that a call costs shows in a call of two iterations. It is made if
# one iteration takes less than this many seconds. Our choice.
_SHORT = 0.5


class Pace:
    """The number of evaluations that fit into the time that is left.

    A compiled call cannot look at the clock. So calls become shorter towards
    the deadline, and the last one makes a single evaluation.

    Args:
        deadline: the time by `time.perf_counter` at which it ends, or `None`.
    """

    def __init__(self, deadline: float | None):
        self._deadline = deadline
        self._began = 0.0
        self._seconds = math.inf
        self._calls = 0

    def affordable(self) -> int:
        """The number of evaluations of the call that begins now."""
        if self._deadline is None:
            return NO_LIMIT
        self._began = time.perf_counter()
        # The first call compiles: its time says nothing.
        if self._calls < 2:
            return 1
        left = self._deadline - self._began
        return max(1, int(min(left / (2 * self._seconds), NO_LIMIT)))

    def note(self, evaluations: int) -> None:
        """Notes how many evaluations the call has made that ends now."""
        if self._deadline is not None:
            seconds = time.perf_counter() - self._began
            self._seconds = min(self._seconds, seconds / evaluations)
            self._calls += 1


class Burst:
    """The number of iterations of a call, short enough for interrupts.

    Attributes:
        count: the number for the next call.
    """

    def __init__(self) -> None:
        self.count = 1
        self._calls = 0
        self._shortest = 0, math.inf
        self._overhead = 0.0

    def note(self, iterations: int, seconds: float) -> None:
        """Notes how many iterations a call has made, and how long it took."""
        self._calls += 1
        # The first call compiles: its time says nothing.
        if self._calls < 2 or iterations == 0:
            return
        if seconds < self._shortest[1]:
            self._shortest = iterations, seconds
        fewer, least = self._shortest
        if iterations > fewer:
            each = (seconds - least) / (iterations - fewer)
            self._overhead = max(0.0, least - each * fewer)
        overhead = self._overhead
        each = max(seconds - overhead, 1e-9) / iterations
        fitting = max(_CALL - overhead, _OF_ITERATIONS * overhead) / each
        if iterations == 1 and seconds < _SHORT:
            fitting = max(fitting, 2)
        self.count = max(1, min(round(fitting), _LONGER * self.count))
