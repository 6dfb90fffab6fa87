"""Pictures of one fit and of several."""

import sys
import types

import keras
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import kormos
from conftest import lindata
from conftest import linear
from kormos import optional
from kormos.inspection import plots


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def fit(method="lbfgs", epochs=6, **kwargs):
    model = linear()
    model.compile(method, "mse")
    history = model.fit(
        *lindata(60, noise=0.5), epochs=epochs, verbose=0, **kwargs
    )
    return history


def history_of(**columns):
    """A Keras History with these columns."""
    history = keras.callbacks.History()
    history.history = {name: list(v) for name, v in columns.items()}
    history.epoch = list(range(len(columns["loss"])))
    return history


def contrast_to_white(color):
    """The contrast of WCAG 2.2: the ratio of luminances, each plus 0.05."""
    channels = np.array(to_rgb(color))
    curved = ((channels + 0.055) / 1.055) ** 2.4
    linear_light = np.where(channels <= 0.04045, channels / 12.92, curved)
    return 1.05 / (linear_light @ [0.2126, 0.7152, 0.0722] + 0.05)


@pytest.mark.parametrize("color", [*plots._OURS, *plots._OTHERS])
def test_curves_are_seen_on_white(color):
    assert contrast_to_white("#767676") == pytest.approx(4.54, abs=0.005)
    assert contrast_to_white(color) >= 3


def test_pyplot_knows_the_figure(unconverged):
    figure = kormos.plot_history(fit())
    assert isinstance(figure, Figure)
    assert plt.fignum_exists(figure.number)
    assert plt.gcf() is figure


def test_a_script_that_writes_figures_keeps_none(tmp_path, unconverged):
    history = fit()
    for number in range(3):
        kormos.plot_history(history, path=tmp_path / f"{number}.png")
    assert plt.get_fignums() == []


def test_a_notebook_sees_a_written_figure_too(tmp_path, unconverged):
    with plt.ion():
        figure = kormos.plot_history(fit(), path=tmp_path / "fit.png")
    assert plt.fignum_exists(figure.number)


@pytest.fixture
def shown(monkeypatch):
    """A list of the pictures that a notebook shows."""
    pictures = []
    display = types.ModuleType("IPython.display")
    display.Image = lambda data: data
    display.display = pictures.append
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return pictures


def test_a_notebook_sees_a_figure_once(shown, monkeypatch):
    backend = "module://matplotlib_inline.backend_inline"
    monkeypatch.setattr(matplotlib, "get_backend", lambda: backend)
    figure = optional.new_figure((2, 2), None)
    figure._ipython_display_()  # The figure is the value of a cell.
    assert shown[0].startswith(b"\x89PNG") and len(shown) == 1
    # At the end of a cell, a notebook shows the open figures of pyplot.
    assert plt.get_fignums() == []


def test_a_figure_with_a_window_is_not_shown_again(shown):
    figure = optional.new_figure((2, 2), None)
    figure._ipython_display_()
    assert shown == []
    plt.close(figure)
    figure._ipython_display_()
    assert len(shown) == 1


def test_several_fits_in_one_picture(unconverged):
    stock = history_of(loss=[4.0, 2.0, 1.0])
    fits = {"adam": stock, "lbfgs": fit(), "lm": fit("lm")}
    figure = kormos.plot_history(fits)
    loss, *others = figure.axes
    lines = {line.get_label(): line for line in loss.get_lines()}
    assert list(lines) == ["adam", "lbfgs", "lm"]
    for name, history in fits.items():
        drawn = lines[name].get_ydata()
        np.testing.assert_array_equal(drawn, history.history["loss"])
    colors = {name: line.get_color() for name, line in lines.items()}
    assert colors["adam"] in plots._OTHERS
    assert {colors["lbfgs"], colors["lm"]} <= set(plots._OURS)
    assert len(set(colors.values())) == 3
    assert lines["adam"].get_linewidth() < lines["lm"].get_linewidth()
    # Of the others, those that two fits or more have.
    assert "gradient norm" in [axis.get_ylabel() for axis in others]
    assert "damping" not in [axis.get_ylabel() for axis in others]


def test_columns_can_be_chosen(unconverged):
    history = fit("lm")
    figure = kormos.plot_history(history, columns=["damping", "loss"])
    assert [axis.get_ylabel() for axis in figure.axes] == ["damping", "loss"]
    with pytest.raises(ValueError, match="'trials'.*Received: columns=.'los'"):
        kormos.plot_history(history, columns=["los"])


def test_axes_of_the_users_own(unconverged):
    history = fit()
    mine, (left, right) = plt.subplots(1, 2)
    assert kormos.plot_history(history, ax=left) is mine
    assert left.get_ylabel() == "loss" and not right.get_lines()
    kormos.plot_history(history, ax=[left, right], columns=["loss", "grad"])
    assert right.get_ylabel() == "gradient norm"
    with pytest.raises(ValueError, match="must hold 1 Axes.*Received: 2"):
        kormos.plot_history(history, ax=[left, right], columns=["loss"])


def scales(history):
    figure = kormos.plot_history(history)
    return {axis.get_ylabel(): axis.get_yscale() for axis in figure.axes}


def test_axes_of_damping_and_radius_are_logarithmic():
    falling = [1e2, 1e-3]
    history = history_of(
        loss=falling, damping=falling, radius=falling, trials=[1, 2]
    )
    assert scales(history) == {
        "loss": "log",
        "damping": "log",
        "radius": "log",
        "trials": "linear",
    }


@pytest.mark.parametrize(
    "losses, scale",
    [
        ([1.0, 1e-5, 0.0], "log"),
        ([0.0, 0.0], "linear"),
        ([1.0, -1.0], "linear"),
        ([np.nan, 2.0, 1e-3], "log"),
    ],
)
def test_a_loss_of_zero_leaves_the_axis_logarithmic(losses, scale):
    assert scales(history_of(loss=losses)) == {"loss": scale}
    figure = kormos.plot_history(history_of(loss=losses))
    figure.canvas.draw()


def test_counts_have_whole_numbers():
    history = history_of(loss=[2.0, 1.0], trials=[1, 2])
    figure = kormos.plot_history(history)
    figure.canvas.draw()
    loss, trials = figure.axes
    for ticks in (trials.get_yticks(), trials.get_xticks()):
        np.testing.assert_array_equal(ticks, np.round(ticks))


def test_nothing_to_plot():
    with pytest.raises(ValueError, match="Received: an empty dict"):
        kormos.plot_history({})
    with pytest.raises(ValueError, match="no rows"):
        kormos.plot_history({"lm": None})


def test_a_fit_with_its_bands_is_shown_too():
    x = np.linspace(0, 1, 20)
    model = linear(inputs=1)
    kormos.fit(model.compile(None, "mse") or model, x[:, None], x, verbose=0)
    figure = kormos.plot_fit(kormos.summary(model, x[:, None], x[:, None]))
    assert plt.fignum_exists(figure.number)
    assert matplotlib.get_backend().lower() == "agg"
