"""A child script that fits in the scope of a strategy of TensorFlow.

Its arguments are a task (a key of `TASKS`), a kind and a folder, into which it
writes `INDEX.json` or `INDEX.npz`. The kinds are `one`
(process, without a strategy), `mirrored` (one process with two devices) and
`worker` (one of two processes, which `TF_CONFIG` names).

As a module, it starts such processes and waits for them.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import warnings

ROWS = 63
CUT = 44
FITS = ("lbfgs", "l-bfgs-b", "ssbroyden", "trust-ncg", "lm")


def start(task, kind, folder):
    """Starts the processes of a kind; returns `subprocess.Popen`s."""
    count = 2 if kind == "worker" else 1
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    workers = [f"127.0.0.1:{p.getsockname()[1]}" for p in probes]
    for probe in probes:
        probe.close()
    children = []
    for index in range(count):
        config = {
            "cluster": {"worker": workers},
            "task": {"type": "worker", "index": index},
        }
        children.append(
            subprocess.Popen(
                [sys.executable, __file__, task, kind, str(folder)],
                env={
                    **os.environ,
                    "KERAS_BACKEND": "tensorflow",
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    **({"TF_CONFIG": json.dumps(config)} if count > 1 else {}),
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return children


def strategy_of(kind):
    """The strategy, which is made before TensorFlow computes anything."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    if kind == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
        return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    if kind == "worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


class Child:
    """One process.

    Args:
        kind: `"one"`, `"mirrored"` or `"worker"`.
    """

    def __init__(self, kind):
        self.kind = kind
        self.strategy = strategy_of(kind)
        self.is_worker = kind == "worker"
        self.index = 0
        if self.is_worker:
            self.index = self.strategy.cluster_resolver.task_id
        import keras
        import numpy as np

        import kormos

        kormos.enable_float64()
        keras.config.set_floatx("float64")
        self.keras, self.np, self.kormos = keras, np, kormos
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((ROWS, 3))
        self.y = np.sin(self.x.sum(axis=1, keepdims=True))
        self.w = rng.uniform(0.5, 2, ROWS)

    def own(self, array):
        """The rows of this process."""
        if not self.is_worker:
            return array
        return array[CUT:] if self.index else array[:CUT]

    def data(self):
        """Inputs, targets and weights of the rows of this process."""
        x, y, w = map(self.own, (self.x, self.y, self.w))
        return {"x": x, "y": y, "sample_weight": w}

    def model(self, loss="mse", **compile_args):
        layers = self.keras.layers
        with self.strategy.scope():
            model = self.keras.Sequential(
                [
                    self.keras.Input((3,)),
                    layers.Dense(3, "tanh", kernel_regularizer="l2"),
                    layers.BatchNormalization(),
                    layers.Dense(1),
                ]
            )
            model.compile(loss=loss, **compile_args)
        self.set_weights(model)
        return model

    def set_weights(self, model):
        drawn = self.np.random.default_rng(1)
        for variable in model.trainable_variables:
            variable.assign(0.5 * drawn.standard_normal(variable.shape))


class Figures(Child):
    """Losses, derivatives, metrics and ends of fits."""

    def __init__(self, kind):
        super().__init__(kind)
        self.found = {}
        metrics = ["mae", self.keras.metrics.RootMeanSquaredError()]
        self.net = self.model(optimizer="lbfgs", metrics=metrics)

    def note(self, name, **values):
        for key, value in values.items():
            self.found[f"{name}: {key}"] = self.np.asarray(value)

    def look(self):
        """Everything that a method may request from an objective."""
        np = self.np
        objective = self.kormos.Objective(self.net, **self.data())
        theta = objective.initial_position()
        vector = np.linspace(-1, 1, theta.size)
        loss, grad = objective.value_and_grad(theta)
        matrices = objective.gauss_newton()
        _, _, matrix = matrices.normal_equations(theta, keep=True)
        _, _, rows = matrices.rows(theta)
        self.note(
            "figure",
            value=objective.value(theta),
            loss=loss,
            grad=grad,
            product=objective.hvp(theta, vector),
            matrix=np.triu(matrix),
            from_rows=np.triu(rows.T @ rows),
            matrix_product=matrices.product(theta, vector),
            bend=matrices.bend(theta, vector),
            rows=objective.rows,
        )
        self.note("figure evaluated", **objective.evaluate(theta))
        with self.strategy.scope():
            self.note("figure in the scope", value=objective.value(theta))

    def place(self):
        """How many products each device computes, by function."""
        objective = self.kormos.Objective(self.net, **self.data())
        theta = objective.initial_position()
        objective.value(theta)
        objective.value_and_grad(theta)
        objective.hvp(theta, theta)
        objective.evaluate(theta)
        from kormos.objective.compiled import by_device
        from kormos.objective.compiled import count_rows

        program = objective.program
        compiled = {
            "value": program.value,
            "value_and_grad": program.value_and_grad,
            "hvp": program.hvp,
            "evaluate": program.evaluate._with_loss,
        }
        for name, fn in compiled.items():
            products = [
                operation.device
                for operation in fn.graph().get_operations()
                if operation.type == "MatMul"
            ]
            counts = [sum(f"CPU:{i}" in d for d in products) for i in (0, 1)]
            self.note("placed", **{name: counts})
        pairs = [pair for _, pair in by_device(objective.arguments.chunks[0])]
        self.note("placed", rows=[count_rows(pair) for pair in pairs])

    def add_up(self, case, model, data, **settings):
        """The sums of a strategy's devices, for one kind of data."""
        objective = self.kormos.Objective(model, **data, **settings)
        theta = objective.initial_position() + 0.1
        vector = self.np.linspace(-1, 1, theta.size)
        loss, grad = objective.value_and_grad(theta)
        self.note(
            case,
            value=objective.value(theta),
            loss=loss,
            grad=grad,
            product=objective.hvp(theta, vector),
            metrics=[*objective.evaluate(theta).values()],
            normal=self.np.triu(
                objective.gauss_newton().normal_equations(theta)[2]
            ),
        )

    def cases(self):
        """Kinds of data and of models."""
        np, layers, keras = self.np, self.keras.layers, self.keras
        data = self.data()
        few = {name: array[:1] for name, array in data.items()}
        self.add_up("weights", self.net, data)
        self.add_up("batches", self.net, data, batch_size=10)
        self.add_up("stream", self.net, data, batch_size=10, stream=True)
        self.add_up("one row", self.net, few)
        steps = np.where(self.x > 1, 0, self.x)[:, :, None]
        with self.strategy.scope():
            masked = keras.Sequential(
                [
                    keras.Input((3, 1)),
                    layers.Masking(),
                    layers.SimpleRNN(2),
                    layers.Dense(1),
                ]
            )
            masked.compile(loss="mse", metrics=["mae"])
            inputs = keras.Input((3,))
            two = keras.Model(
                inputs,
                {
                    "a": layers.Dense(1, name="a")(inputs),
                    "b": layers.Dense(2, "sigmoid", name="b")(inputs),
                },
            )
            two.compile(
                loss={"a": "mse", "b": "binary_crossentropy"},
                metrics={"a": ["mae"], "b": ["accuracy"]},
            )
        for model in (masked, two):
            self.set_weights(model)
        self.add_up("mask", masked, {"x": steps, "y": self.y})
        ones = (self.x[:, :2] > 0).astype(float)
        self.add_up(
            "outputs", two, {"x": self.x, "y": {"a": self.y, "b": ones}}
        )

    def look_outside(self):
        """A loss that reads a table and a variable of TensorFlow's own."""
        import tensorflow as tf

        keys = tf.constant([0, 1], tf.int64)
        table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                keys, tf.constant([1.0, 3.0], tf.float64)
            ),
            0.0,
        )
        with self.strategy.scope():
            scale = tf.Variable(2.0, dtype="float64")

        def loss(y, y_pred):
            weights = table.lookup(tf.cast(y > 0, tf.int64))
            error = scale * weights * (y - y_pred) ** 2
            return tf.reduce_mean(error, axis=-1)

        objective = self.kormos.Objective(self.model(loss), **self.data())
        theta = objective.initial_position()
        self.note("outside", value=objective.value(theta))

    def fit(self, method, **settings):
        """A fit within the scope, from weights that the first process has."""
        model = self.net
        self.set_weights(model)
        if self.index:
            model.set_weights([3 * v for v in model.get_weights()])
        with self.strategy.scope():
            history = self.kormos.fit(
                model,
                **self.data(),
                validation_data=tuple(self.data().values()),
                optimizer=method,
                epochs=10,
                verbose=0,
                callbacks=[self.keras.callbacks.EarlyStopping(patience=10)],
                **settings,
            )
        result = history.result
        self.note(
            f"fit {method} {settings}",
            loss=result.loss,
            success=result.success,
            validation=history.history["val_loss"][-1],
            metric=history.history["mae"][-1],
        )
        self.note(
            f"bits {method} {settings}",
            evaluations=result.evaluations,
            **{str(i): v for i, v in enumerate(model.get_weights())},
        )

    def compiled_fit(self, folder):
        """`model.fit`, outside of the scope, which saves the whole model."""
        self.set_weights(self.net)
        path = folder / f"{self.index}.keras"
        history = self.net.fit(
            **self.data(),
            epochs=5,
            verbose=0,
            callbacks=[
                self.keras.callbacks.ModelCheckpoint(path),
                self.kormos.callbacks.BackupAndRestore(folder / "backup"),
            ],
        )
        self.note("fit of five epochs", loss=history.history["loss"])

    def least_squares(self):
        """A fit of residuals, one block of which depends on no data."""
        np, ops = self.np, self.keras.ops
        with self.strategy.scope():
            a = self.keras.Variable(np.array([1.0, 0.3, -0.2]), name="a")

        def residuals(data):
            fitted = a[0] * ops.exp(-a[1] * data["t"]) + a[2]
            return {"fit": fitted - data["y"], "prior": 0.1 * (a - 1)}

        t = np.linspace(0, 5, ROWS)
        target = 2 * np.exp(-0.7 * t) + 0.1 * np.cos(40 * t)
        result = self.kormos.least_squares(
            residuals,
            [a],
            data={"t": self.own(t), "y": self.own(target)},
            reduction="sum",
        )
        self.note("fit of residuals", loss=result.loss, a=a.numpy())

    def run(self, folder):
        self.look()
        if not self.is_worker:
            self.cases()
            self.look_outside()
        if self.kind == "mirrored":
            self.place()
        for method in FITS:
            self.fit(method)
        self.fit("l-bfgs-b", stream=True, batch_size=8)
        self.compiled_fit(folder)
        self.least_squares()
        self.np.savez(folder / f"{self.index}.npz", **self.found)


class Faults(Child):
    """The errors of each process if one of them fails."""

    def attempt(self, data=None, loss="mse"):
        """The error of a fit, by its class and its message, and warnings."""
        model = self.model(loss=loss)
        error = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                self.kormos.fit(
                    model,
                    **(data or self.data()),
                    optimizer="lbfgs",
                    epochs=50,
                    verbose=0,
                )
            except Exception as raised:
                error = raised
        if error is None:
            said = [
                str(w.message) for w in caught if "reject" in str(w.message)
            ]
            return "none", "none", said
        return type(error).__name__, " ".join(str(error).split())

    def failing(self, fail, begin=6, end=6):
        """A loss that calls a function at some of its evaluations, on one."""
        import tensorflow as tf

        calls = []

        def check(value):
            calls.append(1)
            if self.index and begin <= len(calls) <= end:
                fail()
            return value

        def loss(y, y_pred):
            error = tf.reduce_mean((y - y_pred) ** 2, axis=-1)
            kept = tf.stop_gradient(error)
            zero = tf.py_function(check, [kept], kept.dtype) - kept
            return error + tf.ensure_shape(zero, error.shape)

        return loss

    def batches(self):
        """Batches, of which one process cannot read the second."""
        rows = self.data()
        child = self

        class Batches(self.keras.utils.PyDataset):
            def __len__(self):
                return 2

            def __getitem__(self, i):
                if i and child.index:
                    raise OSError("the disk is gone")
                return tuple(array[i::2] for array in rows.values())

        return {"x": Batches()}

    def raise_in_loss(self):
        def loss(y, y_pred):
            if self.index:
                raise TypeError("a mistake of mine")
            return (y - y_pred) ** 2

        return self.attempt(loss=loss)

    def make_a_mistake(self):
        def fail():
            raise TypeError("a mistake of mine")

        return self.attempt(loss=self.failing(fail, 12, 1000))

    def refuse(self):
        def fail():
            raise ValueError("no such place")

        return self.attempt(loss=self.failing(fail, 12, 1000))

    def be_killed(self):
        def fail():
            os.kill(os.getpid(), signal.SIGKILL)

        return self.attempt(loss=self.failing(fail))

    def run(self, folder):
        found = {}
        for name, fn in (
            ("loss", self.raise_in_loss),
            ("data", lambda: self.attempt(self.batches())),
            ("mistake", self.make_a_mistake),
            ("refused", self.refuse),
            ("none", self.attempt),
            ("kill", self.be_killed),
        ):
            found[name] = fn()
            text = json.dumps(found)
            (folder / f"{self.index}.json").write_text(text)


class Silence(Faults):
    """The error of a process that waits for a busy one."""

    def run(self, folder):
        from kormos.backend import tensorflow_processes

        tensorflow_processes._PATIENCE = 3.0
        loss = self.failing(lambda: time.sleep(6))
        found = {"silence": self.attempt(loss=loss)}
        (folder / f"{self.index}.json").write_text(json.dumps(found))


TASKS = {"figures": Figures, "faults": Faults, "silence": Silence}

if __name__ == "__main__":
    task, kind, folder = sys.argv[1:]
    made = TASKS[task](kind)
    made.run(pathlib.Path(folder))
