"""A model's loss as a function of the model's outputs."""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.data.memory import leaves
from kormos.objective.compiled import leading_size
from kormos.objective.keras_model.links import LinkedModel
from kormos.objective.keras_model.own_loss import adds_layer_losses
from kormos.objective.units import largest

# How near to the targets, in their size, a loss is looked at; and at how many
# places in any case.
_NEAR = (1e-1, 1e-3, 1e-5)
_USUAL_PLACES = 2


class ModelOutputs:
    """The outputs of a model's rows, and the loss as a function of them.

    What enters a last softmax or sigmoid counts as the output where the loss
    is the matching cross-entropy (the exponential, for Poisson): the loss is
    then convex in the outputs, and its Gauss-Newton matrix is Fisher's.

    Args:
        model: the compiled and built model.
        model_loss: the `ModelLoss`.
        chunks: function that returns an iterable of chunks of rows. The loss
            is looked at where it has curvature: rows may have no weight, or
            be masked.
        compile: function that compiles a function.

    Attributes:
        width: the number of outputs of a row.
        is_diagonal: whether the loss is a sum over the outputs, so that its
            Hessian in them is diagonal.
        is_convex: whether the loss is known to be convex in the outputs.
        has_penalty: whether layers add to the loss.
    """

    is_residual = False

    def __init__(self, model, model_loss, chunks, compile):
        self._name = model.name
        self._model_loss = model_loss
        self._linked = LinkedModel(model, model_loss.output_losses)
        model_loss.include(self._linked.trunk)
        self.is_convex = self._linked.is_convex
        self.width = sum(model_loss.output_widths)
        self.has_penalty = model_loss.adds_losses
        if model_loss.own_name is not None:
            first = next(iter(chunks()))
            self.has_penalty = adds_layer_losses(model_loss, first)
        self.is_diagonal = self._check(chunks, compile)

    def rows(self, chunk):
        """What `outputs` wants of a chunk."""
        return chunk[0]

    def outputs(self, parts, frozen, rows):
        """The outputs of rows of inputs, `(rows, width)`."""
        with self._model_loss.scope(parts, frozen):
            leaves = self._model_loss.predict(rows, self._linked)
        count = leading_size(rows)
        flat = [
            # Layers of strings lose the number of rows.
            ops.reshape(leaf, (count, width))
            for leaf, width in zip(
                leaves, self._model_loss.output_widths, strict=True
            )
        ]
        return ops.concatenate(flat, axis=1) if flat[1:] else flat[0]

    def loss(self, values, frozen, term_factors, chunk):
        """What a chunk adds to the loss by its outputs."""
        x, y, w = chunk
        present = [v.value for v in self._model_loss.variables]
        with self._model_loss.scope(present, frozen):
            y_pred = self._structured(values, x)
            loss = self._model_loss.output_loss(x, y, y_pred, w, term_factors)
            if self.has_penalty and self._model_loss.own_name is not None:
                # It has these among its terms, weight regularizers say.
                loss = loss - self._model_loss.layer_losses(x, term_factors)
            return loss

    def penalty(self, parts, frozen, term_factors, chunk):
        """What layers add to the loss of a chunk."""
        with self._model_loss.scope(parts, frozen):
            self._model_loss.predict(chunk[0])
            return self._model_loss.layer_losses(chunk[0], term_factors)

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
        leaves = self._linked.activated(leaves)
        if self._model_loss.has_masks:
            # Masks follow from the inputs, whatever the weights are.
            masked = tree.flatten(self._model_loss.predict(x))
            leaves = [
                _Replaced(leaf)(old)
                for leaf, old in zip(leaves, masked, strict=True)
            ]
        return tree.pack_sequence_as(self._model_loss.structure, leaves)

    def _check(self, chunks, compile):
        """Refuses losses without curvature; whether Hessians are diagonal."""
        frozen = [v.value for v in self._model_loss.frozen_variables]
        self._check_rows(frozen, next(iter(chunks())))

        def product(values, vector, term_factors, chunk):
            def fn(values):
                return self.loss(values[0], frozen, term_factors, chunk)

            return backend.hvp(fn)([values], [vector])[0]

        product = compile(product)
        names = [*self._model_loss.loss_names, self._model_loss.own_name]
        is_diagonal = True
        for i, name in enumerate(names):
            if name is None:
                continue
            term_factors = np.zeros(len(names))
            term_factors[i] = 1.0
            for chunk in chunks():
                look = self._look(product, term_factors, chunk)
                if look.is_curved:
                    break
            if look.mixes_rows:
                raise ValueError(
                    "Gauss-Newton methods need a loss that is a sum over the "
                    "rows of data. Use 'lbfgs' or another method. "
                    f"Received: {name}, which mixes rows"
                )
            if not look.is_curved:
                raise ValueError(
                    "Gauss-Newton methods need a loss with second derivatives "
                    "in the model's outputs. Use 'lbfgs', or a loss such as "
                    "'mse', 'huber' or 'log_cosh'. "
                    f"Received: {name}, whose second derivatives are zero"
                )
            is_diagonal = is_diagonal and look.is_diagonal
        return is_diagonal or self.width == 1

    def _check_rows(self, frozen, chunk):
        """Refuses outputs that cannot be differentiated row by row."""
        if self._model_loss.other_shapes:
            raise ValueError(
                "Gauss-Newton methods need outputs with a row for each row of "
                "data. Use 'lbfgs' or another method. "
                f"Received: {self._name}, with an output of shape "
                f"{self._model_loss.other_shapes[0]} for {leading_size(chunk)} "
                "rows"
            )
        if self._model_loss.has_complex_outputs:
            raise ValueError(
                "Gauss-Newton methods need real outputs: give real and "
                "imaginary parts, or use 'lbfgs' or another method. "
                f"Received: {self._name}, with complex outputs"
            )
        row = tree.map_structure(
            lambda a: None if a is None else a[:1], self.rows(chunk)
        )
        parts = [v.value for v in self._model_loss.variables]
        try:
            backend.dry_run(self.outputs, parts, frozen, row)
        except Exception as error:
            raise ValueError(
                "Gauss-Newton methods differentiate the outputs of each row "
                "by itself, so that a model must take a single row. Use "
                "'lbfgs' or another method. "
                f"Received: {self._name}, which fails on one row"
            ) from error

    def _look(self, product, term_factors, chunk):
        """What Hessian products show at outputs of a chunk: a `_Look`."""
        looks = []
        for values in self._places(chunk):
            looks.append(_look(product, values, term_factors, chunk))
            if len(looks) >= _USUAL_PLACES and any(k.is_curved for k in looks):
                break
        curved, mixed, diagonal = zip(*looks, strict=True)
        return _Look(any(curved), any(mixed), all(diagonal))

    def _places(self, chunk):
        """Outputs to look at: some at random, some ever nearer the targets.

        A robust loss has curvature near targets alone.
        """
        rng, rows = np.random.default_rng(0), leading_size(chunk)
        shape = (rows, self.width)
        noise = rng.uniform(0.1, 0.9, size=shape)
        dtype = self._model_loss.output_dtype
        yield noise.astype(dtype)
        targets = [ops.convert_to_numpy(a) for a in leaves(chunk[1])]
        if sum(a.size for a in targets) == noise.size:
            flat = [a.reshape(rows, -1) for a in targets]
            size = largest(flat) or 1.0
            for near in _NEAR:
                place = np.concatenate(flat, axis=1) + near * size * noise
                yield place.astype(dtype)


class _Look(NamedTuple):
    """What Hessian products at some outputs show of a loss."""

    is_curved: bool
    mixes_rows: bool
    is_diagonal: bool


def _look(product, values, term_factors, chunk):
    def product_with(vector):
        result = ops.convert_to_numpy(
            product(values, vector, term_factors, chunk)
        )
        # Of what is not finite there nothing is known.
        return np.nan_to_num(result, posinf=0.0, neginf=0.0)

    signs = np.random.default_rng(1).choice([-1.0, 1.0], size=values.shape)
    signs = signs.astype(values.dtype)
    sums, signed = product_with(np.ones_like(values)), product_with(signs)
    sizes = np.max(np.abs(sums) + np.abs(signed), axis=1)
    row = np.argmax(sizes)
    alone = np.zeros_like(values)
    alone[row] = 1
    others = np.delete(product_with(alone), row, axis=0)
    size = sizes[row]
    off = np.max(np.abs(signed - sums * signs))
    return _Look(bool(size > 0), bool(others.any()), bool(off <= 1e-4 * size))


class _Replaced(keras.layers.Layer):
    """Other values with the mask of the input."""

    supports_masking = True

    def __init__(self, values):
        super().__init__(name="replaced", dtype=values.dtype, autocast=False)
        self._values = values

    def call(self, inputs):
        return self._values
