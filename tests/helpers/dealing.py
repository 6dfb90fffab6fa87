"""With `--deal-cases`, JAX and TensorFlow run some of the cases of a test.

Each of the two runs a different third, and at least one case of every test.
PyTorch, which compiles nothing, runs all of them.
"""

import collections
import zlib

import keras
import pytest

# Cases that only one backend can run are run there.
CONDITIONS = ("skip", "skipif", "xfail", "own_cases")


def pytest_addoption(parser):
    parser.addoption(
        "--deal-cases",
        action="store_true",
        help="run some cases of the tests of many, unless on PyTorch",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    backend = keras.backend.backend()
    if not config.getoption("--deal-cases") or backend == "torch":
        return
    cases = collections.defaultdict(list)
    for item in items:
        if not any(item.get_closest_marker(name) for name in CONDITIONS):
            cases[item.path, item.originalname].append(item)
    left = set()
    for group in cases.values():
        kept = [item for item in group if _dealt(item, backend)]
        left.update(set(group) - set(kept or group[:1]))
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=list(left))


def _dealt(item, backend):
    """Whether a backend runs a case."""
    # Its name decides. Taking every third case could always take one method.
    number = zlib.crc32(item.nodeid.encode()) % 3
    return number == ("jax", "tensorflow").index(backend)
