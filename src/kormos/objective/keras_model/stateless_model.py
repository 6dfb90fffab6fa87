"""A model as a function of its inputs and of the values of its variables."""

import contextlib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator

import keras

from kormos import backend
from kormos.arithmetic.vectors import rounding
from kormos.data.variables import ReadRecorder
from kormos.data.variables import reads_seeds
from kormos.data.variables import snapshot
from kormos.float64.evaluation import Arithmetic
from kormos.float64.modules import refuse_assigned
from kormos.float64.modules import refuse_hidden_reads
from kormos.objective.compiled import leading_size
from kormos.objective.keras_model.rows import naming_rows
from kormos.types import Structure
from kormos.types import Tensor


class StatelessModel:
    """A model whose variables have other values within a scope.

    Calling it there assigns nothing to the model. It first has to learn, in
    this order, which layers it calls (`learn_layers`) and which variables its
    loss reads (`learn_variables`).

    Args:
        model: a compiled and built model.
        training: whether layers behave as in training.

    Attributes:
        arithmetic: the precision in which layers and losses compute.
        variables: the variables to train.
        frozen_variables: the other variables that the loss reads.
        assigned_variables: those of `frozen_variables` that a call assigns.
        unused_variables: those of `variables` that the loss never reads.
    """

    frozen_variables: list[keras.Variable]
    assigned_variables: list[keras.Variable]
    unused_variables: list[keras.Variable]

    def __init__(self, model: keras.Model, training: bool) -> None:
        self._model = model
        self._training = training
        self.arithmetic = Arithmetic()
        self.variables = model.trainable_variables

    def __call__(
        self, x: Structure, model: Callable[..., Structure] | None = None
    ) -> Structure:
        """The model's predictions, for the values in the present scope.

        Args:
            x: rows of inputs.
            model: another model to call instead, or `None`.
        """
        return (model or self._model)(x, training=self._training)

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
            pairs = self.arithmetic.present(known)
        else:
            scope = keras.StatelessScope(
                state_mapping=list(others), collect_losses=True
            )
            pairs = list(zip(known, [*frozen, *parts], strict=True))
        with (
            backend.repeatable(),
            backend.unscaled(),
            self.arithmetic.scope(scope, pairs),
        ):
            yield scope

    @property
    def draws(self) -> bool:
        """Whether the loss may draw random numbers, also in its layers."""
        return self._training or reads_seeds(self.frozen_variables)

    @property
    def evaluation_eps(self) -> float:
        """The machine epsilon of the arithmetic of the loss."""
        if self.arithmetic.dtype is not None:
            return rounding(self.arithmetic.dtype)
        own = rounding(self._model.compute_dtype)
        return max(self.arithmetic.evaluation_eps, own)

    @property
    def dry_run(self) -> Callable[..., Structure]:
        """The backend's function that tries a function of the model."""
        is_eager = self._model.run_eagerly
        return backend.attempt if is_eager else backend.dry_run

    def learn_layers(self, x: Structure) -> Structure:
        """Builds and notes the layers, by the first call of the model.

        Args:
            x: rows of inputs.

        Returns:
            The model's predictions.
        """
        with (
            naming_rows(self._model, leading_size(x)),
            self.arithmetic.learning(),
            ReadRecorder(),
        ):
            return self._first_call(self, x)

    def learn_variables(
        self,
        fn: Callable[..., Structure],
        *args: Structure,
        others: Iterable[keras.Variable],
    ) -> None:
        """Finds which variables a function reads and assigns.

        Args:
            fn: function that evaluates the loss.
            *args: its arguments.
            others: variables that are not frozen, though the function reads
                them.
        """
        with ReadRecorder() as scope:
            self._first_call(fn, *args)
        self.frozen_variables = scope.reads_but([*self.variables, *others])
        self.assigned_variables = scope.assigned(self.frozen_variables)
        read = {id(v) for v in [*scope.reads(), *self.arithmetic.reads()]}
        self.unused_variables = [v for v in self.variables if id(v) not in read]

    def _first_call(
        self, fn: Callable[..., Structure], *args: Structure
    ) -> Structure:
        if self._model.run_eagerly:
            return backend.attempt(fn, *args)
        return self.arithmetic.first_call(backend.dry_run, fn, *args)

    def refuse_hidden_reads(
        self, fn: Callable[..., Structure], *args: Structure
    ) -> None:
        """Refuses variables that the loss reads without Keras seeing it.

        Args:
            fn: see `learn_variables`.
            *args: see `learn_variables`.
        """
        refuse_hidden_reads(
            self.unused_variables,
            lambda: self.arithmetic.call(backend.attempt, fn, *args),
        )

    def refuse_assigned(self, x: Structure) -> None:
        """Refuses layers that assign variables to train, when called.

        Args:
            x: rows of inputs.
        """
        parts = snapshot(self.variables)
        with self.scope(parts, snapshot(self.frozen_variables)) as scope:
            try:
                self.dry_run(lambda: self._model(x, training=True))
            except Exception:
                # The model may not take the argument `training`, or not this
                # number of rows.
                return
            refuse_assigned(self.variables, parts, scope)
