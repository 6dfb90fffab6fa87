"""Points at which an evaluation raises: rejected, and remembered.

A user's numerics may fail away from where they began: a matrix is no longer
positive definite, a root is taken of a negative number. On some backends that
is NaN, on others an exception; to a method both are a step too long.
"""

import collections
import os
import re
import traceback

import numpy as np

from kormos import backend
from kormos.backend.common import causes
from kormos.warn import place_of

# What TensorFlow puts around an error: names of nodes and of operations.
_NODES = re.compile(r"\{\{.*?\}\}|\[\[.*?\]\]|\[Op:.*", re.DOTALL)
_LONGEST = 160


class Raised:
    """What the evaluations of a fit raised.

    Attributes:
        earlier: the evaluations of the fit before the present run.
        counts: how often exceptions of each type, by name.
        first: the first exception in words, or `None`.
        evaluation: the number of the evaluation that raised it.
    """

    def __init__(self):
        self.earlier = 0
        self.counts = collections.Counter()
        self.first = self.evaluation = None

    def note(self, error, evaluation):
        """Remembers an exception.

        Args:
            error: the exception.
            evaluation: the number of the evaluation in the present run.
        """
        # What was raised first says more than what Keras made of it.
        numerical = [e for e in causes(error) if backend.is_numerical(e)]
        cause = numerical[-1] if numerical else error
        self.counts[type(cause).__name__.lstrip("_")] += 1
        if self.first is None:
            self.evaluation = self.earlier + evaluation
            place = _place(error)
            self.first = _in_words(cause) + (f" ({place})" if place else "")

    def sentence(self):
        """What was raised, how often, when first and where."""
        if self.first is None:
            return ""
        kinds = " and ".join(
            f"{name} once" if count == 1 else f"{name} {count} times"
            for name, count in self.counts.items()
        )
        if self.evaluation == 1:
            return (
                f"The evaluation raised {kinds}, at the start first: "
                f"{self.first}."
            )
        return (
            f"The evaluation raised {kinds}, at points that were not taken, "
            f"first at evaluation {self.evaluation}: {self.first}."
        )


def is_rejection(error, has_worked):
    """Whether an exception says that a point cannot be evaluated.

    Before an evaluation has worked for once, a failure of the numerics does,
    and everything else is an error to be raised: of shapes or types, say.

    Args:
        error: the exception.
        has_worked: whether the same function has returned before.
    """
    if not (has_worked or backend.is_numerical(error)):
        return False
    frames = traceback.walk_tb(error.__traceback__)
    modules = [frame.f_globals.get("__name__", "") for frame, _ in frames]
    if "kormos.objective.streaming" in modules:
        return False  # Data cannot be read.
    # What kormos itself refuses.
    is_own = modules and modules[-1].startswith("kormos.")
    return not (is_own and isinstance(error, ValueError))


def or_else(instead, fn, *args):
    """`fn(*args)`, or `instead` where the numerics fail."""
    try:
        return fn(*args)
    except Exception as error:
        if not backend.is_numerical(error):
            raise
        return instead


def _in_words(error):
    """The text of an exception, in one line."""
    lines = [line.strip() for line in _NODES.sub("", str(error)).splitlines()]
    lines = [line for line in lines if line] or [type(error).__name__]
    # TensorFlow says last what happened, after where in the graph it was.
    is_graph = lines[0].startswith("Graph execution error")
    text = lines[-1 if is_graph else 0].rstrip(". :")
    if len(text) > _LONGEST:
        return text[:_LONGEST] + " ..."
    return text


def _place(error):
    """File and line in the user's code, or `None` if they are not known."""
    place = place_of(error.__traceback__)
    if place is None:
        return None
    file, line = place
    return f"{os.path.basename(file)}, line {line}"


class SafeGaussNewton:
    """A `HostGaussNewton` with NaN where an evaluation raises.

    Args:
        matrix: the `HostGaussNewton`.
        tried: function `(name, fn, instead, *args)`, as `Problem.tried`.
        size: the number of parameters.
    """

    def __init__(self, matrix, tried, size):
        self._matrix = matrix
        self._tried = tried
        self._size = size

    @property
    def outputs(self):
        return self._matrix.outputs

    @property
    def has_penalty(self):
        return self._matrix.has_penalty

    def normal_equations(self, theta, keep=False):
        return self._try("normal_equations", self._system, theta, keep)

    def rows(self, theta, keep=False):
        return self._try("rows", self._row, theta, keep)

    def product(self, theta, vector):
        return self._try("product", self._vector, theta, vector)

    def bend(self, theta, vector):
        return self._try("bend", self._vector, theta, vector)

    def _try(self, name, instead, *args):
        return self._tried(name, getattr(self._matrix, name), instead, *args)

    def _vector(self):
        return np.full(self._size, np.nan)

    def _row(self):
        return np.nan, self._vector(), self._vector()[None]

    def _system(self):
        return np.nan, self._vector(), np.full((self._size,) * 2, np.nan)
