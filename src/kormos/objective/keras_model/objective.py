"""A model's loss over all its training data, as a function of one vector."""

import contextlib
import copy
import functools

import keras
import numpy as np
from keras import ops

from kormos import backend
from kormos.arithmetic.vectors import number
from kormos.arithmetic.vectors import rounding
from kormos.checks import check_count
from kormos.data import reading
from kormos.data.arrays import check_inputs
from kormos.data.arrays import in_dtype
from kormos.data.stream import Stream
from kormos.float64.evaluation import check_precision
from kormos.float64.evaluation import decide
from kormos.float64.evaluation import starts_wide
from kormos.float64.evaluation import warn_of_rounding
from kormos.objective.base import FlatObjective
from kormos.objective.compiled import each_chunk
from kormos.objective.compiled import leading_size
from kormos.objective.gauss_newton.host import HostGaussNewton
from kormos.objective.keras_model.loss import overrides
from kormos.objective.keras_model.program_cache import is_built
from kormos.objective.keras_model.program_cache import is_new
from kormos.objective.keras_model.program_cache import program_for
from kormos.objective.keras_model.rows import naming_rows
from kormos.objective.keras_model.rows import refuse_carried
from kormos.objective.units import largest
from kormos.objective.units import unit_for
from kormos.warn import warn


class Objective(FlatObjective):
    """The value that `model.evaluate` reports, as a function of one vector.

    The loss, its gradient and its Hessian products over all of the data, for
    a compiled model of any kind, to be minimized by kormos or by any other
    solver. Evaluating assigns nothing to the model: `assign` does.

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
        with_jacobian: whether chunks are for derivatives of outputs, which
            are as wide as the parameters.
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

    Example:

    ```python
    objective = kormos.Objective(model, x, y)
    result = scipy.optimize.minimize(
        objective.value_and_grad, objective.initial_position(), jac=True
    )
    objective.assign(result.x)
    ```
    """

    def __init__(
        self,
        model,
        x,
        y=None,
        *,
        sample_weight=None,
        class_weight=None,
        batch_size=None,
        training=False,
        with_jacobian=False,
        precision=None,
        stream=False,
        allow_nan=False,
    ):
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
        self.model = model
        if not is_built(model):
            # Not in training, which updates moving averages.
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
        # Whether the model is compiled with metrics.
        self.has_metrics = any(m.name != "loss" for m in model.metrics)

        if self.can_widen:
            # What will not do then is found now.
            self.can_widen = decide(precision, lambda: self._program("float64"))

    def _widen(self):
        self._prepare("float64")

    def _program(self, dtype):
        def head():
            return self._probe(dtype)

        with backend.wide() if dtype else contextlib.nullcontext():
            return program_for(self.model, head, self._training, dtype)

    def _probe(self, dtype):
        """Rows to try the model on: as many as a chunk has."""
        data = self._rows(dtype)
        return data.head(data.chunk_rows(self._batch_size))

    def _prepare(self, dtype):
        """Compiles, and puts the data on the device."""
        data = self._rows(dtype)
        self.program = self._program(dtype)
        width = None
        if self._with_jacobian:
            outputs = sum(self.program.model_loss.output_widths)
            width = outputs * self.program.packing.size
        widest = max(s[-1] if s else 0 for s in self.program.packing.shapes)
        cut = self._batch_size, width, widest
        if isinstance(data, Stream):
            self._chunks = None
            self._read = functools.partial(data.chunks, *cut)
        else:
            self._chunks = (data.chunks(*cut),)
        self.refresh()
        self.__dict__.pop("_loss_unit", None)
        model_loss = self.program.model_loss
        self._set_term_factors(
            model_loss.term_factors(self._each_chunk(), lambda: data.rows)
        )
        if model_loss.carried:
            refuse_carried(model_loss.carried, data.rows, self.chunk_rows)

    def assign(self, theta):
        """Writes a flat vector, array or tensor, into the variables.

        With `training=True`, the averages of batch normalization become those
        of the data, so that `model.evaluate` is what was minimized.
        """
        super().assign(theta)
        if self._training:
            changed = self.program.layer_states.update(
                self.initial_position(), self._frozen, self._each_chunk()
            )
            frozen = zip(
                self.program.frozen_variables, self._frozen, strict=True
            )
            self._frozen = [changed.get(id(v), own) for v, own in frozen]

    def _pairs(self):
        """All chunks, in pairs as `Program` takes them."""
        return self._read() if self.is_streamed else self._chunks

    def pieces(self, is_steep=False):
        for pair in self._pairs():
            yield self._frozen, self._factor_tensors[is_steep], (pair,)

    @functools.cached_property
    def _loss_unit(self):
        # Slopes are of the size of targets, once a fit is well under way.
        first = self._data.first
        sizes = largest(first.y), largest(first.sample_weight, 1.0)
        return unit_for(np.prod(sizes) * largest(self._term_factors[:-1]))

    def _each_chunk(self):
        for pair in self._pairs():
            yield from each_chunk(pair)

    def _rows(self, dtype):
        """The data for an evaluation."""
        dtype = dtype or reading.dtype_for(self.model)
        return self._data.map(lambda a: in_dtype(a, dtype))

    @property
    def epsilon(self):
        """The spacing of numbers near one in the arithmetic of the loss."""
        dtype = self.program.packing.dtype
        if dtype is not None:
            return rounding(dtype)
        own = self.program.model_loss.epsilon
        return max(own, rounding(self.model.compute_dtype))

    @property
    def draws(self):
        return self.program.model_loss.draws

    def gauss_newton(self):
        """The Gauss-Newton matrix of the loss: a `HostGaussNewton`.

        Raises:
            ValueError: if the loss is not one of outputs with curvature.
        """
        with backend.wide():
            compiled = self.program.gauss_newton_for(self._looked_at)
        return HostGaussNewton(compiled, self)

    def _looked_at(self):
        """Yields chunks, the first one without reading a stream."""
        yield tuple(self._probe(self.program.packing.dtype))
        yield from self._each_chunk()

    @property
    def unused_variables(self):
        """The trainable variables that the loss never reads."""
        return list(self.program.model_loss.unused_variables)

    def head(self, rows):
        """The first rows, tensors as the loss takes them: `(x, y, weights)`."""
        return self._rows(self.program.packing.dtype).head(rows)

    @property
    def scales(self):
        """The factors by which the terms' sums enter the loss."""
        return self._term_factors

    @property
    def chunk_rows(self):
        """The rows of a chunk, the largest."""
        return leading_size(next(self._each_chunk()))

    @property
    def rows(self):
        """The number of rows of data."""
        return self._data.rows

    @property
    def row_counts(self):
        # Counted when the stream was read first; not once more for that.
        return [self.rows] if self.is_streamed else super().row_counts

    def batches(self, rng):
        """Objectives of batches of `batch_size` rows, in a random order.

        Those of a stream are in its own order.

        Each is a part of the loss: they add up to the whole.

        Args:
            rng: a `numpy.random.Generator`.
        """
        chunks = self._each_chunk()
        if not self.is_streamed:
            data = self._rows(self.program.packing.dtype)
            order = rng.permutation(data.rows)
            shuffled = data.map(lambda array: array[order])
            # A step on a last batch of a row or two would be a bad one.
            pair = shuffled.chunks(self._batch_size, is_even=True)
            chunks = each_chunk(pair)
        for chunk in chunks:
            batch = copy.copy(self)
            batch._chunks = ((None, chunk),)
            yield batch

    @functools.cached_property
    def metric_names(self):
        """What `evaluate` returns besides the loss."""
        with backend.wide():
            values = self.program.metric_values
            return list(self._results(self.initial_position(), values))

    def _results(self, theta, metric_values):
        return self.program.metric_results(theta, self._frozen, metric_values)

    def evaluate(self, theta):
        """The loss and the compiled metrics at `theta`, as floats.

        Args:
            theta: array of shape `(size,)`.

        Returns:
            A dict with the names that `model.evaluate` gives them.
        """
        with backend.wide():
            theta = self._checked(theta, "theta")
            total, values = 0.0, self.program.metric_values
            for piece in self.pieces():
                loss, values = self.program.evaluate(theta, values, *piece)
                total += number(loss)
            logs = {"loss": total}
            for name, value in self._results(theta, values).items():
                value = ops.convert_to_numpy(value)
                logs[name] = float(value) if value.ndim == 0 else value
        return logs


def _check_model(model):
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


def _warn_of_custom_steps(model):
    names = [n for n in ("train_step", "test_step") if overrides(model, n)]
    if names:
        warn(
            f"{model.name} defines {' and '.join(f'`{n}`' for n in names)}, "
            "which kormos does not call: it minimizes what `compute_loss` "
            "returns. Override `compute_loss`, or use `kormos.minimize`, if "
            "that is another loss.",
        )
