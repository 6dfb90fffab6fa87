"""With `--deal-cases`, the backends share the cases of the tests.

Half of the cases of a test run on PyTorch, which compiles nothing, a quarter on
JAX and a quarter on TensorFlow. Every test, also one of a single case, has a
case on PyTorch and on one of the other two.
"""

import collections
import zlib

import keras
import pytest

# Cases that only one backend can run are run there.
CONDITIONS = ("skip", "skipif", "xfail", "own_cases")
COMPILED = "jax", "tensorflow"
_QUARTERS = (*COMPILED, "torch", "torch")


def pytest_addoption(parser):
    parser.addoption(
        "--deal-cases",
        action="store_true",
        help="share the cases of the tests between the backends",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if not config.getoption("--deal-cases"):
        return
    cases = collections.defaultdict(list)
    for item in items:
        if not any(item.get_closest_marker(name) for name in CONDITIONS):
            cases[item.path, item.originalname].append(item)
    left = set()
    for group in cases.values():
        left.update(set(group) - set(_shares(group)[keras.backend.backend()]))
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=list(left))


def _shares(group):
    """The cases of a test that each backend runs, by the backend's name."""
    shares = {"jax": [], "tensorflow": [], "torch": []}
    for item in group:
        shares[_QUARTERS[_number(item) % 4]].append(item)
    if not shares["torch"]:
        shares["torch"] = group[:1]
    if not any(shares[name] for name in COMPILED):
        shares[COMPILED[_number(group[0]) // 4 % 2]] = group[:1]
    return shares


def _number(item):
    """A number that only depends on the name of a case."""
    # Counting the cases could give a backend the same method in all tests.
    return zlib.crc32(item.nodeid.encode())
