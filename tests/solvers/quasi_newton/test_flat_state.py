"""States of solvers as few arrays: packing and unpacking changes nothing."""

from typing import Any
from typing import NamedTuple

import numpy as np
import pytest
from keras import ops
from keras import tree

from conftest import BACKEND
from kormos import backend
from kormos import optimizers
from kormos.solvers.quasi_newton.flat_state import on_host
from kormos.solvers.quasi_newton.flat_state import pack
from kormos.solvers.quasi_newton.flat_state import skeleton
from kormos.solvers.quasi_newton.flat_state import unpack
from kormos.solvers.quasi_newton.state import init
from native import METHODS

SIZE, ROWS = 5, 3


class Inner(NamedTuple):
    is_done: Any
    vector: Any
    weight: Any


class Outer(NamedTuple):
    count: Any
    inner: Any
    matrix: Any
    loss: Any
    store: Any


def small(is_done=True):
    """A state of every kind of leaf."""
    return Outer(
        count=np.int32(7),
        inner=Inner(np.bool_(is_done), np.arange(3.0), np.float64(0.1)),
        matrix=np.arange(4.0).reshape(2, 2),
        loss=np.float64(1e-300),
        store=(np.full((1, 2, 3), np.pi), np.int32(-2)),
    )


def numbered(method):
    """The state of a method, in which all numbers differ."""
    curvature = optimizers.get(method).method(SIZE)
    state = init(curvature, np.zeros(SIZE), ROWS)
    count = [0]

    def fill(leaf):
        leaf = np.asarray(leaf)
        first, count[0] = count[0], count[0] + leaf.size
        filled = np.arange(first, count[0]).reshape(leaf.shape)
        # Float32 would round thirds.
        filled = filled / 3 if leaf.dtype.kind == "f" else filled
        return filled.astype(leaf.dtype)[()]

    return tree.map_structure(fill, state)


def assert_same(actual, expected):
    tree.assert_same_structure(actual, expected)
    for a, b in zip(tree.flatten(actual), tree.flatten(expected), strict=True):
        a = ops.convert_to_numpy(a)
        assert a.shape == b.shape
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("method", METHODS)
def test_the_state_of_a_method_comes_back(method):
    state = numbered(method)
    packed = pack(state)
    assert_same(unpack(packed, skeleton(state)), state)


@pytest.mark.parametrize("is_done", [True, False])
def test_every_kind_of_leaf_comes_back(is_done):
    state = small(is_done)
    assert_same(unpack(pack(state), skeleton(state)), state)


def test_scalars_are_in_two_vectors():
    packed = pack(small())
    assert [a.shape for a in packed.arrays] == [(3,), (2, 2), (1, 2, 3)]
    np.testing.assert_array_equal(packed.floats, [0.1, 1e-300])
    np.testing.assert_array_equal(packed.integers, [7, 1, -2])
    assert packed.floats.dtype == "float64"
    assert packed.integers.dtype == "int32"


def test_a_skeleton_has_no_numbers():
    state = small()
    frame = skeleton(state)
    tree.assert_same_structure(frame, state)
    assert frame.matrix.size == frame.store[0].size == 0
    assert frame.matrix.ndim == 2 and frame.store[0].ndim == 3
    # It holds for any state of that structure.
    other = tree.map_structure(lambda leaf: leaf * 2, small(False))
    assert_same(unpack(pack(other), frame), other)


@pytest.mark.skipif(BACKEND == "torch", reason="compiles nothing")
@pytest.mark.parametrize("method", ["lbfgs", "dense-bfgs"])
def test_a_state_passes_through_a_compiled_call(method, float64):
    state = numbered(method)
    frame = skeleton(state)

    @backend.compile
    def again(packed):
        return pack(unpack(packed, frame))

    assert_same(unpack(on_host(again(pack(state))), frame), state)
