"""Runs the example for several processes by Ray Train: a child script."""

import functools
import os
import runpy
import sys

import ray
from ray.train import RunConfig
from ray.train import ScalingConfig

from joined import free_port


def train(example, port, config=None):
    """The function that each worker runs."""
    context = ray.train.get_context()
    # Ray's trainer for JAX connects workers on accelerators only.
    os.environ["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
    os.environ["JAX_NUM_PROCESSES"] = str(context.get_world_size())
    os.environ["JAX_PROCESS_ID"] = str(context.get_world_rank())
    runpy.run_path(example)["train"](config)


def trainer():
    """Ray's trainer for the backend under test."""
    if os.environ["KERAS_BACKEND"] == "torch":
        from ray.train.torch import TorchTrainer

        return TorchTrainer
    from ray.train.v2.jax import JaxTrainer

    return JaxTrainer


def main(example, folder):
    passed = "KERAS_BACKEND", "PYTHONPATH", "JAX_PLATFORMS", "OMP_NUM_THREADS"
    port = free_port()
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        runtime_env={"env_vars": {name: os.environ[name] for name in passed}},
    )
    try:
        trainer()(
            functools.partial(train, example, port),
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(storage_path=folder),
        ).fit()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
