"""Levenberg and Marquardt's method with geodesic acceleration.

References: Moré, The Levenberg-Marquardt algorithm: implementation and theory
(1978), and its code, `lmder` of MINPACK, for the scale and the trust radius;
Transtrum and Sethna, arXiv:1201.5885, for the acceleration; Dennis, Gay and
Welsch, ACM TOMS 7(3), 1981, for large residuals.

Differs from them in:

1. the matrix is the generalized Gauss-Newton matrix J'HJ of any smooth loss;
   for a sum of squares this is J'J;
2. one factorization per accepted point, an eigenvalue decomposition, serves
   every radius for up to 1,000 rows or parameters, whichever are fewer. Beyond
   that, each damping takes a Cholesky factorization. The first radius is the
   scaled length of the parameters, not 100 times that, and it changes in
   smaller steps;
3. a step whose acceleration is longer than three quarters of the step is
   shortened twice, and then taken without acceleration;
4. the tests of convergence are relative: on the decrease of the loss that the
   undamped step predicts (the relative offset of Bates and Watts), and on the
   decrease over three iterations in a row;
5. a run in float64 ends with undamped steps, as long as these contract, to
   gain digits that the loss no longer shows;
6. a run with expensive steps begins with L-BFGS (`beginning.py`);
7. within bounds, parameters that the gradient presses against one are held,
   and trial points are projected (Kanzow, Yamashita and Fukushima 2004);
8. for few parameters, a secant term stands for the second derivatives of large
   residuals where it predicts decreases better than J'HJ alone
   (`secant_term.py`);
9. where J is singular at an end, the run goes on if the Hessian is negative
   there (`solvers/saddle.py`).
"""

from typing import Any

import keras
import numpy as np

from kormos.free_memory import check_square
from kormos.optimizers.lbfgs import LBFGS
from kormos.optimizers.native import NativeOptimizer
from kormos.optimizers.newton import GaussNewton
from kormos.optimizers.stage import Stage
from kormos.solvers import statuses
from kormos.solvers.least_squares import batches
from kormos.solvers.least_squares import beginning
from kormos.solvers.least_squares.evidence_loop import EvidenceRun
from kormos.solvers.least_squares.evidence_records import KEY as EVIDENCE
from kormos.solvers.least_squares.local_models import MATRICES
from kormos.solvers.least_squares.local_models import takes_products
from kormos.solvers.least_squares.loop import KEY as FACTORED
from kormos.solvers.least_squares.loop import LeastSquaresRun
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Observer
from kormos.solvers.solver_state import SolverState
from kormos.types import Vector

_PRESETS = (None, "matlab")
# Statuses of the beginning with L-BFGS that also end the run.
_ENDS = (
    statuses.NON_FINITE,
    statuses.EVALUATION_LIMIT,
    statuses.TIME_LIMIT,
)

_SOLVERS = ("auto", "rows", "dense", "cg")
_REGULARIZATIONS = (None, "evidence", "evidence-by-variable")


@keras.saving.register_keras_serializable(package="kormos")
class LevenbergMarquardt(NativeOptimizer):
    """Levenberg-Marquardt with geodesic acceleration, for least squares.

    It is recommended for networks of up to a few thousand parameters whose loss
    is a mean squared error, or another smooth loss of the outputs:
    cross-entropies, Poisson, Huber, log-cosh, robust losses. No step raises the
    loss on the whole of the data, except that the last steps in float64 may
    raise it by its rounding error.

    The solver computes in float64, and the model in its own dtype. For at most
    64 parameters, changes of the gradient from step to step tell what large
    residuals add to the Hessian. Steps take it into account where that has
    predicted the loss better; these are not accelerated.

    Sources: Moré (1978), and `lmder` of MINPACK, for the scale and the trust
    radius; Transtrum and Sethna, arXiv:1201.5885, for the acceleration; NL2SOL
    (Dennis, Gay and Welsch, ACM TOMS 7(3), 1981) for large residuals; Kanzow,
    Yamashita and Fukushima (2004) for bounds.

    Args:
        name: String, the name of the optimizer.
        epochs: Integer, the number of epochs of a `fit` without `epochs`.
            Defaults to 20.
        batch_size: Integer, the largest number of rows that are evaluated at
            the same time in a `fit` without `batch_size`.
        pretrain_fn: Function of the model that is called before the fit starts,
            for example to freeze layers.
        gtol: Float. The fit has converged when the decrease of the loss that
            the undamped step predicts is at most `gtol` times the loss.
            Defaults to 1e-15.
        ftol: Float. The fit has converged when three iterations in a row have
            lowered the loss by at most `ftol` times the loss. Defaults to
            1e-14. If that is below the rounding error of the loss, the fit ends
            at the noise floor instead.
        xtol: Float. The fit has converged when the length of a step is at most
            `xtol` times the length of the parameters. Defaults to 0, which
            turns this test off.
        bounds: Bounds of the variables. See `BatchOptimizer`.
        acceleration: Boolean, whether to add half the geodesic acceleration to
            a step. It costs about two gradients per step, and on a CPU it keeps
            the Jacobian J if that takes up to 256 MB. Conjugate gradients go
            without it. Defaults to `True`.
        preset: `"matlab"` for the damping rule of MATLAB's `trainlm` instead of
            the trust radius: mu starts at 1e-3, is multiplied by 10 or 0.1, and
            is at most 1e10; there is no scaling and no acceleration. mu is
            added to J'J of the errors, for a mean squared error without
            weights; for other losses it has another unit. Defaults to `None`.
        linear_solver: `"rows"` keeps J and factorizes it, or JJ' if there are
            fewer rows than parameters. `"dense"` accumulates J'J over chunks of
            rows. `"cg"` is `GaussNewton`, which needs no matrix; for 16
            parameters or fewer it is the same as `"dense"`. Its History has no
            `damping` and `trials`, and it keeps 336 bytes per parameter for
            `resume=True`. `"auto"`, the default, chooses by memory, and the
            result names the choice. With `"auto"`, without bounds, and with at
            least 1,000 rows or parameters, whichever are fewer, a run begins
            with L-BFGS for as long as that lowers the loss faster, unless
            `epochs` or `max_iterations` is less than 20 for each hundred of
            these. `damping` and `radius` of such iterations are NaN.
        stochastic: Boolean, whether to take one step on each batch of
            `batch_size` rows. An epoch is then a pass over the data in a new
            order, and the damping is carried from batch to batch. The loss on
            all of the data may rise, and no test of convergence ends a fit.
            Defaults to `False`.
        regularization: `"evidence"` for a penalty on the squares of all
            parameters, whose weight is estimated from the data (see below).
            `"evidence-by-variable"` for one such weight per variable. Defaults
            to `None`.
        keep_state: Where the scale, the damping and the radius, 16 bytes per
            parameter, are kept for `resume=True`, and for at most 64 parameters
            a matrix. `None` keeps them in memory and in the backups of
            `BackupAndRestore`, `True` in saved models too, `False` nowhere.
            Defaults to `None`.

    With `regularization="evidence"` the method minimizes

        F = beta E_D + alpha E_W

    with the sum of squared errors E_D and the sum of squares of all parameters
    E_W. The errors then have the variance 1 / (2 beta), and the parameters,
    before any data are seen, the variance 1 / (2 alpha). alpha and beta are
    estimated again at each iterate, so that they finally maximize the
    probability density of the data (MacKay 1992; Foresee and Hagan 1997;
    MATLAB's `trainbr`, whose damping is available as `preset="matlab"`).
    Sample and loss weights count relative to their mean. The loss must be a sum
    or a mean of squared errors, without other regularizers and without bounds.

    `loss` is still the loss without the penalty, and may rise. The History has
    the additional columns `alpha`, `beta`, `effective_parameters` (how many
    parameters the data determine), `log_evidence` (the logarithm of the
    density) and `regularized_loss` (F in the unit of the loss, which is the
    loss plus alpha / beta E_W). All of them use the weights alpha and beta of
    the step to that point. `"evidence-by-variable"` adds `alpha/<path>` and
    `effective_parameters/<path>` for each variable. `grad` is the gradient norm
    of the regularized loss. The fit has converged when neither a step nor a new
    estimate changes anything.

    Raises:
        ValueError: If an argument cannot be used.

    Example:

    ```python
    model.compile(optimizer=kormos.optimizers.LevenbergMarquardt(), loss="mse")
    history = model.fit(x, y, epochs=100)
    ```
    """

    uses_jacobian = True

    def __init__(
        self,
        name: str = "lm",
        epochs: int | None = None,
        batch_size: int | None = None,
        pretrain_fn: Any = None,
        gtol: float = 1e-15,
        ftol: float = 1e-14,
        xtol: float = 0.0,
        bounds: Any = None,
        acceleration: bool = True,
        preset: str | None = None,
        linear_solver: str = "auto",
        stochastic: bool = False,
        regularization: str | None = None,
        keep_state: bool | None = None,
    ) -> None:
        super().__init__(
            name,
            epochs,
            batch_size,
            pretrain_fn,
            gtol,
            ftol,
            xtol,
            bounds,
            keep_state,
        )
        for key, value, allowed in (
            ("preset", preset, _PRESETS),
            ("linear_solver", linear_solver, _SOLVERS),
            ("regularization", regularization, _REGULARIZATIONS),
        ):
            if value not in allowed:
                raise ValueError(
                    f"Argument `{key}` must be one of {list(allowed)}. "
                    f"Received: {key}={value!r}"
                )
        self.acceleration = acceleration and preset is None
        self.preset = preset
        self.linear_solver = linear_solver
        self.stochastic = stochastic
        self.regularization = regularization
        if preset is not None and linear_solver == "cg":
            raise ValueError(
                f"`preset={preset!r}` adds mu to a matrix, and conjugate "
                "gradients have none: use `linear_solver='auto'`. "
                "Received: linear_solver='cg'"
            )
        if regularization is not None:
            self._check_regularization(stochastic)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "acceleration": self.acceleration,
            "preset": self.preset,
            "linear_solver": self.linear_solver,
            "stochastic": self.stochastic,
            "regularization": self.regularization,
        }

    def _check_regularization(self, stochastic: bool) -> None:
        """Refuses arguments that cannot be combined with `regularization`."""
        received = None
        if stochastic:
            received = "stochastic=True"
        elif self.linear_solver == "cg":
            received = "linear_solver='cg'"
        if received is not None:
            raise ValueError(
                f"`regularization={self.regularization!r}` needs all of the "
                "data and the whole matrix at every step: leave out "
                "`stochastic`, and use `linear_solver='auto'`. "
                f"Received: {received}"
            )

    def _check(
        self, size: int, bounded: bool, constraint_types: list[str]
    ) -> None:
        super()._check(size, bounded, constraint_types)
        if self.regularization is not None and bounded:
            raise ValueError(
                f"`regularization={self.regularization!r}` needs parameters "
                "without bounds: leave out the bounds, or the "
                f"regularization. Received: optimizer='{self.name}' with "
                "bounds"
            )
        is_dense = self.linear_solver == "dense" or self.regularization
        if is_dense:
            check_square(
                f"Optimizer '{self.name}' forms a dense matrix with "
                "`linear_solver='dense'` or a `regularization`",
                size,
                MATRICES,
                "Use 'auto', or the optimizer 'lbfgs'.",
            )

    def stages(
        self,
        epochs: Any = None,
        pretrain_fn: Any = None,
        *,
        stochastic: bool | None = None,
        **overrides: Any,
    ) -> list[Stage]:
        (stage,) = super().stages(epochs, pretrain_fn, **overrides)
        if stochastic is None:
            stochastic = self.stochastic
        if not stochastic:
            return [stage]
        if self.regularization is not None:
            self._check_regularization(stochastic)
        return [stage._replace(run=self._run_on_batches, uses_batches=True)]

    def _takes_state(self, state: SolverState, size: int) -> bool:
        return state.key in (self._key, self._by_cg.method(size).key)

    @property
    def _key(self) -> str:
        return EVIDENCE if self.regularization else FACTORED

    @property
    def _by_cg(self) -> GaussNewton:
        """The method for problems that are too large for a matrix."""
        return GaussNewton(gtol=self.gtol**0.5, ftol=self.ftol, xtol=self.xtol)

    def _run(
        self,
        problem: Problem,
        theta: Vector,
        state: SolverState | None,
        observer: Observer,
    ) -> Outcome:
        is_by_cg = takes_products(problem, self)
        if state is not None and self._takes_state(state, problem.size):
            # More data, or more memory, may have changed how steps are made.
            cg = self._by_cg.method(problem.size).key
            state = state if is_by_cg == (state.key == cg) else None
        if is_by_cg:
            return self._by_products(problem, theta, state, observer)
        if state is None:
            count = beginning.window(problem, self)
            if count:
                watch = beginning.Beginning(observer, problem, count)
                begun = self._begun(problem, theta, watch)
                is_over = begun.status is None or begun.status in _ENDS
                if is_over and not watch.has_ended:
                    return begun
                theta, observer = begun.theta, beginning.Begun(observer)
        run = EvidenceRun if self.regularization else LeastSquaresRun
        with np.errstate(all="ignore"):
            return run(problem, self)(theta, state, observer)

    def _by_products(
        self,
        problem: Problem,
        theta: Vector,
        state: SolverState | None,
        observer: Observer,
    ) -> Outcome:
        """The outcome of conjugate gradients, with their own tolerances."""
        (stage,) = self._by_cg.stages(0)
        outcome = stage.run(problem, theta, state, observer)
        outcome.detail = "conjugate gradients"
        return outcome

    def _begun(
        self, problem: Problem, theta: Vector, observer: Observer
    ) -> Outcome:
        """The outcome of the beginning with L-BFGS, without a state."""
        (stage,) = LBFGS().stages(0)
        with beginning.looks(problem):
            begun = stage.run(problem, theta, None, observer)
        begun.state = None
        return begun

    def _run_on_batches(
        self,
        problem: Problem,
        theta: Vector,
        state: SolverState | None,
        observer: Observer,
    ) -> Outcome:
        with np.errstate(all="ignore"):
            return batches.run(problem, self, theta, state, observer)
