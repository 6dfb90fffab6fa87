"""Chains of optimizers: one fit of several stages."""

import keras
import numpy as np
import pytest

import kormos
from conftest import BACKEND
from kormos.optimizers import LBFGS
from kormos.optimizers import Chain


def rows(count=64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, (count, 2)).astype("float32")
    return x, np.sin(2 * x[:, :1]) * x[:, 1:]


def network(seed=0, layers=()):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(8, "tanh"),
            *layers,
            keras.layers.Dense(1),
        ]
    )


def weights(model):
    return [np.array(w) for w in model.get_weights()]


def assert_same_weights(model, other):
    for one, two in zip(weights(model), weights(other), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_chain_does_what_two_compiles_by_hand_do():
    x, y = rows()
    by_hand, chained = network(), network()
    by_hand.compile(keras.optimizers.Adam(0.02), "mse")
    by_hand.fit(x, y, epochs=6, batch_size=64, shuffle=False, verbose=0)
    by_hand.compile("lbfgs", "mse")
    by_hand.fit(x, y, epochs=8, verbose=0)
    chained.compile(
        Chain(
            [keras.optimizers.Adam(0.02), "lbfgs"],
            epochs=[6, 8],
            batch_size=64,
        ),
        "mse",
    )
    chained.fit(x, y, verbose=0)
    assert_same_weights(chained, by_hand)


def test_there_is_one_history_and_its_loss_is_that_of_evaluate():
    x, y = rows()
    model = network(layers=[keras.layers.BatchNormalization()])
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            found = self.model.evaluate(x, y, verbose=0, return_dict=True)
            seen.append((epoch, logs["loss"], found["loss"], logs["val_loss"]))

    model.compile(
        Chain(["adam", "lbfgs", "lm"], epochs=[3, 4, 2]), "mse", metrics=["mae"]
    )
    history = model.fit(
        x, y, verbose=0, callbacks=[Watch()], validation_data=(x, y)
    )
    assert history.epoch == list(range(9))
    assert history.history["stage"] == [0] * 3 + [1] * 4 + [2] * 2
    assert {len(column) for column in history.history.values()} == {9}
    assert [epoch for epoch, *_ in seen] == list(range(9))
    for _, told, evaluated, validated in seen:
        assert told == pytest.approx(evaluated, rel=1e-5)
        assert validated == pytest.approx(evaluated, rel=1e-5)
    names = [stage.name for stage in history.result.stages]
    assert names[1:] == ["lbfgs", "lm"] and names[0].startswith("adam")
    assert [s.iterations for s in history.result.stages] == [3, 4, 2]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("second", ["lbfgs", "lm", "l-bfgs-b"])
def test_the_step_after_adam_at_a_high_rate_does_not_raise_the_loss(
    seed, second
):
    x, y = rows(seed=seed)
    model = network(seed)
    optimizer = Chain([keras.optimizers.Adam(0.3), second], epochs=[5, 1])
    model.compile(optimizer, "mse")
    losses = model.fit(x, y, verbose=0).history["loss"]
    assert losses[5] <= losses[4]


def test_a_number_of_all_epochs_is_shared_among_stages_without_their_own():
    x, y = rows()
    model = network()
    model.compile(Chain(["adam", "lbfgs", LBFGS(epochs=2)]), "mse")
    history = model.fit(x, y, epochs=9, verbose=0)
    assert [s.iterations for s in history.result.stages] == [3, 4, 2]


def test_a_stage_leaves_its_epochs_to_one_without_epochs_of_its_own():
    v = keras.Variable([3.0])

    def loss():
        return keras.ops.sum((v - 1) ** 2)

    chain = Chain([LBFGS(gtol=0.1), "lbfgs"], full_batch=True)
    result = kormos.minimize(loss, [v], chain, max_iterations=10)
    assert result.stages[0].status == "converged"
    assert result.success


def test_full_batch_steps_of_gradient_descent_are_those_of_the_formula():
    v = keras.Variable([3.0, -1.0])
    optimizer = Chain([keras.optimizers.SGD(0.1)], epochs=[10], full_batch=True)
    kormos.minimize(lambda: keras.ops.sum((v - 1) ** 2), [v], optimizer)
    expected = 1 + (np.array([3.0, -1.0]) - 1) * 0.8**10
    np.testing.assert_allclose(np.array(v), expected, rtol=1e-5)


def test_learning_rate_schedules_count_the_steps_of_their_stage():
    v = keras.Variable([1.0])
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [3], [1.0, 0.0]
    )
    optimizer = Chain(
        [keras.optimizers.SGD(schedule)], epochs=[9], full_batch=True
    )
    # The gradient is 1: steps 0 to 3 have a rate of 1, the others of 0.
    kormos.minimize(lambda: keras.ops.sum(v), [v], optimizer)
    np.testing.assert_allclose(np.array(v), [-3.0])


def test_bounds_hold_in_every_stage():
    x, y = rows()
    model = network()
    outside = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kernel = np.array(self.model.trainable_variables[0])
            outside.append(np.abs(kernel).max() > 0.5)

    model.compile(
        Chain(
            [keras.optimizers.Adam(0.1), "lbfgs"],
            epochs=[3, 3],
            bounds=[(model.trainable_variables[0], (-0.5, 0.5))],
        ),
        "mse",
    )
    model.fit(x, y, verbose=0, callbacks=[Watch()])
    assert outside and not any(outside)
    assert model.trainable_variables[0].constraint is None


def test_patience_ends_a_stage_and_the_next_one_follows():
    v = keras.Variable([1.0, 1.0])
    target = keras.ops.convert_to_tensor([0.0, 0.5])
    optimizer = Chain(
        [keras.optimizers.SGD(1e-6), "lbfgs"],
        epochs=[500, 50],
        full_batch=True,
        patience=[4, None],
    )
    result = kormos.minimize(
        lambda: keras.ops.sum((v - target) ** 2), [v], optimizer
    )
    # The first epoch sets the loss from which four more count.
    assert result.stages[0][1] == "plateau"
    assert result.stages[0].iterations == 5
    assert result.success


def test_a_share_of_the_time_ends_a_stage_and_the_next_one_follows():
    v = keras.Variable([1.0, 1.0])
    optimizer = Chain(
        [keras.optimizers.SGD(1e-9), "lbfgs"],
        epochs=[10**6, 50],
        full_batch=True,
        share=[0.02, None],
    )
    result = kormos.minimize(
        lambda: keras.ops.sum(v**4), [v], optimizer, max_seconds=30
    )
    assert result.stages[0].status == "time limit"
    assert result.stages[1].iterations > 5


def test_curvature_is_handed_to_a_stage_that_can_use_it():
    x, y = rows()
    whole, parted = network(), network()
    whole.compile("lbfgs", "mse")
    parted.compile(Chain(["lbfgs", LBFGS()], epochs=[9, 9]), "mse")
    one = whole.fit(x, y, epochs=18, verbose=0)
    two = parted.fit(x, y, verbose=0)
    assert two.history["loss"] == pytest.approx(one.history["loss"], rel=1e-6)


@pytest.mark.parametrize("second", ["lbfgs", "dense-bfgs", "ssbroyden"])
def test_no_curvature_is_handed_over_where_layers_are_frozen(second):
    x, y = rows()

    def freeze(model):
        model.layers[0].trainable = False

    model = network()
    chain = Chain(
        ["lbfgs", second], epochs=[6, 150], pretrain_fn=[None, freeze]
    )
    model.compile(chain, "mse")
    model.fit(x, y, verbose=0)
    # What is left to train is linear.
    hidden = np.array(model.layers[0](x), "float64")
    columns = np.hstack([hidden, np.ones((len(x), 1))])
    best = np.linalg.lstsq(columns, y, rcond=None)[0]
    expected = np.mean((columns @ best - y) ** 2)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(expected, rel=1e-4)


class _Stop(Exception):
    pass


@pytest.mark.parametrize("at", [1, 4, 5, 8, 9, 11])
def test_an_interrupted_chain_goes_on_in_its_stage(at, tmp_path):
    x, y = rows()

    def fitted(*callbacks):
        model = network(layers=[keras.layers.Dropout(0.1, seed=1)])
        model.compile(
            Chain(
                [keras.optimizers.Adam(0.02), "lbfgs", "lm"],
                epochs=[5, 4, 3],
                batch_size=16,
            ),
            "mse",
        )
        model.fit(x, y, verbose=0, callbacks=callbacks)
        return model

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == at:
                raise _Stop

    def backup():
        return kormos.callbacks.BackupAndRestore(tmp_path / "backup")

    expected = fitted(backup())
    with pytest.raises(_Stop):
        fitted(backup(), Stop())
    assert_same_weights(fitted(backup()), expected)


@pytest.mark.parametrize("full_batch", [False, True])
def test_a_stage_that_ends_above_its_start_goes_back_there_when_resumed_too(
    full_batch, tmp_path
):
    x, y = rows()

    def fitted(*callbacks):
        model = network(layers=[keras.layers.BatchNormalization(momentum=0.5)])
        sgd = keras.optimizers.SGD(
            keras.optimizers.schedules.ExponentialDecay(0.5, 2, 2.0),
            momentum=0.9,
            clipnorm=1.0,
        )
        chain = Chain(
            [sgd, "lbfgs"], epochs=[5, 3], batch_size=16, full_batch=full_batch
        )
        model.compile(chain, "mse")
        history = model.fit(x, y, verbose=0, callbacks=callbacks)
        return model, history

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == at:
                raise _Stop

    start = network(layers=[keras.layers.BatchNormalization(momentum=0.5)])
    start.compile("sgd", "mse")
    before = start.evaluate(x, y, verbose=0)
    expected, history = fitted()
    assert history.history["loss"][4] > before
    assert history.history["loss"][5] < before
    # The first stage has five epochs.
    for at in range(7) if BACKEND == "torch" else (1, 4, 6):
        folder = tmp_path / str(at)
        with pytest.raises(_Stop):
            fitted(kormos.callbacks.BackupAndRestore(folder), Stop())
        resumed, _ = fitted(kormos.callbacks.BackupAndRestore(folder))
        assert_same_weights(resumed, expected)


def test_a_resumed_stage_on_a_plateau_takes_no_more_epochs(tmp_path):
    x, y = rows()

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 3:
                raise _Stop

    def fitted(*callbacks):
        model = network()
        optimizer = Chain([keras.optimizers.SGD(1e-7)], epochs=[50], patience=3)
        model.compile(optimizer, "mse")
        callbacks = [kormos.callbacks.BackupAndRestore(tmp_path), *callbacks]
        return model.fit(x, y, verbose=0, callbacks=callbacks)

    with pytest.raises(_Stop):
        fitted(Stop())
    result = fitted().result
    assert result.status == "plateau"
    assert result.iterations == 0


@pytest.mark.parametrize("frequency", [None, 3])
def test_averages_of_weights_become_the_weights_as_by_hand(frequency):
    x, y = rows()

    def adam():
        return keras.optimizers.Adam(
            0.05,
            use_ema=True,
            ema_momentum=0.7,
            ema_overwrite_frequency=frequency,
        )

    by_hand, chained = network(), network()
    by_hand.compile(adam(), "mse")
    by_hand.fit(x, y, epochs=6, batch_size=64, shuffle=False, verbose=0)
    by_hand.compile("lbfgs", "mse")
    by_hand.fit(x, y, epochs=4, verbose=0)
    chain = Chain([adam(), "lbfgs"], epochs=[6, 4], batch_size=64)
    chained.compile(chain, "mse")
    chained.fit(x, y, verbose=0)
    assert_same_weights(chained, by_hand)


@pytest.mark.parametrize("most", [4, 5, 6, 9, 12])
def test_resume_goes_on_after_any_number_of_evaluations(most, unconverged):
    x, y = rows()
    model = network()
    model.compile(Chain(["adam", "lbfgs", "lm"], epochs=[3, 4, 2]), "mse")
    model.fit(x, y, verbose=0, max_evals=most)
    before = model.evaluate(x, y, verbose=0)
    model.fit(x, y, verbose=0, resume=True)
    assert model.evaluate(x, y, verbose=0) < before


def test_resume_after_a_stage_without_epochs_goes_on_in_the_last():
    x, y = rows()
    model = network()
    model.compile(Chain(["adam", "lbfgs", "lm"], epochs=[3, 4, 2]), "mse")
    # The third stage has none of these epochs.
    model.fit(x, y, epochs=5, verbose=0)
    history = model.fit(x, y, verbose=0, resume=True)
    assert history.history["stage"] == [2, 2]


def test_a_state_of_other_variables_is_refused_in_words():
    x, y = rows()
    model = network()
    model.compile(Chain(["adam"], epochs=[3]), "mse")
    model.fit(x, y, verbose=0)
    model.layers[0].trainable = False
    with pytest.raises(ValueError, match="resume=False"):
        model.fit(x, y, verbose=0, resume=True)


@pytest.mark.parametrize("at", [1, 2])
def test_an_interrupted_epoch_has_the_loss_of_the_weights(at):
    x, y = rows()
    model = network()

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == at:
                raise KeyboardInterrupt

    model.compile(Chain(["adam", "lbfgs"], epochs=[2, 5]), "mse")
    history = model.fit(x, y, verbose=0, callbacks=[Interrupt()])
    assert history.result.status == "interrupted"
    found = model.evaluate(x, y, verbose=0)
    assert history.history["loss"][-1] == pytest.approx(found, rel=1e-5)


def test_a_chain_is_saved_and_loaded_with_its_stages(tmp_path):
    x, y = rows()
    model = network()
    model.compile(
        Chain(
            [keras.optimizers.Adam(0.02), LBFGS(memory=7)],
            epochs=[2, 3],
            patience=[5, None],
        ),
        "mse",
    )
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    adam, lbfgs = loaded.optimizer.optimizers
    assert isinstance(adam, keras.optimizers.Adam)
    assert float(adam.learning_rate) == pytest.approx(0.02)
    assert lbfgs.memory == 7
    assert loaded.optimizer.patience == [5, None]
    assert loaded.fit(x, y, verbose=0).epoch == list(range(5))


def test_resume_goes_on_in_the_stage_that_the_latest_fit_ended_in():
    x, y = rows()
    whole, parted = network(), network()
    whole.compile(Chain(["adam", "lbfgs"], epochs=[3, 12]), "mse")
    parted.compile(Chain(["adam", "lbfgs"], epochs=[3, 6]), "mse")
    whole.fit(x, y, verbose=0)
    parted.fit(x, y, verbose=0)
    parted.fit(x, y, verbose=0, resume=True)
    assert_same_weights(parted, whole)


def test_an_epoch_that_is_interrupted_loses_no_weights():
    x, y = rows()
    model = network(layers=[keras.layers.BatchNormalization()])
    calls = []

    def loss(y_true, y_pred):
        calls.append(1)
        return keras.losses.mean_squared_error(y_true, y_pred)

    model.compile(Chain(["adam", "lbfgs"], epochs=[50, 5]), loss)
    train_step = model.train_step

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 3:

                def interrupted(*args):
                    raise KeyboardInterrupt

                model.train_step = interrupted
                object.__setattr__(model, "_kormos_trained", (None, None))

    history = model.fit(x, y, verbose=0, callbacks=[Interrupt()])
    model.train_step = train_step
    assert history.result.status == "interrupted"
    assert len(history.epoch) == 4
    assert all(np.isfinite(w).all() for w in weights(model))
    found = model.evaluate(x, y, verbose=0)
    assert found == pytest.approx(history.history["loss"][-1], rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Chain([]), "list of names and optimizers"),
        (lambda: Chain("lbfgs"), "list of names and optimizers"),
        (lambda: Chain(["adam", "lbfsg"]), "lbfsg"),
        (lambda: Chain(["adam", "lbfgs"], epochs=[1]), "each of the 2"),
        (lambda: Chain(["adam"], patience=0), "patience"),
        (lambda: Chain(["adam"], share=2.0), "share"),
        (lambda: Chain([Chain(["lbfgs"])]), "cannot be a stage of a `Chain`"),
    ],
)
def test_what_is_no_chain_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_a_stage_cannot_do_is_refused_before_any_work():
    x, y = rows()
    model = network()
    before = weights(model)
    v = model.trainable_variables[0]
    constraint = {"type": "eq", "fun": lambda: keras.ops.sum(v)}
    model.compile(Chain(["adam", "lbfgs"]), "mse")
    with pytest.raises(ValueError, match="but not constraints"):
        model.fit(x, y, verbose=0, constraints=constraint)
    with pytest.raises(ValueError, match="max_seconds"):
        kormos.fit(model, x, y, verbose=0, optimizer=Chain(["adam"], share=0.5))
    with pytest.raises(ValueError, match="full_batch=True"):
        kormos.minimize(lambda: keras.ops.sum(v**2), [v], Chain(["adam"]))
    for one, two in zip(weights(model), before, strict=True):
        np.testing.assert_array_equal(one, two)


def test_keras_stages_train_the_loss_of_the_latest_compile():
    x = np.linspace(-1.0, 1.0, 24, dtype="float32").reshape(12, 2)
    y = (x[:, :1] + 3.0) ** 2
    found = []
    for losses in (["mae"], ["mse", "mae"]):
        adam = keras.optimizers.Adam(0.05)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        for loss in losses:
            model.set_weights([np.zeros((2, 1)), np.zeros(1)])
            model.compile(Chain([adam], epochs=[30]), loss=loss)
            model.fit(x, y, verbose=0)
        found.append(model.evaluate(x, y, verbose=0))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


class Failing(keras.layers.Layer):
    """Raises an error when it is called in training for the fifth time."""

    calls = 0

    def call(self, x, training=False):
        if training:
            self.calls += 1
            if self.calls == 5:
                raise RuntimeError("on purpose")
        return x


def test_an_error_within_the_first_epoch_of_keras_keeps_the_weights():
    x = np.linspace(-1.0, 1.0, 64, dtype="float32")[:, None]
    y = np.sin(3 * x)
    model = keras.Sequential(
        [keras.Input((1,)), Failing(), keras.layers.Dense(1)]
    )
    # Its steps are so long that the loss grows.
    sgd = keras.optimizers.SGD(1.5)
    model.compile(
        Chain([sgd], epochs=[5], batch_size=8), loss="mse", run_eagerly=True
    )
    before = model.get_weights()
    with pytest.raises(Exception, match="on purpose"):
        model.fit(x, y, verbose=0)
    assert model.layers[0].calls == 5
    for now, earlier in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, earlier)
