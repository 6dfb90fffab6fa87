"""A model's loss over all its training data, as a function of one vector."""

import contextlib
import copy
import dataclasses
import functools
import math
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Self

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from kormos import backend
from kormos.arithmetic.vectors import number
from kormos.arithmetic.vectors import rounding
from kormos.checks import check_count
from kormos.data import reading
from kormos.data.arrays import check_inputs
from kormos.data.arrays import in_dtype
from kormos.data.memory import Data
from kormos.data.stream import Stream
from kormos.float64.evaluation import check_precision
from kormos.float64.evaluation import decide
from kormos.float64.evaluation import starts_wide
from kormos.float64.evaluation import warn_of_rounding
from kormos.objective.arguments import ProgramArguments
from kormos.objective.base import FlatObjective
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import each_chunk
from kormos.objective.compiled import leading_size
from kormos.objective.gauss_newton.host import HostGaussNewton
from kormos.objective.keras_model.carried_state import refuse_carried
from kormos.objective.keras_model.loss_terms import overrides
from kormos.objective.keras_model.program import ModelProgram
from kormos.objective.keras_model.program import is_built
from kormos.objective.keras_model.program import is_new
from kormos.objective.keras_model.program import program_for
from kormos.objective.keras_model.rows import naming_rows
from kormos.objective.units import largest
from kormos.objective.units import unit_for
from kormos.types import Structure
from kormos.types import Tensor
from kormos.types import Vector
from kormos.warn import warn


class Objective(FlatObjective):
    """The value that `model.evaluate` reports, as a function of one vector.

    It computes the loss, its gradient and its Hessian products over all of the
    data, for a compiled model of any kind, so that kormos or any other solver
    can minimize it. Evaluating assigns nothing to the model: `assign` does.

    Dropout and noise are off and batch normalization uses its moving averages
    unless `training=True`, which freezes every seed instead and normalizes by
    the rows of a chunk (`batch_size`).

    Args:
        model: a compiled `keras.Model`.
        x: inputs: arrays, tensors, pandas objects, dicts, lists and tuples of
            these, or a finite data set of batches.
        y: targets, unless `x` is a data set.
        sample_weight: weights of the rows, unless `x` is a data set.
        class_weight: dict from a class's number to its weight.
        batch_size: the most rows in memory at once, besides the data. It
            changes memory and speed, never the value. Defaults to a size
            chosen from the width of the inputs.
        training: whether layers behave as in training.
        with_jacobian: whether to cut chunks so small that the derivatives of
            all their outputs in all parameters fit into memory.
        precision: `"float64"` to evaluate in float64 whatever the model's
            dtype is, `"auto"` to do so from `widen()` on. Defaults to the
            model's own.
        stream: whether to read the data again at every evaluation, rather
            than once to keep them in memory. Vectors are then NumPy arrays.
        allow_nan: whether inputs and targets may hold NaN, for a model or a
            loss that handles them.

    Raises:
        ValueError: if the model is not compiled, has no trainable variable or
            no loss, or the data cannot be used.

    Attributes:
        model: the model.
        can_widen: whether `widen` can be called.
        unused_variables: the trainable variables that the loss never reads.
        has_metrics: whether the model is compiled with metrics.

    Example:

    ```python
    objective = kormos.Objective(model, x, y)
    result = scipy.optimize.minimize(
        objective.value_and_grad, objective.initial_position(), jac=True
    )
    objective.assign(result.x)
    ```
    """

    program: ModelProgram

    def __init__(
        self,
        model: keras.Model,
        x: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        batch_size: int | None = None,
        training: bool = False,
        with_jacobian: bool = False,
        precision: str | None = None,
        stream: bool = False,
        allow_nan: bool = False,
    ) -> None:
        _check_model(model)
        check_precision(precision)
        if batch_size is not None:
            check_count("batch_size", batch_size, 1)
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
        self._data = reading.weigh(data, class_weight, dtype)
        self._batch_size = batch_size
        self._training = training
        self._with_jacobian = with_jacobian
        self._allow_nan = allow_nan
        self.model = model
        if not is_built(model):
            # A call in training would update moving averages.
            head = self._probe(None)
            with naming_rows(model, leading_size(head.x)):
                model(head.x, training=False)
        check_inputs(self._data.first.x, getattr(model, "inputs", None))
        if is_new(model):
            _warn_of_custom_steps(model)
        is_wide = starts_wide(precision, [model.compute_dtype])
        self.can_widen = precision == "auto" and not is_wide
        if not is_wide:
            warn_of_rounding(model.name, model.compute_dtype)
        self._prepare("float64" if is_wide else None)
        self.has_metrics = any(m.name != "loss" for m in model.metrics)

        if self.can_widen:
            # A model that fails in float64 is found now, not during the fit.
            self.can_widen = decide(precision, lambda: self._program("float64"))

    def _widen(self) -> None:
        self._prepare("float64")

    def _program(self, dtype: str | None) -> ModelProgram:
        """The model's compiled functions.

        Args:
            dtype: `"float64"`, or `None` for the model's own dtype.
        """

        def head() -> Data:
            return self._probe(dtype)

        with backend.wide() if dtype else contextlib.nullcontext():
            return program_for(self.model, head, self._training, dtype)

    def _probe(self, dtype: str | None) -> Data:
        """Rows to try the model on, as many as a chunk has."""
        data = self._rows(dtype)
        return data.head(data.chunk_rows(self._batch_size))

    def _prepare(self, dtype: str | None) -> None:
        """Compiles the functions, and puts the data on the device.

        Args:
            dtype: `"float64"`, or `None` for the model's own dtype.
        """
        data = self._rows(dtype)
        self.program = self._program(dtype)
        model_loss = self.program.model_loss
        self.unused_variables = list(model_loss.stateless.unused_variables)
        width = None
        if self._with_jacobian:
            outputs = sum(model_loss.outputs.widths)
            width = outputs * self.program.packing.size
        widest = max(s[-1] if s else 0 for s in self.program.packing.shapes)
        cut = self._batch_size, width, widest
        chunks = read = None
        if isinstance(data, Stream):
            read = functools.partial(data.chunks, *cut)
        else:
            chunks = (data.chunks(*cut),)
        arguments = ProgramArguments(
            self.program.frozen_values(), chunks=chunks, read=read
        )
        factors = self.program.term_factors(
            arguments.each_chunk(), lambda: data.rows
        )
        self.arguments = dataclasses.replace(arguments, term_factors=factors)
        self.__dict__.pop("_loss_unit", None)
        if model_loss.carried:
            refuse_carried(model_loss.carried, data.rows, self.chunk_rows)

    @property
    def data(self) -> Structure | None:
        """`(x, y)`, or `(x, y, sample_weight)`; `None` if streamed."""
        if isinstance(self._data, Stream):
            return None
        return tuple(a for a in self._data if a is not None)

    def replace(self, data: Structure) -> None:
        """Replaces the data.

        Args:
            data: `(x, y)`, or `(x, y, sample_weight)`, as `data` has it.

        Raises:
            ValueError: if these are not as many arrays as before, or cannot
                be used.
        """
        before = self.data
        if not isinstance(data, tuple) or len(data) != len(before or ()):
            raise ValueError(
                "New data of a fit are a tuple like those before, "
                f"{'(x, y)' if len(before or ()) < 3 else '(x, y, weights)'}. "
                f"Received: {type(data).__name__} of "
                f"{len(data) if hasattr(data, '__len__') else 1} entries"
            )
        dtype = self.program.packing.dtype
        x, y, sample_weight = (*data, None, None)[:3]
        self._data = reading.gather(
            x,
            y,
            sample_weight,
            reading.dtype_for(self.model, dtype),
            batch_size=self._batch_size,
            allow_nan=self._allow_nan,
        )
        self._prepare(dtype)

    def assign(self, theta: Vector | Tensor) -> None:
        """Writes a flat vector, array or tensor, into the variables.

        With `training=True`, the averages of batch normalization become those
        of the data, so that `model.evaluate` computes what was minimized.
        """
        super().assign(theta)
        if self._training:
            changed = self.program.layer_states.update(
                self.initial_position(),
                self.arguments.frozen,
                self.arguments.each_chunk(),
            )
            before = zip(
                self.program.frozen_variables,
                self.arguments.frozen,
                strict=True,
            )
            frozen = [changed.get(id(v), own) for v, own in before]
            self.arguments = dataclasses.replace(self.arguments, frozen=frozen)

    @functools.cached_property
    def _loss_unit(self) -> float:
        # Once a fit is well under way, slopes are about as large as targets.
        first = self._data.first
        sizes = largest(first.y), largest(first.sample_weight, 1.0)
        return unit_for(
            math.prod(sizes) * largest(self.arguments.term_factors[:-1])
        )

    def _rows(self, dtype: str | None) -> Data | Stream:
        """The data in the dtype of an evaluation."""
        dtype = dtype or reading.dtype_for(self.model)
        return self._data.map(lambda a: in_dtype(a, dtype))

    @property
    def epsilon(self) -> float:
        """The spacing of numbers near one in the arithmetic of the loss."""
        dtype = self.program.packing.dtype
        if dtype is not None:
            return rounding(dtype)
        own = self.program.model_loss.stateless.arithmetic.epsilon
        return max(own, rounding(self.model.compute_dtype))

    @property
    def draws(self) -> bool:
        return self.program.model_loss.stateless.draws

    def gauss_newton(self) -> HostGaussNewton:
        """The Gauss-Newton matrix of the loss: a `HostGaussNewton`.

        Raises:
            ValueError: if the loss is not one of outputs with curvature.
        """
        with backend.wide():
            compiled = self.program.gauss_newton_for(self._probed)
        return HostGaussNewton(compiled, self)

    def _probed(self) -> Iterator[Chunk]:
        """Yields chunks, the first of them without reading a stream."""
        yield tuple(self._probe(self.program.packing.dtype))
        yield from self.arguments.each_chunk()

    def head(self, rows: int) -> Data:
        """The first rows, as tensors in the dtype of the loss."""
        return self._rows(self.program.packing.dtype).head(rows)

    @property
    def scales(self) -> Vector:
        """The factors by which the sums of the loss's terms are multiplied."""
        return self.arguments.term_factors

    @property
    def chunk_rows(self) -> int:
        """The number of rows of the largest chunk."""
        return leading_size(next(self.arguments.each_chunk()))

    @property
    def rows(self) -> int:
        """The number of rows of data."""
        return self._data.rows

    @property
    def row_counts(self) -> list[int]:
        # They were counted when the stream was read first.
        return [self.rows] if self.is_streamed else super().row_counts

    def batches(self, rng: np.random.Generator) -> Iterator[Self]:
        """Yields objectives of batches of `batch_size` rows.

        They add up to this objective. The rows are in a random order, or in
        the order of the stream.

        Args:
            rng: a `numpy.random.Generator`.
        """
        chunks = self.arguments.each_chunk()
        data = self._rows(self.program.packing.dtype)
        if isinstance(data, Data):
            order = rng.permutation(data.rows)
            shuffled = data.map(lambda array: array[order])
            # Batches of about equal size: a last batch with only a few rows
            # would lead to a bad step.
            pair = shuffled.chunks(self._batch_size, is_even=True)
            chunks = each_chunk(pair)
        for chunk in chunks:
            batch = copy.copy(self)
            batch.arguments = dataclasses.replace(
                self.arguments, chunks=((None, chunk),), read=None
            )
            yield batch

    @functools.cached_property
    def metric_names(self) -> list[str]:
        """The names of the results of `evaluate`, besides the loss."""
        with backend.wide():
            values = self.program.metric_values
            return list(self._results(self.initial_position(), values))

    def _results(
        self, theta: Vector, metric_values: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The metrics' results, from the values of their variables."""
        return self.program.metric_results(
            theta, self.arguments.frozen, metric_values
        )

    def evaluate(self, theta: npt.ArrayLike) -> dict[str, Any]:
        """The loss and the compiled metrics at `theta`, as floats.

        Args:
            theta: array of shape `(size,)`.

        Returns:
            A dict with the names that `model.evaluate` uses.
        """
        with backend.wide():
            theta = self._checked(theta, "theta")
            total, values = 0.0, self.program.metric_values
            for piece in self.arguments.pieces():
                loss, values = self.program.evaluate(theta, values, *piece)
                total += number(loss)
            logs = {"loss": total}
            for name, value in self._results(theta, values).items():
                value = ops.convert_to_numpy(value)
                logs[name] = float(value) if value.ndim == 0 else value
        return logs


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise ValueError(
            "Argument `model` must be a `keras.Model`. "
            f"Received: {model!r} (of type {type(model).__name__})"
        )
    if not model.compiled:
        raise ValueError(
            "The model has no loss yet: call `model.compile(loss=...)` first. "
            f"Received: {model.name}, not compiled"
        )
    if any(m.compute_dtype == "float16" for m in [model, *model.layers]):
        raise ValueError(
            "float16 gradients need a scaled loss, which a full-batch method "
            "cannot follow from one iterate to the next. Use the 'float32', "
            "'float64' or 'mixed_bfloat16' policy. "
            f"Received: {model.name} with layers that compute in float16"
        )


def _warn_of_custom_steps(model: keras.Model) -> None:
    names = [n for n in ("train_step", "test_step") if overrides(model, n)]
    if names:
        warn(
            f"{model.name} defines {' and '.join(f'`{n}`' for n in names)}, "
            "which kormos does not call: it minimizes what `compute_loss` "
            "returns. If the loss is another one, override `compute_loss`, or "
            "use `kormos.minimize`.",
        )
