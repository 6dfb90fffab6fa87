"""The picture of the first page: loss against seconds of four methods.

KERAS_BACKEND=jax python docs/first_picture.py

A network 1-20-1 with 61 weights is to become sin(10 x) / (10 x) on 2,000
points, in float64. Each method starts from the same weights. Adam takes batches
of 100 rows, with the best of four learning rates. Seconds are those after a
first call, which compiles. Prints the figures that the page shows.
"""

import json
import pathlib
import platform
import time

import keras
import matplotlib
import numpy as np
import pictures
from matplotlib import ticker

import kormos

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = pathlib.Path(__file__).parent
SECONDS = 8.0
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
METHODS = ("l-bfgs-b", "lbfgs", "lm")
MOST_EPOCHS = 100_000


def data():
    x = np.linspace(-1, 1, 2_000)[:, None]
    return x, np.sinc(10 * x / np.pi)


def build():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(20, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )


class Clock(keras.callbacks.Callback):
    """The loss on all rows after each epoch, and seconds without that."""

    def __init__(self, x, y):
        super().__init__()
        self.seconds, self.losses, self.spent = [], [], 0.0
        self.x, self.y = x, y

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.spent += time.perf_counter() - self.began
        self.seconds.append(self.spent)
        loss = self.model.evaluate(self.x, self.y, batch_size=2_000, verbose=0)
        self.losses.append(loss)
        self.model.stop_training = self.spent > SECONDS


def by_adam(rate):
    x, y = data()
    model = build()
    model.compile(optimizer=keras.optimizers.Adam(rate), loss="mse")
    start = model.get_weights()
    model.fit(x, y, batch_size=100, epochs=1, verbose=0)
    model.set_weights(start)
    # New moments, and the step that is compiled already.
    [v.assign(0 * v) for v in model.optimizer.variables[2:]]
    clock = Clock(x, y)
    model.fit(
        x,
        y,
        batch_size=100,
        epochs=MOST_EPOCHS,
        callbacks=[clock],
        verbose=0,
    )
    return clock.seconds, np.minimum.accumulate(clock.losses)


def by_kormos(method):
    x, y = data()
    model = build()
    model.compile(optimizer=method, loss="mse")
    start = model.get_weights()
    model.fit(x, y, epochs=3, verbose=0)
    model.set_weights(start)
    history = model.fit(
        x, y, epochs=MOST_EPOCHS, max_seconds=SECONDS, verbose=0
    )
    print(f"{method}: {history.result.status}")
    return history.seconds, history.history["loss"]


def first_below(run, goal):
    """Seconds until the loss is at most the goal, `None` if it never is."""
    return next((s for s, loss in zip(*run, strict=True) if loss <= goal), None)


def draw(runs):
    shades = {
        "lm": (pictures.OURS, 3.0, "-"),
        "lbfgs": (pictures.OURS_TOO[0], 2.5, "-"),
        "l-bfgs-b": (pictures.OTHERS[2], 1.8, "--"),
        "adam": (pictures.OTHERS[0], 1.8, "-"),
    }
    labels = {
        "lm": 'kormos "lm"',
        "lbfgs": 'kormos "lbfgs"',
        "l-bfgs-b": "SciPy L-BFGS-B",
        "adam": "Adam",
    }
    with pictures.style():
        figure, axis = plt.subplots(figsize=(6.4, 3.9), layout="constrained")
        for name, (seconds, losses) in runs.items():
            colour, width, dashes = shades[name]
            axis.plot(
                seconds,
                losses,
                dashes,
                color=colour,
                linewidth=width,
                label=labels[name],
            )
        axis.set(
            xscale="log",
            yscale="log",
            xlim=(0.005, SECONDS),
            ylim=(1e-12, 1),
            xlabel="seconds",
            ylabel="loss on all rows",
        )
        axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.grid(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="lower left")
        pictures.save(figure, HERE / "_static" / "first.svg")


def main():
    kormos.enable_float64()
    runs = {"lm": None, "lbfgs": None, "l-bfgs-b": None}
    for method in METHODS:
        runs[method] = by_kormos(method)
    tried = {rate: by_adam(rate) for rate in RATES}
    rate = min(tried, key=lambda rate: tried[rate][1][-1])
    runs["adam"] = tried[rate]
    found = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "keras": f"{keras.__version__} on {keras.backend.backend()}",
        "learning rate of Adam": rate,
        "seconds to a loss of 1e-6": {
            name: first_below(run, 1e-6) for name, run in runs.items()
        },
        "loss after 8 seconds": {
            name: float(min(run[1])) for name, run in runs.items()
        },
    }
    text = json.dumps(found, indent=1)
    (HERE / "first_picture.json").write_text(text + "\n")
    print(text)
    draw(runs)


if __name__ == "__main__":
    main()
