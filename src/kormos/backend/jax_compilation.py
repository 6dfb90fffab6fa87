"""Compiles small programs with fewer of XLA's optimizations.

On a CPU, a first call spends most of its time in these optimizations. A program
that computes few numbers loses some microseconds without them, and is compiled
in a quarter to a half of the time.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Generic
from typing import NamedTuple
from typing import TypeVar

import jax
from jax.extend.core import ClosedJaxpr
from jax.extend.core import Jaxpr
from jax.extend.core import JaxprEqn

from kormos.types import Structure

_Result = TypeVar("_Result")

_NO_LIMIT = 2**62

# Functions that take many instructions for each number, by JAX's names.
_FUNCTIONS = (
    *("tanh", "logistic", "exp", "exp2", "expm1", "log", "log1p", "pow"),
    *("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh"),
    *("asinh", "acosh", "atanh", "erf", "erfc", "erf_inv", "lgamma", "digamma"),
    "cbrt",
)
# Operations that move numbers, multiply matrices or call other functions.
_MOVES = frozenset(
    [
        *("reshape", "broadcast_in_dim", "squeeze", "transpose", "concatenate"),
        *("slice", "dynamic_slice", "dynamic_update_slice", "pad", "copy"),
        *("gather", "scatter", "scatter-add", "dot_general", "while", "cond"),
        *("jit", "pjit", "custom_jvp_call", "custom_vjp_call"),
        "convert_element_type",
    ]
)


class Effort(NamedTuple):
    """How XLA compiles small programs.

    Attributes:
        most: the most numbers that such a program computes.
        level: the level of LLVM's optimizations, from 0 to 3, or `None` for
            that of XLA.
        arithmetic: the most of these numbers that are not moved or multiplied
            as matrices only.
        functions: the most of them that are values of functions such as `tanh`.
    """

    most: int
    level: int | None
    arithmetic: int = _NO_LIMIT
    functions: int = _NO_LIMIT

    @property
    def options(self) -> dict[str, int | bool]:
        """The options of `jax.jit`."""
        # XLA's newer generator of code for fused operations takes half of the
        # time of compiling.
        options: dict[str, int | bool] = {"xla_cpu_use_fusion_emitters": False}
        if self.level is not None:
            options["xla_backend_optimization_level"] = self.level
        return options

    def suits(self, program: Jaxpr | ClosedJaxpr) -> bool:
        """Whether a program computes few numbers."""
        counts = _numbers(program)
        functions = sum(counts[name] for name in _FUNCTIONS)
        arithmetic = sum(n for name, n in counts.items() if name not in _MOVES)
        return (
            counts.total() <= self.most
            and arithmetic <= self.arithmetic
            and functions <= self.functions
        )


# Our choices, from measurements of losses, Jacobians and loops. At level 0, a
# number takes up to 2 nanoseconds longer. For this many numbers, that is at
# most 8 microseconds, half of the time that a call takes anyway. At level 1, a
# call takes at most a fifth longer.
EFFORTS = Effort(2**12, level=0), Effort(2**16, level=1)

# At level 1, a loop is compiled in 2 seconds less. It loses as much only after
# about 50,000 iterations. The limit is higher than above because the matrices
# of `lbfgs` alone are 200,000 numbers.
#
# With all of LLVM's optimizations, but without the newer generator, a loop is
# compiled in half of the time, too. What it computes number by number is slower
# then: `tanh` by 2 nanoseconds, and arithmetic by a third of one. Within these
# limits, no loop that was measured took a tenth longer.
EFFORTS_FOR_LOOP = (
    Effort(2**12, level=0),
    Effort(2**18, level=1),
    Effort(_NO_LIMIT, level=None, arithmetic=2**20, functions=2**14),
)

# A function that is called once or twice loses at most 10 milliseconds a call.
EFFORTS_FOR_ONCE = (Effort(2**22, level=0),)


class Compiled(Generic[_Result]):
    """A function that JAX compiles, with an effort that suits its size.

    Args:
        fn: the function.
        efforts: how it is compiled if it is small, from the smallest size.
        donate: the places of the arguments whose memory it may use.
    """

    def __init__(
        self,
        fn: Callable[..., _Result],
        efforts: Sequence[Effort] = EFFORTS,
        donate: tuple[int, ...] = (),
    ) -> None:
        self._thorough = thorough = jax.jit(fn, donate_argnums=donate)

        def limited(effort: Effort) -> Callable[..., _Result]:
            @functools.wraps(fn)
            def of_few(*args: Structure) -> _Result:
                # JAX keeps this trace, so that each function is traced once.
                if not effort.suits(thorough.trace(*args).jaxpr):
                    raise _ManyNumbers
                return thorough(*args)

            return of_few

        self._quick = [
            jax.jit(
                limited(effort),
                donate_argnums=donate,
                compiler_options=effort.options,
            )
            for effort in efforts
            if _is_possible(effort)
        ]

    def __call__(self, *args: Structure) -> _Result:
        while self._quick:
            try:
                return self._quick[0](*args)
            except _ManyNumbers:
                # Later calls need not ask again.
                del self._quick[0]
            except ValueError:
                # JAX raises it inside of another trace, where no options can be
                # given. The function's own error is raised once more.
                break
        return self._thorough(*args)


class _ManyNumbers(Exception):
    """A program computes too many numbers for an effort."""


def _numbers(program: Jaxpr | ClosedJaxpr) -> Counter[str]:
    """The count of numbers that a program computes, by operation.

    The body of a loop counts once.
    """
    total: Counter[str] = Counter()
    for equation in program.eqns:
        for variable in equation.outvars:
            size = math.prod(getattr(variable.aval, "shape", ()))
            total[equation.primitive.name] += size
        for called in called_by(equation):
            total += _numbers(called)
    return total


def called_by(equation: JaxprEqn) -> Iterator[Jaxpr | ClosedJaxpr]:
    """Yields the functions that an operation calls, such as a loop's body."""
    for value in jax.tree.leaves(list(equation.params.values())):
        if isinstance(value, (Jaxpr, ClosedJaxpr)):
            yield value


@functools.cache
def _is_possible(effort: Effort) -> bool:
    """Whether programs run on a CPU and this release of JAX has the options."""
    if jax.default_backend() != "cpu":
        return False
    try:
        empty = jax.jit(lambda: 0, compiler_options=effort.options)
        empty.lower().compile()
    except Exception:
        return False
    return True
