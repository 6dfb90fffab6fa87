"""Quickstart: a classifier of real images, with Adam and then with L-BFGS.

Trains a softmax regression on the 8 x 8 digits that come with scikit-learn:
two epochs of Adam, then full-batch L-BFGS by changing one word in `compile`.
Prints one line per epoch, says why the fit stopped, and plots the fit.

    KERAS_BACKEND=jax python examples/quickstart.py
"""

import argparse
import pathlib

import keras
import sklearn.datasets
import sklearn.model_selection

import kormos


def load():
    digits = sklearn.datasets.load_digits()
    return sklearn.model_selection.train_test_split(
        digits.data / 16.0, digits.target, test_size=0.3, random_state=0
    )


def build():
    penalty = keras.regularizers.L2(1e-3)
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(10, kernel_regularizer=penalty),
        ]
    )


def main(epochs=200, out="out"):
    kormos.enable_float64()
    keras.utils.set_random_seed(0)
    x_train, x_test, y_train, y_test = load()
    model = build()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    print(f"Keras {keras.__version__} on {keras.backend.backend()}")

    print("\nAdam, two epochs of batches of 32")
    model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
    model.fit(x_train, y_train, epochs=2, verbose=2)

    print("\nL-BFGS, on all of the data at once")
    model.compile(optimizer="lbfgs", loss=loss, metrics=["accuracy"])
    history = model.fit(
        x_train,
        y_train,
        epochs=epochs,
        validation_data=(x_test, y_test),
        verbose=2,
    )

    path = pathlib.Path(out) / f"quickstart-{keras.backend.backend()}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    kormos.plot_history(history, path=path)
    _, accuracy = model.evaluate(x_test, y_test, verbose=0)
    print(f"\nAccuracy on {len(x_test)} digits never seen: {accuracy:.1%}")
    print(f"Plot: {path.resolve()}")
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--out", default="out", help="folder of the plot")
    arguments = parser.parse_args()
    main(arguments.epochs, arguments.out)
