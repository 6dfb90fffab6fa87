"""With `--deal-cases`, JAX and TensorFlow share the cases of the tests.

PyTorch, which compiles nothing, runs all cases of all tests. A third of the
cases of a test run on JAX too, another third on TensorFlow too. Every test,
also one of a single case, has a case on one of the two.
"""

import collections
import zlib

import keras
import pytest

# Cases that only one backend can run are run there.
CONDITIONS = ("skip", "skipif", "xfail", "own_cases")
COMPILED = "jax", "tensorflow"


def pytest_addoption(parser):
    parser.addoption(
        "--deal-cases",
        action="store_true",
        help="share the cases of the tests, unless on PyTorch",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    backend = keras.backend.backend()
    if not config.getoption("--deal-cases") or backend not in COMPILED:
        return
    cases = collections.defaultdict(list)
    for item in items:
        if not any(item.get_closest_marker(name) for name in CONDITIONS):
            cases[item.path, item.originalname].append(item)
    left = set()
    for group in cases.values():
        left.update(set(group) - set(_share(group, backend)))
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=list(left))


def _share(group, backend):
    """The cases of a test that a backend runs."""
    shares = {
        name: [item for item in group if _number(item) % 3 == place]
        for place, name in enumerate(COMPILED)
    }
    if not any(shares.values()):
        shares[COMPILED[_number(group[0]) % 2]] = group[:1]
    return shares[backend]


def _number(item):
    """A number that only depends on the name of a case."""
    # Taking every third case could always take the same method.
    return zlib.crc32(item.nodeid.encode())
