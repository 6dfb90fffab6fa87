"""`kormos.check`: tests a model and its data, and estimates the costs."""

from typing import Any

import keras

from kormos.data import reading
from kormos.data.stream import Samples
from kormos.inspection import costs
from kormos.inspection import derivatives
from kormos.inspection import faults
from kormos.inspection.kinks import kinks
from kormos.inspection.report import Finding
from kormos.inspection.report import Report
from kormos.inspection.scaling import scaling
from kormos.inspection.shapes import shapes
from kormos.inspection.watch import Watch
from kormos.objective import Objective
from kormos.objective.keras_model.model_checks import check_has_loss
from kormos.objective.keras_model.with_loss import with_loss


def check(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    *,
    loss: Any = None,
    sample_weight: Any = None,
    class_weight: dict[int, float] | None = None,
    batch_size: int | None = None,
    training: bool = False,
    precision: str | None = None,
    hessian: bool = False,
    stream: bool = False,
    allow_nan: bool = False,
) -> Report:
    """Tests, before a fit, what would make the fit go wrong.

    It tests whether targets and outputs have the same shapes; whether the loss
    is finite, the same in two evaluations and the same for every batch size;
    and whether its gradient is right. It finds variables on which the loss does
    not depend and, if there are few parameters, those that the data do not
    determine; parts of a float64 model that compute in float32; data and
    gradients that are badly scaled; and L1 regularizers, at whose kinks all
    methods except kormos' quasi-Newton methods stop. It estimates the cost of
    an evaluation, and of an iteration of each method, and recommends a method.
    It evaluates the loss several dozen times, and does not change the model.

    Args:
        model: A `keras.Model`, compiled unless `loss` is given.
        x: Inputs. See `kormos.fit`.
        y: Targets. Leave it out if `x` is a dataset.
        loss: A loss, as `model.compile` takes it, to check in place of the loss
            with which the model was compiled.
        sample_weight: Weights of the rows, an array of shape `(rows,)`.
        class_weight: Dict that maps class indices to weights.
        batch_size: Integer, the largest number of rows that are evaluated at
            the same time.
        training: Boolean, whether layers run in training mode. Defaults to
            `False`.
        precision: `None`, the default, or `"float64"`. See `kormos.fit`.
        hessian: Boolean, whether to test a Hessian product too, which Newton
            methods use. Defaults to `False`.
        stream: Boolean, whether to read the data again at every evaluation.
            Defaults to `False`.
        allow_nan: Boolean, whether inputs and targets may contain NaN, for a
            model or a loss that handles them. Defaults to `False`.

    Returns:
        A `kormos.inspection.report.Report`. `print` shows it. Programs read
        `passed`, `failures`, `findings`, `costs` and `method`.

    Raises:
        ValueError: If the data or the model cannot be used at all.

    Example:

    ```python
    report = kormos.check(model, x, y, loss="mse")
    print(report)
    ```
    """
    _check_precision(precision)
    check_has_loss(model, loss is not None, "give `loss`, or ")
    if loss is not None:
        model = with_loss(model, loss)
    dtype = reading.dtype_for(model, precision)
    data = reading.gather(
        x, y, sample_weight, dtype, stream, batch_size, allow_nan=allow_nan
    )
    data = reading.weigh(data, class_weight, dtype)

    def objective_for(batch_size: int | None) -> Objective:
        return Objective(
            model,
            data,
            batch_size=batch_size,
            training=training,
            precision=precision,
        )

    objective = objective_for(batch_size)
    start = costs.time_evaluation(objective, objective.initial_position())
    watch = Watch(objective, start.theta)
    looked = watch.first()
    finite = faults.finite(objective, looked, start)
    same = faults.deterministic(objective, watch, looked, start)
    findings = [shapes(objective), finite, same]
    if same.passed:
        findings.append(
            faults.batch_size(objective, watch, looked, start, objective_for)
        )
    if finite.passed:
        findings += _of_derivatives(objective, start, same.passed, hessian)
    findings += [
        faults.precision(objective, looked, start.theta),
        scaling(objective, data.first, start.grad),
        kinks(objective),
    ]
    memory = costs.evaluation_memory(objective, looked)
    return _report(objective, data, findings, start, memory)


def _of_derivatives(
    objective: Objective, start: costs.Evaluation, is_same: bool, hessian: bool
) -> list[Finding]:
    """The findings about derivatives.

    Args:
        objective: the objective, whose loss is finite at the start.
        start: the evaluation of the start.
        is_same: whether two evaluations give the same loss, so that its
            differences are meaningful.
        hessian: whether to test a Hessian product.
    """
    theta, found = start.theta, []
    if is_same:
        found.append(derivatives.gradient(objective, theta))
        if hessian:
            found.append(derivatives.hessian(objective, theta))
    found.append(derivatives.variables(objective, theta, start.grad))
    if is_same:
        found.append(derivatives.identification(objective, theta))
    return found


def _report(
    objective: Objective,
    data: Samples,
    findings: list[Finding],
    start: costs.Evaluation,
    memory: float,
) -> Report:
    is_smooth = next(f.passed for f in findings if f.test == "kinks")
    methods = costs.estimate(objective, start.seconds, is_smooth)
    chosen, reason = costs.choose(methods, objective)
    rows = f"{data.rows:,} rows" if data.rows > 1 else "1 row"
    return Report(
        title=f"{objective.model.name}: {objective.size:,} parameters, {rows}",
        findings=tuple(findings),
        loss=start.loss,
        seconds=start.seconds,
        compile_seconds=start.compile_seconds,
        memory=memory,
        costs=tuple(methods),
        method=chosen,
        reason=reason,
    )


def _check_precision(precision: str | None) -> None:
    if precision == "auto":
        raise ValueError(
            "Check one precision at a time: leave `precision` out to check "
            "the model's own, or pass 'float64'. Received: precision='auto'"
        )
