"""MacKay's evidence against plain Levenberg-Marquardt on a noisy sine.

The case is the textbook example of MATLAB's `trainbr`: 41 points of one period
of a sine with noise of standard deviation 0.1, and a network 1-n-1 of tanh
units. Each seed draws the noise and the initial weights, which both methods
share.
"""

import os

import numpy as np
import recording

WIDTHS = 10, 20, 40
# Errors are computed at this many points from -1 to 1.
_POINTS = 401
_NOISE = 0.1


def sine(seed):
    """Inputs and noisy targets of the textbook case, `(41, 1)` each."""
    x = np.linspace(-1, 1, 41)[:, None]
    noise = np.random.default_rng(seed).standard_normal(x.shape)
    return x, np.sin(2 * np.pi * x) + _NOISE * noise


def fitted(width, seed, epochs, **options):
    """A fit of the case.

    Args:
        width: the number of hidden units.
        seed: the seed of the noise and of the weights.
        epochs: the most epochs.
        **options: options of `LevenbergMarquardt`.

    Returns:
        The root mean square of the errors with respect to the noiseless sine,
        and the History.
    """
    import keras

    import kormos

    keras.utils.set_random_seed(seed)
    x, y = sine(seed)
    with kormos.precision("float64"):
        model = keras.Sequential(
            [
                keras.Input((1,)),
                keras.layers.Dense(width, "tanh"),
                keras.layers.Dense(1),
            ]
        )
        optimizer = kormos.optimizers.LevenbergMarquardt(**options)
        model.compile(optimizer=optimizer, loss="mse")
        history = model.fit(x, y, epochs=epochs, verbose=0)
        between = np.linspace(-1, 1, _POINTS)[:, None]
        found = model.predict(between, verbose=0, batch_size=_POINTS)
    error = np.sqrt(np.mean((found - np.sin(2 * np.pi * between)) ** 2))
    return float(error), history


def compared(width, seed, epochs, **options):
    """A row of the table: the fits with evidence and without."""
    evidence, history = fitted(
        width, seed, epochs, regularization="evidence", **options
    )
    plain, _ = fitted(width, seed, epochs, **options)
    last, result = history.history, history.result
    return [
        width,
        seed,
        3 * width + 1,
        last["effective_parameters"][-1],
        last["log_evidence"][-1],
        np.sqrt(1 / (2 * last["beta"][-1])),
        evidence,
        plain,
        result.iterations,
        result.status,
    ]


def main(args):
    record = recording.Record("evidence", __doc__, args)
    seeds = range(1 if args.quick else 10)
    epochs = 50 if args.quick else 150
    rows, below = [], {}
    for width in WIDTHS:
        found = [compared(width, seed, epochs) for seed in seeds]
        below[width] = sum(row[6] < row[7] for row in found)
        rows += found
    won = ", ".join(f"{n} of {len(seeds)} ({w})" for w, n in below.items())
    record.table(
        f"A noisy sine, {epochs} epochs",
        [
            "units",
            "seed",
            "parameters",
            "effective",
            "log evidence",
            "noise, estimated",
            "error with evidence",
            "error of plain lm",
            "epochs",
            "status",
        ],
        rows,
        note=f"Seeds with the lower error by evidence (by units): {won}. "
        f"The noise is {_NOISE}.",
    )


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "torch")
    main(recording.parser(__doc__).parse_args())
