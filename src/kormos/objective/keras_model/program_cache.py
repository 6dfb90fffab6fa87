"""The compiled functions of a model's loss, kept from one fit to the next."""

import functools

import keras
from keras import ops
from keras import tree

from kormos import backend
from kormos.backend.common import as_tensor
from kormos.data.memory import leaves
from kormos.float64.settings import is_true_float64
from kormos.objective.compiled import Program
from kormos.objective.compiled import fold_chunks
from kormos.objective.compiled import scalar_zero
from kormos.objective.gauss_newton.compiled import GaussNewton
from kormos.objective.keras_model.layer_states import LayerStates
from kormos.objective.keras_model.loss import ModelLoss
from kormos.objective.keras_model.outputs import ModelOutputs
from kormos.objective.layout import Packing

# An attribute of a model that Keras neither tracks nor saves.
_PROGRAMS = "_kormos_programs"
_MOST_PROGRAMS = 8


class ModelProgram(Program):
    """The compiled functions of a model's objective, for any data."""

    def __init__(self, model, model_loss, compile, compile_loop, dtype):
        super().__init__(
            Packing(model_loss.variables, dtype),
            model_loss.frozen_variables,
            [model_loss.chunk_loss],
            compile,
            compile_loop,
        )
        self.model_loss = model_loss
        self.evaluate = compile(self._evaluate)
        self.metric_results = compile(self._metric_results)
        self._make_layer_states = lambda: LayerStates(
            model, model_loss, self.packing, compile
        )
        self._make_gauss_newton = lambda chunks: GaussNewton(
            self.packing,
            [ModelOutputs(model, model_loss, chunks, compile)],
            compile,
        )
        self._gauss_newton = None
        # The metrics' values after a reset: every evaluation starts there.
        self.metric_values = tuple(
            ops.convert_to_numpy(v.value) for v in model_loss.metric_variables
        )

    def gauss_newton_for(self, chunks):
        """Derivatives of the model's outputs.

        Args:
            chunks: function that returns an iterable of the chunks, at which
                the loss is looked at first.

        Raises:
            ValueError: if the loss is not one of outputs with curvature.
        """
        if self._gauss_newton is None:
            self._gauss_newton = self._make_gauss_newton(chunks)
        return self._gauss_newton

    @property
    def gauss_newton(self):
        """That of `gauss_newton_for`, once it was made."""
        return self._gauss_newton

    @functools.cached_property
    def layer_states(self):
        """The variables that layers assign when they are called in training."""
        return self._make_layer_states()

    def _metric_results(self, theta, frozen, metric_values):
        parts = self.packing.unpack(theta)
        return self.model_loss.metric_results(parts, frozen, metric_values)

    def _evaluate(self, theta, metric_values, frozen, term_factors, chunks):
        self.traces["evaluate"] += 1
        parts = self.packing.unpack(theta)

        def step(state, chunk):
            loss, values = state
            term, values = self.model_loss.chunk_metrics(
                parts, frozen, term_factors, values, chunk
            )
            return loss + ops.cast(term, loss.dtype), tuple(values)

        state = (
            scalar_zero(theta),
            tuple(ops.convert_to_tensor(v) for v in metric_values),
        )
        return fold_chunks(step, chunks[0], state)


def is_built(model):
    """Whether all of the model's layers have their variables.

    Keras calls a `Sequential` built as soon as one of its layers is.
    """
    parts = model.layers if isinstance(model, keras.Model) else ()
    return model.built and all(map(is_built, parts))


def is_new(model):
    """Whether nothing was compiled for the model yet."""
    return _PROGRAMS not in model.__dict__


def program_for(model, head, training, dtype=None):
    """The model's compiled functions, from an earlier fit where possible.

    Args:
        model: the compiled and built model.
        head: function that returns the rows of a chunk, a `Data` of tensors.
        training: whether layers behave as in training.
        dtype: `"float64"`, or `None` for the model's own arithmetic.
    """
    if is_new(model):
        object.__setattr__(model, _PROGRAMS, {})
    programs = model.__dict__[_PROGRAMS]
    key = (dtype, *_program_key(model, training))
    if key not in programs:
        while len(programs) >= _MOST_PROGRAMS:
            programs.pop(next(iter(programs)))
        compile = _compiler(model)
        head = head()
        loss = ModelLoss(model, head, training, compile, dtype)
        loop_compiler = _loop_compiler(model, loss.draws, head)
        programs[key] = ModelProgram(model, loss, compile, loop_compiler, dtype)
    return programs[key]


def forget_programs(model):
    """Drops what was compiled: the model may be another one now."""
    model.__dict__.pop(_PROGRAMS, None)


def _program_key(model, training):
    # What else the functions depend on changes by `compile` alone, as for
    # Keras' own; that forgets all of them.
    return (
        training,
        keras.config.floatx(),
        is_true_float64(),
        model.run_eagerly,
        model.jit_compile,
        tuple(id(v) for v in model.trainable_variables),
    )


def _compiler(model):
    if model.run_eagerly and keras.backend.backend() != "torch":
        return _uncompiled
    xla = bool(model.jit_compile)
    if keras.backend.backend() == "jax" and not xla:
        return _uncompiled
    return lambda fn: backend.compile(fn, xla=xla)


def _loop_compiler(model, draws, head):
    is_eager = model.run_eagerly or (
        keras.backend.backend() == "jax" and not model.jit_compile
    )
    if is_eager and keras.backend.backend() != "torch":
        return _uncompiled
    has_strings = any(
        keras.backend.standardize_dtype(a.dtype) == "string"
        for a in leaves(head.x)
    )
    if (draws or has_strings) and keras.backend.backend() == "tensorflow":
        # XLA draws other random numbers, and a fit must see the same. And it
        # has no strings.
        return _compiler(model)
    return backend.compile_loop


def _uncompiled(fn):
    def call(*args):
        # Also inside a solver's state, whose logic then runs on tensors.
        return fn(*tree.map_structure(as_tensor, args))

    return call
