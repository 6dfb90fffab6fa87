"""Metrics of every kind have the values of `evaluate`."""

import keras
import numpy as np
import pytest
from keras import ops

from conftest import lindata
from conftest import linear

X, Y = lindata(20, noise=0.3)


class Positives(keras.Metric):
    """The number of positive predictions, as a result that is a variable."""

    def __init__(self, **kwargs):
        super().__init__(name="positives", **kwargs)
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        positive = ops.cast(y_pred > 0, self.dtype)
        self.count.assign(self.count + ops.sum(positive))

    def result(self):
        return self.count


class Pair(Positives):
    def result(self):
        return {"count": self.count, "half": self.count / 2}


@pytest.mark.parametrize(
    "metric, columns",
    [(Positives, {"positives": 1}), (Pair, {"count": 1, "half": 0.5})],
)
@pytest.mark.parametrize("batch_size", [None, 6])
def test_a_result_may_be_a_variable(metric, columns, batch_size, unconverged):
    model = linear()
    model.compile(optimizer="l-bfgs-b", loss="mse", metrics=[metric()])
    history = model.fit(
        X,
        Y,
        epochs=2,
        batch_size=batch_size,
        validation_data=(X[:7], Y[:7]),
        verbose=0,
    ).history
    positive = model.predict(X, verbose=0) > 0
    assert positive.sum() > 0
    for name, factor in columns.items():
        assert history[name][-1] == factor * positive.sum()
        assert history[f"val_{name}"][-1] == factor * positive[:7].sum()


def test_a_result_may_read_weights_of_the_model(unconverged):
    class Size(Positives):
        def result(self):
            return ops.sum(ops.square(model.trainable_variables[0]))

    model = linear()
    model.compile(optimizer="l-bfgs-b", loss="mse", metrics=[Size()])
    sizes = []
    kernel = model.trainable_variables[0]
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: sizes.append(
            np.sum(ops.convert_to_numpy(kernel) ** 2)
        )
    )
    history = model.fit(X, Y, epochs=3, callbacks=[note], verbose=0).history
    np.testing.assert_allclose(history["positives"], sizes, rtol=1e-6)
    assert len(set(sizes)) == 3
