"""Every layer of Keras in a float32 model that is evaluated in float64.

Each is compared with the same model, built in float64 with the same weights:
loss and gradient agree to the rounding of float64.
"""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from test_every_layer import NAMES
from test_every_layer import sum_of

import kormos
from conftest import BACKEND
from sweeping import ROWS

# Of `Flatten`, at the end of every model here.
pytestmark = pytest.mark.filterwarnings("ignore:.*destroy the mask")

TOLERANCE = 1e-12
Y = np.random.RandomState(0).normal(size=(ROWS, 1)).astype("float32")

# Layers that a backend cannot compute in float64.
NARROW = {
    "tensorflow": [
        "AdaptiveAveragePooling3D",
        "AdaptiveMaxPooling3D",
        "AveragePooling3D",
        "MaxPooling3D",
        "MelSpectrogram",
    ]
}.get(BACKEND, [])

# Layers that cannot be trained, whatever the precision.
FROZEN_ALONE = ["SpectralNormalization"]

SOUND = [name for name in NAMES if name not in NARROW]


def drawn(model):
    """Random values for all of a model's weights."""
    random = np.random.RandomState(1)
    return [
        (
            random.uniform(0.5, 1.5, v.shape)
            if "variance" in v.name
            else random.normal(0, 0.5, v.shape)
        ).astype("float32")
        if keras.backend.is_float_dtype(v.dtype)
        else ops.convert_to_numpy(v)
        for v in model.weights
    ]


def constants(layer):
    """A layer's tensors that are not variables, by name."""
    return {
        name: ops.convert_to_numpy(value)
        for name, value in vars(layer).items()
        if ops.is_tensor(value) and not isinstance(value, keras.Variable)
    }


def built(names, frozen):
    model, branches = sum_of(names)
    for branch in branches:
        branch.made.trainable = not frozen
    # Tracing takes most of the time.
    is_plain = frozen or keras.config.floatx() == "float64"
    is_eager = is_plain and BACKEND == "tensorflow"
    model.compile(loss="mse", run_eagerly=is_eager)
    return model, branches


def objective_of(model, branches, **kwargs):
    x = [array for branch in branches for array in branch.arrays]
    return kormos.Objective(model, x, Y, **kwargs)


def assert_equals_its_twin(names, frozen):
    model, branches = built(names, frozen)
    weights = drawn(model)
    model.set_weights(weights)
    objective = objective_of(model, branches, precision="float64")
    theta = objective.initial_position()
    loss, grad = objective.value_and_grad(theta)
    with kormos.precision("float64"):
        twin, branches_of_twin = built(names, frozen)
        twin.set_weights(weights)
        for own, other in zip(branches, branches_of_twin, strict=True):
            for name, value in constants(own.made).items():
                setattr(
                    other.made,
                    name,
                    ops.convert_to_tensor(value.astype("float64")),
                )
        expected = objective_of(twin, branches)
        right, gradient = expected.value_and_grad(theta)
    assert abs(loss - right) <= TOLERANCE * abs(right)
    largest = np.abs(gradient).max()
    split = objective.program.packing.split_array
    for variable, actual, wanted in zip(
        objective.variables, split(grad), split(gradient), strict=True
    ):
        size = max(np.abs(wanted).max(), 1e-3 * largest)
        distance = np.abs(actual - wanted).max()
        assert distance <= TOLERANCE * size, variable.path


def has_weights(name):
    return bool(sum_of([name])[1][0].made.weights)


def dozens(names):
    return [names[i : i + 12] for i in range(0, len(names), 12)]


@pytest.mark.parametrize(
    "names", dozens([n for n in SOUND if n not in FROZEN_ALONE])
)
def test_layers_that_are_trained(names):
    assert_equals_its_twin(names, frozen=False)


@pytest.mark.parametrize("names", dozens(SOUND))
def test_frozen_layers(names):
    names = list(filter(has_weights, names))
    if not names:
        pytest.skip("None of these layers has weights.")
    assert_equals_its_twin(names, frozen=True)


@pytest.mark.own_cases
@pytest.mark.parametrize("name", NARROW)
def test_what_has_no_float64_is_told_by_name(name):
    model, branches = built([name], frozen=False)
    layer = branches[0].made.name
    with pytest.raises(ValueError, match=f"float64.*Received: {layer}, which"):
        objective_of(model, branches, precision="float64")
    with pytest.warns(UserWarning, match=f"will not continue .*{layer}, which"):
        objective = objective_of(model, branches, precision="auto")
    assert not objective.has_float64
    assert np.isfinite(objective.value(objective.initial_position()))


# Of the code of users

FILTERS = np.random.RandomState(2).normal(size=(2, 2, 1, 3)).astype("float32")
IMAGES = np.random.RandomState(3).normal(size=(ROWS, 4, 4, 1))


def convolved(images):
    """A convolution in NumPy, without padding, with a window of two by two."""
    return sum(
        images[:, i : 3 + i, j : 3 + j] @ FILTERS[i, j].astype("float64")
        for i in (0, 1)
        for j in (0, 1)
    )


class Filtering(layers.Layer):
    """A convolution with filters that are not variables."""

    def __init__(self, filters):
        super().__init__()
        self.filters = filters

    def call(self, x):
        return ops.conv(x, self.filters)


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_constants_of_layers_are_as_wide(kind):
    filters = FILTERS
    if kind == "tensor":
        filters = ops.convert_to_tensor(FILTERS)
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.Rescaling(1.0),
            Filtering(filters),
            layers.Flatten(),
            layers.Dense(1, use_bias=False),
        ]
    )
    model.compile(loss="mse")
    objective = kormos.Objective(model, IMAGES, Y, precision="float64")
    theta = objective.initial_position()
    flat = convolved(IMAGES).reshape(ROWS, -1)
    error = flat @ theta[:, None] - Y
    loss, grad = objective.value_and_grad(theta)
    assert loss == pytest.approx(np.mean(error**2), rel=TOLERANCE)
    right = 2 / ROWS * flat.T @ error
    assert np.abs(grad - right[:, 0]).max() <= TOLERANCE * np.abs(right).max()
    assert model.layers[1].filters is filters


def style(target):
    """A loss of an image's features, from a frozen convolution."""
    features = keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Conv2D(3, 2, use_bias=False)]
    )
    features.layers[0].kernel.assign(FILTERS)
    features.trainable = False
    image = keras.Variable(IMAGES[:1].astype("float32"))
    return image, lambda: ops.mean((features(image) - target()) ** 2)


def test_an_image_whose_features_are_others():
    wanted = convolved(IMAGES[1:2])
    image, loss = style(
        lambda: ops.convert_to_tensor(wanted, keras.config.floatx())
    )
    result = kormos.minimize(
        loss, [image], "lbfgs", precision="float64", max_iterations=500
    )
    start = np.mean((convolved(IMAGES[:1].astype("float32")) - wanted) ** 2)
    assert result.initial_loss == pytest.approx(start, rel=TOLERANCE)
    assert result.loss < 1e-16 * start
    assert result.kept_loss < 1e-12 * start


@pytest.mark.skipif(BACKEND != "tensorflow", reason="others promote dtypes")
def test_constants_in_float32_are_told():
    wanted = ops.convert_to_tensor(convolved(IMAGES[1:2]), "float32")
    image, loss = style(lambda: wanted)
    words = "cast constants .*outside of layers, which raises TypeError"
    with pytest.raises(ValueError, match=words):
        kormos.minimize(loss, [image], "lbfgs", precision="float64")
    with pytest.warns(UserWarning, match=f"will not continue .*{words}"):
        result = kormos.minimize(loss, [image], "lbfgs", precision="auto")
    assert result.loss < 1e-8 * result.initial_loss
