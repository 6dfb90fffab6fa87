"""A model's loss over all its training data, as a function of one vector."""

import contextlib
import inspect
import warnings

import keras
import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos import precision
from kormos.objective import reading
from kormos.objective.checks import check_count
from kormos.objective.flat import FlatObjective
from kormos.objective.flat import epsilon
from kormos.objective.losses import CompiledLosses
from kormos.objective.packing import Packing
from kormos.objective.program import Program
from kormos.objective.program import ReadRecorder
from kormos.objective.program import each_chunk
from kormos.objective.program import fold_chunks
from kormos.objective.program import leading_size
from kormos.objective.program import scalar_zero

# Attributes of a model that Keras neither tracks nor saves.
_PROGRAMS = "_kormos_programs"
_LOSS_WEIGHTS = "_kormos_loss_weights"
_MOST_PROGRAMS = 8


class Objective(FlatObjective):
    """The value that `model.evaluate` reports, as a function of one vector.

    The loss, its gradient and its Hessian products over all of the data, for
    a compiled model of any kind, to be minimized by kormos or by any other
    solver. Evaluating assigns nothing to the model: `assign` does.

    Dropout and noise are off and batch normalization uses its moving averages
    unless `training=True`, which freezes every seed instead.

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
    ):
        _check_model(model)
        if batch_size is not None:
            check_count("batch_size", batch_size, 1)
        dtype = reading.dtype_for(model)
        data = reading.gather(x, y, sample_weight, dtype)
        data = reading.weigh(data, class_weight, dtype)
        head = data.head(2)
        if not model.built:
            # Not in training, which updates moving averages.
            model(head.x, training=False)
        self.model = model
        self.program = _program_for(model, head, training)
        self._chunks = data.chunks(batch_size)
        self.refresh()
        self._scales = self.program.model_loss.scales(self._chunks, data.rows)

    @property
    def has_metrics(self):
        """Whether the model is compiled with metrics."""
        return any(m.name != "loss" for m in self.model.metrics)

    @property
    def epsilon(self):
        """The spacing of numbers near one in the model's own arithmetic."""
        return epsilon(self.model.compute_dtype)

    @property
    def unused_variables(self):
        """The trainable variables that the loss never reads."""
        return list(self.program.model_loss.unused_variables)

    def evaluate(self, theta):
        """The loss and the compiled metrics at `theta`, as floats.

        Args:
            theta: array of shape `(size,)`.

        Returns:
            A dict with the names that `model.evaluate` gives them.
        """
        with backend.wide():
            loss, metrics = self.program.evaluate(
                self._checked(theta, "theta"),
                self.program.metric_values,
                *self._arguments(),
            )
            logs = {"loss": float(loss)}
            for name, value in metrics.items():
                if name != "loss":
                    value = ops.convert_to_numpy(value)
                    logs[name] = float(value) if value.ndim == 0 else value
        return logs


class ModelProgram(Program):
    """The compiled functions of a model's objective, for any data."""

    def __init__(self, model, model_loss, compile):
        super().__init__(
            Packing(model_loss.variables),
            model_loss.frozen_variables,
            model_loss.chunk_loss,
            compile,
        )
        self.model_loss = model_loss
        self.evaluate = compile(self._evaluate)
        # The metrics' values after a reset: every evaluation starts there.
        self.metric_values = [
            ops.convert_to_numpy(v.value) for v in model_loss.metric_variables
        ]

    def _evaluate(self, theta, metric_values, frozen, scales, chunks):
        self.traces["evaluate"] += 1
        parts = self.packing.unpack(theta)

        def step(state, chunk):
            loss, values = state
            term, values = self.model_loss.chunk_metrics(
                parts, frozen, scales, values, chunk
            )
            return loss + ops.cast(term, loss.dtype), tuple(values)

        state = (
            scalar_zero(theta),
            tuple(ops.convert_to_tensor(v) for v in metric_values),
        )
        loss, values = fold_chunks(step, chunks, state)
        return loss, self.model_loss.metric_results(values)


class ModelLoss:
    """What a chunk of rows adds to a model's loss, without side effects.

    Terms with a divisor of their own (see `losses.py`) enter by their sums.
    Everything else a model adds to its loss enters as Keras weighs it in
    `evaluate`: by the rows of the chunk over all rows. Those shares add up to
    one, so that weight regularizers count once.

    Args:
        model: a compiled and built model.
        head: the first rows, a `Data` of tensors.
        training: whether layers behave as in training.
    """

    def __init__(self, model, head, training):
        self._model = model
        self._training = training
        self.variables = model.trainable_variables
        self._has_own_loss = _overrides(model, "compute_loss")
        self._takes_training = (
            "training" in inspect.signature(model.compute_loss).parameters
        )
        self._losses = None
        # Held, for the key of the cache knows losses by their `id`.
        self._compiled_loss = model.loss
        if model.loss is not None and not self._has_own_loss:
            self._losses = CompiledLosses(
                model.loss,
                _loss_weights(model),
                getattr(model, "output_names", None),
            )
        self._discover(head)

    def _discover(self, head):
        """Builds what is built lazily, and finds the variables in use."""
        x, y, w = head
        with ReadRecorder():
            y_pred = self._model(x, training=self._training)
        # Losses and metrics create variables when first called, which no
        # stateless scope allows.
        self.factors = []
        if self._losses is not None:
            self.factors = self._losses.factors(y, y_pred, w)
        if self._has_own_loss or self._has_loss_metrics():
            self._own_loss(x, y, y_pred, w)
        self._model.compute_metrics(x, y, y_pred, w)
        self._model.reset_metrics()
        self._metrics = list(self._model.metrics)
        self.metric_variables = list(self._model.metrics_variables)
        scales = ops.ones((len(self.factors) + 1,))
        with ReadRecorder() as scope:
            y_pred = self._model(x, training=self._training)
            self._loss(x, y, y_pred, w, scales)
            self._model.compute_metrics(x, y, y_pred, w)
            has_loss = self.factors or self._model.losses
        if not (has_loss or self._has_own_loss):
            raise ValueError(
                "There is nothing to minimize: give `compile` a `loss`, or "
                "call `add_loss` in a layer. "
                f"Received: {self._model.name}, compiled with loss=None"
            )
        excluded = [*self.variables, *self.metric_variables]
        self.frozen_variables = scope.reads_but(excluded)
        read = {id(v) for v in scope.reads()}
        self.unused_variables = [v for v in self.variables if id(v) not in read]

    def chunk_loss(self, parts, frozen, scales, chunk):
        x, y, w = chunk
        with self._scope(parts, frozen):
            y_pred = self._model(x, training=self._training)
            return self._loss(x, y, y_pred, w, scales)

    def chunk_metrics(self, parts, frozen, scales, metric_values, chunk):
        """The chunk's loss, and the metrics' values after the chunk."""
        x, y, w = chunk
        metrics = zip(self.metric_variables, metric_values, strict=True)
        with self._scope(parts, frozen, metrics) as scope:
            y_pred = self._model(x, training=self._training)
            loss = self._loss(x, y, y_pred, w, scales)
            if self._has_loss_metrics():
                self._own_loss(x, y, y_pred, w)
            self._model.compute_metrics(x, y, y_pred, w)
        values = [scope.get_current_value(v) for v in self.metric_variables]
        return loss, values

    def metric_results(self, metric_values):
        pairs = list(zip(self.metric_variables, metric_values, strict=True))
        with keras.StatelessScope(state_mapping=pairs):
            results = self._model.get_metrics_result()
        return {k: v for k, v in results.items() if k != "loss"}

    def scales(self, chunks, rows):
        """The factors of the terms, from counts over all of the data.

        Args:
            chunks: as `Program` takes them.
            rows: the number of rows.

        Returns:
            A float64 array: each term's `loss_weights` entry over its
            divisor, then one over the number of rows.
        """
        scales = np.full(len(self.factors) + 1, 1 / rows)
        if self._losses is not None:
            frozen = [v.value for v in self.frozen_variables]
            parts = [v.value for v in self.variables]
            counts = np.zeros(len(self.factors))
            for x, y, w in each_chunk(chunks):
                with self._scope(parts, frozen):
                    y_pred = self._model(x, training=self._training)
                    counts += self._losses.counts(y, y_pred, w)
            # A sum is divided by nothing; a mean over nothing is zero.
            divisors = np.where(np.isnan(counts), 1.0, counts)
            scales[:-1] = np.where(
                divisors == 0, 0, self.factors / np.where(divisors, divisors, 1)
            )
        return scales

    @contextlib.contextmanager
    def _scope(self, parts, frozen, others=()):
        pairs = [
            *zip(self.variables, parts, strict=True),
            *zip(self.frozen_variables, frozen, strict=True),
            *others,
        ]
        scope = keras.StatelessScope(state_mapping=pairs, collect_losses=True)
        with backend.repeatable(), scope:
            yield scope

    def _loss(self, x, y, y_pred, w, scales):
        share = leading_size(x) * scales[-1]
        if self._has_own_loss:
            own = self._own_loss(x, y, y_pred, w)
            return share * ops.cast(own, scales.dtype)
        total = ops.zeros((), dtype=scales.dtype)
        if self._losses is not None:
            total = self._losses.total(y, y_pred, w, scales)
        for loss in self._model.losses:
            total = total + share * ops.sum(ops.cast(loss, scales.dtype))
        return total

    def _own_loss(self, x, y, y_pred, w):
        training = {"training": self._training} if self._takes_training else {}
        loss = self._model.compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=w, **training
        )
        return ops.mean(loss)

    def _has_loss_metrics(self):
        # Keras keeps a metric for the loss of each of several outputs, and
        # only its own `compute_loss` updates them.
        return not self._has_own_loss and len(self.factors) > 1


def _program_for(model, head, training):
    """The model's compiled functions, from an earlier fit where possible."""
    programs = model.__dict__.get(_PROGRAMS)
    if programs is None:
        programs = {}
        object.__setattr__(model, _PROGRAMS, programs)
    key = _program_key(model, training)
    if key not in programs:
        if not programs:
            _warn_of_custom_steps(model)
        while len(programs) >= _MOST_PROGRAMS:
            programs.pop(next(iter(programs)))
        loss = ModelLoss(model, head, training)
        programs[key] = ModelProgram(model, loss, _compiler(model))
    return programs[key]


def _program_key(model, training):
    loss = tree.flatten(model.loss)
    return (
        training,
        keras.config.floatx(),
        precision.is_true_float64(),
        model.run_eagerly,
        model.jit_compile,
        tuple(id(v) for v in model.trainable_variables),
        tuple(leaf if isinstance(leaf, str) else id(leaf) for leaf in loss),
        repr(_loss_weights(model)),
        # `compile` makes a new tracker of the loss, which does not matter.
        tuple(id(m) for m in model.metrics if m.name != "loss"),
    )


def _compiler(model):
    if model.run_eagerly and keras.backend.backend() != "torch":
        return _uncompiled
    xla = bool(model.jit_compile)
    if keras.backend.backend() == "jax" and not xla:
        return _uncompiled
    return lambda fn: backend.compile(fn, xla=xla)


def _uncompiled(fn):
    def call(*args):
        args = [
            ops.convert_to_tensor(a, dtype=a.dtype.name)
            if isinstance(a, np.ndarray)
            else a
            for a in args
        ]
        return fn(*args)

    return call


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
    names = [n for n in ("train_step", "test_step") if _overrides(model, n)]
    if names:
        warnings.warn(
            f"{model.name} defines {' and '.join(f'`{n}`' for n in names)}, "
            "which kormos does not call: it minimizes what `compute_loss` "
            "returns. Override `compute_loss`, or use `kormos.minimize`, if "
            "that is another loss.",
            stacklevel=2,
        )


def _overrides(model, method):
    return getattr(type(model), method) is not getattr(keras.Model, method)


def remember_loss_weights(model, loss_weights):
    """Notes what `compile` was given: Keras keeps it out of reach."""
    object.__setattr__(model, _LOSS_WEIGHTS, (loss_weights,))


def _loss_weights(model):
    remembered = model.__dict__.get(_LOSS_WEIGHTS)
    if remembered is not None:
        return remembered[0]
    # Compiled before kormos was imported.
    with warnings.catch_warnings():
        # Keras warns of lambdas among the losses, which are not saved here.
        warnings.simplefilter("ignore")
        config = model.get_compile_config() or {}
    return keras.saving.deserialize_keras_object(config.get("loss_weights"))
