"""Trains models with the methods of `scipy.optimize.minimize`."""

import numbers
import types
from typing import Any

import keras

from kormos.optimizers import predecessor
from kormos.optimizers.base import DEFAULT_EPOCHS
from kormos.optimizers.base import BatchOptimizer
from kormos.optimizers.base import check_epochs
from kormos.optimizers.stage import Stage
from kormos.solvers.scipy.methods import METHODS
from kormos.solvers.scipy.solver import ScipyRun
from kormos.suggestions import did_you_mean

DEFAULT_METHOD = "l-bfgs-b"


@keras.saving.register_keras_serializable(package="kormos")
class ScipyBatchOptimizer(BatchOptimizer):
    """Trains with a method of `scipy.optimize.minimize`.

    If `method`, `epochs`, `options` or `pretrain_fn` are lists, the fit has one
    stage per entry, and each stage starts where the stage before has ended. A
    value that is not a list applies to all stages.

    All of these arguments are saved with a model. To load functions among them,
    register the functions with `keras.saving.register_keras_serializable`.

    Args:
        name: String, the name of the optimizer.
        method: String, the name of one of SciPy's methods, in any letter case;
            or a list of these. Defaults to `"l-bfgs-b"`.
        epochs: Integer, the number of iterations of a `fit` without `epochs`;
            or a list of integers. Defaults to 20.
        pretrain_fn: Function of the model that is called before a stage starts,
            for example to freeze layers; or a list of functions.
        options: Dict of options of the method; or a list of dicts. `maxiter`
            is a further limit on the number of epochs.
        bounds: Dict that maps the path of a variable, or a regular expression
            for paths, to `(low, high)`; or a list of pairs
            `(variable, (low, high))`. `low` and `high` are broadcast to the
            shape of the variable, and `None` means no bound. A
            `scipy.optimize.Bounds`, or a list of pairs, for the flat vector of
            all variables is accepted too. The `NonNeg` constraint of a variable
            always counts as a bound.
        constraints: A dict `{"type": "eq" or "ineq", "fun": fn}`, or a list of
            these. `fn` is a function of no arguments that reads the variables.
            Its values are kept at zero (`"eq"`), or at zero or above
            (`"ineq"`). A `scipy.optimize.LinearConstraint` of the flat vector
            is accepted too.
        tol: Float, SciPy's `tol`, which sets the tolerances of the method.
        batch_size: Integer, the largest number of rows that are evaluated at
            the same time in a `fit` without `batch_size`.
        **others: Not accepted. The error says what replaces arguments of
            kormos 0.1.

    Attributes:
        results: SciPy's `OptimizeResult`s of the latest fit, one per stage.
        fg_evals: Integer, the number of evaluations of the loss in the latest
            fit.
        hessp_evals: Integer, the number of Hessian products in the latest fit.

    Raises:
        ValueError: If a method or an option is unknown, or lists differ in
            length.

    Example:

    ```python
    model.compile(
        optimizer=kormos.optimizers.ScipyBatchOptimizer(
            method="l-bfgs-b", options={"maxcor": 50}
        ),
        loss="mse",
    )
    history = model.fit(x, y, epochs=100)
    ```
    """

    def __init__(
        self,
        name: str = "scipy",
        method: Any = None,
        epochs: Any = None,
        pretrain_fn: Any = None,
        options: Any = None,
        bounds: Any = None,
        constraints: Any = None,
        tol: Any = None,
        batch_size: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__(
            name=name,
            epochs=epochs,
            batch_size=batch_size,
            pretrain_fn=pretrain_fn,
            bounds=bounds,
            constraints=constraints,
            **others,
        )
        self.method = method or DEFAULT_METHOD
        self.options = options
        self.tol = tol
        self.stages()

    def stages(self, epochs: Any = None, **overrides: Any) -> list[Stage]:
        unknown = set(overrides) - {"method", "options", "tol", "pretrain_fn"}
        if unknown:
            raise ValueError(
                "Unknown arguments. Expected some of: method, options, tol, "
                "pretrain_fn."
                + predecessor.advice(sorted(unknown), predecessor.ARGUMENTS)
                + f" Received: {sorted(unknown)}"
            )
        settings = {
            "method": self.method,
            "epochs": self.epochs if epochs is None else epochs,
            "options": self.options,
            "pretrain_fn": self.pretrain_fn,
            "tol": self.tol,
        }
        settings.update({k: v for k, v in overrides.items() if v is not None})
        if settings["epochs"] is None:
            settings["epochs"] = DEFAULT_EPOCHS
        return [_stage(**values) for values in _one_a_stage(settings)]

    def get_config(self) -> dict[str, Any]:
        settings = {
            "method": self.method,
            "options": self.options,
            "tol": self.tol,
        }
        return {
            **super().get_config(),
            **keras.saving.serialize_keras_object(settings),
        }


def _one_a_stage(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Splits settings that may be lists into a dict for each stage."""
    lists = {k: v for k, v in settings.items() if isinstance(v, (list, tuple))}
    lengths = {k: len(v) for k, v in lists.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(
            "Lists for stages must have the same length, with one entry per "
            f"stage. Received: lengths {lengths}"
        )
    count = next(iter(lengths.values()), 1)
    return [
        {k: v[i] if k in lists else v for k, v in settings.items()}
        for i in range(count)
    ]


def _stage(
    method: Any, epochs: Any, options: Any, pretrain_fn: Any, tol: Any
) -> Stage:
    if not isinstance(method, str) or method.lower() not in METHODS:
        raise ValueError(
            "Argument `method` must be one of SciPy's method names, in any "
            f"letter case: {sorted(METHODS)}.{did_you_mean(method, METHODS)} "
            f"Received: method={method!r}"
        )
    spec = METHODS[method.lower()]
    if not isinstance(options, (dict, types.NoneType)):
        raise ValueError(
            "Argument `options` must be a dict of the method's options. "
            f"Received: options={options!r}"
        )
    if not isinstance(tol, (numbers.Real, types.NoneType)):
        raise ValueError(
            f"Argument `tol` must be a number. Received: tol={tol!r}"
        )
    options = dict(options or {})
    limit = options.pop("maxiter", None)
    unknown = sorted(set(options) - set(spec.options))
    if unknown:
        raise ValueError(
            f"Unknown options for method '{spec.name}'. Expected some of: "
            f"{sorted([*spec.options, 'maxiter'])}."
            f"{predecessor.advice(unknown, predecessor.OPTIONS)} "
            f"Received: {', '.join(unknown)}"
        )
    counts = [epochs] if limit is None else [epochs, limit]
    for count in counts:
        check_epochs(count)
    tol = None if tol is None else float(tol)
    run = ScipyRun(spec, options, tol)
    uses_hessian = spec.hessp or spec.hessian
    return Stage(
        min(counts),
        pretrain_fn,
        run.check,
        run,
        uses_hessian=uses_hessian,
        name=spec.name,
    )
