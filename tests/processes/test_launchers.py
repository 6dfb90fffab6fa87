"""The example for several processes, unchanged, under each launcher."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

from conftest import BACKEND
from joined import free_port

pytestmark = pytest.mark.slow
EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "many_processes.py"
PATIENCE = 400


def environment(**others):
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **others}


def losses(output):
    """The loss that each printed line names."""
    found = re.findall(r"2 processes, mean squared error (\S+)", output)
    return [float(loss) for loss in found]


@pytest.mark.skipif(BACKEND != "torch", reason="the launcher of PyTorch")
def test_torchrun():
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run"]
        + ["--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
        + ["--master-port", str(free_port()), str(EXAMPLE)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    (loss,) = losses(done.stdout)
    assert loss < 2e-3


@pytest.mark.skipif(BACKEND != "jax", reason="connects processes of JAX")
def test_jax_distributed():
    address = f"127.0.0.1:{free_port()}"
    children = [
        subprocess.Popen(
            [sys.executable, str(EXAMPLE)],
            env=environment(
                JAX_COORDINATOR_ADDRESS=address,
                JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(index),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    outputs = []
    try:
        for child in children:
            outputs.append(child.communicate(timeout=PATIENCE)[0])
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], outputs
    (loss,) = losses("".join(outputs))
    assert loss < 2e-3


@pytest.mark.skipif(
    BACKEND == "tensorflow" or not importlib.util.find_spec("ray"),
    reason="Ray trains by PyTorch and by JAX",
)
def test_ray_train(tmp_path):
    """Two workers on this machine, around the function of the example."""
    script = pathlib.Path(__file__).parent / "under_ray.py"
    done = subprocess.run(
        [sys.executable, str(script), str(EXAMPLE), str(tmp_path)],
        env=environment(
            JAX_PLATFORMS="cpu",
            RAY_USAGE_STATS_ENABLED="0",
            RAY_TRAIN_V2_ENABLED="1",
            # Ray then stays on the loopback interface.
            RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        ),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (loss,) = set(losses(done.stdout + done.stderr))
    assert loss < 2e-3
