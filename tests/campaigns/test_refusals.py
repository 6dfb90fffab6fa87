"""The checks of a fit refuse no right problem, and find planted faults.

`tests/helpers/refusals.py` tries hundreds of such problems.
"""

import keras
import numpy as np
import pytest

from conftest import BACKEND
from refusals import FAULTS
from refusals import found
from refusals import right

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("seed", range(12 if BACKEND == "torch" else 4))
def test_right_problems_are_not_refused(seed):
    keras.utils.set_random_seed(seed)
    assert right(np.random.default_rng(seed))[1] is None


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name):
    assert found(name, np.random.default_rng(0))
