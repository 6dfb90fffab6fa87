"""Remembers and rejects points at which an evaluation raises an exception.

A user's numerics may fail away from the start: a matrix is no longer positive
definite, or a root is taken of a negative number. Some backends then return
NaN, others raise an exception. A method treats both as a step that was too
long.
"""

import collections
import os
import re
from collections.abc import Callable
from types import TracebackType
from typing import Any
from typing import TypeVar

import numpy as np

from kormos import backend
from kormos.backend.common import causes
from kormos.backend.common import quoted
from kormos.failures import NUMERICAL
from kormos.failures import OF_POINT
from kormos.failures import SharedFailure
from kormos.failures import severity_of
from kormos.solvers.protocols import GaussNewtonMatrix
from kormos.solvers.protocols import Squares
from kormos.types import Matrix
from kormos.types import Vector
from kormos.warn import place_of
from kormos.warn import warn_if_muted

# The names of nodes and operations that TensorFlow adds to an error.
_NODES = re.compile(r"\{\{.*?\}\}|\[\[.*?\]\]|\[Op:.*", re.DOTALL)
# The most characters of an exception that a message quotes.
_LONGEST = 160

Result = TypeVar("Result")


class Raised:
    """The exceptions that the evaluations of a fit have raised.

    Attributes:
        earlier: the evaluations of the fit before the present run.
        counts: the number of exceptions of each type, by its name.
        first: the first exception in words, or `None`.
        evaluation: the number of the evaluation that raised the first one.

    Usually only the first process warns. Another process still warns of its own
    first exception, because the others only learn that it failed.
    """

    def __init__(self) -> None:
        self.earlier = 0
        self.counts: collections.Counter[str] = collections.Counter()
        self.first: str | None = None
        self.evaluation: int | None = None
        self._is_told = False

    def note(self, error: Exception, evaluation: int) -> None:
        """Remembers an exception.

        Args:
            error: the exception.
            evaluation: the number of the evaluation in the present run.
        """
        # The original exception says more than the one that Keras made of it.
        numerical = [e for e in causes(error) if backend.is_numerical(e)]
        cause = numerical[-1] if numerical else error
        name = (quoted(cause) or type(cause).__name__).partition(":")[0]
        name = name.rpartition(".")[2].lstrip("_")
        self.counts[name] += 1
        place = _place(error.__traceback__)
        words = _in_words(cause) + (f" ({place})" if place else "")
        if self.first is None:
            self.evaluation = self.earlier + evaluation
            self.first = words
        if not (self._is_told or isinstance(error, SharedFailure)):
            self._is_told = True
            warn_if_muted(
                "All processes reject a point, because its evaluation has "
                f"raised {name} on this one: {words}"
            )

    def sentence(self) -> str:
        """Says what was raised, how often, and where and when first."""
        if self.first is None:
            return ""
        kinds = " and ".join(
            f"{name} once" if count == 1 else f"{name} {count} times"
            for name, count in self.counts.items()
        )
        if self.evaluation == 1:
            return (
                f"The evaluation raised {kinds}, first at the start: "
                f"{self.first}."
            )
        return (
            f"The evaluation raised {kinds}, at points that were not taken, "
            f"first at evaluation {self.evaluation}: {self.first}."
        )


def is_rejection(error: BaseException, has_worked: bool) -> bool:
    """Whether an exception means that a point cannot be evaluated.

    If it does not, it is an error in the user's code, which must be raised.
    Once a function has returned, nearly every exception comes from the point.
    Before that, only a failure of the numerics does; everything else may be a
    mistake in shapes or types, for example.

    Args:
        error: the exception.
        has_worked: whether the same function has returned before.
    """
    severity = severity_of(error)
    return severity == NUMERICAL or (has_worked and severity == OF_POINT)


def or_else(instead: Result, fn: Callable[..., Result], *args: Any) -> Result:
    """`fn(*args)`, or `instead` if the numerics fail."""
    try:
        return fn(*args)
    except Exception as error:
        if severity_of(error) != NUMERICAL:
            raise
        return instead


def _in_words(error: BaseException) -> str:
    """The text of an exception, in one line."""
    lines = [line.strip() for line in _NODES.sub("", str(error)).splitlines()]
    lines = [line for line in lines if line] or [type(error).__name__]
    # TensorFlow first says where in the graph it was, and what happened last.
    is_graph = lines[0].startswith("Graph execution error")
    text = quoted(error) or lines[-1 if is_graph else 0]
    text = text.rstrip(". :")
    if len(text) > _LONGEST:
        return text[:_LONGEST] + " ..."
    return text


def _place(trace: TracebackType | None) -> str | None:
    """File and line in the user's code, or `None` if they are not known."""
    place = place_of(trace)
    if place is None:
        return None
    file, line = place
    return f"{os.path.basename(file)}, line {line}"


class SafeGaussNewton:
    """A `GaussNewtonMatrix` that is NaN where an evaluation raises.

    Args:
        matrix: the matrix, which may raise.
        tried: function `(name, fn, instead, *args)`: see `Problem.tried`.
        size: the number of parameters.
    """

    def __init__(
        self, matrix: GaussNewtonMatrix, tried: Callable[..., Any], size: int
    ):
        self._matrix = matrix
        self._tried = tried
        self._size = size

    @property
    def can_bend(self) -> bool:
        return self._matrix.can_bend

    @property
    def outputs(self) -> int:
        return self._matrix.outputs

    @property
    def has_penalty(self) -> bool:
        return self._matrix.has_penalty

    def normal_equations(
        self, theta: Vector, keep: bool = False
    ) -> tuple[float, Vector, Matrix]:
        return self._try("normal_equations", self._system, theta, keep)

    def rows(
        self, theta: Vector, keep: bool = False
    ) -> tuple[float, Vector, Matrix]:
        return self._try("rows", self._row, theta, keep)

    def squares(self, theta: Vector) -> Squares | None:
        unknown = Squares(0, np.nan, np.nan, np.nan, np.nan)
        return self._try("squares", lambda: unknown, theta)

    def product(self, theta: Vector, vector: Vector) -> Vector:
        return self._try("product", self._vector, theta, vector)

    def bend(self, theta: Vector, vector: Vector) -> Vector:
        return self._try("bend", self._vector, theta, vector)

    def bend_of_rows(self, theta: Vector, vector: Vector) -> Vector | None:
        return self._try("bend_of_rows", lambda: None, theta, vector)

    def _try(self, name: str, instead: Callable[[], Any], *args: Any) -> Any:
        return self._tried(name, getattr(self._matrix, name), instead, *args)

    def _vector(self) -> Vector:
        return np.full(self._size, np.nan)

    def _row(self) -> tuple[float, Vector, Matrix]:
        return np.nan, self._vector(), self._vector()[None]

    def _system(self) -> tuple[float, Vector, Matrix]:
        return np.nan, self._vector(), np.full((self._size,) * 2, np.nan)
