"""Levenberg and Marquardt's method with geodesic acceleration.

References: Moré, The Levenberg-Marquardt algorithm: implementation and theory
(1978), as in MINPACK's `lmder`, for scale and trust radius; Transtrum and
Sethna, arXiv:1201.5885, for the acceleration.

Differs from them in:

1. the matrix is the generalized Gauss-Newton matrix of any smooth loss, J'HJ;
   of a sum of squares it is J'J;
2. one factorization an accepted point, its eigenvalues, serves every radius,
   up to 1,000 rows or parameters, whichever are fewer; beyond, each damping
   takes a Cholesky factor. The first radius is the scaled length of the
   parameters, not 100 times it, and it changes in smaller steps;
3. a step whose acceleration is more than three quarters of it is shortened
   twice and then taken without acceleration;
4. tests of convergence are relative: what the undamped step promises to lower
   the loss by (the relative offset of Bates and Watts), and what three
   iterations in a row have lowered it by;
5. undamped steps end a run in float64 while they contract, for digits that the
   loss no longer shows;
6. a run whose steps take long begins with L-BFGS (`beginning.py`);
7. within bounds, parameters that the gradient presses against one are held,
   and trial points are projected (Kanzow, Yamashita and Fukushima 2004).
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
from kormos.solvers.least_squares.local_models import MATRICES
from kormos.solvers.least_squares.local_models import takes_products
from kormos.solvers.least_squares.loop import LeastSquaresRun
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Observer
from kormos.solvers.solver_state import SolverState
from kormos.types import Vector

_PRESETS = (None, "matlab")
# Ends of a cheap beginning that are ends of the run.
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

    The method of choice for a network of up to a few thousand parameters whose
    loss is a mean squared error, or any other smooth loss of its outputs:
    cross-entropies, Poisson, Huber, log-cosh, robust losses. No step raises the
    loss on all of the data, but the last ones in float64 by its rounding.

    Solver arithmetic is float64; the model computes in its own dtype.

    Args:
        name: name of the optimizer.
        epochs: the number of epochs when `fit` is not told. Defaults to 20.
        batch_size: the most rows in memory at once when `fit` is not told.
        pretrain_fn: function of the model, called before the fit starts.
        gtol: converged when the undamped step promises to lower the loss by no
            more than this part of it. Defaults to 1e-15.
        ftol: converged when three iterations in a row lower the loss by no
            more than this part of it. Defaults to 1e-14; below the rounding of
            the loss the end is a noise floor.
        xtol: converged when a step is this part of the parameters' length.
            Defaults to 0, which is never.
        bounds: as `BatchOptimizer` takes them.
        acceleration: whether to add half the geodesic acceleration to a step.
            It costs about two gradients a step, and on a CPU keeps J up to a
            size of 256 MB. Conjugate gradients go without.
        preset: `"matlab"` for `trainlm`'s rule instead of the trust radius: mu
            from 1e-3, times 10 and 0.1, to 1e10, without scale and
            acceleration. It is added to J'J of the errors of a mean squared
            error without weights; for other losses its unit is another one.
        linear_solver: `"rows"` keeps J and factorizes it, or JJ' when there are
            fewer rows than parameters; `"dense"` accumulates J'J over chunks of
            rows; `"cg"` is `GaussNewton`, which needs no matrix, but for 16
            parameters or fewer it is `"dense"`. Its History has no `damping`
            and `trials`, and it keeps 336 bytes a parameter for `resume=True`.
            `"auto"` chooses by memory, and the result names the choice. With
            `"auto"`, without bounds, and from 1,000 rows or parameters on,
            whichever are fewer, a run begins with L-BFGS for as long as that
            lowers the loss faster, unless `epochs` or `max_iterations` are
            fewer than 20 for each hundred of these. Such iterations have no
            `damping` and `radius`: these are NaN.
        stochastic: whether to take one step on each batch of `batch_size` rows,
            an epoch being a pass over the data in a new order. The damping is
            carried from batch to batch. The loss of all of the data may rise,
            and no test of convergence ends a fit.
        regularization: `"evidence"` for a penalty on the squares of all
            parameters whose weight the data choose, as below;
            `"evidence-by-variable"` for a weight for each variable. Defaults to
            `None`.
        keep_state: where scale, damping and radius, 16 bytes a parameter, are
            kept for `resume=True`: `None` in memory and in the backups of
            `BackupAndRestore`, `True` in saved models too, `False` nowhere.
            Defaults to `None`.

    With `regularization="evidence"` the method minimizes

        F = beta E_D + alpha E_W,

    with the sum of squared errors E_D and the sum of the squares of all
    parameters E_W, in the units of data and of parameters. Errors then have the
    variance 1 / (2 beta), and parameters 1 / (2 alpha) before data are seen. At
    each iterate, alpha and beta are estimated anew, so that they come to
    maximize the probability density of the data (MacKay 1992; Foresee and Hagan
    1997; MATLAB's `trainbr`, whose damping `preset="matlab"` adds). Sample and
    loss weights count relative to their mean. The loss must be a sum or a mean
    of squared errors, without other regularizers and bounds.

    `loss` remains the loss, without the penalty, and may rise. The History has
    the further columns `alpha`, `beta`, `effective_parameters` (how many
    parameters the data determine), `log_evidence` (the logarithm of that
    density) and `regularized_loss` (F in the unit of the loss, the loss plus
    alpha / beta E_W), all of them with the weights of the step to that point;
    and `alpha/<path>` and `effective_parameters/<path>` for each variable with
    `"evidence-by-variable"`. `grad` is that of the regularized loss. A fit has
    converged where neither a step nor a new estimate changes anything.

    Raises:
        ValueError: if an argument cannot be used.

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
        """Refuses what a penalty that data choose does not go with."""
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
                f"`regularization={self.regularization!r}` takes parameters "
                "of either sign and any size: fit without bounds, or without "
                f"it. Received: optimizer='{self.name}' with bounds"
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

    def _run(
        self,
        problem: Problem,
        theta: Vector,
        state: SolverState | None,
        observer: Observer,
    ) -> Outcome:
        if takes_products(problem, self):
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
        """The outcome of conjugate gradients, with tolerances of their kind."""
        method = GaussNewton(
            gtol=self.gtol**0.5, ftol=self.ftol, xtol=self.xtol
        )
        (stage,) = method.stages(0)
        outcome = stage.run(problem, theta, state, observer)
        outcome.detail = "conjugate gradients"
        return outcome

    def _begun(
        self, problem: Problem, theta: Vector, observer: Observer
    ) -> Outcome:
        """The outcome of a cheap beginning, without a state."""
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
