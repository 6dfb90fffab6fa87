"""Variables that layers read or assign without Keras noticing it."""

import contextlib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence

import keras
import numpy as np
from keras import tree

from kormos import backend
from kormos.data.variables import ReadRecorder
from kormos.data.variables import restored
from kormos.data.variables import to_float
from kormos.float64.layer_calls import Owner
from kormos.float64.settings import turn
from kormos.types import Array
from kormos.types import Structure
from kormos.types import Tensor
from kormos.warn import warn


def _wrapped_in(model: keras.Model) -> list[keras.layers.TorchModuleWrapper]:
    """The layers of a model that wrap PyTorch modules."""
    return [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.TorchModuleWrapper)
    ]


@contextlib.contextmanager
def kept_buffers(model: keras.Model) -> Iterator[None]:
    """A scope after which the buffers of PyTorch modules are as before.

    A call of a module in training changes its running averages.

    Args:
        model: the model.
    """
    buffers = [b for w in _wrapped_in(model) for b in w.module.buffers()]
    copies = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, copy in zip(buffers, copies, strict=True):
            buffer.copy_(copy)


def warn_of_running_averages(model: keras.Model) -> None:
    """Warns that running averages of PyTorch modules stay as they are."""
    for wrapper in _wrapped_in(model):
        names = [
            name
            for name, module in wrapper.module.named_modules()
            if getattr(module, "running_mean", None) is not None
        ]
        if names:
            warn(
                f"{model.name}: with `training=True`, the running averages "
                "of PyTorch modules stay as they are, so that `evaluate` "
                "computes another loss. After the fit, call the modules in "
                "training mode on the data, or use "
                "`keras.layers.BatchNormalization`. Received: "
                f"{', '.join(names)} in layer '{wrapper.name}'"
            )


class Modules:
    """The PyTorch modules that a function calls, in `TorchModuleWrapper`s.

    They read their own parameters, whose memory Keras' variables share. A scope
    of Keras does not notice this.
    """

    def __init__(self) -> None:
        self._wrappers: list[keras.layers.TorchModuleWrapper] = []
        self._met: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def learning(self) -> Iterator[None]:
        """A scope that notes which parameters operations receive."""
        with backend.parameters_met() as met:
            yield
        self._met.update(met)

    def include(self, owners: Iterable[Owner]) -> None:
        """Adds the wrappers among layers that were called."""
        self._wrappers += [
            owner
            for owner in owners
            if isinstance(owner, keras.layers.TorchModuleWrapper)
            and owner not in self._wrappers
        ]

    def reads(self) -> list[keras.Variable]:
        """The modules' variables whose parameters operations received."""
        variables = [v for w in self._wrappers for v in w.variables]
        return [v for v in variables if id(v.value) in self._met]

    @contextlib.contextmanager
    def scope(
        self, stateless: keras.StatelessScope, dtype: str | None = None
    ) -> Iterator[None]:
        """A scope in which modules compute with other values.

        Args:
            stateless: the `keras.StatelessScope` that has the values. It is
                entered later.
            dtype: dtype of floating-point numbers. Defaults to that of each
                value.
        """
        if not self._wrappers:
            yield
            return
        pairs = []
        for variable in self.reads():
            own, value = variable.value, stateless.get_current_value(variable)
            value = own if value is None else value
            pairs.append((own, to_float(value, dtype or value.dtype)))
        for wrapper in self._wrappers:
            for buffer in wrapper.module.buffers():
                # A module in training updates its averages in place.
                pairs.append(
                    (buffer, to_float(buffer.clone(), dtype or buffer.dtype))
                )
        with backend.standing_in(pairs):
            yield


def refuse_hidden_reads(
    variables: Sequence[keras.Variable], fn: Callable[[], Structure]
) -> None:
    """Refuses variables that change a function without a read through Keras.

    The gradient with respect to them would be zero, and a fit would take its
    start for an optimum.

    Args:
        variables: the variables whose reads no scope has noticed.
        fn: function without arguments that returns tensors in any structure.
            It must not use a trace of an earlier call.

    Raises:
        ValueError: naming the variables.
    """
    if not variables:
        return
    # Other threads must wait, because the variables change temporarily.
    with turn("changed"):

        def outputs() -> list[Array]:
            with backend.repeatable(), ReadRecorder():
                leaves = tree.flatten(fn())
            return [backend.to_numpy(leaf) for leaf in leaves]

        present = outputs()
        if not _changes(variables, present, outputs):
            return
        names = [v.path for v in variables if _changes([v], present, outputs)]
    raise ValueError(
        "The loss can only be differentiated with respect to variables that "
        "are read through Keras. Layers such as `TFSMLayer` and compiled "
        "PyTorch modules read theirs directly. Freeze these layers "
        "(`layer.trainable = False`), or build them from Keras layers. "
        "Received: variables that change the outputs without being read, "
        f"{', '.join(names)}"
    )


def refuse_assigned(
    variables: Sequence[keras.Variable],
    values: Sequence[Tensor],
    scope: keras.StatelessScope,
) -> None:
    """Refuses variables that a layer assigns when it is called in training.

    Keras' own training keeps what the layer assigns, such as a normalized
    kernel. A full-batch method discards it, and would end at weights that are
    not normalized.

    Args:
        variables: the variables to train.
        values: the tensors that the variables had at the start of such a call.
        scope: the `keras.StatelessScope` in which the call was made.

    Raises:
        ValueError: naming the variables.
    """
    names = [
        variable.path
        for variable, value in zip(variables, values, strict=True)
        if scope.get_current_value(variable) is not value
    ]
    if names:
        raise ValueError(
            "A full-batch method cannot train variables that a layer assigns "
            "itself in each step, as `SpectralNormalization` does with its "
            "kernel, because that changes the loss from step to step. Use the "
            "wrapped layer with a regularizer, freeze it, or compile with a "
            f"stochastic optimizer such as 'adam'. Received: "
            f"{', '.join(names)}, assigned by a call with training=True"
        )


def _changes(
    variables: Sequence[keras.Variable],
    present: Sequence[Array],
    outputs: Callable[[], list[Array]],
) -> bool:
    """Whether other values of the variables change the outputs."""
    rng = np.random.default_rng(0)
    with restored(variables) as kept:
        for variable, value in zip(variables, kept, strict=True):
            # By 10 to 50 percent, plus the same amount for values near zero.
            # Any change far above rounding would do.
            noise = rng.uniform(0.1, 0.5, size=value.shape)
            variable.assign(value + noise * (1 + abs(value)))
        other = outputs()
    return not all(
        np.array_equal(a, b, equal_nan=True)
        for a, b in zip(present, other, strict=True)
    )
