"""Two devices in one process, against one: seconds of an evaluation.

An evaluation is that of `fit`: the loss of a network 2-64x4-1 and its gradient
in float32, on 1,000,000 rows. Each number of devices has its own process, in
which XLA simulates the devices on the CPU, with one thread each. It needs the
same number of free cores. Seconds are medians.

The exchange is the sum over the devices of a vector with one entry more than
the gradient. It is measured separately, as many times as an evaluation makes
it: once for all chunks of one size together, and once for a last chunk of
another size.

On TensorFlow the devices are those of a `MirroredStrategy`. They exchange once
in an evaluation, and the exchange is not measured separately.

    python benchmarks/devices.py
    KERAS_BACKEND=tensorflow python benchmarks/devices.py
"""

import one_thread

# isort: split
import collections
import contextlib
import os
import re
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import recording

ROWS, QUICK_ROWS = 1_000_000, 100_000
WIDTH, LAYERS = 64, 4
DEVICES = (1, 2)
REPEATS = 9
ON_TENSORFLOW = os.environ["KERAS_BACKEND"] == "tensorflow"
COLLECTIVES = (
    "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
)


def simulate(count):
    """Sets up a process with a number of devices, with one thread each."""
    if ON_TENSORFLOW:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(count)
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * count,
        )
        return
    # XLA ignores flags after the one without dashes.
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={count} {one_thread.FLAGS}"
    )
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:count])


def seconds_of(fn, repeats=REPEATS):
    """The median of the seconds that a call takes."""
    fn()
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        fn()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def network():
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            *[
                keras.layers.Dense(WIDTH, activation="tanh")
                for _ in range(LAYERS)
            ],
            keras.layers.Dense(1),
        ]
    )
    model.compile(loss="mse")
    return model


def strategy_of(count):
    """The scope in which a model is made, for a number of devices."""
    import keras

    if ON_TENSORFLOW and count > 1:
        import tensorflow as tf

        names = [f"CPU:{i}" for i in range(count)]
        return tf.distribute.MirroredStrategy(names).scope()
    if count > 1:
        distribution = keras.distribution.DataParallel()
        keras.distribution.set_distribution(distribution)
    return contextlib.nullcontext()


def collectives(objective, theta):
    """How often each exchange occurs in the compiled evaluation."""
    from kormos import backend

    if ON_TENSORFLOW:
        return collections.Counter()
    import jax

    with backend.float64():
        lowered = jax.jit(objective.program.value_and_grad).lower(
            theta, *next(objective.arguments.pieces())
        )
        compiled = lowered.compile()
    calls = re.findall(rf"({COLLECTIVES})[\w.\-]*\(", compiled.as_text())
    return collections.Counter(calls)


def exchange(size, count):
    """The seconds of one sum of a vector over the devices."""
    if count == 1:
        return 0.0
    if ON_TENSORFLOW:
        return np.nan
    import jax
    from jax.sharding import Mesh
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec

    mesh = Mesh(np.array(jax.devices()), ("batch",))
    with jax.enable_x64(True):
        parts = jax.device_put(
            np.ones((count, size)), NamedSharding(mesh, PartitionSpec("batch"))
        )
        add = jax.jit(
            lambda a: a.sum(0),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )
        return seconds_of(lambda: add(parts).block_until_ready(), 200)


def measure(count, rows):
    """The seconds of an evaluation on `count` devices, and of its exchange."""
    import kormos

    rng = np.random.default_rng(0)
    x = rng.random((rows, 2), dtype="float32")
    y = np.sin(3 * x[:, :1]) * x[:, 1:]
    with strategy_of(count):
        model = network()
    objective = kormos.Objective(model, x, y)
    theta = objective.initial_position()
    loss, grad = objective.value_and_grad(theta)
    return {
        "loss": loss,
        "grad": grad,
        "seconds": seconds_of(lambda: objective.value_and_grad(theta)),
        "exchange": exchange(len(theta) + 1, count),
        "collectives": collectives(objective, theta),
    }


def main():
    args = recording.parser(__doc__).parse_args()
    record = recording.Record("devices", __doc__, args)
    rows = QUICK_ROWS if args.quick else ROWS
    found = {}
    for count in DEVICES:
        with ProcessPoolExecutor(
            1,
            get_context("spawn"),
            initializer=simulate,
            initargs=(count,),
        ) as pool:
            found[count] = pool.submit(measure, count, rows).result()
    one, table = found[1], []
    for count, run in found.items():
        made = sum(run["collectives"].values())
        if ON_TENSORFLOW:
            made = count - 1
        table.append(
            [
                count,
                run["seconds"],
                run["seconds"] / one["seconds"],
                made,
                made * run["exchange"] / run["seconds"],
                abs(run["loss"] / one["loss"] - 1),
                np.abs(run["grad"] - one["grad"]).max()
                / np.abs(one["grad"]).max(),
            ]
        )
    names = ", ".join(f"{n} {k}" for k, n in found[2]["collectives"].items())
    note = f"In the compiled code of an evaluation on 2 devices: {names}."
    record.table(
        f"{rows:,} rows",
        [
            "devices",
            "seconds",
            "of one device's",
            "exchanges",
            "share of the time",
            "loss differs by",
            "gradient by",
        ],
        table,
        "" if ON_TENSORFLOW else note,
    )


if __name__ == "__main__":
    main()
