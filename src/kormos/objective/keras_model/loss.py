"""What rows of data add to a model's loss, without side effects."""

import contextlib
import inspect
import warnings
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.data.memory import Data
from kormos.data.reading import dtype_for
from kormos.data.variables import ReadRecorder
from kormos.data.variables import reads_seeds
from kormos.data.variables import snapshot
from kormos.data.variables import to_float
from kormos.data.variables import wide_values
from kormos.float64.evaluation import Arithmetic
from kormos.float64.modules import refuse_assigned
from kormos.float64.modules import refuse_hidden_reads
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import Compiler
from kormos.objective.compiled import leading_size
from kormos.objective.keras_model.agreement import Agreement
from kormos.objective.keras_model.loss_sums import CompiledLosses
from kormos.objective.keras_model.metrics import flattened
from kormos.objective.keras_model.rows import carried
from kormos.objective.keras_model.rows import naming_rows
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor
from kormos.types import Vector

# An attribute of a model that Keras neither tracks nor saves.
_LOSS_WEIGHTS = "_kormos_loss_weights"


class ModelLoss:
    """What a chunk of rows adds to a model's loss, without side effects.

    Terms with a divisor of their own (see `loss_sums.py`) are added as sums.
    Everything else that a model adds to its loss is weighted as in Keras'
    `evaluate`, with the rows of the chunk over all rows. These weights add up
    to one, so that weight regularizers count once.

    The term factors are the factor of each term's sum, and then one over the
    number of all rows.

    Args:
        model: a compiled and built model.
        head: the rows of a chunk, as tensors, with which the model is tried.
            With another number of rows it may fail, or be another function.
        training: whether layers behave as in training.
        compile: function that compiles a function.
        dtype: `"float64"`, or `None` for the model's own dtype.

    Attributes:
        variables: the variables to train.
        frozen_variables: the other variables that the loss reads.
        unused_variables: those of `variables` that the loss never reads.
        metric_variables: the variables of the model's metrics.
        carried: the paths of variables by which a batch changes the loss of
            the next one.
        structure: the structure of the model's outputs.
        output_shapes: the shape of a row of each output.
        other_shapes: the shapes of outputs without a row for each input row.
        output_dtype: the dtype in which outputs are given to the losses.
        output_losses: for each output, its losses.
        has_complex_outputs: whether an output is complex.
        has_masks: whether an output has a mask.
        adds_losses: whether layers add to the loss.
        term_weights: the weight of each term of the loss, by `loss_weights`.
        loss_names: the names of the terms.
    """

    frozen_variables: list[keras.Variable]
    term_weights: list[float]
    loss_names: list[str]
    output_losses: list[list[keras.losses.Loss]]
    adds_losses: bool

    def __init__(
        self,
        model: keras.Model,
        head: Data,
        training: bool,
        compile: Compiler,
        dtype: str | None = None,
    ) -> None:
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

    def _widen(self, head: Data, narrow: Data, compile: Compiler) -> None:
        """Lets the model compute in float64, and checks that it does.

        Args:
            head: rows in float64.
            narrow: the same rows in the model's own dtype.
            compile: function that compiles a function.
        """
        # Among the attributes of the model is the loss that Keras makes of the
        # compiled losses, whose call is not recorded.
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

        def call(
            parts: list[Tensor],
            frozen: list[Tensor],
            x: Structure,
            y: Structure,
            w: Structure,
        ) -> Structure:
            with self.scope(parts, frozen):
                y_pred = self.predict(x)
                if self._has_own_loss:
                    return self._own_loss(x, y, y_pred, w)
                return y_pred

        def loss(
            parts: list[Tensor],
            frozen: list[Tensor],
            x: Structure,
            y: Structure,
            w: Structure,
        ) -> Scalar:
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
    def draws(self) -> bool:
        """Whether the loss may draw random numbers, also in its layers."""
        return self._training or reads_seeds(self.frozen_variables)

    @property
    def _dry_run(self) -> Callable[..., Structure]:
        """The function that tries a function of the model."""
        is_eager = self._model.run_eagerly
        return backend.attempt if is_eager else backend.dry_run

    def _first_call(
        self, fn: Callable[..., Structure], *args: Structure
    ) -> Structure:
        if self._model.run_eagerly:
            return backend.attempt(fn, *args)
        return self._arithmetic.first_call(backend.dry_run, fn, *args)

    def _discover(self, head: Data) -> None:
        """Builds layers, losses and metrics, and finds the variables in use."""
        x, y, w = head
        self._rows = leading_size(x)
        with (
            naming_rows(self._model, self._rows),
            self._arithmetic.learning(),
            ReadRecorder(),
        ):
            y_pred = self._first_call(self.predict, x)
        self._note_outputs(y_pred)
        self._build_losses(x, y, y_pred, w)
        self._find_variables(head)
        self._refuse_assigned(x)

    def _note_outputs(self, y_pred: Structure) -> None:
        """Notes shapes and dtypes of the model's outputs."""
        self.structure = tree.map_structure(lambda t: 0, y_pred)
        outputs = tree.flatten(y_pred)
        self.output_shapes = [tuple(output.shape[1:]) for output in outputs]
        self.other_shapes = [
            tuple(output.shape)
            for output in outputs
            if tuple(output.shape[:1]) != (self._rows,)
        ]
        dtypes = [keras.backend.standardize_dtype(o.dtype) for o in outputs]
        self.output_dtype = "float64" if dtypes[0] == "float64" else "float32"
        self.has_complex_outputs = any("complex" in dtype for dtype in dtypes)

    def _build_losses(
        self, x: Structure, y: Structure, y_pred: Structure, w: Structure
    ) -> None:
        """Calls losses and metrics outside of any stateless scope.

        They create variables when they are first called, which a stateless
        scope does not allow.
        """
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

    def _find_variables(self, head: Data) -> None:
        """Finds which variables an evaluation reads and assigns.

        Raises:
            ValueError: if there is no loss, or it depends on variables in a
                way that Keras does not see.
        """
        x, y, w = head
        term_factors = ops.ones((len(self.term_weights) + 1,))
        masks = _Masks(name="masks")

        def evaluate(
            x: Structure, y: Structure, w: Structure, term_factors: Tensor
        ) -> Scalar:
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

    def _refuse_assigned(self, x: Structure) -> None:
        """Refuses layers that assign variables to train, when called."""
        parts = snapshot(self.variables)
        with self.scope(parts, snapshot(self.frozen_variables)) as scope:
            try:
                self._dry_run(lambda: self._model(x, training=True))
            except Exception:
                # The model may not take the argument `training`, or not this
                # number of rows.
                return
            refuse_assigned(self.variables, parts, scope)

    def chunk_loss(
        self,
        parts: list[Tensor] | None,
        frozen: list[Tensor] | None,
        term_factors: Tensor,
        chunk: Chunk,
    ) -> Scalar:
        """What a chunk adds to the loss: a `ChunkLoss`."""
        x, y, w = chunk
        with self.scope(parts, frozen):
            return self.loss_of(x, y, self.predict(x), w, term_factors)

    def chunk_metrics(
        self,
        parts: list[Tensor],
        frozen: list[Tensor],
        term_factors: Tensor,
        metric_values: Sequence[Tensor],
        chunk: Chunk,
    ) -> tuple[Scalar, list[Tensor]]:
        """A chunk's loss, and the metrics' variables after the chunk.

        Args:
            parts: values of the variables.
            frozen: values of the frozen variables.
            term_factors: the factors of the terms.
            metric_values: the values of the metrics' variables before.
            chunk: the chunk.
        """
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

    def metric_results(
        self,
        parts: list[Tensor],
        frozen: list[Tensor],
        metric_values: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """The results of the metrics by name, from their variables' values."""
        metrics = zip(self.metric_variables, metric_values, strict=True)
        with self.scope(parts, frozen, metrics):
            results = self._model.get_metrics_result()
            results = flattened(results)
        return {k: v for k, v in results.items() if k != "loss"}

    def term_factors(
        self, chunks: Iterable[Chunk], rows: Callable[[], int]
    ) -> Vector:
        """The factors of the terms, from counts over all of the data.

        Args:
            chunks: the chunks of the data.
            rows: function that returns the number of rows. It is called after
                the last chunk.

        Returns:
            A float64 array: the weight of each term over its divisor, and then
            one over the number of rows.
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
            # A sum has no divisor. A mean over no entries is zero.
            divisors = np.where(np.isnan(counts), 1.0, counts)
            term_factors[:-1] = np.where(
                divisors == 0,
                0,
                self.term_weights / np.where(divisors, divisors, 1),
            )
        else:
            # The model may not take the number of rows of the last chunk.
            sizes = {leading_size(chunk): chunk for chunk in chunks}
            sizes.pop(self._rows, None)
            list(self._tried(self._dry_run, self._term, sizes.values()))
        term_factors[-1] = 1 / rows()
        return term_factors

    def _tried(
        self,
        call: Callable[..., Structure],
        fn: Callable[..., Structure],
        chunks: Iterable[Chunk],
    ) -> Iterator[Structure]:
        """Yields what a function returns for each chunk.

        Args:
            call: function that calls `fn` with its arguments.
            fn: function `(parts, frozen, chunk)`.
            chunks: the chunks.
        """
        frozen = [v.value for v in self.frozen_variables]
        parts = [v.value for v in self.variables]
        for chunk in chunks:
            names_rows = naming_rows(
                self._model, leading_size(chunk), self._rows
            )
            with names_rows, backend.wide():
                found = call(fn, parts, frozen, chunk)
            yield found

    def _term(
        self, parts: list[Tensor], frozen: list[Tensor], chunk: Chunk
    ) -> Scalar:
        """A chunk's loss with factors of one."""
        term_factors = ops.ones((len(self.term_weights) + 1,))
        return self.chunk_loss(parts, frozen, term_factors, chunk)

    def _count(
        self, parts: list[Tensor], frozen: list[Tensor], chunk: Chunk
    ) -> list[tuple[Scalar, Scalar]]:
        """A chunk's part of the divisors of the terms."""
        assert self._losses is not None  # Only they have divisors.
        x, y, w = chunk
        with self.scope(parts, frozen):
            return self._losses.counts(y, self.predict(x), w)

    def predict(
        self, x: Structure, model: Callable[..., Structure] | None = None
    ) -> Structure:
        """The model's predictions, for the values in the present scope.

        Args:
            x: rows of inputs.
            model: the model to call. Defaults to the model of the loss.
        """
        return (model or self._model)(x, training=self._training)

    def include(self, owner: keras.Layer) -> None:
        """Lets a layer, too, compute in the dtype of the loss."""
        self._arithmetic.include([owner])

    @contextlib.contextmanager
    def scope(
        self,
        parts: list[Tensor] | None,
        frozen: list[Tensor] | None,
        others: Iterable[tuple[keras.Variable, Tensor]] = (),
    ) -> Iterator[keras.StatelessScope]:
        """A scope in which variables have other values.

        Args:
            parts: values of `variables`, or `None` for their present ones.
            frozen: values of `frozen_variables`, or `None` with `parts`.
            others: pairs of further variables and their values.
        """
        known = [*self.frozen_variables, *self.variables]
        if parts is None or frozen is None:
            scope = ReadRecorder()
            pairs = self._arithmetic.present(known)
        else:
            scope = keras.StatelessScope(
                state_mapping=list(others), collect_losses=True
            )
            pairs = list(zip(known, [*frozen, *parts], strict=True))
        with backend.repeatable(), self._arithmetic.scope(scope, pairs):
            yield scope

    def output_loss(
        self,
        x: Structure,
        y: Structure,
        y_pred: Structure,
        w: Structure,
        term_factors: Tensor,
    ) -> Scalar:
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

    def layer_losses(self, x: Structure, term_factors: Tensor) -> Scalar:
        """What layers add to the loss of rows that the model was called on."""
        total = ops.zeros((), dtype=term_factors.dtype)
        for loss in self._model.losses:
            total = total + ops.sum(ops.cast(loss, term_factors.dtype))
        return leading_size(x) * term_factors[-1] * total

    def loss_of(
        self,
        x: Structure,
        y: Structure,
        y_pred: Structure,
        w: Structure,
        term_factors: Tensor,
    ) -> Scalar:
        """What rows add to the loss, by their predictions and by layers."""
        total = self.output_loss(x, y, y_pred, w, term_factors)
        if self._has_own_loss:
            # `compute_loss` adds the losses of layers itself, if it does.
            return total
        return total + self.layer_losses(x, term_factors)

    def _own_loss(
        self, x: Structure, y: Structure, y_pred: Structure, w: Structure
    ) -> Scalar:
        """What the model's `compute_loss` returns."""
        training = {"training": self._training} if self._takes_training else {}
        loss = self._model.compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=w, **training
        )
        return ops.mean(loss)

    @property
    def takes_wide(self) -> bool:
        """Whether the losses can be computed in a wider dtype than outputs."""
        return self._losses is not None and self._losses.is_wide

    @property
    def layers(self) -> list[keras.Layer | keras.losses.Loss]:
        """The layers and losses that the model calls."""
        return self._arithmetic.owners

    @property
    def epsilon(self) -> float:
        """The spacing of numbers near one in the coarsest trained layer."""
        return self._arithmetic.epsilon

    @property
    def output_widths(self) -> list[int]:
        """The number of entries in a row of each output."""
        return [int(np.prod(shape)) for shape in self.output_shapes]

    @property
    def own_name(self) -> str | None:
        """What to call the model's own `compute_loss`, or `None`."""
        if self._has_own_loss:
            return f"`compute_loss` of {type(self._model).__name__}"
        return None

    def _has_loss_metrics(self) -> bool:
        """Whether Keras has a metric for each of several losses.

        Only its own `compute_loss` updates these metrics.
        """
        return not self._has_own_loss and len(self.term_weights) > 1


class _Masks(keras.layers.Layer):
    """Notes whether there are masks. Keras shows masks only to layers."""

    supports_masking = True
    found = False

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        self.found = self.found or mask is not None
        return inputs


def overrides(model: keras.Model, method: str) -> bool:
    """Whether the model's class replaces a method of `keras.Model`."""
    return getattr(type(model), method) is not getattr(keras.Model, method)


def remember_loss_weights(model: keras.Model, weights: Structure) -> None:
    """Notes the `loss_weights` of `compile`, which Keras makes no attribute."""
    object.__setattr__(model, _LOSS_WEIGHTS, (weights,))


def loss_weights(model: keras.Model) -> Structure:
    """The `loss_weights` that the model is compiled with."""
    remembered = model.__dict__.get(_LOSS_WEIGHTS)
    if remembered is not None:
        return remembered[0]
    # The model was compiled before kormos was imported.
    with warnings.catch_warnings():
        # Keras warns of lambdas among the losses, which are not saved here.
        warnings.simplefilter("ignore")
        config = model.get_compile_config() or {}
    return keras.saving.deserialize_keras_object(config.get("loss_weights"))
