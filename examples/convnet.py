"""A convnet: one epoch of Adam, then L-BFGS, with and without dropout.

The images are the first 2,000 digits of MNIST if Keras has them in its cache,
or else the 1,797 real ones of scikit-learn. L-BFGS needs a loss that does not
change from one evaluation to the next. Dropout is therefore off during a fit
or, with `training=True`, on with a mask that is drawn only once.

    KERAS_BACKEND=jax python examples/convnet.py
"""

import argparse
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np
import sklearn.datasets
import sklearn.model_selection

import kormos  # noqa: F401


def load():
    cached = pathlib.Path.home() / ".keras" / "datasets" / "mnist.npz"
    if cached.exists():
        (x, y), _ = keras.datasets.mnist.load_data()
        x, y, name = x[:2_000] / 255, y[:2_000], "MNIST, 28 x 28"
    else:
        x, y = sklearn.datasets.load_digits(return_X_y=True)
        x, name = x.reshape(-1, 8, 8) / 16, "scikit-learn's digits, 8 x 8"
    x = x[..., None].astype("float32")
    return name, sklearn.model_selection.train_test_split(
        x, y, test_size=0.3, random_state=0
    )


def build(shape):
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(16, 3, activation="silu"),
            keras.layers.Conv2D(16, 3, strides=2, activation="silu"),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.25),
            keras.layers.Dense(
                10, kernel_regularizer=keras.regularizers.L2(1e-3)
            ),
        ]
    )


def main(quick=False, out="out"):
    keras.utils.set_random_seed(0)
    name, (x, x_test, y, y_test) = load()
    print(f"{len(x)} images of {name}")
    if quick:
        x, y = x[:200], y[:200]
    model = build(x.shape[1:])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    test = {"validation_data": (x_test, y_test)}

    print("\nAdam, one epoch")
    model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
    model.fit(x, y, epochs=1, verbose=2, **test)
    start, histories = model.get_weights(), {}

    for label, training in (("dropout off", False), ("dropout on", True)):
        print(f"\nL-BFGS on all images, {label}")
        model.set_weights(start)
        model.compile(optimizer="lbfgs", loss=loss, metrics=["accuracy"])
        histories[label] = model.fit(
            x,
            y,
            epochs=3 if quick else 15,
            steps_per_epoch=4,
            training=training,
            verbose=2,
            **test,
        )
        print(histories[label].result)

    plt.style.use("tableau-colorblind10")
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    for label, history in histories.items():
        rows = history.history
        axes[0].semilogy(history.iteration, rows["loss"], ".-", label=label)
        errors = 100 * (1 - np.array(rows["val_accuracy"]))
        axes[1].plot(history.iteration, errors, ".-", label=label)
    axes[0].set(xlabel="iteration", ylabel="training loss")
    axes[1].set(xlabel="iteration", ylabel="errors on images not seen, %")
    for axis in axes:
        axis.grid(color="0.9")
    axes[0].legend()
    path = pathlib.Path(out) / "convnet.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"Plot: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="for tests")
    parser.add_argument("--out", default="out", help="folder of the plot")
    main(**vars(parser.parse_args()))
