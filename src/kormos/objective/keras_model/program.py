"""The compiled functions of a model's loss, kept from one fit to the next."""

import functools
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterable

import keras
from keras import tree

from kormos import backend
from kormos.backend.common import as_tensor
from kormos.data.memory import Data
from kormos.data.memory import leaves
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import Compiler
from kormos.objective.compiled import Program
from kormos.objective.functions.fingerprint import Fingerprint
from kormos.objective.functions.fingerprint import fingerprint
from kormos.objective.gauss_newton.compiled import GaussNewton
from kormos.objective.keras_model.evaluation import ModelEvaluation
from kormos.objective.keras_model.layer_states import LayerStates
from kormos.objective.keras_model.loss import ModelLoss
from kormos.objective.keras_model.outputs import ModelOutputs
from kormos.objective.keras_model.term_factors import TermFactors
from kormos.objective.layout import Packing
from kormos.objective.program_cache import ProgramCache
from kormos.types import Structure

# An attribute of a model that Keras neither tracks nor saves.
_PROGRAMS = "_kormos_programs"


class ModelProgram(Program):
    """The compiled functions of a model's objective, for any data.

    Args:
        model: the compiled and built model.
        model_loss: the model's loss.
        compile: function that compiles a function.
        compile_loop: function that compiles a function of a solver's state.
        dtype: `"float64"`, or `None` for the model's own dtype.
        compiles_metrics: whether `compile_loop` can compile what `compile` can.

    Attributes:
        model_loss: the model's loss.
        term_factors: counts the factors of its terms.
        evaluate: the loss and the metrics, over all data.
        compiles_metrics: as given.
    """

    def __init__(
        self,
        model: keras.Model,
        model_loss: ModelLoss,
        compile: Compiler,
        compile_loop: Compiler,
        dtype: str | None,
        compiles_metrics: bool,
    ) -> None:
        self.compiles_metrics = compiles_metrics
        stateless, metrics = model_loss.stateless, model_loss.metrics
        super().__init__(
            Packing(stateless.variables, dtype),
            stateless.frozen_variables,
            [model_loss.chunk_loss],
            compile,
            compile_loop,
        )
        self.model_loss = model_loss
        self.term_factors = TermFactors(model, model_loss, compile)
        self.evaluate = ModelEvaluation(
            model_loss, self.packing, compile, self.graphs, self.traces
        )
        self._make_layer_states = lambda: LayerStates(
            model, stateless, metrics.variables, self.packing, compile
        )
        self._make_gauss_newton = lambda chunks: GaussNewton(
            self.packing,
            [ModelOutputs(model, model_loss, chunks, compile)],
            compile,
            self.graphs,
        )
        self._gauss_newton: GaussNewton | None = None
        self._fingerprint: Fingerprint | None = None

    def gauss_newton_for(
        self, chunks: Callable[[], Iterable[Chunk]]
    ) -> GaussNewton:
        """Derivatives of the model's outputs.

        Args:
            chunks: function that returns the chunks, at which the first call
                probes the curvature of the loss.

        Raises:
            ValueError: if the loss is not one of outputs with curvature.
        """
        if self._gauss_newton is None:
            self._gauss_newton = self._make_gauss_newton(chunks)
        return self._gauss_newton

    @property
    def gauss_newton(self) -> GaussNewton:
        """What `gauss_newton_for` has returned before."""
        assert self._gauss_newton is not None  # It needs chunks to be made.
        return self._gauss_newton

    def follow(self, present: Fingerprint | None) -> None:
        """Forgets what was recorded of a model that has changed since.

        Args:
            present: what the model computes from at this time, or `None` if
                that is unknown.
        """
        known, self._fingerprint = self._fingerprint, present
        if present is None or known is None or present.digest != known.digest:
            self.graphs.clear()
            self.term_factors.forget()

    @property
    def jacobian_width(self) -> int:
        """The number of derivatives of a row's outputs in all parameters."""
        return sum(self.model_loss.outputs.widths) * self.packing.size

    @property
    def widest_layer(self) -> int:
        """The number of entries that the widest layer returns for a row."""
        return max(s[-1] if s else 0 for s in self.packing.shapes)

    @functools.cached_property
    def layer_states(self) -> LayerStates:
        """The variables that layers assign when they are called in training."""
        return self._make_layer_states()


def is_new(model: keras.Model) -> bool:
    """Whether no functions were compiled for the model yet."""
    return _PROGRAMS not in model.__dict__


def program_for(
    model: keras.Model,
    head: Callable[[], Data],
    training: bool,
    dtype: str | None = None,
) -> ModelProgram:
    """The model's compiled functions, from an earlier fit where possible.

    Args:
        model: the compiled and built model.
        head: function that returns the rows of a chunk, as tensors.
        training: whether layers behave as in training.
        dtype: `"float64"`, or `None` for the model's own dtype.
    """

    def make() -> ModelProgram:
        compile = _compiler(model)
        rows = head()
        loss = ModelLoss(model, rows, training, compile, dtype)
        loop_compiler = _loop_compiler(model, loss.stateless.draws, rows)
        # A metric that XLA cannot compile would slow down the whole loop.
        compiles_metrics = (
            keras.backend.backend() != "tensorflow"
            or loop_compiler is not backend.compile_loop
            or bool(model.jit_compile)
            or loss.metrics.are_of_keras
        )
        return ModelProgram(
            model, loss, compile, loop_compiler, dtype, compiles_metrics
        )

    programs = model.__dict__.setdefault(_PROGRAMS, ProgramCache())
    program = programs.get((dtype, *_program_key(model, training)), make)
    if keras.backend.backend() == "torch":
        program.follow(fingerprint((model, model.loss, model.metrics)))
    return program


def forget_programs(model: keras.Model) -> None:
    """Drops the model's compiled functions, because the model has changed."""
    model.__dict__.pop(_PROGRAMS, None)


def _program_key(model: keras.Model, training: bool) -> tuple[Hashable, ...]:
    """The values on which compiled functions depend, besides `compile`.

    The model's `compile` drops all of them, as it drops Keras' own.
    """
    return (
        training,
        model.run_eagerly,
        model.jit_compile,
        tuple(id(v) for v in model.trainable_variables),
        # A stage may have other `loss_weights`.
        id(getattr(model, "_compile_loss", None)),
    )


def _compiler(model: keras.Model) -> Compiler:
    """The function that compiles as the model is compiled for Keras."""
    if model.run_eagerly:
        return _uncompiled
    # XLA compiles for one device.
    xla = bool(model.jit_compile) and not backend.replicas(model)
    if keras.backend.backend() == "jax" and not xla:
        return _uncompiled
    return lambda fn: backend.compile(fn, xla=xla)


def _loop_compiler(model: keras.Model, draws: bool, head: Data) -> Compiler:
    """The function that compiles a function of a solver's state.

    Args:
        model: the model.
        draws: whether its loss may draw random numbers.
        head: rows of its data, as tensors.
    """
    if model.run_eagerly and keras.backend.backend() == "torch":
        return lambda fn: _eagerly(backend.compile_loop(fn))
    is_eager = model.run_eagerly or (
        keras.backend.backend() == "jax" and not model.jit_compile
    )
    if is_eager:
        return _uncompiled
    has_strings = any(
        keras.backend.standardize_dtype(a.dtype) == "string"
        for a in leaves(head.x)
    )
    if (draws or has_strings) and keras.backend.backend() == "tensorflow":
        # Code that XLA compiled draws other random numbers, and all functions
        # of a fit must draw the same. And XLA does not support strings.
        return _compiler(model)
    return backend.compile_loop


def _eagerly(fn: Callable[..., Structure]) -> Callable[..., Structure]:
    def call(*args: Structure) -> Structure:
        with backend.eagerly():
            return fn(*args)

    return call


def _uncompiled(fn: Callable[..., Structure]) -> Callable[..., Structure]:
    if keras.backend.backend() == "torch":
        return _eagerly(backend.compile(fn))

    def call(*args: Structure) -> Structure:
        # The solver's state, too, consists of tensors.
        return fn(*tree.map_structure(as_tensor, backend.whole(args)))

    return call
