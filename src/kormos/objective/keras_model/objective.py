"""The loss of a model on all of its data, as a function of one vector."""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import Self

import keras
import numpy as np

from kormos import backend
from kormos.data.arrays import check_inputs
from kormos.data.memory import Data
from kormos.float64.choice import check_precision
from kormos.float64.choice import decide
from kormos.float64.choice import starts_in_float64
from kormos.float64.evaluation import warn_of_rounding
from kormos.float64.modules import kept_buffers
from kormos.float64.modules import warn_of_running_averages
from kormos.objective.arguments import ProgramArguments
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import leading_size
from kormos.objective.gauss_newton.host import HostGaussNewton
from kormos.objective.keras_model.carried_state import refuse_carried
from kormos.objective.keras_model.coupled_rows import may_couple
from kormos.objective.keras_model.coupled_rows import warn_of_coupling
from kormos.objective.keras_model.measured import MeasuredObjective
from kormos.objective.keras_model.model_checks import build
from kormos.objective.keras_model.model_checks import check_model
from kormos.objective.keras_model.model_checks import warn_of_custom_steps
from kormos.objective.keras_model.own_training import train_epoch
from kormos.objective.keras_model.program import ModelProgram
from kormos.objective.keras_model.program import is_new
from kormos.objective.keras_model.program import program_for
from kormos.objective.keras_model.training_data import TrainingData
from kormos.objective.l1 import SplitObjective
from kormos.objective.l1 import in_parts
from kormos.objective.units import largest
from kormos.objective.units import unit_for
from kormos.processes import processes_of
from kormos.types import Structure
from kormos.types import Tensor
from kormos.types import Vector


class Objective(MeasuredObjective):
    """The loss that `model.evaluate` reports, as a function of one vector.

    It computes the loss, its gradient and Hessian products on all of the data,
    for a compiled model of any kind, so that kormos or another solver can
    minimize it. An evaluation does not change the model; `assign` does.

    Dropout and noise layers are off, and batch normalization uses its moving
    averages, unless `training=True`. Then all random seeds are frozen, and
    batch normalization uses the averages of each chunk of `batch_size` rows.

    Args:
        model: A compiled `keras.Model`.
        x: Inputs: NumPy arrays, tensors, pandas objects, or dicts, lists and
            tuples of these, or a finite dataset of batches.
        y: Targets. Leave it out if `x` is a dataset.
        sample_weight: Weights of the rows, an array of shape `(rows,)`. Leave
            it out if `x` is a dataset.
        class_weight: Dict that maps class indices to weights.
        batch_size: Integer, the largest number of rows that are evaluated at
            the same time. It changes memory use and speed, never the value.
            Defaults to a size that depends on the width of the inputs.
        training: Boolean, whether layers run in training mode. Defaults to
            `False`.
        with_jacobian: Boolean, whether to use chunks so small that the
            derivatives of all outputs of a chunk with respect to all parameters
            fit into memory. Defaults to `False`.
        precision: `"float64"` to evaluate in float64 whatever the dtype of the
            model is; `"auto"` to do so once `go_on_in_float64()` has been
            called. Defaults to the model's own dtype.
        stream: Boolean, whether to read the data again at every evaluation
            instead of keeping them in memory. Points must then be NumPy arrays.
            Defaults to `False`.
        allow_nan: Boolean, whether inputs and targets may contain NaN, for a
            model or a loss that handles them. Defaults to `False`.

    Attributes:
        model: The model.
        size: Integer, the number of parameters.
        has_float64: Boolean, whether `go_on_in_float64` can be called.
        unused_variables: List of the trainable variables that the loss never
            reads.
        has_metrics: Boolean, whether the model is compiled with metrics.

    Raises:
        ValueError: If the model is not compiled, has no trainable variables or
            no loss, or if the data cannot be used.

    Example:

    ```python
    import scipy.optimize

    objective = kormos.Objective(model, x, y)
    result = scipy.optimize.minimize(
        objective.value_and_grad, objective.initial_position(), jac=True
    )
    objective.assign(result.x)
    ```
    """

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
        check_model(model)
        check_precision(precision)
        self._data = TrainingData(
            model,
            x,
            y,
            sample_weight,
            class_weight,
            batch_size=batch_size,
            precision=precision,
            stream=stream,
            allow_nan=allow_nan,
        )
        self._training = training
        self._with_jacobian = with_jacobian
        self.model = model
        self._processes = processes_of(model)
        with kept_buffers(model):
            build(model, self._data)
        check_inputs(self._data.first.x, getattr(model, "inputs", None))
        if is_new(model):
            warn_of_custom_steps(model)
            if training:
                warn_of_running_averages(model)
        is_float64 = starts_in_float64(precision, [model.compute_dtype])
        self.has_float64 = precision == "auto" and not is_float64
        if not is_float64:
            warn_of_rounding(model.name, model.compute_dtype)
        self._prepare("float64" if is_float64 else None)
        self.has_metrics = any(m.name != "loss" for m in model.metrics)
        if self.has_float64:
            # Refuse a model that fails in float64 now, not during the fit.
            self.has_float64 = decide(
                precision, lambda: self._program("float64")
            )

    def _go_on_in_float64(self) -> None:
        self._prepare("float64")

    def _program(self, dtype: str | None) -> ModelProgram:
        """The model's compiled functions, for a dtype of `_prepare`."""
        known: Data | None = None
        if not self._processes.is_alone:
            # This needs all processes, even one on which an earlier fit has
            # compiled.
            known = self._head(dtype)

        def head() -> Data:
            return known or self._head(dtype)

        with (
            backend.float64() if dtype else contextlib.nullcontext(),
            kept_buffers(self.model),
        ):
            return program_for(self.model, head, self._training, dtype)

    def _prepare(self, dtype: str | None) -> None:
        """Compiles the functions, and puts the data on the device.

        Args:
            dtype: `"float64"`, or `None` for the model's own dtype.
        """
        self.program = self._program(dtype)
        model_loss = self.program.model_loss
        model_loss.terms.check_targets(self._data.first.y)
        self.unused_variables = list(model_loss.stateless.unused_variables)
        width = self.program.jacobian_width if self._with_jacobian else None
        self._cut = dtype, width, self.program.widest_layer
        chunks, read = self._data.chunked(*self._cut)
        frozen = self.program.frozen_values()
        arguments = ProgramArguments(
            frozen, chunks=chunks, read=read, processes=self._processes
        )
        factors = self.program.term_factors(arguments, self._count_rows)
        self.arguments = dataclasses.replace(arguments, term_factors=factors)
        self.__dict__.pop("_loss_unit", None)
        if not self._processes.is_alone:
            is_new = self._processes.agree(not self.program.is_verified)
            self.program.is_verified = not is_new
        if model_loss.carried:
            refuse_carried(model_loss.carried, self.rows, self.chunk_rows)
        if may_couple(model_loss) and self.rows > self.chunk_rows:
            warn_of_coupling(self, model_loss, self._data.head(dtype))

    def _head(self, dtype: str | None) -> Data:
        """The rows of a chunk as tensors, the same on all processes.

        So all processes take the same decisions.
        """
        data = self._data
        if self._processes.is_alone:
            return data.head(dtype)
        first = self._processes.from_first(lambda: data.first_rows(dtype))
        return first.head(first.rows)

    @property
    def data(self) -> Structure | None:
        """`(x, y)`, or `(x, y, sample_weight)`; `None` if streamed."""
        return self._data.arrays

    def replace(self, data: Structure) -> None:
        """Replaces the data.

        Args:
            data: `(x, y)`, or `(x, y, sample_weight)`, like `data`.

        Raises:
            ValueError: if these are not as many arrays as before, or cannot
                be used.
        """
        dtype = self.program.packing.dtype
        self._data = self._data.replaced(data, dtype)
        self._prepare(dtype)

    def assign(self, theta: Vector | Tensor) -> None:
        """Writes a flat vector, array or tensor, into the variables.

        With `training=True`, the averages of batch normalization become those
        of the data, so that `model.evaluate` computes what was minimized.
        """
        super().assign(theta)
        if self._training:
            self._assigned = self.program.layer_states.update(
                self.initial_position(), self.arguments
            )

    @property
    def uses_training_state(self) -> bool:
        """Whether layers use averages over rows, or random numbers."""
        return self._training and bool(self.model.non_trainable_variables)

    @functools.cached_property
    def _loss_unit(self) -> float:
        # In most of a fit, slopes are at most about as large as targets.
        slope = largest(self.arguments.term_factors[:-1])
        target = self.processes.gather(
            np.array([self._data.largest_target])
        ).max()
        return unit_for(target * slope)

    @property
    def evaluation_eps(self) -> float:
        """The machine epsilon of the arithmetic of the loss."""
        return self.program.model_loss.stateless.evaluation_eps

    def cut_for_jacobians(self) -> None:
        if self._with_jacobian:
            return
        self._with_jacobian = True
        dtype, _, widest = self._cut
        width = self.program.jacobian_width
        if self._data.chunk_rows(dtype, width, widest) < self.chunk_rows:
            self._prepare(dtype)

    def gauss_newton(self) -> HostGaussNewton:
        """The Gauss-Newton matrix of the loss: a `HostGaussNewton`.

        Raises:
            ValueError: if the loss is not one of outputs with curvature.
        """
        with backend.float64():
            compiled = self.program.gauss_newton_for(self._probed)
        return HostGaussNewton(compiled, self)

    def _probed(self) -> Iterator[Chunk]:
        """Yields chunks, the first of them without reading a stream."""
        yield tuple(self._head(self.program.packing.dtype))
        yield from self.arguments.each_chunk()

    def head(self, rows: int) -> Data:
        """The first rows, as tensors in the dtype of the loss."""
        return self._data.head(self.program.packing.dtype, rows)

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
        """The number of rows of data, of all processes."""
        return self._rows

    def _count_rows(self) -> int:
        rows = self._processes.sum(self._data.rows, "rows of data")
        self._rows = int(rows)
        return self._rows

    @property
    def row_counts(self) -> list[int]:
        # They were counted when the stream was read first.
        return [self.rows] if self.is_streamed else super().row_counts

    @property
    def is_read_alike(self) -> bool:
        """Whether data that are read again begin with the same rows."""
        return self._data.is_read_alike

    def batches(self, rng: np.random.Generator) -> Iterator[Self]:
        """Yields objectives of batches of `batch_size` rows.

        They add up to this objective. The rows are in a random order, or in
        the order of the stream.

        Args:
            rng: a `numpy.random.Generator`.
        """
        self._check_batches()
        chunks = self._data.shuffled(self.program.packing.dtype, rng)
        for chunk in chunks or self.arguments.each_chunk():
            batch = copy.copy(self)
            # Nobody reads the metrics of a batch.
            batch._known = None
            batch.arguments = dataclasses.replace(
                self.arguments, chunks=((None, chunk),), read=None
            )
            yield batch

    @property
    def seed_states(self) -> list[keras.Variable]:
        """The variables of the model's random numbers."""
        weights = {id(weight) for weight in self.model.weights}
        return [v for v in self.model.variables if id(v) not in weights]

    @property
    def other_variables(self) -> list[keras.Variable]:
        """The variables that the loss reads besides the trained ones."""
        return self.program.frozen_variables

    def train_epoch(
        self,
        optimizer: keras.optimizers.Optimizer,
        batch_size: int | None,
        rng: np.random.Generator,
    ) -> None:
        """Trains the model for an epoch by Keras' own `train_step`.

        Args:
            optimizer: the Keras optimizer, built for the model's variables.
            batch_size: the rows of a batch. Defaults to that of the data, or
                32.
            rng: the random generator that draws the order of the rows.

        Raises:
            ValueError: if the data are streamed.
        """
        rows = self._data.in_memory
        if rows is None:
            raise ValueError(
                "A stage with one of Keras' own optimizers shuffles rows, "
                "which must be in memory: fit without `stream=True`, or pass "
                "`full_batch=True` to the `Chain`. Received: stream=True"
            )
        batch_size = batch_size or self._data.batch_size
        train_epoch(self.model, rows, optimizer, batch_size, rng)

    def _check_batches(self) -> None:
        """Refuses processes with different numbers of batches."""
        if self.processes.is_alone:
            return
        counts = self.processes.gather(np.array([float(self._data.batches)]))
        if len(set(counts)) > 1:
            raise ValueError(
                "Each step uses a batch of every process, so that all "
                "processes need the same number of batches: give them the "
                "same number of rows. Received: "
                f"{[int(count) for count in counts]} batches"
            )

    def in_parts(
        self, lower: Vector | None, upper: Vector | None
    ) -> SplitObjective | None:
        return in_parts(self, lower, upper)

    def in_memory(self) -> Self:
        """The same loss; of the first rows only if data are streamed."""
        if not self.is_streamed:
            return self
        part = copy.copy(self)
        chunks = self._data.first_chunks(*self._cut)
        part.arguments = dataclasses.replace(
            self.arguments, chunks=chunks, read=None
        )
        return part
