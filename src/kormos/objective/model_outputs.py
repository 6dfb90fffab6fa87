"""A model's loss as a function of the model's outputs."""

import contextlib
import types

import keras
import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.objective.data import leaves
from kormos.objective.own_loss import adds_layer_losses
from kormos.objective.units import largest

# Activations of a last layer that make a convex loss of what enters them,
# with the losses of which that is true, by name, function or class.
_LINKS: dict = {
    "softmax": (
        "crossentropy",
        "ce",
        keras.losses.categorical_crossentropy,
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.CategoricalCrossentropy,
        keras.losses.SparseCategoricalCrossentropy,
    ),
    "sigmoid": (
        keras.losses.binary_crossentropy,
        keras.losses.BinaryCrossentropy,
    ),
    "exponential": (keras.losses.poisson, keras.losses.Poisson),
}


class ModelOutputs:
    """The outputs of a model's rows, and the loss as a function of them.

    What enters a last softmax or sigmoid counts as the output where the loss
    is the matching cross-entropy (the exponential, for Poisson): the loss is
    then convex in the outputs, and its Gauss-Newton matrix is Fisher's.

    Args:
        model: the compiled and built model.
        model_loss: the `ModelLoss`.
        head: the first rows, a `Data` of tensors.
        compile: function that compiles a function.

    Attributes:
        width: the number of outputs of a row.
        is_diagonal: whether the loss is a sum over the outputs, so that its
            Hessian in them is diagonal.
        has_penalty: whether layers add to the loss.
    """

    is_residual = False

    def __init__(self, model, model_loss, head, compile):
        self._model = model
        self._model_loss = model_loss
        self._link = _link(model)
        self.width = sum(model_loss.output_widths)
        self.has_penalty = model_loss.adds_losses
        if model_loss.own_name is not None:
            self.has_penalty = adds_layer_losses(model_loss, tuple(head))
        self.is_diagonal = self._check(head, compile)

    def rows(self, chunk):
        """What `outputs` wants of a chunk."""
        return chunk[0]

    def outputs(self, parts, frozen, rows):
        """The outputs of rows of inputs, `(rows, width)`."""
        with self._model_loss.scope(parts, frozen), self._unlinked():
            y_pred = self._model_loss.predict(rows)
        leaves = tree.flatten(y_pred)
        flat = [
            ops.reshape(leaf, (leaf.shape[0], width))
            for leaf, width in zip(
                leaves, self._model_loss.output_widths, strict=True
            )
        ]
        return ops.concatenate(flat, axis=1) if flat[1:] else flat[0]

    def loss(self, values, frozen, scales, chunk):
        """What a chunk adds to the loss by its outputs."""
        x, y, w = chunk
        present = [v.value for v in self._model_loss.variables]
        with self._model_loss.scope(present, frozen):
            y_pred = self._structured(values, x)
            loss = self._model_loss.output_loss(x, y, y_pred, w, scales)
            if self.has_penalty and self._model_loss.own_name is not None:
                # It has these among its terms, weight regularizers say.
                loss = loss - self._model_loss.layer_losses(x, scales)
            return loss

    def penalty(self, parts, frozen, scales, chunk):
        """What layers add to the loss of a chunk."""
        with self._model_loss.scope(parts, frozen):
            self._model_loss.predict(chunk[0])
            return self._model_loss.layer_losses(chunk[0], scales)

    def _structured(self, values, x):
        """The model's predictions, with their masks, from the outputs."""
        if not self._model_loss.takes_wide:
            values = ops.cast(values, self._model_loss.output_dtype)
        shapes = self._model_loss.output_shapes
        ends = np.cumsum(self._model_loss.output_widths)[:-1].tolist()
        flat = ops.split(values, ends, axis=1) if ends else [values]
        leaves = [
            ops.reshape(part, (values.shape[0], *shape))
            for part, shape in zip(flat, shapes, strict=True)
        ]
        if self._link is not None:
            leaves = [self._link.activation(leaf) for leaf in leaves]
        if self._model_loss.has_masks:
            # Masks follow from the inputs, whatever the weights are.
            masked = tree.flatten(self._model_loss.predict(x))
            leaves = [
                _Replaced(leaf)(old)
                for leaf, old in zip(leaves, masked, strict=True)
            ]
        return tree.pack_sequence_as(self._model_loss.structure, leaves)

    @contextlib.contextmanager
    def _unlinked(self):
        """The model without its last activation."""
        if self._link is None:
            yield
            return
        activation = self._link.activation
        object.__setattr__(self._link, "activation", keras.activations.linear)
        try:
            yield
        finally:
            object.__setattr__(self._link, "activation", activation)

    def _check(self, head, compile):
        """Refuses losses without curvature; whether Hessians are diagonal."""
        frozen = [v.value for v in self._model_loss.frozen_variables]

        def product(values, vector, scales):
            def fn(values):
                return self.loss(values[0], frozen, scales, tuple(head))

            return backend.hvp(fn)([values], [vector])[0]

        product = compile(product)
        names = [*self._model_loss.loss_names, self._model_loss.own_name]
        is_diagonal = True
        for i, name in enumerate(names):
            if name is None:
                continue
            scales = np.zeros(len(names))
            scales[i] = 1.0
            looks = [
                _look(product, values, scales) for values in self._places(head)
            ]
            curved, mixed, diagonal = zip(*looks, strict=True)
            if any(mixed):
                raise ValueError(
                    "Gauss-Newton methods need a loss that is a sum over the "
                    "rows of data. Use 'lbfgs' or another method. "
                    f"Received: {name}, which mixes rows"
                )
            if not any(curved):
                raise ValueError(
                    "Gauss-Newton methods need a loss with second derivatives "
                    "in the model's outputs. Use 'lbfgs', or a loss such as "
                    "'mse', 'huber' or 'log_cosh'. "
                    f"Received: {name}, whose second derivatives are zero"
                )
            is_diagonal = is_diagonal and all(diagonal)
        return is_diagonal or self.width == 1

    def _places(self, head):
        """Outputs to look at: some at random, some near the targets."""
        rng = np.random.default_rng(0)
        shape = (head.rows, self.width)
        noise = rng.uniform(0.1, 0.9, size=shape)
        dtype = self._model_loss.output_dtype
        yield noise.astype(dtype)
        targets = [ops.convert_to_numpy(a) for a in leaves(head.y)]
        if sum(a.size for a in targets) == noise.size:
            flat = [a.reshape(head.rows, -1) for a in targets]
            size = largest(flat) or 1.0
            near = np.concatenate(flat, axis=1) + 0.1 * size * noise
            yield near.astype(dtype)


def _look(product, values, scales):
    """What Hessian products at some outputs show.

    Returns:
        Whether the Hessian is not zero, couples rows, is diagonal.
    """

    def along(vector):
        return ops.convert_to_numpy(product(values, vector, scales))

    first = np.zeros_like(values)
    first[0] = 1
    signs = np.random.default_rng(1).choice([-1.0, 1.0], size=values.shape)
    signs = signs.astype(values.dtype)
    sums, signed = along(np.ones_like(values)), along(signs)
    size = np.max(np.abs(sums)) + np.max(np.abs(signed))
    off = np.max(np.abs(signed - sums * signs))
    return size > 0, along(first)[1:].any(), off <= 1e-4 * size


class _Replaced(keras.layers.Layer):
    """Other values with the mask of the input."""

    supports_masking = True

    def __init__(self, values):
        super().__init__(name="replaced", dtype=values.dtype, autocast=False)
        self._values = values

    def call(self, inputs):
        return self._values


def _link(model):
    """The last layer, if its activation and the loss match."""
    layers = getattr(model, "layers", None)
    if not layers or not isinstance(model.loss, _ONE_LOSS):
        return None
    layer, loss = layers[-1], model.loss
    if loss not in ("crossentropy", "ce"):
        loss = keras.losses.get(loss)
    if getattr(loss, "get_config", dict)().get("from_logits"):
        return None
    name = getattr(getattr(layer, "activation", None), "__name__", None)
    matching = _LINKS.get(name, ())
    is_last = isinstance(model, keras.Sequential) or _is_output(model, layer)
    if is_last and (loss in matching or type(loss) in matching):
        return layer
    return None


_ONE_LOSS = (str, keras.losses.Loss, types.FunctionType)


def _is_output(model, layer):
    try:
        return layer.output is model.output
    except (AttributeError, ValueError):
        return False
