"""Collaborative filtering: a matrix of ratings, factored.

With `--data ml-latest-small` the MovieLens files of that name (files.grouplens
.org); otherwise ratings generated in their shape and scale: products of random
factors, with noise, rounded to half stars. L-BFGS on all ratings at once, and
Adam in batches, for the same seconds.

    KERAS_BACKEND=jax python examples/collaborative_filtering.py
"""

import argparse
import pathlib
import time

import keras
import matplotlib.pyplot as plt
import numpy as np

import kormos  # noqa: F401

USERS, ITEMS, RATINGS, RANK = 610, 9_724, 100_836, 5
PENALTY = 1e-6


def read(folder):
    """Users, items and stars of MovieLens' `ratings.csv`."""
    table = np.loadtxt(
        pathlib.Path(folder) / "ratings.csv", delimiter=",", skiprows=1
    )
    users, items = (np.unique(c, return_inverse=True)[1] for c in table.T[:2])
    return users, items, table[:, 2]


def generate():
    rng = np.random.default_rng(0)

    def drawn(count):
        # Each once; the rest as unevenly as people watch films.
        weights = 1 / np.arange(1, count + 1) ** 0.8
        rest = rng.choice(count, RATINGS - count, p=weights / weights.sum())
        return rng.permutation(np.concatenate([np.arange(count), rest]))

    users, items = drawn(USERS), drawn(ITEMS)
    of_users = rng.normal(0, 0.6, (USERS, RANK))
    of_items = rng.normal(0, 0.6, (ITEMS, RANK))
    stars = 3.5 + rng.normal(0, 0.4, USERS)[users]
    stars += rng.normal(0, 0.4, ITEMS)[items]
    stars += (of_users[users] * of_items[items]).sum(axis=1)
    stars += rng.normal(0, 0.6, RATINGS)
    return users, items, np.clip(np.round(2 * stars) / 2, 0.5, 5)


def build(users, items):
    """Stars: a product of factors, and an offset of user and item each."""
    penalty = keras.regularizers.L2(PENALTY)
    inputs, factors, offsets = [], [], []
    for count in (users, items):
        inputs.append(keras.Input((), dtype="int32"))
        small = keras.initializers.RandomNormal(stddev=0.1)
        factor, offset = (
            keras.layers.Embedding(
                count,
                width,
                embeddings_initializer=small,
                embeddings_regularizer=penalty,
            )
            for width in (RANK, 1)
        )
        factors.append(factor(inputs[-1]))
        offsets.append(offset(inputs[-1]))
    product = keras.layers.Dot(axes=1)(factors)
    return keras.Model(inputs, keras.layers.Add()([product, *offsets]))


def main(quick=False, out="out", data=None):
    keras.utils.set_random_seed(0)
    users, items, stars = generate() if data is None else read(data)
    kind = "generated" if data is None else "of MovieLens"
    print(f"{len(stars):,} ratings, {kind}")
    order = np.random.default_rng(0).permutation(len(stars))
    stars = stars.astype("float32") - stars.mean().astype("float32")
    held, kept = order[: len(stars) // 10], order[len(stars) // 10 :]

    def part(rows):
        x = [users[rows].astype("int32"), items[rows].astype("int32")]
        return x, stars[rows, None]

    model = build(int(users.max()) + 1, int(items.max()) + 1)
    start, curves = model.get_weights(), {}
    for name, optimizer, epochs, batch_size in (
        ("L-BFGS", "lbfgs", 10 if quick else 60, None),
        ("Adam", "adam", 1 if quick else 8, 256),
    ):
        model.set_weights(start)
        model.compile(optimizer=optimizer, loss="mse")
        clock = Clock()
        history = model.fit(
            *part(kept),
            batch_size=batch_size,
            epochs=epochs,
            validation_data=part(held),
            callbacks=[clock],
            verbose=2,
        )
        rmse = np.sqrt(history.history["val_loss"])
        curves[name] = clock.seconds, rmse
        print(f"{name}: lowest error of ratings not seen {rmse.min():.4f}")

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for name, (seconds, rmse) in curves.items():
        axes.plot(seconds, rmse, ".-", label=name)
    axes.set(xlabel="seconds", ylabel="error of ratings not seen, stars (RMS)")
    axes.grid(color="0.9")
    axes.legend()
    path = pathlib.Path(out) / "collaborative_filtering.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"Plot: {path}")


class Clock(keras.callbacks.Callback):
    """Notes the seconds at the end of each epoch."""

    def on_train_begin(self, logs=None):
        self.seconds, self._begin = [], time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self._begin)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="for tests")
    parser.add_argument("--out", default="out", help="folder of the plot")
    parser.add_argument("--data", help="folder of MovieLens' files")
    main(**vars(parser.parse_args()))
