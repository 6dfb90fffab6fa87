"""Checkpoints that are truncated, or belong to something else."""

import io
import itertools
import pickle
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from faults.models import FAMILIES
from faults.models import assert_as_new
from faults.models import data
from faults.models import shared

KIND = "foreign checkpoints"

STATEFUL = [m for m in FAMILIES if m != "l-bfgs-b"]
# Dense methods take over the curvature of L-BFGS.
FOREIGN = [
    (method, of)
    for method, of in itertools.permutations(STATEFUL, 2)
    if (method, of) != ("ssbroyden", "lbfgs")
]

# The exceptions of Keras.
ERRORS = (ValueError, OSError, KeyError, zipfile.BadZipFile)


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self._mark = mark

    def __reduce__(self):
        return open, (str(self._mark), "w")


def saved(model, path):
    if path.name.endswith(".keras"):
        model.save(path)
    else:
        model.save_weights(path)
    return path.read_bytes()


def cut(share):
    return lambda content, mark: content[: int(share * len(content))]


def noise(content, mark):
    return np.random.default_rng(0).bytes(len(content))


def bomb(content, mark):
    return pickle.dumps(Bomb(mark))


def zipped_bomb(content, mark):
    """The files of a model, with a pickle in place of its weights."""
    target = io.BytesIO()
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return bomb(content, mark)
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(target, "w") as new,
    ):
        for name in old.namelist():
            is_config = name.endswith(".json")
            new.writestr(
                name, old.read(name) if is_config else bomb(None, mark)
            )
    return target.getvalue()


SPOILT = {
    "empty": cut(0),
    "a tenth": cut(0.1),
    "half": cut(0.5),
    "almost whole": cut(0.98),
    "noise": noise,
    "pickle": bomb,
    "zipped pickle": zipped_bomb,
}


def assert_same(model, weights):
    for now, before in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, before)


def load_weights(model, path):
    model.load_weights(path)


def load_model(model, path):
    keras.models.load_model(path)


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize(
    "name, readers",
    [
        ("model.keras", [load_weights, load_model]),
        ("model.weights.h5", [load_weights]),
    ],
)
@pytest.mark.parametrize("method", FAMILIES)
def test_a_file_that_is_spoilt(method, name, readers, spoil, fault, tmp_path):
    model, (x, y) = shared(method), data()
    model.fit(x, y, epochs=2, verbose=0)
    path, mark = tmp_path / name, tmp_path / "mark"
    path.write_bytes(spoil(saved(model, path), mark))
    weights = model.get_weights()
    with fault.spares(model, x, y):
        for read in readers:
            with pytest.raises(ERRORS):
                read(model, path)
    assert_same(model, weights)
    assert not mark.exists()
    assert_as_new(method)


@pytest.mark.parametrize("method", FAMILIES)
def test_a_backup_that_is_spoilt(method, fault, tmp_path):
    model, (x, y) = shared(method), data()
    content = saved(model, tmp_path / "latest.weights.h5")
    (tmp_path / "latest.weights.h5").write_bytes(content[:1000])
    weights = model.get_weights()
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with fault.spares(model, x, y):
        with pytest.raises(OSError):
            model.fit(x, y, callbacks=[backup], verbose=0)
    assert_same(model, weights)
    assert_as_new(method)


@pytest.mark.parametrize("method", FAMILIES)
def test_weights_of_another_architecture(method, fault, tmp_path):
    other = keras.Sequential([keras.Input((5,)), layers.Dense(2)])
    other.compile(optimizer=method, loss="mse")
    other.save_weights(tmp_path / "other.weights.h5")
    model, (x, y) = shared(method), data()
    weights = model.get_weights()
    with fault.spares(model, x, y):
        with pytest.raises(ValueError, match="could not be loaded"):
            model.load_weights(tmp_path / "other.weights.h5")
    assert_same(model, weights)
    assert_as_new(method)


@pytest.mark.parametrize(("method", "of"), FOREIGN)
def test_the_state_of_another_solver(method, of, fault, tmp_path):
    x, y = data()
    other = shared(of)
    other.fit(x, y, epochs=3, verbose=0)
    other.save_weights(tmp_path / "other.weights.h5")
    model = shared(method)
    model.load_weights(tmp_path / "other.weights.h5")
    with fault.spares(model, x, y):
        with pytest.raises(ValueError, match="state does not fit.*resume=Fal"):
            model.fit(x, y, resume=True, verbose=0)
    assert_same(model, other.get_weights())
    with fault.spares(model, x, y):
        model.fit(x, y, epochs=3, verbose=0)
    assert_as_new(method)


def edit(path, change):
    """Changes the entries of the optimizer in a file."""
    with h5py.File(path, "r+") as file:
        change(file["optimizer"]["vars"])


def replace(group, name, array):
    del group[name]
    group[name] = array


def not_a_number(group):
    for name in list(group):
        if group[name].dtype.kind == "f":
            replace(group, name, np.full_like(group[name][()], np.nan))


def other_shapes(group):
    for name in list(group):
        if name.startswith("solver_") and group[name].shape:
            if name not in ("solver_key", "solver_theta", "solver_position"):
                replace(group, name, group[name][()][:-1])


def without(group):
    for name in list(group):
        if name.startswith("solver_") and name != "solver_key":
            del group[name]


def no_key(group):
    del group["solver_key"]


CHANGES = [not_a_number, other_shapes, without, no_key]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", STATEFUL)
def test_a_state_that_is_spoilt(method, change, fault, tmp_path):
    """It is refused with a message, or the fit starts with new curvature."""
    x, y = data()
    model = shared(method)
    model.fit(x, y, epochs=3, verbose=0)
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    edit(path, change)
    with fault.spares(model, x, y):
        try:
            model.load_weights(path)
            history = model.fit(x, y, epochs=3, resume=True, verbose=0)
        except ValueError as error:
            assert "optimizer's state" in str(error)
        else:
            assert np.isfinite(history.history["loss"]).all()
            assert history.result.loss < history.result.initial_loss
    assert_as_new(method)
