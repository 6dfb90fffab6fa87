"""Small programs are compiled with fewer of XLA's optimizations."""

import numpy as np
import pytest

from conftest import BACKEND
from kormos import backend

if BACKEND != "jax":
    pytest.skip("only JAX has this compiler", allow_module_level=True)

import jax
import jax.numpy as jnp

from kormos.backend.jax_compilation import Compiled
from kormos.backend.jax_compilation import Effort

SMALL, LARGE = np.linspace(0, 1, 50), np.linspace(0, 1, 200_000)


@pytest.fixture
def traced():
    """A function, and the sizes for which it was traced."""
    sizes = []

    def fn(x):
        sizes.append(x.size)
        if x.size == 3:
            raise ValueError("three")
        return jnp.sum(jnp.exp(-2 * x) * x)

    return fn, sizes


@pytest.mark.parametrize("x", [SMALL, LARGE], ids=["small", "large"])
def test_values_are_right_and_a_function_is_traced_once(traced, x):
    fn, sizes = traced
    compiled = backend.compile(fn)
    for _ in range(3):
        with backend.float64():
            found = float(compiled(x))
        assert found == pytest.approx(np.sum(np.exp(-2 * x) * x), rel=1e-13)
    assert sizes == [x.size]


def test_a_function_may_be_called_with_few_numbers_and_with_many(traced):
    fn, sizes = traced
    compiled = backend.compile(fn)
    for x in (SMALL, LARGE, SMALL, LARGE):
        with backend.float64():
            found = float(compiled(x))
        assert found == pytest.approx(np.sum(np.exp(-2 * x) * x), rel=1e-13)
    # The small one again, when it is compiled with all optimizations.
    assert sizes in ([50, 200_000], [50, 200_000, 50])


@pytest.mark.parametrize("around", [jax.jit, jax.grad, jax.vmap])
def test_a_compiled_function_can_be_part_of_another_one(traced, around):
    fn, _ = traced
    x = np.linspace(0, 1, 12).reshape(3, 4)
    x = x if around is jax.vmap else x[0]
    with backend.float64():
        found = around(backend.compile(fn))(x)
        expected = around(fn)(x)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_an_error_of_the_function_is_raised(traced):
    with pytest.raises(ValueError, match="three"):
        backend.compile(traced[0])(np.zeros(3))


def test_a_loop_counts_by_what_its_body_computes():
    def loop(x):
        return jax.lax.fori_loop(0, 5, lambda i, x: jnp.sin(x), x)

    efforts = (Effort(1_000, level=0),)
    sizes = []
    for x in (SMALL, LARGE):
        compiled = Compiled(loop, efforts)
        compiled(x)
        sizes.append(len(compiled._quick))
    assert sizes == [1, 0]


def test_many_numbers_are_few_if_they_are_only_moved_and_multiplied():
    effort = Effort(10**6, level=None, arithmetic=1_000, functions=100)

    def suits(fn, *shape):
        return effort.suits(jax.jit(fn).trace(jnp.ones(shape)).jaxpr)

    assert suits(lambda x: jnp.sin((x @ x.T)[0, :90]), 300, 300)
    assert not suits(lambda x: x @ x.T, 2_000, 2_000)
    assert not suits(lambda x: x + 1, 2_000)
    assert not suits(jnp.sin, 200)
    assert suits(jnp.sin, 100)


def test_an_option_that_this_release_does_not_have_is_left_out(monkeypatch):
    monkeypatch.setattr(
        Effort, "options", property(lambda effort: {"xla_no_such_option": 1})
    )
    compiled = Compiled(jnp.sin, (Effort(12_345, level=0),))
    assert float(compiled(np.float32(0.5))) == pytest.approx(np.sin(0.5))
