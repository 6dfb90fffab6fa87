"""The live line in terminals, notebooks and logs, and the closing sentence."""

import io
import logging
import re
import sys
import types
import warnings

import keras
import numpy as np
import pytest
from keras import ops

import kormos
from conftest import lindata
from conftest import linear
from kormos.session.displays import Step


class Screen(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A function that replaces the output by a terminal."""

    def begin(columns=80, term="xterm-256color", no_color=None):
        screen = Screen()
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setattr(sys, "stderr", Screen())
        monkeypatch.setenv("TERM", term)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.delenv("NO_COLOR", raising=False)
        if no_color is not None:
            monkeypatch.setenv("NO_COLOR", no_color)
        return screen

    return begin


def fit(**kwargs):
    model = linear(l2=1e-3)
    model.compile(optimizer="l-bfgs-b", loss="mse", metrics=["mae"])
    x, y = lindata(60, noise=0.5)
    kwargs.setdefault("validation_data", (x[:9], y[:9]))
    return model.fit(x, y, **kwargs)


def lines_of(text):
    """All texts that each line of a terminal has had."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line for line in re.split(r"[\r\n]+", plain) if line]


@pytest.mark.parametrize("columns", [50, 60, 80, 200])
def test_the_live_line_fits_the_terminal(terminal, columns):
    screen = terminal(columns)
    history = fit(epochs=100_000)
    *live, status = lines_of(screen.getvalue())
    assert status == str(history.result)
    assert max(map(len, live)) <= columns
    assert live[0].strip().startswith("0/100000")
    assert f"{len(history.epoch)}/100000" in live[-1]
    assert "loss " in live[-1]


def test_the_live_line_says_what_matters_in_80_columns(terminal):
    screen = terminal()
    history = fit(epochs=10_000)
    last = lines_of(screen.getvalue())[-2]
    rows = history.history
    for name, column in (("loss", "loss"), ("grad", "grad")):
        (shown,) = re.findall(rf"\b{name} (\S+)", last)
        assert float(shown) == pytest.approx(rows[column][-1], rel=1e-5)
    assert f"evals {rows['fg_evals'][-1]:.0f} in 0:00:0" in last


def test_a_wide_line_has_the_validation_too(terminal):
    screen = terminal(columns=120)
    history = fit(epochs=9_000)
    last = lines_of(screen.getvalue())[-2]
    (shown,) = re.findall(r"val_loss (\S+)", last)
    expected = history.history["val_loss"][-1]
    assert float(shown) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "left, said", [(7.2, "0:00:07 left"), (4000.0, "1:06:40 left")]
)
def test_the_live_line_says_the_time_left(left, said):
    from kormos.session.displays import _Time

    task = types.SimpleNamespace(
        fields={"is_over": False}, time_remaining=left, completed=3
    )
    assert _Time().render(task).plain == said


def test_the_cursor_comes_back(terminal):
    screen = terminal()
    fit(epochs=9)
    text = screen.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


class Broken(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise OSError("the disk is full")


def test_the_cursor_and_the_output_come_back_after_an_error(terminal):
    screen = terminal()
    with pytest.raises(OSError, match="the disk is full"):
        fit(epochs=9, callbacks=[Broken()])
    text = screen.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert sys.stdout is screen


class Talking(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        print("said in epoch", epoch)


def test_what_callbacks_print_has_lines_of_its_own(terminal):
    screen = terminal()
    fit(epochs=3, callbacks=[Talking()])
    lines = lines_of(screen.getvalue())
    assert [line for line in lines if line.startswith("said")] == [
        f"said in epoch {epoch}" for epoch in range(3)
    ]


@pytest.mark.parametrize("is_set", [True, False])
def test_no_color_is_honoured(terminal, is_set):
    screen = terminal(no_color="1" if is_set else None)
    fit(epochs=9)
    # A color is one of 30 to 37, 38, 90 to 97.
    colors = re.findall(r"\x1b\[(?:3|9)\d[;m]", screen.getvalue())
    assert bool(colors) == (not is_set)


def test_a_dumb_terminal_has_plain_lines(terminal):
    screen = terminal(term="dumb")
    history = fit(epochs=9)
    line, status = screen.getvalue().splitlines()
    assert line.startswith(f"{len(history.epoch)}/9 - loss: ")
    assert status == str(history.result)


def test_a_log_has_a_line_every_ten_seconds(monkeypatch, capsys):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(
        "kormos.session.displays.time.monotonic", lambda: next(clock)
    )
    fit(epochs=7)
    lines = capsys.readouterr().out.splitlines()[:-1]
    # The clock begins at the first: seconds 4, 8, 12; 16, 20, 24; and the end.
    assert [line.split("/")[0] for line in lines] == ["4", "7"]


def test_a_notebook_has_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    history = fit(epochs=9)
    live, status, end = capsys.readouterr().out.split("\n")
    assert (status, end) == (str(history.result), "")
    parts = live.split("\r")[1:]
    assert max(map(len, parts)) <= 80
    assert parts[-1].startswith(f"{len(history.epoch)}/9  loss ")


@pytest.fixture
def quiet_keras():
    """Keras, told to log instead of printing."""
    keras.config.disable_interactive_logging()
    yield
    keras.config.enable_interactive_logging()


def test_progress_is_logged_where_keras_is_told_to_print_nothing(
    quiet_keras, capsys, caplog
):
    caplog.set_level(logging.INFO, logger="kormos")
    history = fit(epochs=4, verbose=2)
    assert capsys.readouterr().out == ""
    *lines, status = [record.getMessage() for record in caplog.records]
    assert status == str(history.result)
    assert [line.split(" ")[0] for line in lines] == [
        "1/4",
        "2/4",
        "3/4",
        "4/4",
    ]


def test_the_end_is_logged_once(caplog):
    caplog.set_level(logging.INFO, logger="kormos")
    history = fit(epochs=4, verbose=0)
    (record,) = caplog.records
    assert record.getMessage() == str(history.result)


def test_levels_of_verbosity(capsys):
    x, y = lindata(60, noise=0.5)
    names = {}
    for verbose in (2, 3):
        model = linear()
        model.compile("lm", "mse", metrics=["mae"])
        history = model.fit(x, y, epochs=30, verbose=verbose)
        line = capsys.readouterr().out.splitlines()[0]
        names[verbose] = re.findall(r" - (\w+): ", line)
    assert names[2] == ["loss", "grad", "fg_evals", "hessp_evals", "mae"]
    assert set(names[3]) - set(names[2]) >= {"damping", "trials", "step"}
    assert set(names[3]) <= set(history.history)


@pytest.mark.parametrize("verbose", ["loud", -1, 4, None])
def test_other_levels_are_refused(verbose):
    v = keras.Variable([1.0])
    with pytest.raises(ValueError, match="`verbose` must be"):
        fit(verbose=verbose)
    with pytest.raises(ValueError, match="`verbose` must be"):
        kormos.minimize(lambda: ops.sum(v**2), [v], verbose=verbose)


@pytest.mark.parametrize("verbose", [0, 2])
def test_the_closing_sentence_is_said_once(verbose, capsys):
    model = linear()
    model.compile("lbfgs", "mse")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = model.fit(
            *lindata(60, noise=0.5), max_seconds=1e-9, verbose=verbose
        )
    said = [str(w.message) for w in caught]
    said += capsys.readouterr().out.splitlines()
    assert sum(str(history.result) in text for text in said) == 1
    assert any(w.category is kormos.ConvergenceWarning for w in caught)


def test_figures_are_dropped_where_there_is_no_room():
    step = Step(5, 100, [("loss", "0.25"), ("grad", "1e-05")])
    assert step.counter == "  5/100"
    assert step.within(21) == "loss 0.25  grad 1e-05"
    assert step.within(20) == "loss 0.25"
    assert step.within(8) == ""


def test_validation_is_between_the_hooks_of_keras():
    seen = []

    class Hooks(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append("epoch begins")

        def on_test_begin(self, logs=None):
            seen.append("test begins")

        def on_test_batch_end(self, batch, logs=None):
            seen.append(f"batch {batch}")

        def on_test_end(self, logs=None):
            seen.append("test ends")
            losses.append(logs["loss"])

        def on_epoch_end(self, epoch, logs=None):
            seen.append("epoch ends")

    losses = []
    history = fit(epochs=4, validation_freq=2, callbacks=[Hooks()], verbose=0)
    plain = ["epoch begins", "epoch ends"]
    tested = ["test begins", "batch 0", "test ends"]
    assert seen == [*plain, plain[0], *tested, plain[1]] * 2
    np.testing.assert_array_equal(losses, history.history["val_loss"])
