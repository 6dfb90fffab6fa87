"""KerasTuner searches over solvers and widths.

The name of the optimizer is a hyperparameter like any other. The data are those
of scikit-learn's diabetes study: 442 patients, ten measurements, and a score of
the disease a year later.

    KERAS_BACKEND=jax python examples/tuner.py
"""

import argparse
import pathlib
import tempfile

import keras
import keras_tuner
import matplotlib.pyplot as plt
import sklearn.datasets
import sklearn.model_selection
import sklearn.preprocessing

import kormos  # noqa: F401

SOLVERS = ["lm", "lbfgs", "ssbroyden", "l-bfgs-b", "adam"]


def load():
    x, y = sklearn.datasets.load_diabetes(return_X_y=True)
    x, y = (
        sklearn.preprocessing.StandardScaler().fit_transform(a)
        for a in (x, y[:, None])
    )
    return sklearn.model_selection.train_test_split(
        x.astype("float32"), y.astype("float32"), random_state=0
    )


def build(hyperparameters):
    keras.utils.set_random_seed(0)
    solver = hyperparameters.Choice("solver", SOLVERS)
    width = hyperparameters.Choice("width", [2, 4, 8])
    penalty = keras.regularizers.L2(1e-2)
    model = keras.Sequential(
        [
            keras.Input((10,)),
            keras.layers.Dense(
                width, activation="tanh", kernel_regularizer=penalty
            ),
            keras.layers.Dense(1, kernel_regularizer=penalty),
        ]
    )
    metric = keras.metrics.MeanSquaredError(name="error")
    model.compile(optimizer=solver, loss="mse", metrics=[metric])
    return model


def main(quick=False, out="out"):
    x, x_test, y, y_test = load()
    with tempfile.TemporaryDirectory() as folder:
        tuner = keras_tuner.GridSearch(
            build,
            objective=keras_tuner.Objective("val_error", "min"),
            max_trials=2 if quick else None,
            directory=folder,
        )
        stop = keras.callbacks.EarlyStopping("val_error", patience=10)
        tuner.search(
            x,
            y,
            epochs=5 if quick else 60,
            validation_data=(x_test, y_test),
            callbacks=[stop],
            verbose=0,
        )
        trials = tuner.oracle.get_best_trials(100)
    print("solver      width  squared error on patients not seen")
    for trial in trials:
        values = trial.hyperparameters.values
        print(
            f"{values['solver']:10s}  {values['width']:5d}  {trial.score:.4f}"
        )

    plt.style.use("tableau-colorblind10")
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for solver in SOLVERS:
        points = sorted(
            (t.hyperparameters.values["width"], t.score)
            for t in trials
            if t.hyperparameters.values["solver"] == solver
        )
        if points:
            axes.plot(*zip(*points, strict=True), "o-", label=solver)
    axes.set(xlabel="width", ylabel="squared error on patients not seen")
    axes.set_xticks([2, 4, 8])
    axes.grid(color="0.9")
    axes.legend()
    path = pathlib.Path(out) / "tuner.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"Plot: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="for tests")
    parser.add_argument("--out", default="out", help="folder of the plot")
    main(**vars(parser.parse_args()))
