"""Derivatives of each row's outputs, for layers of many kinds."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND

# The rounding of float32 sums in another order.
TOLERANCE = 2e-3 if BACKEND == "tensorflow" else 5e-4

ROWS = 7
RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.normal(size=(ROWS, 5, 5, 2))
FILM = RANDOM.normal(size=(ROWS, 2, 4, 4, 2))
SEQUENCES = RANDOM.normal(size=(ROWS, 3, 4))
TOKENS = RANDOM.randint(1, 5, size=(ROWS, 3))
ROW = RANDOM.normal(size=(ROWS, 4))


def sequential(x, *stack):
    dtype = "int32" if x.dtype.kind == "i" else "float32"
    return keras.Sequential([keras.Input(x.shape[1:], dtype=dtype), *stack])


def head(x, *stack):
    return sequential(x, *stack, layers.Flatten(), layers.Dense(1)), x


def attention(kind, outputs=1, frozen=False):
    x = keras.Input(SEQUENCES.shape[1:])
    layer = kind(x)
    layer.trainable = not frozen
    h = layers.Dense(4, activation="tanh")(x) if frozen else x
    h = layers.Flatten()(layer(h, h))
    return keras.Model(x, layers.Dense(outputs)(h)), SEQUENCES


def multi_head(x):
    del x
    return layers.MultiHeadAttention(2, 3)


def grouped(x):
    del x
    return layers.GroupQueryAttention(4, 4, 2)


def with_lora(*, embedding):
    stack = [
        layers.Embedding(5, 4),
        layers.EinsumDense(
            "abc,cd->abd", (3, 5), bias_axes="d", activation="tanh"
        ),
    ]
    model, x = head(TOKENS, *stack)
    model.layers[0 if embedding else 1].enable_lora(2)
    return model, x


def frozen_einsum():
    frozen = layers.EinsumDense("abc,cd->abd", (3, 4))
    frozen.trainable = False
    return head(
        SEQUENCES, layers.Dense(4, activation="tanh"), frozen, layers.ReLU()
    )


def quantized():
    model, x = head(ROW, layers.Dense(4, activation="tanh"))
    model.quantize("int8")
    model.layers[0].enable_lora(2)
    return model, x


class Patches(layers.Layer):
    def call(self, inputs):
        return ops.image.extract_patches(inputs, 2)


class Repeated(layers.Layer):
    """A product in each step of a loop."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]))

    def call(self, inputs):
        return ops.fori_loop(
            0, 2, lambda i, a: ops.tanh(ops.matmul(a, self.kernel)), inputs
        )


MODELS = {
    "convolutions": lambda: head(
        IMAGES,
        layers.Conv2D(3, 2, activation="tanh"),
        layers.SeparableConv2D(2, 2),
        layers.MaxPooling2D(2),
    ),
    "depthwise": lambda: head(IMAGES, layers.DepthwiseConv2D(3, strides=2)),
    "ConvLSTM": lambda: head(FILM, layers.ConvLSTM2D(2, 2)),
    "patches": lambda: head(IMAGES, layers.Dense(2), Patches()),
    "encoding": lambda: head(TOKENS, layers.CategoryEncoding(6)),
    "activity": lambda: head(
        ROW, layers.Dense(3, "tanh", activity_regularizer="l2")
    ),
    "attention": lambda: attention(multi_head),
    "attention, many outputs": lambda: attention(multi_head, 11),
    "frozen attention": lambda: attention(multi_head, frozen=True),
    "frozen attention, many outputs": lambda: attention(multi_head, 11, True),
    "grouped attention": lambda: attention(grouped),
    "LoRA of an embedding": lambda: with_lora(embedding=True),
    "LoRA of einsum": lambda: with_lora(embedding=False),
    "frozen einsum": frozen_einsum,
    "product in a loop": lambda: head(SEQUENCES, Repeated()),
    "more outputs than parameters": lambda: (
        sequential(
            SEQUENCES,
            layers.EinsumDense("abc,cd->abd", (3, 3), activation="tanh"),
            layers.Reshape((9,)),
            layers.Lambda(lambda a: ops.concatenate([a, 2 * a, a * a], 1)),
        ),
        SEQUENCES,
    ),
}

# Layers that `torch.func` once could not map, or that TensorFlow's oneDNN
# computed wrongly. The sweep over layers tests them on all backends.
NAMES = {
    "torch": list(MODELS),
    "tensorflow": [
        "attention",
        "attention, many outputs",
        "frozen attention, many outputs",
        "grouped attention",
        "LoRA of einsum",
        "product in a loop",
        "more outputs than parameters",
    ],
    "jax": ["grouped attention", "product in a loop"],
}


def compiled(make, loss="mse"):
    model, x = make()
    model.compile(loss=loss)
    shape = (ROWS, *model.output_shape[1:])
    objective = kormos.Objective(
        model, x, RANDOM.normal(size=shape), with_jacobian=True
    )
    theta = objective.initial_position()
    return objective, theta + 0.1 * RANDOM.normal(size=theta.size)


@pytest.mark.parametrize("name", NAMES[BACKEND])
def test_matrix_and_gradient(name):
    objective, theta = compiled(MODELS[name])
    found = objective.gauss_newton()
    grad, matrix = assert_gradient(objective, theta, found)
    matrix = np.triu(matrix) + np.triu(matrix, 1).T
    # The derivatives of all rows together, by a jvp and a vjp.
    vector = RANDOM.normal(size=theta.size)
    product = found.product(theta, vector)
    scale = np.max(np.abs(product))
    np.testing.assert_allclose(matrix @ vector, product, atol=TOLERANCE * scale)
    direction = grad / np.linalg.norm(grad)
    ahead, behind = (
        objective.value(theta + s * 1e-2 * direction) for s in (1, -1)
    )
    slope = np.linalg.norm(grad)
    assert (ahead - behind) / 2e-2 == pytest.approx(slope, rel=1e-2)


def test_gradient_of_quantized_layers():
    # Of other layers' rounding there is no slope to compare with.
    objective, theta = compiled(quantized)
    assert_gradient(objective, theta, objective.gauss_newton())


@pytest.mark.skipif(BACKEND == "jax", reason="Its attention is float32.")
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["masked", "causal", "free", "biased"])
def test_derivatives_through_attention(kind):
    tokens = np.array([[0, 0, 0], [1, 0, 2], [3, 4, 0], [2, 1, 3]])
    x = keras.Input((3,), dtype="int32")
    h = layers.Embedding(5, 4, mask_zero=kind == "masked")(x)
    if kind == "biased":
        h = Biased()(h)
    else:
        attend = layers.MultiHeadAttention(2, 3)
        h = attend(h, h, use_causal_mask=kind == "causal")
    model = keras.Model(x, layers.Dense(1)(Joined()(h)))
    model.compile(loss="mse")
    objective = kormos.Objective(model, tokens, RANDOM.normal(size=(4, 1)))
    theta = objective.initial_position()
    theta = theta + 0.5 * RANDOM.normal(size=theta.size)
    vector = RANDOM.normal(size=theta.size)
    _, grad = objective.value_and_grad(theta)
    points = theta + 1e-5 * vector, theta - 1e-5 * vector
    ahead, behind = map(objective.value, points)
    assert grad @ vector == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)
    _, rows, _ = objective.gauss_newton().normal_equations(theta)
    np.testing.assert_allclose(rows, grad, atol=1e-10)
    ahead, behind = (objective.value_and_grad(p)[1] for p in points)
    np.testing.assert_allclose(
        objective.hvp(theta, vector), (ahead - behind) / 2e-5, atol=1e-5
    )


class Joined(layers.Layer):
    """Like `Flatten`, for masked inputs, too."""

    supports_masking = True

    def call(self, inputs, mask=None):
        return ops.reshape(inputs, (-1, 12))

    def compute_mask(self, inputs, mask=None):
        return None


class Biased(layers.Layer):
    """Attention with a bias that leaves a query almost nothing to attend to."""

    def call(self, inputs):
        heads = ops.reshape(inputs, (-1, 3, 2, 2))
        bias = np.zeros((1, 2, 3, 3))
        bias[:, :, 1] = -1e6
        return ops.reshape(
            ops.dot_product_attention(heads, heads, heads, bias=bias),
            (-1, 3, 4),
        )


@pytest.mark.skipif(BACKEND == "jax", reason="It has these derivatives.")
@pytest.mark.parametrize("method", ["lm", "newton-cg"])
def test_what_has_no_second_derivative_is_refused(method):
    model = sequential(SEQUENCES, layers.Dense(4))
    model.compile(loss=keras.losses.CTC())
    y = RANDOM.randint(1, 4, size=(ROWS, 2))
    kept = model.get_weights()
    with pytest.raises(ValueError, match="needs second derivatives"):
        kormos.fit(model, SEQUENCES, y, optimizer=method, verbose=0)
    for now, before in zip(model.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(now, before)
    fitted = kormos.fit(model, SEQUENCES, y, epochs=3, verbose=0)
    assert fitted.result.loss < fitted.result.initial_loss


def assert_gradient(objective, theta, found):
    """Asserts that gradient and matrix from rows are those of all rows."""
    loss, grad, matrix = found.normal_equations(theta)
    value, expected = objective.value_and_grad(theta)
    assert loss == pytest.approx(value, rel=1e-5)
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(grad, expected, atol=TOLERANCE * scale)
    return grad, matrix


@pytest.mark.skipif(BACKEND != "tensorflow", reason="oneDNN is TensorFlow's")
@pytest.mark.parametrize("width", [2, 9, 40])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_no_product_that_one_dnn_breaks(width, is_frozen):
    import tensorflow as tf

    from kormos.backend.tensorflow_rows import _is_broken
    from kormos.backend.tensorflow_rows import row_jacobian

    x = RANDOM.normal(size=(12, 6, 4)).astype("float32")
    parts = [
        RANDOM.normal(size=shape).astype("float32")
        for shape in ((4, 4), (24, width))
    ]

    def outputs(parts, row):
        kernel, last = parts
        frozen = tf.constant(x[0, :4])
        row = row[None] @ frozen if is_frozen else row[None]
        return (tf.reshape(tf.tanh(row @ kernel), (1, 24)) @ last)[0]

    @tf.function
    def derivatives(parts, rows):
        return row_jacobian(outputs, forward=width == 40)(parts, rows)

    traced = derivatives.get_concrete_function(parts, tf.constant(x))
    assert not list(filter(_is_broken, _run(traced)))
    values, found = traced(parts, tf.constant(x))
    for i in (0, 11):
        with tf.GradientTape(persistent=True) as tape:
            point = list(map(tf.constant, parts))
            tape.watch(point)
            row = outputs(point, tf.constant(x[i]))
        expected = tape.jacobian(row, point, experimental_use_pfor=False)
        np.testing.assert_allclose(values[i], row, atol=1e-5)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-5)


def _run(traced):
    """The operations that the outputs of a traced function are made of."""
    pending, seen = [t.op for t in traced.graph.outputs], {}
    while pending:
        operation = pending.pop()
        if operation.name not in seen:
            seen[operation.name] = operation
            pending += [t.op for t in operation.inputs]
    return seen.values()
