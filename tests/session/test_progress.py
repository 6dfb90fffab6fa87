"""What a fit prints, and how it is drawn."""

import re

import keras
import matplotlib.figure
import numpy as np
import pytest
from keras import ops

import kormos
from conftest import lindata
from conftest import linear


def fit(method="l-bfgs-b", metrics=(), **kwargs):
    model = linear(l2=1e-3)
    model.compile(optimizer=method, loss="mse", metrics=list(metrics))
    x, y = lindata(60, noise=0.5)
    kwargs.setdefault("validation_data", (x[:9], y[:9]))
    return model.fit(x, y, **kwargs)


def numbers(line):
    """The names and values that a line shows, in order."""
    return {
        name: float(value)
        for name, value in re.findall(r" - (\w+): (\S+)", line)
    }


def test_silence(capfd, unconverged):
    fit(epochs=3, verbose=0)
    out, _ = capfd.readouterr()
    assert out == ""


def test_a_line_an_epoch_and_why_it_ended(capfd, float64):
    history = fit(epochs=50, verbose=2, metrics=["mae"])
    out, _ = capfd.readouterr()
    *lines, status = out.splitlines()
    assert status == str(history.result)
    assert status.startswith("converged after ")
    assert len(lines) == len(history.epoch)
    for epoch, line in enumerate(lines):
        assert re.match(rf" ?{epoch + 1}/50 - ", line)
        shown = numbers(line)
        names = ["loss", "grad", "fg_evals", "mae", "val_loss", "val_mae"]
        assert list(shown) == names
        for name, value in shown.items():
            expected = history.history[name][epoch]
            assert value == pytest.approx(expected, rel=1e-5), name
        assert f"fg_evals: {history.history['fg_evals'][epoch]:.0f} -" in line


def test_hessian_products_are_shown_where_there_are_any(capfd, float64):
    history = fit("newton-cg", epochs=50, verbose=2)
    first = capfd.readouterr().out.splitlines()[0]
    names = ["loss", "grad", "fg_evals", "hessp_evals", "val_loss"]
    assert list(numbers(first)) == names
    assert history.history["hessp_evals"][0] > 0


@pytest.mark.parametrize("verbose", [1, "auto"])
def test_one_live_line(verbose, capfd, float64):
    history = fit(epochs=50, verbose=verbose)
    out, _ = capfd.readouterr()
    live, status, end = out.split("\n")
    assert status == str(history.result)
    assert end == ""
    last = live.split("\r")[-1]
    assert f"{len(history.epoch)}/50" in last
    shown = numbers(last)
    assert list(shown)[:3] == ["loss", "grad", "fg_evals"]
    assert shown["loss"] == pytest.approx(history.result.loss, rel=1e-5)


def test_the_live_line_ends_when_all_epochs_are_run(capfd, unconverged):
    fit(epochs=3, verbose=1)
    live, status, end = capfd.readouterr().out.split("\n")
    assert "3/3" in live.split("\r")[-1]
    assert status.startswith("iteration limit after 3 iterations and ")
    assert end == ""


def test_what_callbacks_print_does_not_break_lines(capfd):
    stop = keras.callbacks.EarlyStopping("loss", min_delta=1e9, verbose=1)
    fit(epochs=50, verbose=1, callbacks=[stop])
    live, status, stopped, end = capfd.readouterr().out.split("\n")
    assert "2/50" in live.split("\r")[-1]
    assert status.startswith("stopped by callback after 2 iterations")
    assert stopped == "Epoch 2: early stopping"
    assert end == ""


def curves(figure):
    """The labels and points of each panel, by the label of its axis."""
    return {
        axis.get_ylabel(): {
            line.get_label(): line.get_xydata() for line in axis.get_lines()
        }
        for axis in figure.axes
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "against, label",
    [
        ("iterations", "iterations"),
        ("evaluations", "evaluations of the loss"),
        ("seconds", "time (s)"),
    ],
)
def test_plot_of_a_fit(against, label, tmp_path, unconverged):
    history = fit(epochs=6, metrics=["mae"], verbose=0)
    path = tmp_path / "fit.png"
    figure = kormos.plot_history(history, against=against, path=path)
    assert isinstance(figure, matplotlib.figure.Figure)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert figure.axes[-1].get_xlabel() == label
    assert figure.axes[0].get_yscale() == "log"
    rows = history.history
    where = {
        "iterations": [1, 2, 3, 4, 5, 6],
        "evaluations": rows["fg_evals"],
        "seconds": history.seconds,
    }[against]
    panels = curves(figure)
    assert list(panels) == ["loss", "gradient norm", "mae"]
    for panel, name in zip(panels, ("loss", "grad", "mae"), strict=True):
        points = panels[panel].pop("training")
        np.testing.assert_array_equal(points, np.transpose([where, rows[name]]))
        for points in panels[panel].values():
            expected = np.transpose([where, rows[f"val_{name}"]])
            np.testing.assert_array_equal(points, expected)
    assert list(map(len, panels.values())) == [1, 0, 1]


@pytest.mark.parametrize(
    "frequency, validated", [(2, [2, 4, 6]), ([1, 5], [1, 5])]
)
def test_plot_of_validation_in_some_epochs(frequency, validated, unconverged):
    history = fit(epochs=7, validation_freq=frequency, verbose=0)
    points = curves(kormos.plot_history(history))["loss"]["validation"]
    np.testing.assert_array_equal(points[:, 0], validated)
    np.testing.assert_array_equal(points[:, 1], history.history["val_loss"])


def test_plot_counts_iterations_not_epochs(unconverged):
    history = fit(epochs=3, steps_per_epoch=2, initial_epoch=1, verbose=0)
    points = curves(kormos.plot_history(history))["loss"]["training"]
    np.testing.assert_array_equal(points[:, 0], [2, 4])


def test_plot_without_gradients_or_with_negative_losses(unconverged):
    history = fit("nelder-mead", epochs=3, validation_data=None, verbose=0)
    assert list(curves(kormos.plot_history(history))) == ["loss"]
    v = keras.Variable([1.0])
    result = kormos.minimize(lambda: ops.sum(v**2 - 10), [v])
    figure = kormos.plot_history(result, against="evaluations")
    assert figure.axes[0].get_yscale() == "linear"


@pytest.mark.slow
@pytest.mark.parametrize("against", ["iterations", "evaluations", "seconds"])
def test_plot_of_a_minimization(against, float64):
    v = keras.Variable([3.0, -1.0])
    result = kormos.minimize(
        lambda: ops.sum((v - ops.arange(2)) ** 4), [v], method="bfgs"
    )
    points = curves(kormos.plot_history(result, against=against))["loss"]
    assert len(points["training"]) == result.iterations


def test_plot_of_a_stock_history(unconverged):
    model = linear()
    model.compile("sgd", "mse")
    history = model.fit(*lindata(60, noise=0.5), epochs=3, verbose=0)
    points = curves(kormos.plot_history(history))["loss"]["training"]
    np.testing.assert_array_equal(points[:, 0], [1, 2, 3])
    with pytest.raises(ValueError, match="Received: against='seconds'"):
        kormos.plot_history(history, against="seconds")


def test_plots_that_cannot_be(unconverged):
    with pytest.raises(ValueError, match="Received: against='epochs'"):
        kormos.plot_history(fit(epochs=2, verbose=0), against="epochs")
    with pytest.raises(ValueError, match="no rows"):
        kormos.plot_history(fit(epochs=0, verbose=0))
