"""The compiled loop of the quasi-Newton methods: its calls and its state."""

import functools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np

from kormos.arithmetic.scalars import is_eager
from kormos.arithmetic.vectors import to_array
from kormos.backend import ops
from kormos.backend.common import as_tensor
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Method
from kormos.solvers.quasi_newton import state as states
from kormos.solvers.quasi_newton import step
from kormos.solvers.quasi_newton import wolfe_search
from kormos.solvers.quasi_newton.arrival import Evaluation
from kormos.solvers.quasi_newton.flat_state import Packed
from kormos.solvers.quasi_newton.flat_state import on_host
from kormos.solvers.quasi_newton.flat_state import pack
from kormos.solvers.quasi_newton.flat_state import skeleton
from kormos.solvers.quasi_newton.flat_state import unpack
from kormos.solvers.quasi_newton.region import Box
from kormos.solvers.quasi_newton.region import Everywhere
from kormos.solvers.quasi_newton.region import Region
from kormos.solvers.quasi_newton.state import State
from kormos.solvers.rejections import is_rejection
from kormos.types import Array
from kormos.types import Tensor
from kormos.types import Vector

# A state of more bytes than this is not copied before its memory is cleared.
# Our choice: a copy takes the same memory again, and only saves a later run
# from learning the curvature again.
_MOST_COPIED = 2**28

# After the memory is cleared, this many searches begin with a probe. Our
# choice: one probe is not enough, because a stiff direction hides the curvature
# along others; each probe takes an evaluation.
_PROBES = 4


class CompiledLoop:
    """The state of a run, and the compiled function that advances it.

    Args:
        curvature: the formulas of the curvature.
        problem: the problem.
        state: the state to begin from, of NumPy arrays.

    Attributes:
        state: the present state, with NumPy scalars.
        is_stepped: whether evaluations are made outside of the compiled
            function. A call then ends where it needs an evaluation, and the
            next call receives the result.
    """

    is_stepped: bool
    _advance: Callable[..., Packed]
    _arguments_at: Callable[[State], Any]

    def __init__(self, curvature: Method, problem: Problem, state: State):
        self._curvature = curvature
        self._problem = problem
        self._box = problem.box if problem.is_bounded else ()
        self._frame = skeleton(state)
        self._packed = pack(state)
        self.state: State = state
        self._has_run = False
        self._compile(problem.objective.is_hosted)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the state's rows."""
        return states.BOUNDED_ROW if self._box else states.ROW

    def advance(
        self, tolerances: tuple[float, ...], evaluations: int, iterations: int
    ) -> None:
        """Iterates until the run may have ended, or a count is reached.

        Args:
            tolerances: the first five of `state.Limits`.
            evaluations: the count of evaluations that ends the call.
            iterations: the count of iterations that ends the call.
        """
        counts = np.array([evaluations, iterations], "int32")
        try:
            state, packed = self._called(tolerances, counts)
        except Exception as error:
            is_rejected = is_rejection(error, self._has_run)
            if self.is_stepped or not is_rejected or self._is_used_up:
                raise
            # A compiled function fails as a whole. From now on evaluations are
            # made outside of it.
            self._compile(is_stepped=True)
            counts[0] = self.state.evaluations + 1
            state, packed = self._called(tolerances, counts)
        self._has_run = True
        self._set(state, packed)

    def _called(
        self, tolerances: tuple[float, ...], counts: Array
    ) -> tuple[State, Packed]:
        arguments = self._arguments_at(self.state)
        packed = self._advance(
            self._packed, np.array(tolerances), counts, *self._box, *arguments
        )
        # JAX computes asynchronously, and raises an error when the result is
        # read.
        return unpack(on_host(packed), self._frame), packed

    @property
    def _is_used_up(self) -> bool:
        """Whether JAX has donated the state's memory to a call that failed."""
        arrays = self._packed.arrays
        return any(a.is_deleted() for a in arrays if hasattr(a, "is_deleted"))

    def replace(self, **fields: Any) -> None:
        """Replaces fields of the state."""
        self._set(self.state._replace(**fields))

    def restore(self, kept: State) -> None:
        """Makes an earlier state, by `copy`, the present one."""
        self._set(kept)

    def begin_anew(self, theta: Vector, units: Vector) -> None:
        """Makes a point the start of a run with a cleared memory.

        Args:
            theta: the point, `(size,)`.
            units: the units of the parameters, `(size,)`.
        """
        self.replace(
            theta=theta,
            # Zero, because the start is `theta` plus zero times this.
            direction=np.zeros_like(theta),
            status=np.int32(states.STARTING),
            is_anew=np.int32(1),
            probes=np.int32(_PROBES),
            units=units,
            resets=np.int32(self.state.resets + 1),
            pairs=np.int32(0),
            stalled=np.int32(0),
        )

    def search_again(self, kept: State) -> None:
        """Searches again along the direction of an earlier state.

        Args:
            kept: the state, by `copy`.
        """
        slope = kept.search.start.slope
        again = wolfe_search.begin(kept.loss, slope, np.float64(1.0))
        self._set(
            kept._replace(
                search=again,
                status=np.int32(states.RUNNING),
                stalled=np.int32(0),
                evaluations=self.state.evaluations,
            )
        )

    def evaluate(self, theta: Vector) -> tuple[float, Vector]:
        """Loss and gradient at another point, which becomes the state's."""
        self.replace(
            theta=theta,
            # Zero, because the start is `theta` plus zero times this.
            direction=np.zeros_like(theta),
            status=np.int32(states.STARTING),
            is_anew=np.int32(1),
        )
        tolerances = (0.0, 0.0, 0.0, 2.0**-52, -np.inf)
        state = self.state
        self.advance(
            tolerances, int(state.evaluations) + 1, int(state.iterations)
        )
        return float(self.state.loss), to_array(self.state.grad)

    def value(self, theta: Vector) -> float:
        """The loss at another point, which becomes the state's."""
        return self.evaluate(theta)[0]

    def copy(self) -> State | None:
        """A copy of the state, or `None` if it is large."""
        arrays = self._packed.arrays
        if sum(8 * np.prod(a.shape) for a in arrays) > _MOST_COPIED:
            return None
        copies = [ops.copy(as_tensor(a)) for a in arrays]
        packed = on_host(self._packed)._replace(arrays=copies)
        return unpack(packed, self._frame)

    def _set(self, state: State, packed: Packed | None = None) -> None:
        self.state = state
        self._packed = pack(state) if packed is None else packed

    def _compile(self, is_stepped: bool) -> None:
        """Compiles the loop, once for an objective and a curvature."""
        self.is_stepped = is_stepped
        problem, frame = self._problem, self._frame
        curvature, sides = self._curvature, len(self._box)
        functions: Sequence[Callable[..., Any]]
        if is_stepped:
            functions, self._arguments_at = self._outside()
        else:
            functions, arguments = self._functions()
            self._arguments_at = lambda state: arguments

        on = self._on
        tried: list[Callable[..., Any]]
        tried = [problem.tried_tensors, problem.tried_hvp]

        def advance(
            packed: Packed, tolerances: Tensor, counts: Tensor, *args: Any
        ) -> Packed:
            state = unpack(packed, frame)
            made = functions
            if is_eager(state.loss):
                pairs = zip(tried, functions, strict=False)
                made = [functools.partial(safe, fn) for safe, fn in pairs]
            state = on(
                curvature,
                _region(args[:sides]),
                [
                    lambda *at, fn=fn: fn(*at, *args[sides:])  # type: ignore[misc]
                    for fn in made
                ],
                states.Limits._make(
                    [*(tolerances[i] for i in range(5)), counts[0], counts[1]]
                ),
                state,
            )
            return pack(state)

        key = curvature.key, is_stepped, sides
        self._advance = problem.objective.compiled_loop(key, advance)

    def _functions(self) -> tuple[Sequence[Callable[..., Any]], Any]:
        """The functions of `(theta, ..., *arguments)` that a pass calls.

        Returns:
            The functions, beginning with that of loss and gradient, and the
            arguments.
        """
        value_and_grad, arguments = self._problem.objective.traceable()
        return (value_and_grad,), arguments

    def _outside(
        self,
    ) -> tuple[Sequence[Callable[..., Any]], Callable[[State], Any]]:
        """The same for evaluations that are made outside of the compiled pass.

        Returns:
            The functions, and a function that makes their arguments from a
            state.
        """
        return (_as_given,), functools.partial(_evaluated, self._problem)

    # A static method, because the compiled function outlives the loop.
    @staticmethod
    def _on(
        curvature: Any,
        region: Region,
        functions: Sequence[Callable[..., Any]],
        limits: states.Limits,
        state: State,
    ) -> State:
        """The state after a call, as a function of tensors."""

        def evaluate(theta: Tensor) -> Evaluation:
            found = functions[0](theta)
            if isinstance(found, Evaluation):
                return found
            return Evaluation(theta, *found)

        return step.advance(curvature, region, evaluate, limits, state)


def _region(sides: tuple[Tensor, ...]) -> Region:
    """The region within the bounds; everywhere without bounds."""
    return Box(*map(as_tensor, sides)) if sides else Everywhere()


def _as_given(theta: Tensor, *found: Tensor) -> Evaluation:
    """The point that was evaluated outside, and the result.

    A compiled function may round `theta` differently, to a point at which the
    loss was not evaluated.
    """
    del theta
    return Evaluation(*found)


def _evaluated(problem: Problem, state: State) -> tuple[Tensor, ...]:
    """The evaluation that a state waits for, as tensors."""
    # Both become NumPy arrays: in a state from a file, only some of the vectors
    # are tensors.
    state = state._replace(
        theta=to_array(state.theta), direction=to_array(state.direction)
    )
    trial = step.trial_of(state, state.status == states.STARTING)
    point = problem.project(trial)
    loss, grad = problem.evaluate(point)
    found = [np.array(point), np.array(loss), grad]
    return tuple(map(as_tensor, found))
