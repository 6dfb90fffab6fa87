"""A preflight of a fit: what would go wrong, what it would cost."""

import keras

from kormos.data import reading
from kormos.inspection import costs
from kormos.inspection import derivatives
from kormos.inspection import faults
from kormos.inspection.kinks import kinks
from kormos.inspection.report import Report
from kormos.inspection.watch import Watch
from kormos.objective import Objective


def check(
    model,
    x=None,
    y=None,
    *,
    loss=None,
    sample_weight=None,
    class_weight=None,
    batch_size=None,
    training=False,
    precision=None,
    hessian=False,
    stream=False,
    allow_nan=False,
):
    """Looks for what would make a fit go wrong, before it.

    Whether the objective is the same twice and for every batch size, finite,
    its gradient right; which variables it does not depend on, and which of few
    parameters the data leave open; what falls to float32 in a float64 model;
    what is badly scaled; which variables have an L1 regularizer, at whose
    kinks methods stop; what an evaluation and an iteration of each method
    take, and which method suits. It evaluates the loss some tens of times and
    leaves the model as it is.

    Args:
        model: a `keras.Model`, compiled unless `loss` is given.
        x: inputs, as `kormos.fit` takes them.
        y: targets, unless `x` is a data set.
        loss: a loss, as `compile` takes it, to look at in place of the one
            that the model is compiled with.
        sample_weight: weights of the rows.
        class_weight: dict from a class's number to its weight.
        batch_size: the most rows in memory at once.
        training: whether layers behave as in training.
        precision: `None` or `"float64"`, as `kormos.fit` takes it.
        hessian: whether to test a Hessian product too, as Newton's methods
            use them.
        stream: whether to read the data again at every evaluation.
        allow_nan: whether inputs and targets may hold NaN, for a model or a
            loss that handles them.

    Returns:
        A `Report`: `print` shows it; `passed`, `failures`, `findings`,
        `costs` and `method` tell a program.

    Raises:
        ValueError: if the data or the model cannot be used at all.

    Example:

    ```python
    report = kormos.check(model, x, y, loss="mse")
    print(report)
    ```
    """
    if precision == "auto":
        raise ValueError(
            "Check one precision at a time: leave `precision` out for the "
            "model's own, or give 'float64'. Received: precision='auto'"
        )
    _check_model(model, loss)
    if loss is not None:
        model = _Compiled(model, loss)
    dtype = reading.dtype_for(model, precision)
    data = reading.gather(
        x,
        y,
        sample_weight,
        dtype,
        stream,
        batch_size,
        allow_nan=allow_nan,
    )
    data = reading.weigh(data, class_weight, dtype)

    def objective_for(batch_size):
        return Objective(
            model,
            data,
            batch_size=batch_size,
            training=training,
            precision=precision,
        )

    objective = objective_for(batch_size)
    theta = objective.initial_position()
    evaluation = costs.time_evaluation(objective, theta)
    watch = Watch(objective, theta)
    looked = watch.first()
    value, grad = evaluation.loss, evaluation.grad
    findings = [
        faults.finite(objective, looked, value, grad),
        faults.deterministic(objective, watch, looked, theta, value, grad),
    ]
    is_finite, is_same = (finding.passed for finding in findings)
    if is_same:
        findings.append(
            faults.batch_size(
                objective, watch, looked, theta, value, objective_for
            )
        )
    if is_finite and is_same:
        findings.append(derivatives.gradient(objective, theta))
        if hessian:
            findings.append(derivatives.hessian(objective, theta))
    if is_finite:
        findings.append(derivatives.variables(objective, theta, grad))
    if is_finite and is_same:
        findings.append(derivatives.identification(objective, theta))
    findings += [
        faults.precision(objective, looked, theta),
        faults.scaling(objective, data.first, grad),
        kinks(objective),
    ]
    is_smooth = findings[-1].passed
    methods = costs.estimate(objective, evaluation.seconds, is_smooth)
    chosen, reason = costs.choose(methods)
    rows = f"{data.rows:,} rows" if data.rows > 1 else "1 row"
    return Report(
        title=f"{model.name}: {objective.size:,} parameters, {rows}",
        findings=tuple(findings),
        loss=value,
        seconds=evaluation.seconds,
        compile_seconds=evaluation.compile_seconds,
        memory=costs.evaluation_memory(objective, looked),
        costs=tuple(methods),
        method=chosen,
        reason=reason,
    )


class _Compiled(keras.Model):
    """A model with a loss, around one that keeps its own or has none."""

    def __init__(self, model, loss):
        super().__init__(name=model.name, dtype=model.dtype_policy)
        self.inner = model
        if getattr(model, "output_names", None) is not None:
            self.output_names = model.output_names
        how = {}
        if model.compiled:
            how = {
                "run_eagerly": model.run_eagerly,
                "jit_compile": model.jit_compile,
            }
        self.compile(loss=loss, **how)

    def call(self, inputs, training=None):
        return self.inner(inputs, training=training)


def _check_model(model, loss):
    if not isinstance(model, keras.Model):
        raise ValueError(
            "Argument `model` must be a `keras.Model`. "
            f"Received: {model!r} (of type {type(model).__name__})"
        )
    if loss is None and not model.compiled:
        raise ValueError(
            "The model has no loss yet: give `loss`, or call "
            "`model.compile(loss=...)` first. "
            f"Received: {model.name}, not compiled"
        )
