"""Starts processes that fit a model together, and joins them.

Tests import it as a module. A child script imports `join`, which connects the
child to the others before Keras is imported, and `answer`.
"""

import datetime
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

# Seconds in which all children of a test must have ended.
PATIENCE = 400
# Seconds for which a backend waits for a process that does not answer.
TIMEOUT = 20
# The same if no process fails, but one may have to wait for a core.
LONG_TIMEOUT = 120


def start(script, count, *args, **environment):
    """Starts `count` processes of a script.

    Args:
        script: its path.
        count: the number of processes.
        *args: further arguments of the script.
        **environment: variables of the children's environment.

    Returns:
        A list of `subprocess.Popen`s.
    """
    place = pathlib.Path(tempfile.mkdtemp())
    port = free_port()
    path = os.pathsep.join(filter(None, sys.path))
    return [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, args)],
            env={
                **os.environ,
                "PYTHONPATH": path,
                "OMP_NUM_THREADS": "1",
                "JOINED_INDEX": str(index),
                "JOINED_COUNT": str(count),
                "JOINED_PLACE": str(place),
                "JOINED_PORT": str(port),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def ended(children, patience=PATIENCE):
    """Waits for children; returns pairs of exit status and output.

    Children that have not ended in time are killed, and their status is
    negative.
    """
    found = []
    for child in children:
        try:
            out, errors = child.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            child.kill()
            out, errors = child.communicate()
            out += f"\nIt has not ended within {patience} seconds."
        found.append((child.returncode, out + (errors or "")))
    return found


def join():
    """Connects this process to the others; returns its index and count."""
    index = int(os.environ["JOINED_INDEX"])
    count = int(os.environ["JOINED_COUNT"])
    if count > 1:
        place, port = os.environ["JOINED_PLACE"], os.environ["JOINED_PORT"]
        connect(index, count, pathlib.Path(place), int(port), LONG_TIMEOUT)
    return index, count


def connect(index, count, place, port, timeout=TIMEOUT):
    """Connects a process to the others.

    Args:
        index: its number, from 0.
        count: the number of processes.
        place: the folder for a file of theirs.
        port: a free port of this machine.
        timeout: the seconds for which the backend waits for a process.
    """
    if os.environ["KERAS_BACKEND"] == "torch":
        import torch

        torch.set_num_threads(1)
        torch.distributed.init_process_group(
            "gloo",
            store=torch.distributed.FileStore(
                str(place / f"store-{port}"), count
            ),
            rank=index,
            world_size=count,
            timeout=datetime.timedelta(seconds=timeout),
        )
    else:
        import jax

        address = f"127.0.0.1:{port}"
        jax.distributed.initialize(
            coordinator_address=address,
            num_processes=count,
            process_id=index,
            coordinator_bind_address=address,
            shutdown_timeout_seconds=timeout,
            heartbeat_timeout_seconds=timeout,
        )
        import keras

        keras.distribution.set_distribution(
            keras.distribution.DataParallel(auto_shard_dataset=False)
        )


def free_port():
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
