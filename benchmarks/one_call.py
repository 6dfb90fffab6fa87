"""Adam and then L-BFGS: one call of a chain beside two compiles by hand.

Four float32 problems from the same random weights: the surface of the gallery,
a network 2-64-64-1 on 121 points; multinomial regression on scikit-learn's
digits; ratings of MovieLens' shape, factorized; and Burgers' equation, as in
`examples/burgers_pinn.py`.

By hand, Keras trains the model by Adam on shuffled batches; the model is then
compiled with "lbfgs" and fitted again. The chain does both in one `fit`, with
another order of the batches. L-BFGS is deterministic: from the weights that the
chain's first stage reached, a fit of its own must end with exactly the weights
of the chain.
"""

import one_thread  # noqa: F401

# isort: split
import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import problems
import recording

import kormos

sys.path.append(str(problems.ROOT / "examples"))
import burgers_pinn
import collaborative_filtering
import surface_fit

RATE = 3e-3
ADAM, LBFGS = 20, 60


class Case(NamedTuple):
    """A model with its loss, its data, and the rows of a batch."""

    name: str
    build: Callable[[], keras.Model]
    loss: Any
    x: Any
    y: Any
    batch_size: int


def surface():
    return Case("surface", surface_fit.build, "mse", *surface_fit.data(), 16)


def digits():
    from sklearn.datasets import load_digits

    def build():
        return keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])

    x, y = load_digits(return_X_y=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Case("digits", build, loss, x / 16, y, 64)


def ratings():
    users, items, stars = collaborative_filtering.generate()
    x = [users.astype("int32"), items.astype("int32")]
    build = functools.partial(
        collaborative_filtering.build,
        collaborative_filtering.USERS,
        collaborative_filtering.ITEMS,
    )
    y = (stars - stars.mean())[:, None]
    return Case("ratings", build, "mse", x, y, 512)


def burgers():
    points = burgers_pinn.sampler(2_048, np.random.default_rng(0))
    zeros = np.zeros((len(points), 1))
    return Case("Burgers", burgers_pinn.Burgers, "mse", points, zeros, 128)


def fitted(model, case, optimizer, epochs=None, **settings):
    """The loss after a fit."""
    model.compile(optimizer=optimizer, loss=case.loss)
    model.fit(case.x, case.y, epochs=epochs, verbose=0, **settings)
    return model.evaluate(case.x, case.y, verbose=0, batch_size=10_000)


def adam():
    return keras.optimizers.Adam(RATE)


def compared(case, epochs):
    """A row of the table."""
    keras.utils.set_random_seed(0)
    model = case.build()
    model.predict(case.x, verbose=0)
    start, (first, second) = model.get_weights(), epochs
    fitted(model, case, adam(), first, batch_size=case.batch_size)
    by_hand = fitted(model, case, "lbfgs", second)

    handed = []

    def keep(epoch, logs):
        if epoch == first - 1:
            handed.extend(model.get_weights())

    model.set_weights(start)
    chain = kormos.optimizers.Chain(
        [adam(), "lbfgs"], epochs=[first, second], batch_size=case.batch_size
    )
    one_call = fitted(
        model,
        case,
        chain,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=keep)],
    )
    ended = model.get_weights()

    model.set_weights(handed)
    fitted(model, case, "lbfgs", second)
    pairs = zip(ended, model.get_weights(), strict=True)
    is_same = all(np.array_equal(a, b) for a, b in pairs)
    return [case.name, by_hand, one_call, "yes" if is_same else "no"]


def main():
    parser = recording.parser(__doc__)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    record = recording.Record("one-call", __doc__, args)
    epochs = (2, 5) if args.quick else (ADAM, LBFGS)
    cases = surface, digits, ratings, burgers
    record.table(
        "Adam and then L-BFGS",
        ["problem", "loss by hand", "loss in one call", "same weights"],
        [compared(case(), epochs) for case in cases],
        f"{epochs[0]} epochs of Adam at {RATE}, {epochs[1]} iterations of "
        "L-BFGS. Same weights: those of L-BFGS alone from where the chain's "
        "Adam ended.",
    )


if __name__ == "__main__":
    main()
