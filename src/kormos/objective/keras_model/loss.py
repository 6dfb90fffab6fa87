"""What rows of data add to a model's loss, as a pure function."""

import contextlib
import inspect
import warnings

import keras
import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.data.reading import dtype_for
from kormos.data.variables import ReadRecorder
from kormos.data.variables import reads_seeds
from kormos.data.variables import snapshot
from kormos.data.variables import to_float
from kormos.data.variables import wide_values
from kormos.float64.evaluation import Arithmetic
from kormos.float64.modules import refuse_assigned
from kormos.float64.modules import refuse_hidden_reads
from kormos.objective.compiled import leading_size
from kormos.objective.keras_model.agreement import Agreement
from kormos.objective.keras_model.loss_sums import CompiledLosses
from kormos.objective.keras_model.metrics import flattened
from kormos.objective.keras_model.rows import carried
from kormos.objective.keras_model.rows import naming_rows

# An attribute of a model that Keras neither tracks nor saves.
_LOSS_WEIGHTS = "_kormos_loss_weights"


class ModelLoss:
    """What a chunk of rows adds to a model's loss, without side effects.

    Terms with a divisor of their own (see `losses.py`) enter by their sums.
    Everything else a model adds to its loss enters as Keras weighs it in
    `evaluate`: by the rows of the chunk over all rows. Those shares add up to
    one, so that weight regularizers count once.

    Args:
        model: a compiled and built model.
        head: the rows of a chunk, a `Data` of tensors: of fewer a model may
            be another one, or none.
        training: whether layers behave as in training.
        compile: function that compiles a function.
        dtype: `"float64"`, or `None` for the model's own arithmetic.
    """

    def __init__(self, model, head, training, compile, dtype=None):
        self._model = model
        self._arithmetic = Arithmetic()
        self._training = training
        self.variables = model.trainable_variables
        self._has_own_loss = overrides(model, "compute_loss")
        self._takes_training = (
            "training" in inspect.signature(model.compute_loss).parameters
        )
        self._counts = compile(self._count)
        self._losses = None
        if model.loss is not None and not self._has_own_loss:
            self._losses = CompiledLosses(
                model.loss,
                loss_weights(model),
                getattr(model, "output_names", None),
            )
        narrow = head.map(lambda a: to_float(a, dtype_for(model)))
        self._discover(narrow)
        if dtype is not None:
            self._widen(head, narrow, compile)

    def _widen(self, head, narrow, compile):
        """Computes in float64 whatever the model's own arithmetic is."""
        # The compiled losses, and the model's own: also the one that Keras
        # makes of them, whose call is not recorded.
        losses = [*tree.flatten(self._model.loss), *vars(self._model).values()]
        self._arithmetic.include(
            [loss for loss in losses if isinstance(loss, keras.losses.Loss)]
        )
        wide = self._arithmetic.widened()
        agreement = None
        if not self.draws:
            agreement = Agreement(self, narrow, compile)
        self._arithmetic = wide
        parts = wide_values(self.variables)
        frozen = snapshot(self.frozen_variables)

        def call(parts, frozen, x, y, w):
            with self.scope(parts, frozen):
                y_pred = self.predict(x)
                if self._has_own_loss:
                    return self._own_loss(x, y, y_pred, w)
                return y_pred

        def loss(parts, frozen, x, y, w):
            with self.scope(parts, frozen):
                term_factors = ops.ones(
                    (len(self.term_weights) + 1,), dtype="float64"
                )
                return self.loss_of(x, y, self.predict(x), w, term_factors)

        run = self._dry_run
        self._arithmetic.check(run, call, loss, parts, frozen, *head)
        self.output_dtype = "float64"
        if agreement is not None:
            agreement.check(head)

    @property
    def draws(self):
        """Whether there may be random numbers, which depend on the dtype."""
        return self._training or reads_seeds(self.frozen_variables)

    @property
    def _dry_run(self):
        is_eager = self._model.run_eagerly
        return backend.attempt if is_eager else backend.dry_run

    def _first_call(self, fn, *args):
        if self._model.run_eagerly:
            return backend.attempt(fn, *args)
        return self._arithmetic.first_call(backend.dry_run, fn, *args)

    def _discover(self, head):
        """Builds what is built lazily, and finds the variables in use."""
        x, y, w = head
        self._rows = leading_size(x)
        with (
            naming_rows(self._model, self._rows),
            self._arithmetic.learning(),
            ReadRecorder(),
        ):
            y_pred = self._first_call(self.predict, x)
        self.structure = tree.map_structure(lambda t: 0, y_pred)
        outputs = tree.flatten(y_pred)
        self.output_shapes = [tuple(output.shape[1:]) for output in outputs]
        # Of outputs that have no row for each of the inputs.
        self.other_shapes = [
            tuple(output.shape)
            for output in outputs
            if tuple(output.shape[:1]) != (self._rows,)
        ]
        dtypes = [keras.backend.standardize_dtype(o.dtype) for o in outputs]
        self.output_dtype = "float64" if dtypes[0] == "float64" else "float32"
        self.has_complex_outputs = any("complex" in dtype for dtype in dtypes)
        # Losses and metrics create variables when first called, which no
        # stateless scope allows.
        self.term_weights, self.loss_names, self.output_losses = [], [], []
        if self._losses is not None:
            self.term_weights = self._losses.term_weights(y, y_pred, w)
            self.loss_names = self._losses.names(y, y_pred, w)
            self.output_losses = self._losses.by_output(y, y_pred, w)
        if self._has_own_loss or self._has_loss_metrics():
            with self._arithmetic.learning():
                self._own_loss(x, y, y_pred, w)
        self._model.compute_metrics(x, y, y_pred, w)
        self._model.reset_metrics()
        self.metric_variables = list(self._model.metrics_variables)
        term_factors = ops.ones((len(self.term_weights) + 1,))
        masks = _Masks(name="masks")

        def evaluate(x, y, w, term_factors):
            y_pred = self.predict(x)
            tree.map_structure(masks, y_pred)
            loss = self.loss_of(x, y, y_pred, w, term_factors)
            self._model.compute_metrics(x, y, y_pred, w)
            self._model.get_metrics_result()
            self.adds_losses = bool(self._model.losses)
            return loss

        with ReadRecorder() as scope:
            self._first_call(evaluate, x, y, w, term_factors)
        self.has_masks = masks.found
        if not (self.term_weights or self._has_own_loss or self.adds_losses):
            raise ValueError(
                "There is nothing to minimize: give `compile` a `loss`, or "
                "call `add_loss` in a layer. "
                f"Received: {self._model.name}, compiled with loss=None"
            )
        excluded = [*self.variables, *self.metric_variables]
        self.frozen_variables = scope.reads_but(excluded)
        assigned = scope.assigned(self.frozen_variables)
        self.carried = carried(self, assigned, head)
        read = {id(v) for v in [*scope.reads(), *self._arithmetic.reads()]}
        self.unused_variables = [v for v in self.variables if id(v) not in read]
        refuse_hidden_reads(
            self.unused_variables,
            lambda: self._arithmetic.call(
                backend.attempt, evaluate, x, y, w, term_factors
            ),
        )
        self._refuse_assigned(x)

    def _refuse_assigned(self, x):
        parts = snapshot(self.variables)
        with self.scope(parts, snapshot(self.frozen_variables)) as scope:
            try:
                self._dry_run(lambda: self._model(x, training=True))
            except Exception:
                return  # It may have no such call, or none on so few rows.
            refuse_assigned(self.variables, parts, scope)

    def chunk_loss(self, parts, frozen, term_factors, chunk):
        x, y, w = chunk
        with self.scope(parts, frozen):
            return self.loss_of(x, y, self.predict(x), w, term_factors)

    def chunk_metrics(self, parts, frozen, term_factors, metric_values, chunk):
        """The chunk's loss, and the metrics' values after the chunk."""
        x, y, w = chunk
        metrics = zip(self.metric_variables, metric_values, strict=True)
        with self.scope(parts, frozen, metrics) as scope:
            y_pred = self.predict(x)
            loss = self.loss_of(x, y, y_pred, w, term_factors)
            if self._has_loss_metrics():
                self._own_loss(x, y, y_pred, w)
            self._model.compute_metrics(x, y, y_pred, w)
        values = [scope.get_current_value(v) for v in self.metric_variables]
        return loss, values

    def metric_results(self, parts, frozen, metric_values):
        metrics = zip(self.metric_variables, metric_values, strict=True)
        with self.scope(parts, frozen, metrics):
            results = self._model.get_metrics_result()
            results = flattened(results)
        return {k: v for k, v in results.items() if k != "loss"}

    def term_factors(self, chunks, rows):
        """The factors of the terms, from counts over all of the data.

        Args:
            chunks: iterable of the chunks.
            rows: function that returns the number of rows after that.

        Returns:
            A float64 array: each term's `loss_weights` entry over its
            divisor, then one over the number of rows.
        """
        term_factors = np.empty(len(self.term_weights) + 1)
        if self._losses is not None:
            counts = np.zeros(len(self.term_weights))
            for count in self._tried(backend.attempt, self._counts, chunks):
                sums, means = np.array(
                    [[ops.convert_to_numpy(v) for v in c] for c in count]
                ).T
                counts += np.where(
                    means == 0, 0, sums / np.where(means, means, 1)
                )
            # A sum is divided by nothing; a mean over nothing is zero.
            divisors = np.where(np.isnan(counts), 1.0, counts)
            term_factors[:-1] = np.where(
                divisors == 0,
                0,
                self.term_weights / np.where(divisors, divisors, 1),
            )
        else:
            # A shorter last chunk may be none that it takes.
            sizes = {leading_size(chunk): chunk for chunk in chunks}
            sizes.pop(self._rows, None)
            list(self._tried(self._dry_run, self._term, sizes.values()))
        term_factors[-1] = 1 / rows()
        return term_factors

    def _tried(self, call, fn, chunks):
        """Yields what a function of the variables returns of each chunk."""
        frozen = [v.value for v in self.frozen_variables]
        parts = [v.value for v in self.variables]
        for chunk in chunks:
            names_rows = naming_rows(
                self._model, leading_size(chunk), self._rows
            )
            with names_rows, backend.wide():
                found = call(fn, parts, frozen, chunk)
            yield found

    def _term(self, parts, frozen, chunk):
        term_factors = ops.ones((len(self.term_weights) + 1,))
        return self.chunk_loss(parts, frozen, term_factors, chunk)

    def _count(self, parts, frozen, chunk):
        x, y, w = chunk
        with self.scope(parts, frozen):
            return self._losses.counts(y, self.predict(x), w)

    def predict(self, x, model=None):
        """The model's predictions, by the variables of the scope.

        Args:
            x: rows of inputs.
            model: what to call instead of the model.
        """
        return (model or self._model)(x, training=self._training)

    def include(self, owner):
        """Lets a layer compute in the precision of the loss."""
        self._arithmetic.include([owner])

    @contextlib.contextmanager
    def scope(self, parts, frozen, others=()):
        known = [*self.frozen_variables, *self.variables]
        if parts is None:
            scope = ReadRecorder()
            pairs = self._arithmetic.present(known)
        else:
            scope = keras.StatelessScope(
                state_mapping=list(others), collect_losses=True
            )
            pairs = list(zip(known, [*frozen, *parts], strict=True))
        with backend.repeatable(), self._arithmetic.scope(scope, pairs):
            yield scope

    def output_loss(self, x, y, y_pred, w, term_factors):
        """What rows add to the loss by their predictions."""
        if self._has_own_loss:
            own = self._own_loss(x, y, y_pred, w)
            return (
                leading_size(x)
                * term_factors[-1]
                * ops.cast(own, term_factors.dtype)
            )
        if self._losses is None:
            return ops.zeros((), dtype=term_factors.dtype)
        return self._losses.total(y, y_pred, w, term_factors)

    def layer_losses(self, x, term_factors):
        """What layers add to the loss of rows that the model was called on."""
        total = ops.zeros((), dtype=term_factors.dtype)
        for loss in self._model.losses:
            total = total + ops.sum(ops.cast(loss, term_factors.dtype))
        return leading_size(x) * term_factors[-1] * total

    def loss_of(self, x, y, y_pred, w, term_factors):
        total = self.output_loss(x, y, y_pred, w, term_factors)
        if self._has_own_loss:
            return total  # It adds what layers add, if it is to be added.
        return total + self.layer_losses(x, term_factors)

    def _own_loss(self, x, y, y_pred, w):
        training = {"training": self._training} if self._takes_training else {}
        loss = self._model.compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=w, **training
        )
        return ops.mean(loss)

    @property
    def takes_wide(self):
        """Whether the loss of outputs takes them in a wider dtype."""
        return self._losses is not None and self._losses.is_wide

    @property
    def layers(self):
        """The layers that the model calls."""
        return self._arithmetic.owners

    @property
    def epsilon(self):
        """The coarsest rounding of layers with weights to train."""
        return self._arithmetic.epsilon

    @property
    def output_widths(self):
        """How many numbers a row has of each output."""
        return [int(np.prod(shape)) for shape in self.output_shapes]

    @property
    def own_name(self):
        """What to call the model's own `compute_loss`, or `None`."""
        if self._has_own_loss:
            return f"`compute_loss` of {type(self._model).__name__}"
        return None

    def _has_loss_metrics(self):
        # Keras keeps a metric for the loss of each of several outputs, and
        # only its own `compute_loss` updates them.
        return not self._has_own_loss and len(self.term_weights) > 1


class _Masks(keras.layers.Layer):
    """Notes whether there are masks, which layers alone may see."""

    supports_masking = True
    found = False

    def call(self, inputs, mask=None):
        self.found = self.found or mask is not None
        return inputs


def overrides(model, method):
    """Whether the model's class replaces a method of `keras.Model`."""
    return getattr(type(model), method) is not getattr(keras.Model, method)


def remember_loss_weights(model, weights):
    """Notes what `compile` was given: Keras keeps it out of reach."""
    object.__setattr__(model, _LOSS_WEIGHTS, (weights,))


def loss_weights(model):
    """The `loss_weights` that the model is compiled with."""
    remembered = model.__dict__.get(_LOSS_WEIGHTS)
    if remembered is not None:
        return remembered[0]
    # Compiled before kormos was imported.
    with warnings.catch_warnings():
        # Keras warns of lambdas among the losses, which are not saved here.
        warnings.simplefilter("ignore")
        config = model.get_compile_config() or {}
    return keras.saving.deserialize_keras_object(config.get("loss_weights"))
