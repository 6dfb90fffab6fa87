"""Processes that a test starts, to fit a model together."""

import faulthandler
import os
import signal
import time
import traceback

import keras

import kormos
from joined import connect
from joined import free_port

# Seconds for starting and ending processes, besides waiting.
MARGIN = 45


def disconnect():
    if keras.backend.backend() == "torch":
        import torch

        torch.distributed.destroy_process_group()
    else:
        import jax

        jax.distributed.shutdown()


class Group:
    """Processes that a test has started.

    Args:
        context: the context of `multiprocessing`.
        target: function `(connection, index, *args)`.
        args: its other arguments.
        folder: where the processes meet, and write what they print.
        count: the number of processes.
    """

    def __init__(self, context, target, args, folder, count=2):
        port = free_port()
        self._outputs = [folder / f"output-{port}-{i}" for i in range(count)]
        self.connections, self.processes = [], []
        for index, output in enumerate(self._outputs):
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_run,
                args=(theirs, index, count, port, output, target, args),
            )
            process.start()
            theirs.close()
            self.connections.append(mine)
            self.processes.append(process)

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        for process in self.processes:
            process.kill()
            process.join()

    def kill(self, index):
        """Kills a process, which cannot send anything any more."""
        os.kill(self.processes[index].pid, signal.SIGKILL)
        self.processes[index].join(MARGIN)

    def messages(self, index, limit):
        """The messages of a process until it ends, within seconds."""
        found, end = [], time.perf_counter() + limit
        while self.connections[index].poll(max(0, end - time.perf_counter())):
            try:
                found.append(self.connections[index].recv())
            except (EOFError, ConnectionResetError):
                return found
        os.kill(self.processes[index].pid, signal.SIGUSR1)
        time.sleep(1)
        raise AssertionError(
            f"process {index} has not ended after {limit} s, and sent "
            f"{found[-1:]}; it printed:\n{self.printed(index)}"
        )

    def ends(self, limit):
        """The exit codes of the processes, which end within seconds."""
        end = time.perf_counter() + limit
        for process in self.processes:
            process.join(max(0.01, end - time.perf_counter()))
        return [process.exitcode for process in self.processes]

    def printed(self, index):
        """The output of a process."""
        return self._outputs[index].read_text()


def _run(connection, index, count, port, output, target, args):
    """The function that each of the processes runs."""
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # A background process of a shell ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # This shows a test where a process hangs.
    faulthandler.register(signal.SIGUSR1)
    try:
        connect(index, count, output.parent, port)
        keras.config.set_floatx("float64")
        kormos.enable_float64()
        target(connection, index, *args)
    except BaseException:
        traceback.print_exc()
        raise
    disconnect()
