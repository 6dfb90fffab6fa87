"""A function is compiled once, as long as it does not change."""

import copy
import dataclasses
import functools
import gc
import pickle
import threading
import types
import weakref

import keras
import numpy as np
import pytest
from keras import ops

import kormos
from conftest import BACKEND
from kormos import backend
from kormos.objective.functions import kept

compiles = pytest.mark.skipif(
    BACKEND == "torch", reason="PyTorch compiles nothing"
)
TARGET = 1.0
latest = None


@pytest.fixture
def compiled(monkeypatch):
    """The list of compilations since it was last cleared."""
    # Another test may have compiled an equal function.
    kept._plain.clear()
    found = []

    def counting(compile):
        def count(fn, *args, **kwargs):
            found.append(fn)
            return compile(fn, *args, **kwargs)

        return count

    for name in ("compile", "compile_loop"):
        monkeypatch.setattr(backend, name, counting(getattr(backend, name)))
    return found


@pytest.fixture
def v():
    return keras.Variable(np.array([-1.2, 1.0]), dtype="float32")


def minimum(fn, v, method="l-bfgs-b", **kwargs):
    """The first entry of the minimum, found from a fixed start."""
    v.assign(np.array([-1.2, 1.0]))
    kormos.minimize(fn, [v], method, **kwargs)
    return float(ops.convert_to_numpy(v.value)[0])


@compiles
@pytest.mark.parametrize("method", ["l-bfgs-b", "lbfgs", "ssbroyden", "slsqp"])
@pytest.mark.parametrize("precision", [None, "float64"])
def test_a_second_call_compiles_nothing(v, compiled, method, precision):
    def rosenbrock():
        return 100 * (v[1] - v[0] ** 2) ** 2 + (1 - v[0]) ** 2

    first = minimum(rosenbrock, v, method, precision=precision)
    assert compiled
    compiled.clear()
    assert minimum(rosenbrock, v, method, precision=precision) == first
    assert not compiled


@compiles
@pytest.mark.parametrize("method", ["lm", "l-bfgs-b", "ssbroyden"])
def test_least_squares_compiles_once_for_all_data_of_a_shape(
    v, compiled, method
):
    def residuals(data):
        return v[0] + v[1] * data["x"] - data["y"]

    x = np.linspace(0.0, 1.0, 20)
    for slope in (2.0, 3.0, -4.0):
        v.assign(np.zeros(2))
        compiled.clear()
        result = kormos.least_squares(
            residuals, [v], method, data={"x": x, "y": 1 + slope * x}
        )
        assert result.success
        np.testing.assert_allclose(v.numpy(), [1, slope], rtol=1e-4)
    assert not compiled


@compiles
def test_constraints_and_held_out_data_are_compiled_once(v, compiled):
    def loss():
        return ops.sum(ops.square(v - 3.0))

    def room():
        return 1.0 - v[0] - v[1]

    def residuals(data):
        return v[0] + v[1] * data - 1.0

    constraints = {"type": "ineq", "fun": room}
    x = np.linspace(0.0, 1.0, 20)
    for _ in range(2):
        compiled.clear()
        at = minimum(loss, v, "slsqp", constraints=constraints)
        assert at == pytest.approx(0.5, abs=1e-5)
        kormos.least_squares(residuals, [v], data=x, validation_data=x[:7])
    assert not compiled


def closure(v):
    cell = 1.0

    def loss():
        return ops.sum(ops.square(v - cell))

    def change():
        nonlocal cell
        cell = 2.0

    return loss, change


def array(v):
    held = np.ones(2, "float32")
    return lambda: ops.sum(ops.square(v - held)), lambda: held.fill(2.0)


def entry_of_a_dict(v):
    settings = {"at": [1.0]}
    return (
        lambda: ops.sum(ops.square(v - settings["at"][0])),
        lambda: settings["at"].__setitem__(0, 2.0),
    )


def a_global(v):
    def change():
        global TARGET
        TARGET = 2.0

    return lambda: ops.sum(ops.square(v - TARGET)), change


def global_of_a_function_that_it_calls(v):
    def target():
        return 0 * v + TARGET

    def change():
        global TARGET
        TARGET = 2.0

    return lambda: ops.sum(ops.square(v - target())), change


def default_argument(v):
    def loss(at=[1.0]):  # noqa: B006
        return ops.sum(ops.square(v - at[0]))

    return loss, lambda: loss.__defaults__[0].__setitem__(0, 2.0)


class Target:
    at = 1.0

    def __init__(self, v):
        self.v = v
        self.by = 0.0

    def __call__(self):
        return ops.sum(ops.square(self.v - self.at - self.by))

    def loss(self):
        return self()

    @property
    def distance(self):
        return self.v - self.at - self.by


def method_of_an_object(v):
    target = Target(v)
    return target.loss, lambda: setattr(target, "by", 1.0)


def callable_object(v):
    target = Target(v)
    return target, lambda: setattr(target, "by", 1.0)


def attribute_of_a_class(v):
    kind = type("Other", (Target,), {})
    target = kind(v)
    return (
        lambda: ops.sum(ops.square(target.distance)),
        lambda: setattr(kind, "at", 2.0),
    )


def partial_of_a_function(v):
    settings = types.SimpleNamespace(at=1.0)

    def loss(settings):
        return ops.sum(ops.square(v - settings.at))

    return (
        functools.partial(loss, settings),
        lambda: setattr(settings, "at", 2.0),
    )


def dataclass(v):
    kind = dataclasses.make_dataclass("Settings", [("at", float)])
    settings = kind(1.0)
    return (
        lambda: ops.sum(ops.square(v - settings.at)),
        lambda: setattr(settings, "at", 2.0),
    )


class Shift(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.by = 1.0

    def call(self, x):
        return x - self.by


def attribute_of_a_layer(v):
    layer = Shift()
    model = keras.Sequential([keras.Input((2,)), layer])
    return (
        lambda: ops.sum(ops.square(model(v[None]))),
        lambda: setattr(layer, "by", 2.0),
    )


def activation_of_a_layer(v):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Activation(once)])
    return (
        lambda: ops.sum(ops.square(model(v[None]))),
        lambda: setattr(model.layers[0], "activation", twice),
    )


def once(x):
    return x - 1.0


def twice(x):
    return x - 2.0


def code_of_a_function(v):
    def target():
        return 1.0

    return (
        lambda: ops.sum(ops.square(v - target())),
        lambda: setattr(target, "__code__", (lambda: 2.0).__code__),
    )


CHANGES = [
    closure,
    array,
    entry_of_a_dict,
    a_global,
    global_of_a_function_that_it_calls,
    default_argument,
    method_of_an_object,
    callable_object,
    attribute_of_a_class,
    partial_of_a_function,
    dataclass,
    attribute_of_a_layer,
    activation_of_a_layer,
    code_of_a_function,
]


@pytest.mark.parametrize("make", CHANGES, ids=lambda make: make.__name__)
def test_a_changed_value_is_noticed(v, make, monkeypatch):
    monkeypatch.setattr(f"{__name__}.TARGET", 1.0)
    loss, change = make(v)
    for _ in range(2):
        assert minimum(loss, v) == pytest.approx(1.0, abs=1e-4)
    change()
    for _ in range(2):
        assert minimum(loss, v) == pytest.approx(2.0, abs=1e-4)


def test_a_changed_value_is_noticed_in_residuals_and_constraints(v):
    settings = {"at": 1.0}

    def residuals():
        return v - settings["at"]

    def above():
        return v - settings["at"]

    for at in (1.0, 2.0):
        settings["at"] = at
        kormos.least_squares(residuals, [v])
        np.testing.assert_allclose(v.numpy(), at, atol=1e-5)
        kormos.minimize(
            lambda: ops.sum(ops.square(v + 1)),
            [v],
            "slsqp",
            constraints={"type": "ineq", "fun": above},
        )
        np.testing.assert_allclose(v.numpy(), at, atol=1e-5)


def test_what_cannot_be_compared_is_compiled_again(v):
    settings = types.SimpleNamespace(at=1.0, lock=threading.Lock())

    def loss():
        return ops.sum(ops.square(v - settings.at))

    for at in (1.0, 2.0):
        settings.at = at
        assert minimum(loss, v) == pytest.approx(at, abs=1e-4)


def test_large_arrays_are_not_compared(v, monkeypatch):
    held = np.ones(2000, "float32")
    path = "kormos.objective.functions.fingerprint._MOST_BYTES"
    monkeypatch.setattr(path, 4000)

    def loss():
        return ops.sum(ops.square(v - held[:2]))

    for at in (1.0, 2.0):
        held[:] = at
        assert minimum(loss, v) == pytest.approx(at, abs=1e-4)


def test_other_variables_and_other_shapes_have_other_programs():
    a, b = (keras.Variable(np.full(2, s, "float32")) for s in (3.0, 5.0))

    def loss():
        return ops.sum(ops.square(a - 1.0)) + ops.sum(ops.square(b - 2.0))

    kormos.minimize(loss, [a])
    np.testing.assert_allclose(b.numpy(), 5.0)
    kormos.minimize(loss, [b])
    np.testing.assert_allclose(a.numpy(), 1.0, atol=1e-4)
    np.testing.assert_allclose(b.numpy(), 2.0, atol=1e-4)

    def residuals(data):
        return a[0] - data

    for shape in ((4,), (7,), (5, 3)):
        kormos.least_squares(residuals, [a], data=np.full(shape, 9.0))
        np.testing.assert_allclose(a.numpy()[0], 9.0, rtol=1e-5)


@compiles
@pytest.mark.parametrize("method", ["lm", "ssbroyden", "l-bfgs-b"])
def test_an_equal_function_of_other_variables_compiles_nothing(
    compiled, method
):
    def fit(x, y):
        a, b = (keras.Variable(np.float32(s)) for s in (0.0, 2.0))

        def line(data):
            return a + b * data["x"] - data["y"]

        result = kormos.least_squares(
            line,
            [b, a],
            method,
            data={"x": x, "y": y},
            precision="float64",
        )
        assert result.success
        return float(a.numpy()), float(b.numpy()), result

    x = np.linspace(0.0, 1.0, 20)
    results = []
    for slope in (2.0, 3.0, -4.0):
        compiled.clear()
        a, b, result = fit(x, 1 + slope * x)
        np.testing.assert_allclose([a, b], [1.0, slope], rtol=1e-5)
        results.append(result)
    assert not compiled
    # Each result has its own variables.
    losses = [result.loss for result in results]
    np.testing.assert_allclose(losses, 0.0, atol=1e-10)


@compiles
@pytest.mark.parametrize("method", ["lbfgs", "slsqp"])
def test_equal_constraints_of_other_variables_compile_nothing(compiled, method):
    for _ in range(2):
        v = keras.Variable(np.zeros(2, "float32"))
        compiled.clear()
        kormos.minimize(
            lambda v=v: ops.sum((v - 3.0) ** 2),
            [v],
            method,
            constraints={"type": "ineq", "fun": lambda v=v: 1.0 - v[0] - v[1]},
        )
        np.testing.assert_allclose(v.numpy(), 0.5, atol=1e-5)
    assert not compiled


def loss_of_latest():
    return ops.sum((latest - 1.0) ** 2)


def residuals_of_latest(x):
    return latest[0] + latest[1] * x - 3.0


@pytest.mark.parametrize("precision", [None, "float64"])
def test_a_global_holds_another_variable_when_a_method_is_first_used(precision):
    global latest
    methods = "lbfgs", "ssbroyden", "lbfgs", "l-bfgs-b", "lm"
    for rows, method in enumerate(methods, start=4):
        if method != "lm":
            latest = keras.Variable(np.zeros(2, "float32"))
            kormos.minimize(
                loss_of_latest, [latest], method, precision=precision
            )
            np.testing.assert_allclose(latest.numpy(), 1.0, rtol=1e-5)
        latest = keras.Variable(np.zeros(2, "float32"))
        kormos.least_squares(
            residuals_of_latest,
            [latest],
            method,
            data=np.linspace(0.0, 1.0, rows, dtype="float32"),
            precision=precision,
        )
        np.testing.assert_allclose(latest.numpy(), [3.0, 0.0], atol=1e-4)


@compiles
def test_both_of_two_equal_functions_can_be_used_again(compiled):
    def make(start):
        v = keras.Variable(np.full(2, start, "float32"))
        return v, lambda: ops.sum((v - 3.0) ** 2) + v[0] * v[1]

    (v, loss), (other, equal) = make(1.0), make(7.0)
    for variable, fn in ((v, loss), (other, equal), (v, loss)):
        variable.assign(np.array([1.0, -1.0]))
        kormos.minimize(fn, [variable], "lbfgs")
        # 2 (v - 3) + (v1, v0) = 0.
        np.testing.assert_allclose(variable.numpy(), 2.0, rtol=1e-5)
        variable.assign(np.zeros(2))


def test_each_of_two_equal_functions_names_its_own_unused_variable():
    for name in ("first", "second"):
        v = keras.Variable(np.float32(0.0))
        unused = keras.Variable(np.float32(0.0), name=name)
        with pytest.warns(UserWarning, match=name):
            kormos.minimize(lambda v=v: (v - 1.0) ** 2, [unused, v])


def test_functions_are_not_equal_if_something_else_differs():
    def make(names, at, frozen):
        v = {n: keras.Variable(np.float32(1.0)) for n in "ab"}
        constant = keras.Variable(np.float32(frozen))

        def loss():
            return (v["a"] - at) ** 2 + (v["b"] - constant) ** 4

        return loss, [v[n] for n in names], v

    for names, at, frozen in (
        ("ab", 2.0, 1.0),
        ("ba", 2.0, 1.0),
        ("ab", 3.0, 1.0),
        ("ab", 2.0, 5.0),
        ("a", 2.0, 5.0),
    ):
        loss, variables, v = make(names, at, frozen)
        kormos.minimize(loss, variables, "lbfgs")
        a, b = (float(v[n].numpy()) for n in "ab")
        assert a == pytest.approx(at, rel=1e-5)
        assert b == pytest.approx(frozen if len(names) > 1 else 1.0, rel=0.05)


def test_equal_functions_of_layers_have_their_own_layers():
    x = np.linspace(0.0, 1.0, 20, dtype="float32")[:, None]

    def fit(activation):
        layer = keras.layers.Dense(1, activation=activation, name="layer")
        layer.build((None, 1))
        layer.set_weights([np.ones((1, 1)), np.zeros(1)])
        kormos.least_squares(
            lambda: layer(x) - ops.exp(x), layer.trainable_variables
        )
        return layer(x)

    for _ in range(2):
        np.testing.assert_allclose(
            ops.convert_to_numpy(fit("exponential")), np.exp(x), rtol=1e-5
        )
    assert abs(ops.convert_to_numpy(fit("linear")) - np.exp(x)).max() > 0.05


def test_a_large_function_that_is_collected_frees_its_programs(v):
    def fit(method):
        big = ops.convert_to_tensor(np.ones(2**22, "float32"))

        def loss():
            return ops.sum(ops.square(v - big[:2]))

        minimum(loss, v, method)
        return weakref.ref(loss)

    optimizer = kormos.optimizers.get("lbfgs")
    refs = [fit(optimizer), fit("l-bfgs-b"), fit("newton-cg")]
    gc.collect()
    assert [ref() for ref in refs] == [None] * 3


def test_at_most_eight_functions_are_kept_for_equal_ones(v):
    def fit(at):
        def loss():
            return ops.sum(ops.square(v - at))

        assert minimum(loss, v) == pytest.approx(at, abs=1e-4)
        return weakref.ref(loss)

    refs = [fit(float(at)) for at in range(10)]
    gc.collect()
    assert sum(ref() is not None for ref in refs) <= 8


def test_memory_stays_flat_over_a_hundred_calls(v):
    def loss():
        return ops.sum(ops.square(v - 1.0))

    def objects():
        gc.collect()
        return len(gc.get_objects())

    for _ in range(3):
        minimum(loss, v)
    before = objects()
    for _ in range(100):
        minimum(loss, v)
    # If every call kept an object, memory would leak.
    assert objects() - before < 100


def test_an_object_can_be_copied_and_pickled_after_a_fit():
    target = Target(keras.Variable(np.zeros(2, "float32")))
    kormos.minimize(target.loss, [target.v])
    target.v = None
    for other in (copy.deepcopy(target), pickle.loads(pickle.dumps(target))):
        other.v = keras.Variable(np.zeros(2, "float32"))
        other.by = 1.0
        kormos.minimize(other.loss, [other.v])
        np.testing.assert_allclose(other.v.numpy(), 2.0, atol=1e-4)


@compiles
def test_what_a_first_call_changes_outdates_earlier_programs(v):
    settings = {"at": 1.0}
    other = keras.Variable(np.zeros(2, "float32"))

    def loss():
        # Its first call for the other variable changes it for good.
        if settings.pop("next", None):
            settings["at"] = 2.0
        return ops.sum(ops.square(v - settings["at"])) + ops.sum(other**2)

    assert minimum(loss, v) == pytest.approx(1.0, abs=1e-4)
    settings["next"] = True
    kormos.minimize(loss, [other])
    assert minimum(loss, v) == pytest.approx(2.0, abs=1e-4)
