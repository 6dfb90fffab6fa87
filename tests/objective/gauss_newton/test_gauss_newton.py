"""The Gauss-Newton matrix J'HJ of a model's loss, in all of its forms.

Expected numbers are the loss's own derivatives, the Hessian if it is the same
matrix, and closed forms in NumPy.
"""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND
from native import eager_only

pytestmark = pytest.mark.usefixtures("float64")

ROWS = 11
random = np.random.RandomState(0)
X = random.normal(size=(ROWS, 3))
Y2 = random.normal(size=(ROWS, 2))
POSITIVE = random.poisson(2.0, size=(ROWS, 2)).astype("float64")
LABELS = random.randint(0, 4, size=ROWS)
ONE_HOT = np.eye(4)[LABELS]
BINARY = (Y2 > 0).astype("float64")
WEIGHTS = random.uniform(0, 2, size=ROWS)
# Zeros are masked.
IDS = random.randint(1, 5, size=(ROWS, 3))
IDS[::2, 2] = 0
IDS[3, 1:] = 0
STEPS = random.normal(size=(ROWS, 3, 2))


def sequential(*stack, inputs=3, loss="mse", **kwargs):
    model = keras.Sequential([keras.Input((inputs,)), *stack])
    model.compile(loss=loss, **kwargs)
    return model


def mlp(units, loss, activation=None, **kwargs):
    return sequential(
        layers.Dense(3, "tanh", **kwargs),
        layers.Dense(units, activation),
        loss=loss,
    )


def two_outputs():
    inputs = keras.Input((3,))
    hidden = layers.Dense(3, "tanh")(inputs)
    outputs = {
        "p": layers.Dense(1, name="p")(hidden),
        "q": layers.Dense(2, name="q")(hidden),
    }
    model = keras.Model(inputs, outputs)
    model.compile(
        loss={"p": "mse", "q": "log_cosh"}, loss_weights={"p": 2.0, "q": 0.3}
    )
    return model


def probabilities_among_outputs(last=("softmax",)):
    inputs = keras.Input((3,))
    hidden = layers.Dense(3, "tanh", name="hidden")(inputs)
    p, q = layers.Dense(1, name="p")(hidden), layers.Dense(4, name="q")(hidden)
    for activation in last:
        q = layers.Activation(activation)(q)
    model = keras.Model(inputs, [p, q])
    model.compile(
        loss=["mse", "categorical_crossentropy"], loss_weights=[2.0, 0.3]
    )
    return model


def masked(*stack):
    return sequential(
        layers.Embedding(5, 2, mask_zero=True), *stack, layers.Dense(2)
    )


def masked_lstm():
    if BACKEND == "tensorflow":  # Slow to compile.
        return sequential(
            layers.Embedding(5, 2, mask_zero=True),
            layers.LSTM(2),
            layers.Dense(1),
        )
    return masked(layers.LSTM(2, return_sequences=True))


def regularized():
    l2 = keras.regularizers.L2
    return sequential(
        layers.Dense(3, "tanh", kernel_regularizer=l2(0.1)),
        layers.Dense(2, kernel_regularizer=l2(0.02), bias_regularizer=l2(0.3)),
    )


def entropy(kind, **kwargs):
    return getattr(keras.losses, f"{kind}Crossentropy")(**kwargs)


def cauchy(y_true, y_pred):
    return ops.log1p(4 * (y_true - y_pred) ** 2)


LSTM_Y = STEPS if BACKEND != "tensorflow" else Y2[:, :1]

# Functions that make the model, inputs, targets and weights.
CASES = {
    "mse": (lambda: mlp(2, "mse"), X, Y2, {}),
    "weighted": (lambda: mlp(2, "mse"), X, Y2, {"sample_weight": WEIGHTS}),
    "huber": (lambda: mlp(2, keras.losses.Huber(0.5)), X, Y2, {}),
    "log_cosh": (lambda: mlp(2, "log_cosh"), X, Y2, {}),
    "sum": (
        lambda: mlp(2, keras.losses.MeanSquaredError(reduction="sum")),
        X,
        Y2,
        {"sample_weight": WEIGHTS},
    ),
    "binary": (
        lambda: mlp(2, "binary_crossentropy", "sigmoid"),
        X,
        BINARY,
        {},
    ),
    "binary logits": (
        lambda: mlp(2, entropy("Binary", from_logits=True)),
        X,
        BINARY,
        {},
    ),
    "categorical": (
        lambda: mlp(4, "categorical_crossentropy", "softmax"),
        X,
        ONE_HOT,
        {"sample_weight": WEIGHTS},
    ),
    "categorical logits": (
        lambda: mlp(4, entropy("Categorical", from_logits=True)),
        X,
        ONE_HOT,
        {},
    ),
    "sparse": (
        lambda: mlp(4, "sparse_categorical_crossentropy", "softmax"),
        X,
        LABELS,
        {"class_weight": {0: 0.5, 2: 3.0}},
    ),
    "sparse logits": (
        lambda: mlp(4, entropy("SparseCategorical", from_logits=True)),
        X,
        LABELS,
        {"sample_weight": WEIGHTS},
    ),
    "poisson": (lambda: mlp(2, "poisson", "exponential"), X, POSITIVE, {}),
    "softplus poisson": (
        lambda: mlp(2, "poisson", "softplus"),
        X,
        POSITIVE,
        {},
    ),
    "two outputs": (
        two_outputs,
        X,
        {"p": X[:, :1], "q": Y2},
        {"sample_weight": WEIGHTS},
    ),
    "probabilities among outputs": (
        probabilities_among_outputs,
        X,
        [X[:, :1], ONE_HOT],
        {},
    ),
    # Keras divides by the sum of what are no probabilities.
    "not convex": (
        lambda: probabilities_among_outputs(["sigmoid", "relu"]),
        X,
        [X[:, :1], ONE_HOT],
        {},
    ),
    "not convex, diagonal": (lambda: mlp(2, cauchy), X, Y2, {}),
    "mask": (lambda: masked(), IDS, STEPS, {}),
    "masked lstm": (masked_lstm, IDS, LSTM_Y, {}),
    "l2": (regularized, X, Y2, {"sample_weight": WEIGHTS}),
}
COMPILED = [
    "weighted",
    "sparse",
    "two outputs",
    "not convex",
    "masked lstm",
    "l2",
]


def each(cases, compiled):
    """All cases on torch, and a few where they are slow to compile."""
    return pytest.mark.parametrize(
        "case", list(cases) if BACKEND == "torch" else compiled
    )


def full(matrix):
    """The symmetric matrix, of which the upper triangle is given."""
    return np.triu(matrix) + np.triu(matrix, 1).T


def assert_close(actual, expected, tolerance=1e-12):
    """Compares arrays, relative to the largest expected entry."""
    size = np.max(np.abs(expected))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * size)


def moved(objective):
    """A point that is not the start, whose biases are zero."""
    rng = np.random.default_rng(1)
    return objective.initial_position() + 0.3 * rng.normal(size=objective.size)


@pytest.mark.parametrize(
    "batch_size", [4, pytest.param(None, marks=eager_only)]
)
@each(CASES, COMPILED)
def test_all_ways_to_the_matrix_agree(case, batch_size, monkeypatch):
    make, x, y, weights = CASES[case]
    if case == "masked lstm" and BACKEND == "tensorflow":
        batch_size = None  # Two shapes of chunks would be compiled.
    objective = kormos.Objective(make(), x, y, batch_size=batch_size, **weights)
    theta = moved(objective)
    matrices = objective.gauss_newton()
    loss, grad = objective.value_and_grad(theta)
    own_loss, own_grad, matrix = matrices.normal_equations(theta)
    assert own_loss == pytest.approx(loss, rel=1e-12)
    assert_close(own_grad, grad)
    own_loss, own_grad, rows = matrices.rows(theta)
    assert own_loss == pytest.approx(loss, rel=1e-12)
    assert_close(own_grad, grad)
    matrix = full(matrix)
    assert np.abs(matrix).max() > 1e-3
    # This is as on a GPU, which adds up the chunks itself.
    monkeypatch.setattr(kormos.backend, "on_cpu", lambda: False)
    _, _, summed = matrices.normal_equations(theta)
    assert_close(full(summed), matrix)
    assert_close(rows.T @ rows, matrix, 1e-11)
    vector = np.random.default_rng(2).normal(size=objective.size)
    # TensorFlow has no forward mode for loops: differences, of rounding^(2/3).
    is_exact = case != "masked lstm" or BACKEND != "tensorflow"
    digits = 1e-11 if is_exact else 1e-9
    assert_close(matrices.product(theta, vector), matrix @ vector, digits)


@eager_only
def test_chunks_change_nothing():
    make, x, y, weights = CASES["sparse"]
    model, found = make(), []
    for batch_size in (4, None):
        objective = kormos.Objective(
            model, x, y, batch_size=batch_size, **weights
        )
        theta, matrices = moved(objective), objective.gauss_newton()
        _, _, matrix = matrices.normal_equations(theta)
        _, _, rows = matrices.rows(theta)
        vector = np.arange(objective.size) / objective.size
        bend = matrices.bend(theta, vector)
        found.append((full(matrix), rows.T @ rows, bend, matrices.outputs))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs)
    assert found[0][-1] == 4 * ROWS


def linear(units, loss, activation=None, **kwargs):
    return sequential(layers.Dense(units, activation, **kwargs), loss=loss)


L2 = {"kernel_regularizer": keras.regularizers.L2(0.1)}

# Cases whose outputs are linear in the parameters, if these are the inputs of
# the last activation.
LINEAR = {
    "mse": (lambda: linear(2, "mse", **L2), Y2),
    "logistic": (lambda: linear(2, "binary_crossentropy", "sigmoid"), BINARY),
    "logistic logits": (
        lambda: linear(2, entropy("Binary", from_logits=True)),
        BINARY,
    ),
    "softmax": (
        lambda: linear(4, "sparse_categorical_crossentropy", "softmax", **L2),
        LABELS,
    ),
    "one-hot": (
        lambda: linear(4, "categorical_crossentropy", "softmax"),
        ONE_HOT,
    ),
    "softmax logits": (
        lambda: linear(4, entropy("SparseCategorical", from_logits=True)),
        LABELS,
    ),
    "crossentropy": (lambda: linear(4, "crossentropy", "softmax"), LABELS),
    "poisson": (lambda: linear(2, "poisson", "exponential"), POSITIVE),
    "log_cosh": (lambda: linear(2, "log_cosh"), Y2),
}


@each(LINEAR, ["mse", "softmax", "poisson"])
def test_of_linear_outputs_it_is_the_hessian(case):
    make, y = LINEAR[case]
    objective = kormos.Objective(make(), X, y, sample_weight=WEIGHTS)
    theta = moved(objective)
    _, _, matrix = objective.gauss_newton().normal_equations(theta)
    assert_close(full(matrix), objective.hessian(theta), 1e-11)


def half_squares(z, y):
    """Half of the Hessian of the squared error, `(rows, outputs, outputs)`."""
    eye = np.eye(z.shape[1])
    return np.broadcast_to(2 * eye / z.size, (len(z), *eye.shape))


def half_huber(z, y):
    inside = np.abs(z - y) <= 1
    return inside[:, :, None] * np.eye(z.shape[1]) / z.size


def fisher_softmax(z, y):
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    outer = p[:, :, None] * p[:, None, :]
    return (p[:, :, None] * np.eye(z.shape[1]) - outer) / len(z)


def fisher_sigmoid(z, y):
    p = 1 / (1 + np.exp(-z))
    return (p * (1 - p))[:, :, None] * np.eye(z.shape[1]) / z.size


def fisher_poisson(z, y):
    return np.exp(z)[:, :, None] * np.eye(z.shape[1]) / z.size


CLOSED = {
    "mse": ("mse", None, Y2, half_squares),
    "huber": ("huber", None, Y2, half_huber),
    "softmax": ("categorical_crossentropy", "softmax", ONE_HOT, fisher_softmax),
    "sigmoid": ("binary_crossentropy", "sigmoid", BINARY, fisher_sigmoid),
    "poisson": ("poisson", "exponential", POSITIVE, fisher_poisson),
}
# Keras adds 1e-7 to the argument of the logarithm.
TOLERANCES = {"poisson": 1e-5}


def split(flat, outputs, hidden=3):
    """The weights of the network with three inputs."""
    ends = np.cumsum([3 * hidden, hidden, hidden * outputs])
    w, b, u, c = np.split(flat, ends)
    return w.reshape(3, hidden), b, u.reshape(hidden, outputs), c


def closed_form(theta, vector, outputs):
    """Outputs z, their Jacobian `(rows, outputs, size)`, and z along v, v."""
    w, b, u, c = split(theta, outputs)
    t = np.tanh(X @ w + b)
    slope = 1 - t**2
    by_a = slope[:, :, None] * u  # (rows, hidden, outputs)
    eye = np.eye(outputs)
    jacobian = np.concatenate(
        [
            np.einsum("ni,nhk->nkih", X, by_a).reshape(ROWS, outputs, -1),
            by_a.swapaxes(1, 2),
            np.einsum("nh,kl->nkhl", t, eye).reshape(ROWS, outputs, -1),
            np.broadcast_to(eye, (ROWS, outputs, outputs)),
        ],
        axis=2,
    )
    dw, db, du, _ = split(vector, outputs)
    da = X @ dw + db
    second = (-2 * t * slope * da**2) @ u + 2 * (slope * da) @ du
    return t @ u + c, jacobian, second


@each(CLOSED, ["mse", "softmax"])
def test_closed_forms(case):
    """The matrix, and J'H times the second derivative of the outputs."""
    loss, activation, y, curvature = CLOSED[case]
    objective = kormos.Objective(
        mlp(y.shape[1], loss, activation), X, y, batch_size=4
    )
    theta, matrices = moved(objective), objective.gauss_newton()
    vector = np.random.default_rng(3).normal(size=objective.size)
    z, jacobian, second = closed_form(theta, vector, y.shape[1])
    h = curvature(z, y)
    expected = np.einsum("nkp,nkl,nlq->pq", jacobian, h, jacobian)
    tolerance = TOLERANCES.get(case, 1e-11)
    bend = np.einsum("nkp,nkl,nl->p", jacobian, h, second)
    # Before J is kept, at the point where it is kept, and elsewhere.
    assert_close(matrices.bend(theta, vector), bend, tolerance)
    _, _, matrix = matrices.normal_equations(theta, keep=True)
    assert_close(full(matrix), expected, tolerance)
    assert_close(matrices.bend(theta, vector), bend, tolerance)
    matrices.rows(theta + 1, keep=True)
    assert_close(matrices.bend(theta, vector), bend, tolerance)


def test_a_penalty_of_outputs_in_chunks():
    """The estimate of its curvature is the same for every batch size."""
    model = sequential(
        layers.Dense(
            4, "tanh", activity_regularizer=keras.regularizers.L2(1e-2)
        ),
        layers.Dense(2),
    )
    found = []
    for batch_size in (3, None):
        objective = kormos.Objective(model, X, Y2, batch_size=batch_size)
        matrices, theta = objective.gauss_newton(), moved(objective)
        _, _, matrix = matrices.normal_equations(theta)
        vector = np.linspace(-1, 1, objective.size)
        found.append((full(matrix), matrices.product(theta, vector)))
        assert_close(found[-1][1], found[-1][0] @ vector, 1e-11)
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs)


def test_a_softmax_among_several_outputs():
    """It is the Fisher information, as for one output."""
    model = probabilities_among_outputs()
    objective = kormos.Objective(model, X, [X[:, :1], ONE_HOT], batch_size=4)
    theta = moved(objective)
    _, _, matrix = objective.gauss_newton().normal_equations(theta)
    objective.assign(theta)
    (w, b), (u, c), (v, d) = (
        model.get_layer(name).get_weights() for name in ("hidden", "p", "q")
    )
    flat = [w, b, np.hstack([u, v]), c, d]
    flat = np.concatenate([part.reshape(-1) for part in flat])
    z, jacobian, _ = closed_form(flat, np.zeros_like(flat), 5)
    h = np.zeros((ROWS, 5, 5))
    h[:, 0, 0] = 2 * 2.0 / ROWS
    h[:, 1:, 1:] = 0.3 * fisher_softmax(z[:, 1:], None)
    expected = np.einsum("nkp,nkl,nlq->pq", jacobian, h, jacobian)
    # In another order of the parameters the eigenvalues are the same.
    np.testing.assert_allclose(
        np.linalg.eigvalsh(full(matrix)),
        np.linalg.eigvalsh(expected),
        atol=1e-12,
    )


def test_without_its_negative_part():
    """For a loss that is not convex in the outputs, against NumPy."""
    model = linear(3, "categorical_crossentropy", "softplus")
    y = ONE_HOT[:, :3]
    objective = kormos.Objective(model, X, y)
    theta = moved(objective)
    _, _, matrix = objective.gauss_newton().normal_equations(theta)
    kernel, bias = theta[:9].reshape(3, 3), theta[9:]
    p = np.log1p(np.exp(X @ kernel + bias))
    share = y.sum(axis=1)[:, None, None] / p.sum(axis=1)[:, None, None] ** 2
    h = ((y / p**2)[:, :, None] * np.eye(3) - share) / ROWS
    values, vectors = np.linalg.eigh(h)
    assert values.min() < -1e-3
    h = np.einsum("nik,nk,njk->nij", vectors, np.maximum(values, 0), vectors)
    slope = 1 - np.exp(-p)
    eye = np.eye(3)
    with_bias = np.concatenate([X, np.ones((ROWS, 1))], axis=1)
    jacobian = np.einsum("nk,ni,kl->nkil", slope, with_bias, eye)
    jacobian = jacobian.reshape(ROWS, 3, -1)
    expected = np.einsum("nkp,nkl,nlq->pq", jacobian, h, jacobian)
    # Keras clips what is below 1e-7.
    assert_close(full(matrix), expected, 1e-6)


def test_the_model_is_whole_while_it_is_evaluated():
    """Another thread may use the model at that time."""
    seen = set()

    def watch(inputs):
        if not isinstance(inputs, keras.KerasTensor):
            seen.add(model.layers[-1].activation.__name__)
        return inputs

    model = sequential(
        layers.Lambda(watch, output_shape=(3,)),
        layers.Dense(4, "softmax"),
        loss="categorical_crossentropy",
    )
    matrices = kormos.Objective(model, X, ONE_HOT).gauss_newton()
    matrices.normal_equations(np.zeros(16))
    matrices.bend(np.zeros(16), np.ones(16))
    assert seen == {"softmax"}


def test_an_activation_that_is_not_last():
    """An LSTM has an activation of its cell that is called sigmoid, too."""
    model = sequential(
        layers.Reshape((3, 1)),
        layers.LSTM(2, activation="sigmoid"),
        loss="binary_crossentropy",
    )
    objective = kormos.Objective(model, X, BINARY)
    theta, matrices = moved(objective), objective.gauss_newton()
    loss, _, _ = matrices.normal_equations(theta)
    assert loss == pytest.approx(objective.value(theta), rel=1e-12)


def test_bend_is_a_difference_of_outputs():
    """It is compared for a deeper network, which has no short formula."""
    model = sequential(
        layers.Dense(4, "tanh"),
        layers.Dense(3, "softplus"),
        layers.Dense(1),
    )
    y = Y2[:, :1]
    objective = kormos.Objective(model, X, y, batch_size=4)
    theta, matrices = moved(objective), objective.gauss_newton()
    vector = 0.5 * np.random.default_rng(4).normal(size=objective.size)
    bend = matrices.bend(theta, vector)

    def outputs(point):
        objective.assign(point)
        return ops.convert_to_numpy(model(X))

    h = 1e-3
    ahead, here, behind = (outputs(theta + t * vector) for t in (h, 0, -h))
    second = (ahead - 2 * here + behind) / h**2
    # J'H times it is minus the gradient of the loss with targets at this
    # distance.
    objective.assign(theta)
    other = kormos.Objective(model, X, here - second, batch_size=4)
    _, expected = other.value_and_grad(theta)
    assert_close(bend, expected, 1e-5)


def test_more_than_a_hundred_outputs():
    # More outputs than parameters: forward mode.
    stack = layers.Dense(2, "tanh"), layers.Dense(120)
    y = random.normal(size=(ROWS, 120))
    objective = kormos.Objective(sequential(*stack), X, y, batch_size=4)
    theta, matrices = moved(objective), objective.gauss_newton()
    assert matrices.outputs == 120 * ROWS
    loss, grad = objective.value_and_grad(theta)
    own_loss, own_grad, matrix = matrices.normal_equations(theta)
    _, _, rows = matrices.rows(theta)
    assert own_loss == pytest.approx(loss, rel=1e-12)
    assert_close(own_grad, grad)
    assert_close(rows.T @ rows, full(matrix), 1e-11)
    vector = np.random.default_rng(2).normal(size=objective.size)
    assert_close(matrices.product(theta, vector), full(matrix) @ vector, 1e-11)


def test_more_outputs_than_parameters():
    class Spread(layers.Layer):
        """Two parameters, 120 outputs."""

        def build(self, shape):
            self.rates = self.add_weight(shape=(2,), name="rates")

        def call(self, inputs):
            steps = ops.convert_to_tensor(np.linspace(0, 1, 120))
            rates = ops.convert_to_tensor(self.rates)
            return inputs[:, :1] * ops.exp(rates[0] * steps) + rates[1]

    y = random.normal(size=(ROWS, 120))
    objective = kormos.Objective(sequential(Spread()), X, y)
    theta = np.array([0.5, -0.2])
    _, grad = objective.value_and_grad(theta)
    _, own_grad, matrix = objective.gauss_newton().normal_equations(theta)
    steps = np.linspace(0, 1, 120)
    columns = [X[:, :1] * steps * np.exp(0.5 * steps), np.ones((ROWS, 120))]
    jacobian = np.stack(columns, axis=-1).reshape(-1, 2)
    assert_close(own_grad, grad)
    assert_close(full(matrix), 2 * jacobian.T @ jacobian / y.size)


def test_it_leaves_the_model_alone():
    make, x, y, weights = CASES["sparse"]
    model = make()
    objective = kormos.Objective(model, x, y, **weights)
    before, matrices = model.get_weights(), objective.gauss_newton()
    theta = moved(objective)
    expected = ops.convert_to_numpy(model(x))
    matrices.normal_equations(theta)
    matrices.rows(theta)
    matrices.product(theta, theta)
    matrices.bend(theta, theta)
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # The last activation too.
    np.testing.assert_array_equal(ops.convert_to_numpy(model(x)), expected)
    assert model.layers[-1].activation is keras.activations.softmax


def test_float32_models_have_float64_sums():
    with kormos.precision("float32"):
        model = mlp(2, "mse")
    x, y = X.astype("float32"), Y2.astype("float32")
    objective = kormos.Objective(model, x, y, batch_size=4)
    theta = objective.initial_position()
    loss, grad = objective.value_and_grad(theta)
    own_loss, own_grad, matrix = objective.gauss_newton().normal_equations(
        theta
    )
    assert own_loss == pytest.approx(loss, rel=1e-5)
    assert matrix.dtype == own_grad.dtype == "float64"
    assert_close(own_grad, grad, 1e-5)


@pytest.mark.parametrize(
    "loss, match",
    [
        ("mae", "second derivatives are zero"),
        ("hinge", "second derivatives are zero"),
        ("dice", "mixes rows"),
    ],
)
def test_losses_without_such_a_matrix(loss, match):
    model = linear(2, loss)
    objective = kormos.Objective(model, X, np.abs(Y2))
    with pytest.raises(ValueError, match=f"Received: .*{loss}.*{match}"):
        objective.gauss_newton()
