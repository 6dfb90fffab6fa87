"""The solver that `CONTRIBUTING.md` adds, from outside of the package."""

import pathlib
import re

import keras
import numpy as np
import pytest
import scipy.optimize
from keras import ops

import kormos

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def registered():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?def newton_cg.*?)```", text, re.S)
    assert len(code.splitlines()) < 70
    exec(compile(code, "CONTRIBUTING.md", "exec"), {})
    yield
    del kormos.optimizers.NAMES["my-newton"]


def test_it_minimizes(registered, float64):
    v = keras.Variable(np.array([-1.2, 1.0]), dtype="float64")
    result = kormos.minimize(
        lambda: 100 * (v[1] - v[0] ** 2) ** 2 + (1 - v[0]) ** 2,
        [v],
        "my-newton",
    )
    assert result.success
    np.testing.assert_allclose(ops.convert_to_numpy(v), 1, rtol=1e-6)


def test_it_fits_a_model(registered):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3)).astype("float32")
    y = x @ np.array([[1.0], [-2.0], [0.5]], "float32") + 0.3
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer="My-Newton", loss="mse")
    history = model.fit(x, y, epochs=30, verbose=0)
    assert history.result.loss < 1e-10
    kernel, bias = model.get_weights()
    np.testing.assert_allclose(kernel[:, 0], [1, -2, 0.5], atol=1e-4)


def test_it_solves_an_objective_of_the_users_own(registered):
    class Rosenbrock:
        size = 2

        def value_and_grad(self, theta):
            return scipy.optimize.rosen(theta), scipy.optimize.rosen_der(theta)

        def hvp(self, theta, vector):
            return scipy.optimize.rosen_hess_prod(theta, vector)

    result = kormos.solve(Rosenbrock(), np.array([-1.2, 1.0]), "my-newton")
    np.testing.assert_allclose(result.theta, 1, rtol=1e-6)


def test_a_name_is_registered_once(registered):
    for name in ("my-newton", "LBFGS", 3):
        with pytest.raises(ValueError, match="Register a new name"):
            kormos.optimizers.register(name, kormos.optimizers.LBFGS)
