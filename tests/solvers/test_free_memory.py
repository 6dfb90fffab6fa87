"""Dense matrices are refused if they do not fit into memory."""

import os

import keras
import numpy as np
import pytest
from keras import ops

import kormos
from kormos import free_memory

# Each keeps a dense matrix of float64 numbers, in several copies.
MAKERS = {
    "dense-bfgs": kormos.optimizers.BFGS,
    "ssbfgs": kormos.optimizers.SSBFGS,
    "ssbroyden": kormos.optimizers.SSBroyden,
    "lm": lambda: kormos.optimizers.LevenbergMarquardt(linear_solver="dense"),
    "bfgs": lambda: kormos.optimizers.ScipyBatchOptimizer(method="bfgs"),
    "slsqp": lambda: kormos.optimizers.ScipyBatchOptimizer(method="slsqp"),
    "trust-exact": lambda: kormos.optimizers.ScipyBatchOptimizer(
        method="trust-exact"
    ),
}
each_method = pytest.mark.parametrize("name", MAKERS)
# The size of the network of five layers that physics-informed methods compare.
SIZE = 10_065


@pytest.fixture
def free(monkeypatch):
    """Sets the memory that is free, in bytes."""

    def set_free(count):
        monkeypatch.setattr(free_memory, "free_bytes", lambda: float(count))

    return set_free


@each_method
def test_the_message_has_what_is_needed_and_what_is_free(name, free):
    free(1.5e9)
    (stage,) = MAKERS[name]().stages(1)
    with pytest.raises(ValueError) as caught:
        stage.check(SIZE, False, [])
    matrix = 8 * SIZE**2
    message = str(caught.value)
    copies = (3, 4, 5)
    assert any(f"takes {n * matrix / 1e9:.1f} GB" in message for n in copies)
    assert "1.5 GB are free" in message
    assert message.endswith("Received: 10,065 parameters")


@each_method
@pytest.mark.parametrize("size", [SIZE, 50_000])
def test_there_is_no_limit_where_memory_suffices(name, size, free):
    free(1e12)
    (stage,) = MAKERS[name]().stages(1)
    stage.check(size, False, [])


@pytest.mark.parametrize("size", [100, 1000])
def test_few_parameters_are_refused_on_a_full_machine(size, free):
    free(1000)
    v = keras.Variable(np.ones(size))
    with pytest.raises(ValueError, match=r"'ssbroyden' .* 0 MB are free"):
        kormos.minimize(lambda: ops.sum(v**2), [v], "ssbroyden")
    np.testing.assert_array_equal(ops.convert_to_numpy(v), np.ones(size))


def test_a_method_without_a_matrix_is_not_refused(free):
    free(0)
    v = keras.Variable(np.ones(3))
    result = kormos.minimize(lambda: ops.sum((v - 1) ** 2), [v], "lbfgs")
    assert result.loss == 0


def test_free_memory_is_a_part_of_the_machine_s():
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**20 < free_memory.free_bytes() <= physical


@pytest.mark.parametrize(
    ("limit", "expected"), [("3000", 2000.0), ("max", 4096.0), ("500", 0.0)]
)
def test_the_limit_of_a_container_counts(
    limit, expected, tmp_path, monkeypatch
):
    machine = tmp_path / "meminfo"
    machine.write_text("MemTotal:  9 kB\nMemAvailable:       4 kB\n")
    (tmp_path / "max").write_text(limit + "\n")
    (tmp_path / "current").write_text("1000\n")
    monkeypatch.setattr(free_memory, "_LINUX", machine)
    paths = str(tmp_path / "max"), str(tmp_path / "current")
    monkeypatch.setattr(free_memory, "_LIMITS", (paths,))
    assert free_memory.free_bytes() == expected


def test_without_linux_all_of_the_memory_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(free_memory, "_LINUX", tmp_path / "none")
    monkeypatch.setattr(free_memory, "_LIMITS", ())
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert free_memory.free_bytes() == physical
