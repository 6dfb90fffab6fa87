"""A fit by several processes, each of which has its own rows.

    torchrun --nproc-per-node 2 examples/many_processes.py

or, on JAX, once for each process, with JAX_PROCESS_ID=0 and 1:

    JAX_COORDINATOR_ADDRESS=127.0.0.1:1234 JAX_NUM_PROCESSES=2 \
        JAX_PROCESS_ID=0 KERAS_BACKEND=jax python examples/many_processes.py
"""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")


def connect():
    """Connects this process to the others; returns its index and the count."""
    if os.environ["KERAS_BACKEND"] == "torch":
        import torch.distributed as dist

        if not dist.is_initialized():  # Ray Train has done so.
            dist.init_process_group("gloo")
        return dist.get_rank(), dist.get_world_size()
    import jax

    if not jax.distributed.is_initialized():
        jax.distributed.initialize(
            os.environ["JAX_COORDINATOR_ADDRESS"],
            int(os.environ["JAX_NUM_PROCESSES"]),
            int(os.environ["JAX_PROCESS_ID"]),
            coordinator_bind_address=os.environ["JAX_COORDINATOR_ADDRESS"],
        )
    import keras

    keras.distribution.set_distribution(
        keras.distribution.DataParallel(auto_shard_dataset=False)
    )
    return jax.process_index(), jax.process_count()


def train(config=None):
    index, count = connect()
    import keras
    import numpy as np

    import kormos  # noqa: F401

    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (10_000, 2)).astype("float32")
    y = np.sin(3 * x[:, :1]) * x[:, 1:]
    # As if each process had read its own file.
    x, y = x[index::count], y[index::count]

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(20, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer="l-bfgs-b", loss="mse")
    history = model.fit(x, y, epochs=100, verbose=0)
    loss = history.result.loss
    if index == 0:
        print(f"{count} processes, mean squared error {loss:.3g}")
    return loss


if __name__ == "__main__":
    train()
