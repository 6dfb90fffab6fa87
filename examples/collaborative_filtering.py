"""Collaborative filtering: the factorization of a matrix of ratings.

With `--data ml-latest-small`, the script reads the MovieLens files in that
folder. Otherwise it generates similar ones: noisy products of random factors,
rounded to half stars. L-BFGS uses all ratings at once, and Adam uses batches.

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


def read(folder):
    """Users, items and stars of MovieLens' `ratings.csv`."""
    table = np.loadtxt(f"{folder}/ratings.csv", delimiter=",", skiprows=1)
    users, items = (np.unique(c, return_inverse=True)[1] for c in table.T[:2])
    return users, items, table[:, 2]


def generate():
    rng = np.random.default_rng(0)

    def drawn(count):
        weights = 1 / np.arange(1, count + 1) ** 0.8
        rest = rng.choice(count, RATINGS - count, p=weights / weights.sum())
        return rng.permutation(np.concatenate([np.arange(count), rest]))

    users, items = drawn(USERS), drawn(ITEMS)
    of_users = rng.normal(0, 0.6, (USERS, RANK))
    of_items = rng.normal(0, 0.6, (ITEMS, RANK))
    stars = 3.5 + rng.normal(0, 0.4, USERS)[users]
    stars += rng.normal(0, 0.4, ITEMS)[items] + rng.normal(0, 0.6, RATINGS)
    stars += (of_users[users] * of_items[items]).sum(axis=1)
    return users, items, np.clip(np.round(2 * stars) / 2, 0.5, 5)


def build(users, items):
    """A product of factors, plus an offset of the user and of the item."""
    options = {
        "embeddings_initializer": keras.initializers.RandomNormal(stddev=0.1),
        "embeddings_regularizer": keras.regularizers.L2(1e-6),
    }
    inputs, factors, offsets = [], [], []
    for count in (users, items):
        inputs.append(keras.Input((), dtype="int32"))
        factor = keras.layers.Embedding(count, RANK, **options)
        offset = keras.layers.Embedding(count, 1, **options)
        factors.append(factor(inputs[-1]))
        offsets.append(offset(inputs[-1]))
    product = keras.layers.Dot(axes=1)(factors)
    return keras.Model(inputs, keras.layers.Add()([product, *offsets]))


def main(quick=False, out="out", data=None):
    keras.utils.set_random_seed(0)
    users, items, stars = generate() if data is None else read(data)
    print(f"{len(stars):,} ratings, {'generated' if data is None else 'read'}")
    stars = (stars - stars.mean()).astype("float32")
    order = np.random.default_rng(0).permutation(len(stars))
    held, kept = np.split(order, [len(order) // 10])

    def part(rows):
        x = [users[rows].astype("int32"), items[rows].astype("int32")]
        return x, stars[rows, None]

    model = build(int(users.max()) + 1, int(items.max()) + 1)
    start, curves = model.get_weights(), {}
    for name, optimizer, epochs, batch_size in (
        ("L-BFGS", "lbfgs", 10 if quick else 60, None),
        ("Adam", "adam", 1 if quick else 25, 256),
    ):
        model.set_weights(start)
        model.compile(optimizer=optimizer, loss="mse")
        seconds, begin = [], time.perf_counter()

        def note(epoch, logs, seconds=seconds, begin=begin):
            seconds.append(time.perf_counter() - begin)

        history = model.fit(
            *part(kept),
            batch_size=batch_size,
            epochs=epochs,
            validation_data=part(held),
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=note)],
            verbose=2,
        )
        rmse = np.sqrt(history.history["val_loss"])
        curves[name] = seconds, rmse
        print(f"{name}: lowest error of ratings not seen {rmse.min():.4f}")

    plt.style.use("tableau-colorblind10")
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for name, (seconds, rmse) in curves.items():
        axes.plot(seconds, rmse, ".-", label=name)
    axes.set(xlabel="seconds, compiling included", ylabel="RMS error, stars")
    axes.grid(color="0.9")
    axes.legend()
    path = pathlib.Path(out) / "collaborative_filtering.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"Plot: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="for tests")
    parser.add_argument("--out", default="out", help="folder of the plot")
    parser.add_argument("--data", help="folder of MovieLens' files")
    main(**vars(parser.parse_args()))
