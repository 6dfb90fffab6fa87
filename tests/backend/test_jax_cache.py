"""Compiled code of JAX is kept on disk, unless the user turns that off."""

import jax
import pytest

from kormos.backend import jax_cache

NAMES = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True)
def as_new(monkeypatch, tmp_path):
    monkeypatch.delenv(jax_cache.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(jax_cache.sys, "platform", "linux")
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def folder():
    return jax.config.jax_compilation_cache_dir


def test_it_is_in_the_users_folder_for_caches(tmp_path):
    jax_cache.keep_compiled()
    assert folder().startswith(str(tmp_path / "caches" / "kormos" / "jax-"))


def test_a_variable_turns_it_off(monkeypatch):
    monkeypatch.setenv(jax_cache.VARIABLE, "0")
    jax_cache.keep_compiled()
    assert folder() is None


def test_a_variable_puts_it_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv(jax_cache.VARIABLE, str(tmp_path / "mine"))
    jax_cache.keep_compiled()
    assert folder().startswith(str(tmp_path / "mine"))


def test_a_cache_that_the_user_has_set_up_stays(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    jax_cache.keep_compiled()
    assert folder() == str(tmp_path)


def test_a_folder_that_cannot_be_made_leaves_none(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(jax_cache.VARIABLE, str(tmp_path / "file"))
    jax_cache.keep_compiled()
    assert folder() is None
