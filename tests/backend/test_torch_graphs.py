"""A recorded graph of PyTorch gives the results of the eager call."""

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND
from kormos import backend

pytestmark = pytest.mark.skipif(
    BACKEND != "torch", reason="other backends compile"
)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 8)).astype("float32")
IMAGES = RNG.normal(size=(24, 6, 6, 2)).astype("float32")
SERIES = RNG.normal(size=(24, 5, 4)).astype("float32")
Y = RNG.normal(size=(24, 1)).astype("float32")
# After this many calls, graphs are in use.
CALLS = 20

MODELS = {
    "dense": (X, [layers.Dense(5, "tanh"), layers.Dense(4, "gelu")]),
    "normalized": (
        X,
        [layers.Dense(5, "relu"), layers.LayerNormalization()],
    ),
    "batch": (X, [layers.Dense(5), layers.BatchNormalization()]),
    "convolution": (
        IMAGES,
        [layers.Conv2D(3, 3, activation="elu"), layers.Flatten()],
    ),
    "recurrent": (SERIES, [layers.LSTM(3)]),
    "regularized": (
        X,
        [
            layers.Dense(
                4,
                "sigmoid",
                kernel_regularizer="l2",
                activity_regularizer="l2",
            )
        ],
    ),
}


def network(parts, x, **options):
    keras.utils.set_random_seed(0)
    parts = [type(part).from_config(part.get_config()) for part in parts]
    model = keras.Sequential(
        [keras.Input(x.shape[1:]), *parts, layers.Dense(1, name="last")]
    )
    model.compile(loss="mse", **options)
    return model


def bits(*arrays):
    return [np.asarray(a, "float64").tobytes() for a in arrays]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_graph_gives_the_bits_of_the_eager_call(name, training):
    x, parts = MODELS[name]
    eager, recorded = (
        kormos.Objective(
            network(parts, x, run_eagerly=is_eager), x, Y, training=training
        )
        for is_eager in (True, False)
    )
    theta = eager.initial_position()
    for i in range(CALLS):
        point = theta + 0.01 * i
        assert bits(*recorded.value_and_grad(point)) == bits(
            *eager.value_and_grad(point)
        )
        assert bits(recorded.hvp(point, theta)) == bits(eager.hvp(point, theta))
    assert recorded.program.graphs.in_use == 2
    assert eager.program.graphs.in_use == 0


def test_rows_of_a_jacobian_have_the_same_bits():
    x, parts = MODELS["dense"]
    eager, recorded = (
        kormos.Objective(network(parts, x, run_eagerly=is_eager), x, Y)
        for is_eager in (True, False)
    )
    ours, theirs = recorded.gauss_newton(), eager.gauss_newton()
    theta = eager.initial_position()
    for i in range(CALLS):
        point = theta + 0.01 * i
        assert bits(*ours.normal_equations(point)) == bits(
            *theirs.normal_equations(point)
        )
    assert recorded.program.graphs.in_use > 0


class Branching(layers.Layer):
    """Doubles positive sums, by a decision in Python."""

    def call(self, inputs):
        return inputs * (2.0 if float(ops.sum(inputs)) > 0 else 1.0)


def test_a_decision_by_values_is_made_at_every_call():
    w = keras.Variable(np.ones(3, "float32"))
    layer = Branching()
    objective = kormos.objective.FunctionObjective(
        lambda: ops.sum(layer(w)), [w]
    )
    for _ in range(CALLS):
        assert objective.value(np.ones(3)) == 6
        assert objective.value(-np.ones(3)) == -3
    assert objective.program.graphs.in_use == 0


def test_random_numbers_are_drawn_by_the_layer():
    x, parts = MODELS["dense"]
    parts = [*parts, layers.Dropout(0.5, seed=1), layers.GaussianNoise(0.1)]
    eager, drawn = (
        kormos.Objective(
            network(parts, x, run_eagerly=is_eager), x, Y, training=True
        )
        for is_eager in (True, False)
    )
    theta = eager.initial_position()
    for _ in range(CALLS):
        assert drawn.value(theta) == eager.value(theta)
    assert drawn.program.graphs.in_use == 0


def test_what_a_loss_reads_may_change_in_place():
    w, factor = keras.Variable(np.ones(3, "float32")), keras.Variable(2.0)
    shift = ops.zeros(3)
    objective = kormos.objective.FunctionObjective(
        lambda: ops.sum(factor * (w + shift)), [w]
    )
    for _ in range(CALLS):
        assert objective.value(np.ones(3)) == 6
    shift += 1
    assert objective.value(np.ones(3)) == 12
    factor.assign(3.0)
    objective.refresh()
    assert objective.value(np.ones(3)) == 18
    assert objective.program.graphs.in_use == 1


class Scaled(layers.Layer):
    scale = 1.0

    def call(self, inputs):
        return self.scale * inputs


def test_a_model_that_has_changed_is_another_one_at_the_next_fit():
    layer = Scaled()
    model = keras.Sequential([keras.Input((8,)), layer, layers.Dense(1)])
    model.compile(loss="mse")
    objective = kormos.Objective(model, X, Y)
    theta = objective.initial_position()
    for _ in range(CALLS):
        objective.value(theta)
    layer.scale = 3.0
    later = kormos.Objective(model, X, Y)
    assert later.value(theta) == pytest.approx(
        model.evaluate(X, Y, verbose=0), rel=1e-5
    )


def test_rows_of_every_number_have_their_own_graph():
    x, parts = MODELS["dense"]
    model = network(parts, x)
    objective = kormos.Objective(model, X, Y)
    theta = objective.initial_position()
    for rows in (24, 7, 24, 7):
        objective.replace((X[:rows], Y[:rows]))
        for _ in range(CALLS):
            found = objective.value(theta)
        own = np.mean((model.predict(X[:rows], verbose=0) - Y[:rows]) ** 2)
        assert found == pytest.approx(own, rel=1e-5)
    assert objective.program.graphs.in_use == 2


def test_a_matrix_without_a_root_is_told_from_others():
    w = keras.Variable(np.ones(1, "float64"), dtype="float64")
    eye = ops.eye(2, dtype="float64")
    objective = kormos.objective.FunctionObjective(
        lambda: ops.sum(ops.cholesky(w * eye)), [w]
    )
    for _ in range(CALLS):
        assert objective.value(np.full(1, 4.0)) == 4
    assert objective.program.graphs.in_use == 1
    with pytest.raises(Exception) as caught:
        objective.value(np.full(1, -1.0))
    assert backend.is_numerical(caught.value)


def test_what_a_function_changes_in_place_is_as_without_a_graph():
    import torch

    def fn(data, w):
        own = data * w
        own += 1
        return own.sum(), own

    def change(data, w):
        data += 1
        return (data * w).sum()

    graphs = backend.Graphs()
    pure, impure = graphs.recorded(fn), graphs.recorded(change)
    data, w = torch.ones(3), torch.full((3,), 2.0)
    with torch.no_grad():
        for i in range(CALLS):
            total, own = pure(torch.ones(3), w)
            assert (float(total), own.tolist()) == (9, [3, 3, 3])
            own += 1
            assert float(impure(data, w)) == 6 * (i + 2)
    assert graphs.in_use == 1
    np.testing.assert_array_equal(w, 2)


def calls_of(fn, between=lambda i: None):
    """The results of a recorded function at each call, and its graphs."""
    import torch

    graphs = backend.Graphs()
    recorded = graphs.recorded(fn)
    found = []
    with torch.no_grad():
        for i in range(2 * CALLS):
            between(i)
            found.append(float(recorded(torch.full((3,), i + 1.0))))
    return found, graphs


def test_a_view_made_without_an_operation_is_no_constant():
    def with_its_data(w):
        return (w.data * w).sum()

    found, graphs = calls_of(with_its_data)
    assert found == [3 * (i + 1) ** 2 for i in range(2 * CALLS)]
    assert graphs.in_use <= 1


def test_a_number_that_code_reads_from_a_tensor_of_its_own():
    import torch

    def scaled(w):
        factor = torch.as_tensor(0.5, dtype=w.dtype)
        return w.sum() * float(factor + 1)

    found, graphs = calls_of(scaled)
    assert found == [4.5 * (i + 1) for i in range(2 * CALLS)]
    assert graphs.in_use == 1


@pytest.mark.parametrize("most", [0, 2**25])
def test_tensors_of_any_size_are_recorded(monkeypatch, most):
    from kormos.backend import torch_recording

    monkeypatch.setattr(torch_recording, "_MOST_BYTES", most)
    found, graphs = calls_of(lambda w: (w * 2 + 1).sum())
    assert found == [6 * (i + 1) + 3 for i in range(2 * CALLS)]
    assert graphs.in_use == 1


def test_results_whose_shapes_depend_on_values():
    def positive(w):
        return (w[w > 20] * 2).sum() + w.numel() / max(1, (w > 20).sum())

    found, _ = calls_of(positive)
    expected = [6.0 * (i + 1) + 1 if i >= 20 else 3.0 for i in range(2 * CALLS)]
    assert found == expected


def test_an_error_that_code_catches_is_not_one_for_want_of_values():
    def doubled_when_large(w):
        try:
            is_large = float(w.sum()) > 90
        except Exception:
            is_large = False
        return w.sum() * (2 if is_large else 1)

    def count(w):
        try:
            return w[w > 30].numel() + w[0]
        except Exception:
            return w[0]

    found, graphs = calls_of(doubled_when_large)
    assert found == [3.0 * i * (2 if i > 30 else 1) for i in range(1, 41)]
    assert graphs.in_use == 0
    assert calls_of(count)[0] == [i + 3 * (i > 30) for i in range(1, 41)]


def test_values_that_leave_pytorch_are_read_at_every_call():
    import torch

    shift = torch.zeros(1)
    found, _ = calls_of(
        lambda w: w[0] + float(np.from_dlpack(shift)[0]),
        lambda i: shift.fill_(i // 30),
    )
    assert found == [i + 1 + i // 30 for i in range(40)]


def test_a_hook_is_given_tensors_with_values_at_every_call():
    import torch

    module, met = torch.nn.Identity(), []
    module.register_forward_hook(lambda own, args, value: met.append(value))
    _, graphs = calls_of(lambda w: module(2 * w).sum())
    assert [float(value[0]) for value in met] == [2.0 * i for i in range(1, 41)]
    assert graphs.in_use == 0


def test_a_tensor_that_gets_another_shape_in_place_is_seen_so():
    import torch

    matrix = torch.arange(4.0).reshape(2, 2)
    found, _ = calls_of(
        lambda w: matrix.reshape(-1)[1] + w[0],
        lambda i: matrix.t_() if i == 30 else None,
    )
    assert found == [i + 1 + (2 if i >= 30 else 1) for i in range(40)]


def test_an_error_is_that_of_the_function():
    def fail(w):
        return (w[0] * (w.reshape(-1)[index] + 0 * w[:1])).sum()

    import torch

    index = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(IndexError) as caught:
        calls_of(fail, lambda i: index.fill_(9 if i == 30 else 0))
    assert caught.traceback[-1].name == "fail"


def test_arguments_may_be_conjugate_views_or_without_strides():
    import torch

    graphs = backend.Graphs()
    imaginary = graphs.recorded(lambda z: (z * z * 1j).imag)
    total = graphs.recorded(torch.sum)
    z = torch.complex(torch.full((1,), 2.0), torch.ones(1))
    with torch.no_grad():
        for given in [z.conj()] * CALLS + [z] * CALLS:
            assert float(imaginary(given)) == 3
        for _ in range(CALLS):
            assert float(total(torch.eye(3).to_sparse_csr())) == 3


def test_what_a_graph_holds_is_freed_with_it():
    import torch

    held = torch.ones(3)
    alive = weakref.ref(held)
    _, graphs = calls_of((lambda own: lambda w: (own * w).sum())(held))
    assert graphs.in_use == 1
    del held, graphs
    gc.collect()
    assert alive() is None


def test_nothing_is_logged_of_code_that_cannot_be_recorded(caplog):
    import torch

    shift = torch.ones(1)
    calls_of(lambda w: w[0] + float(shift.untyped_storage()[0]))
    assert not caplog.records
