"""The release: the wheel, the sdist, and the files around them."""

import email
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

import kormos
from conftest import BACKEND

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

built = [
    pytest.mark.slow,
    pytest.mark.skipif(BACKEND != "jax", reason="Packages know no backend."),
    pytest.mark.skipif(
        importlib.util.find_spec("hatchling") is None,
        reason="The build backend, hatchling, is not installed.",
    ),
]


def marked(test):
    for mark in built:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The sdist, unpacked, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")

    def build(kind, root):
        command = [sys.executable, "-m", "hatchling", "build", "-t", kind]
        subprocess.run(
            [*command, "-d", folder], cwd=root, check=True, capture_output=True
        )

    build("sdist", ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        file.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    build("wheel", unpacked)
    (wheel,) = folder.glob("*.whl")
    return unpacked, zipfile.ZipFile(wheel)


def metadata(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith("METADATA"))
    return email.message_from_bytes(wheel.read(name))


@marked
def test_the_wheel_says_what_it_is(packages):
    _, wheel = packages
    said = metadata(wheel)
    assert said["Name"] == "kormos"
    assert said["Version"] == kormos.__version__
    assert said["License-Expression"] == "MIT"
    assert said["Author"] == "The kormos authors"
    assert "Typing :: Typed" in said.get_all("Classifier")
    # Packages for developers are not an extra.
    extras = {"tensorflow", "jax", "torch", "plots"}
    assert set(said.get_all("Provides-Extra")) == extras
    assert "kormos/py.typed" in wheel.namelist()


@marked
def test_the_wheel_has_the_package_and_no_more(packages):
    _, wheel = packages
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {re.sub(r"-.*", "", top) for top in tops} == {"kormos"}


@marked
def test_the_sdist_has_every_file_of_the_repository(packages):
    unpacked, _ = packages
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("This is no checkout.")
    missing = [
        name
        for name in listed.stdout.splitlines()
        if (ROOT / name).exists() and not (unpacked / name).exists()
    ]
    assert missing == []


@marked
def test_the_sdist_tests_itself(packages):
    unpacked, _ = packages
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
        + ["tests/arithmetic/test_differences.py", "-x"],
        cwd=unpacked,
        env={**os.environ, "PYTHONPATH": str(unpacked / "src")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_nothing_but_one_file_states_the_version():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"].endswith("_version.py")
    others = ["pyproject.toml", "CITATION.cff", "src/kormos/__init__.py"]
    for name in others:
        assert kormos.__version__ not in (ROOT / name).read_text(), name


def test_workflows_run_what_make_has():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z -]*):", makefile, re.M))
    targets = {name for group in targets for name in group.split()}
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        text = path.read_text()
        names = re.findall(r"target: ([a-z-]+)", text)
        names += re.findall(r"run: make ([a-z-]+)", text)
        assert names and set(names) <= targets, path.name


def test_workflows_cover_what_is_supported():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    targets = re.findall(r"target: ([a-z-]+)", text)
    expected = ["lint", "docs", "test-oldest", "test-middle", "test-newest"]
    expected += ["test-jax", "test-tensorflow", "test-torch"]
    assert sorted(targets) == sorted(expected)
    supported = {
        line.rsplit(" ", 1)[1]
        for line in PROJECT["project"]["classifiers"]
        if re.search(r":: 3\.\d+$", line)
    }
    assert set(re.findall(r'python: "(.*?)"', text)) == supported


def test_a_report_of_a_bug_has_a_check():
    form = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text()
    assert "kormos.check(model, x, y)" in form
    assert "history.result.stamp" in form
