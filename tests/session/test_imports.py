"""What a fit imports: TensorFlow takes seconds, and few fits need it."""

import subprocess
import sys

import pytest

from conftest import BACKEND

CODE = """
import sys
import keras
import numpy as np
import kormos

x = np.linspace(0.0, 1.0, 20)[:, None]
model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, "sigmoid")])
for loss in ("mse", "binary_crossentropy"):
    model.compile("lm", loss=loss)
    model.fit(x, 0.25 + 0.5 * x, epochs=2, verbose=0)
    kormos.fit(model, x, x, optimizer="lbfgs", epochs=2, verbose=0)
    print(kormos.summary(model, x, 0.25 + 0.5 * x))
print(kormos.check(model, x, x))
assert "tensorflow" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.skipif(BACKEND == "tensorflow", reason="It is the backend")
def test_a_fit_does_not_import_tensorflow():
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=120)
