"""The displays of a result, a history and a report."""

import copy
import pickle
import re

import keras
import numpy as np
import pytest
import rich.console
from keras import ops

import kormos
from conftest import BACKEND
from conftest import lindata
from conftest import linear


def fit(**kwargs):
    model = linear()
    model.compile("lbfgs", "mse", metrics=["mae"])
    x, y = lindata(60, noise=0.5)
    kwargs.setdefault("validation_data", (x[:9], y[:9]))
    return model.fit(x, y, verbose=0, **kwargs)


def minimize(dtype="float32"):
    v = keras.Variable(np.array([3.0, 1.0], dtype))
    scales = ops.convert_to_tensor(np.array([1.0, 9.0], dtype))
    return kormos.minimize(lambda: ops.sum(scales * v**2), [v])


def test_repr_is_short():
    result = minimize()
    result.history["loss"] *= 1000
    assert len(repr(result)) < 120
    assert repr(result).startswith(f"<Result: {result.status}, loss ")
    assert f"{result.iterations} iterations" in repr(result)


def test_repr_of_a_history_is_short():
    history = fit(epochs=30)
    epochs = len(history.epoch)
    said = f"<History of {epochs} epochs: {history.result.status}, loss "
    assert repr(history).startswith(said)


def rows_of(html):
    """The names and values of a table of HTML."""
    return dict(re.findall(r"<tr><th>(.*?)</th><td>(.*?)</td></tr>", html))


def test_html_of_results_and_histories():
    history = fit(epochs=30)
    html = history._repr_html_()
    assert html == history.result._repr_html_()
    rows = rows_of(html)
    assert rows["status"] == history.result.status
    assert float(rows["loss"]) == pytest.approx(history.result.loss, rel=1e-5)
    assert rows["iterations"] == str(history.result.iterations)
    assert "Jacobians" not in rows  # It has made none.


def test_html_is_escaped():
    result = minimize()
    result.message = "a < b & c"
    assert "<p>a &lt; b &amp; c</p>" in result._repr_html_()


def test_a_result_as_a_frame():
    result = minimize()
    frame = result.to_frame()
    assert list(frame.columns) == list(result.history)
    assert list(frame.index) == list(range(1, result.iterations + 1))
    assert frame.index.name == "iteration"
    np.testing.assert_array_equal(frame["loss"], result.history["loss"])


def test_the_result_of_a_fit_as_a_frame_has_every_iteration():
    history = fit(epochs=3, steps_per_epoch=2, target_loss=-1.0)
    frame = history.result.to_frame()
    assert len(frame) == history.result.iterations == 6
    np.testing.assert_array_equal(frame["loss"], history.trace["loss"])


def test_a_history_as_a_frame_has_every_epoch():
    history = fit(epochs=5, validation_freq=2)
    frame = history.to_frame()
    assert frame.index.name == "epoch" and list(frame.index) == [1, 2, 3, 4, 5]
    for name in ("loss", "mae"):
        np.testing.assert_array_equal(frame[name], history.history[name])
    losses = history.history["val_loss"]
    np.testing.assert_array_equal(frame["val_loss"].dropna(), losses)
    assert list(frame["val_loss"].dropna().index) == [2, 4]
    assert list(frame["iteration"]) == history.iteration
    assert list(frame["seconds"]) == history.seconds


def test_a_history_of_the_users_own_is_used():
    mine = keras.callbacks.History()
    assert fit(epochs=2, callbacks=[mine]) is mine
    assert len(mine.history["loss"]) == 2


def test_a_result_says_on_what_it_was_found():
    keras.utils.set_random_seed(7)
    stamp = minimize().stamp
    assert stamp.versions["kormos"] == kormos.__version__
    assert stamp.versions["keras"] == keras.__version__
    assert stamp.versions["numpy"] == np.__version__
    assert {"python", "scipy", BACKEND} <= set(stamp.versions)
    assert stamp.backend == BACKEND
    assert stamp.device.startswith(("cpu", "cuda", "gpu"))
    assert (stamp.dtype, stamp.arithmetic) == ("float32", "float32")
    assert stamp.seed == 7
    assert stamp.threads >= 1
    for part in (f"kormos {kormos.__version__}", "seed 7", stamp.device):
        assert part in str(stamp)


def test_the_stamp_tells_the_arithmetic_apart_from_the_dtype():
    stamp = fit(epochs=2, precision="float64").result.stamp
    assert (stamp.dtype, stamp.arithmetic) == ("float32", "float64")
    with kormos.precision("float64"):
        stamp = minimize("float64").stamp
    assert (stamp.dtype, stamp.arithmetic) == ("float64", "float64")


def test_a_result_is_copied_and_pickled_with_its_stamp():
    result = minimize()
    for other in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert other.stamp == result.stamp
        assert str(other) == str(result)


@pytest.mark.slow
def test_reports_are_text_and_html_in_a_notebook_too(monkeypatch, capsys):
    model = linear()
    report = kormos.check(model, *lindata(60, noise=0.5), loss="mse")
    text = str(report)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert str(report) == text
    assert "\x1b" not in text and "Suggested: 'lm'" in text
    assert capsys.readouterr().out == ""
    html = report._repr_html_()
    for finding in report.findings:
        assert f"<tr><th>{finding.test}</th><td>ok</td>" in html
    assert "<th>lbfgs</th>" in html
    assert len(repr(report)) < 120 and "all tests passed" in repr(report)


def test_comparisons_have_html():
    x = np.linspace(0, 1, 20)
    a, b = (keras.Variable(np.zeros(n, "float32")) for n in (1, 2))
    t = ops.convert_to_tensor(x, "float32")
    y = ops.convert_to_tensor(1 + 2 * x + 0.1 * np.cos(40 * x), "float32")
    flat = kormos.least_squares(lambda: a[0] - y, [a])
    line = kormos.least_squares(lambda: b[0] + b[1] * t - y, [b])
    both = {"flat": flat.summary(), "line": line.summary()}
    html = kormos.compare(both)._repr_html_()
    assert "<th>AICc</th>" in html and "<tr><th>line</th><td>2</td>" in html
    assert "<th>estimate</th>" in both["line"]._repr_html_()
