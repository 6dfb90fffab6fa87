"""Compilation by XLA that takes as long as pays.

On a CPU, a first call spends most of its time in XLA's optimizations. A program
that computes only few numbers is as fast with fewer of them, and is compiled in
a quarter to a half of the time.
"""

import functools
import math
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


class Effort(NamedTuple):
    """How XLA compiles small programs.

    Attributes:
        most: the most numbers that such a program computes.
        level: the level of LLVM's optimizations, of 0 to 3.
    """

    most: int
    level: int

    @property
    def options(self) -> dict[str, int | bool]:
        """The options of `jax.jit`."""
        # The emitters of fused operations take half of the time of compiling.
        return {
            "xla_backend_optimization_level": self.level,
            "xla_cpu_use_fusion_emitters": False,
        }


# Our choices, by measurements of losses, Jacobians and loops. Without
# optimizations a number takes up to 2 nanoseconds longer: at most 8
# microseconds a call, half of what it takes to call a program. At level 1, a
# call takes at most a fifth longer.
EFFORTS = Effort(2**12, level=0), Effort(2**16, level=1)

# Compiling a loop takes 2 seconds less at level 1: as long as 50,000 iterations
# of so many numbers lose. The matrices of `lbfgs` alone are 200,000 numbers.
EFFORTS_FOR_LOOP = Effort(2**12, level=0), Effort(2**18, level=1)

# For a function that is called once or twice: at most 10 milliseconds longer.
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

        def limited(most: int) -> Callable[..., _Result]:
            @functools.wraps(fn)
            def of_few(*args: Structure) -> _Result:
                # JAX keeps this trace, so that each function is traced once.
                if _numbers(thorough.trace(*args).jaxpr.jaxpr) > most:
                    raise _ManyNumbers
                return thorough(*args)

            return of_few

        self._quick = [
            jax.jit(
                limited(effort.most),
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


def _numbers(program: Jaxpr) -> int:
    """How many numbers a program computes, each loop's body counted once."""
    total = 0
    for equation in program.eqns:
        for variable in equation.outvars:
            total += math.prod(getattr(variable.aval, "shape", ()))
        total += sum(map(_numbers, _called_by(equation)))
    return total


def _called_by(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Yields the functions that an operation calls: a loop's body, say."""
    for value in jax.tree.leaves(list(equation.params.values())):
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value


@functools.cache
def _is_possible(effort: Effort) -> bool:
    """Whether programs run on a CPU, and this JAX has the options."""
    if jax.default_backend() != "cpu":
        return False
    try:
        empty = jax.jit(lambda: 0, compiler_options=effort.options)
        empty.lower().compile()
    except Exception:
        return False
    return True
