"""Small networks that kormos fits and NumPy evaluates, in any units.

A `Perceptron` is a case of the claim campaign: see `claim_cases.py`.
"""

import keras
import numpy as np

import kormos
import trials

# An epoch of a fit has this many iterations.
_EPOCH = 100


class Perceptron:
    """A model with at most one hidden layer, tanh, and one output.

    Args:
        name: its name in tables.
        x, y: the data, `(rows, inputs)` and `(rows, 1)`.
        hidden: the number of hidden units, or 0 for none.
        dtype: the dtype of the model and of its data.
        is_logistic: whether the loss is the cross-entropy of a logit, for
            targets 0 and 1, rather than the squared error.
        penalty: the factor of the squares of the kernels in the loss.

    Attributes:
        start: the weights that Keras draws, float64 of shape `(size,)`.
    """

    best = float("nan")
    has_residuals = True
    # Networks that can fit their data exactly need many iterations.
    limits = {"max_evals": 1_000, "max_seconds": 30}

    def __init__(
        self, name, x, y, hidden, dtype, is_logistic=False, penalty=0.0
    ):
        self.name, self.dtype = name, dtype
        self._x, self._y = x.astype(dtype), y.astype(dtype)
        self._hidden, self._is_logistic = hidden, is_logistic
        self._penalty = penalty
        widths = [x.shape[1], hidden, 1] if hidden else [x.shape[1], 1]
        self._shapes = []
        for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
            self._shapes += [(inputs, outputs), (outputs,)]
        keras.utils.set_random_seed(0)
        self.start = _flat(self._model().get_weights())

    def _model(self):
        penalty = keras.regularizers.L2(self._penalty)
        penalty = penalty if self._penalty else None
        with kormos.precision(self.dtype):
            model = keras.Sequential([keras.Input(self._x.shape[1:])])
            if self._hidden:
                model.add(
                    keras.layers.Dense(
                        self._hidden,
                        activation="tanh",
                        kernel_regularizer=penalty,
                    )
                )
            model.add(keras.layers.Dense(1, kernel_regularizer=penalty))
            loss = keras.losses.BinaryCrossentropy(from_logits=True)
            model.compile(loss=loss if self._is_logistic else "mse")
            return model

    def _parts(self, theta, dtype):
        counts = [int(np.prod(shape)) for shape in self._shapes]
        parts = np.split(np.asarray(theta, dtype), np.cumsum(counts)[:-1])
        return [p.reshape(s) for p, s in zip(parts, self._shapes, strict=True)]

    def evaluate(self, theta, dtype="float64"):
        """The loss, with arithmetic of a dtype, and its gradient."""
        x, y = self._x.astype(dtype), self._y.astype(dtype)
        parts = self._parts(theta, dtype)
        hidden = np.tanh(x @ parts[0] + parts[1]) if self._hidden else x
        outputs = hidden @ parts[-2] + parts[-1]
        # Sums and squares must not be rounded to float32, or overflow in it.
        wide = outputs.astype("float64")
        if self._is_logistic:
            losses = np.logaddexp(0, wide) - y * wide
            slopes = 1 / (1 + np.exp(-wide)) - y
        else:
            residuals = (outputs - y).astype("float64")
            losses, slopes = residuals**2, 2 * residuals
        slopes = slopes / len(y)
        grads = [hidden.T @ slopes, slopes.sum(axis=0)]
        if self._hidden:
            back = (slopes @ parts[-2].T) * (1 - hidden**2)
            grads = [x.T @ back, back.sum(axis=0), *grads]
        loss = losses.mean()
        for i in range(0, len(parts), 2):
            kernel = parts[i].astype("float64")
            loss += self._penalty * (kernel**2).sum()
            grads[i] = grads[i] + 2 * self._penalty * kernel
        return float(loss), _flat(grads)

    def value(self, theta):
        return self.evaluate(theta)[0]

    def rounding(self, theta):
        def value(theta):
            return self.evaluate(theta, self.dtype)[0]

        return trials.rounding_at(value, theta, self.dtype)

    def fit(self, method, theta, losses=None, *, max_iterations, **limits):
        del losses  # Its history has every iteration.
        step = min(_EPOCH, max_iterations)
        with kormos.precision(self.dtype):
            model = self._model()
            model.set_weights(self._parts(theta, self.dtype))
            history = kormos.fit(
                model,
                self._x,
                self._y,
                optimizer=method,
                epochs=max_iterations // step,
                steps_per_epoch=step,
                verbose=0,
                **limits,
            )
            result = history.result
            result.history = history.iterations
            return result, _flat(model.get_weights())


def _flat(weights):
    return np.concatenate([w.ravel() for w in weights]).astype("float64")
