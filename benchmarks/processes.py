"""Several processes that fit one model, each on its own rows.

An evaluation is that of `fit`: the loss of a network 2-64x4-1 and its gradient
in float32. Every process has one thread and, while there are enough, its own
core. The exchange is the time that a process spends on adding up over the
processes, and on waiting for the slowest of them.

Strong scaling: 1,000,000 rows, by one process and by two. Weak scaling: 50,000
rows for each of 1 to 8 processes. If there are more processes than cores, they
take turns: the exchange then includes the wait for a core, and the seconds of
an evaluation say nothing about that number of machines. Stream: 10,000,000
rows, made batch by batch when they are read, by two processes; memory is the
peak of the process.

    KERAS_BACKEND=torch python benchmarks/processes.py
"""

import one_thread  # noqa: F401

# isort: split
import json
import os
import pathlib
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import recording

from devices import network

ROWS, QUICK_ROWS = 1_000_000, 100_000
WEAK_ROWS, QUICK_WEAK_ROWS = 50_000, 10_000
STREAMED, QUICK_STREAMED = 10_000_000, 200_000
BATCH = 50_000
REPEATS = 7


def join(index, count, place, port):
    """Connects this process to the others, over the loopback interface."""
    if count == 1:
        return
    if os.environ["KERAS_BACKEND"] == "torch":
        import torch

        store = torch.distributed.FileStore(f"{place}/store", count)
        torch.distributed.init_process_group(
            "gloo", store=store, rank=index, world_size=count
        )
        return
    import jax

    address = f"127.0.0.1:{port}"
    jax.distributed.initialize(
        address, count, index, coordinator_bind_address=address
    )
    import keras

    keras.distribution.set_distribution(
        keras.distribution.DataParallel(auto_shard_dataset=False)
    )


def child(kind, rows, index, count, place, port):
    """One of the processes; prints what it measured."""
    cores = sorted(os.sched_getaffinity(0))
    if count <= len(cores):
        os.sched_setaffinity(0, [cores[index]])
    join(index, count, place, port)
    import keras
    import numpy as np

    import kormos

    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(1)
    model = network()

    def drawn(rows, seed):
        x = np.random.default_rng(seed).random((rows, 2), dtype="float32")
        return x, np.sin(3 * x[:, :1]) * x[:, 1:]

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return rows // count // BATCH

        def __getitem__(self, batch):
            return drawn(BATCH, (index, batch))

    if kind == "stream":
        data = {"x": Batches(), "stream": True}
    else:
        x, y = drawn(rows // count, index)
        data = {"x": x, "y": y}
    objective = kormos.Objective(model, **data)
    processes = objective.processes
    spent = [0.0]
    exchange = processes._add_up

    def timed(*args):
        begin = time.perf_counter()
        found = exchange(*args)
        spent[0] += time.perf_counter() - begin
        return found

    processes._add_up = timed
    theta = objective.initial_position()
    seconds, shares, peaks = [], [], []
    for _ in range(2 + (2 if kind == "stream" else REPEATS)):
        spent[0], begin = 0.0, time.perf_counter()
        loss, _ = objective.value_and_grad(theta)
        seconds.append(time.perf_counter() - begin)
        shares.append(spent[0] / seconds[-1])
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(
        json.dumps(
            {
                "loss": loss,
                "seconds": statistics.median(seconds[2:]),
                "share": statistics.median(shares[2:]),
                "peak": peaks[-1],
                "growth": peaks[-1] - peaks[0],
            }
        )
    )


def measured(kind, rows, count):
    """The measurements of each of `count` processes."""
    with tempfile.TemporaryDirectory() as place, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        children = [
            subprocess.Popen(
                [sys.executable, __file__, "--child", kind]
                + [str(a) for a in (rows, index, count, place, port)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for index in range(count)
        ]
        outputs = [c.communicate(timeout=900)[0] for c in children]
    return [json.loads(out.splitlines()[-1]) for out in outputs]


def slowest(found):
    return max(found, key=lambda f: f["seconds"])


def scaling(record, title, kind, pairs):
    """A table of numbers of processes."""
    lines, alone = [], None
    for count, rows in pairs:
        found = measured(kind, rows, count)
        seconds = slowest(found)["seconds"]
        alone = alone or seconds
        lines.append(
            [
                str(count),
                f"{rows:,}",
                f"{seconds * 1e3:.1f}",
                f"{seconds / alone:.2f}",
                f"{100 * min(f['share'] for f in found):.2f}",
                f"{100 * max(f['share'] for f in found):.2f}",
                f"{found[0]['loss']:.9g}",
            ]
        )
    columns = [
        "processes",
        "rows",
        "ms an evaluation",
        "of one process",
        "exchange, %",
        "with the wait, %",
        "loss",
    ]
    note = (
        "The exchange is the share of the process that waits least, which is "
        "the slowest one; with the wait, that of the one that waits most."
    )
    record.table(title, columns, lines, note)


def main():
    args = recording.parser(__doc__).parse_args()
    about = __doc__.partition("\n\n")[2]
    record = recording.Record("processes", about, args)
    rows = QUICK_ROWS if args.quick else ROWS
    scaling(
        record, "Strong scaling", "arrays", [(count, rows) for count in (1, 2)]
    )
    rows = QUICK_WEAK_ROWS if args.quick else WEAK_ROWS
    counts = (1, 2) if args.quick else (1, 2, 4, 8)
    scaling(record, "Weak scaling", "arrays", [(n, n * rows) for n in counts])
    total = QUICK_STREAMED if args.quick else STREAMED
    lines = []
    for rows in (total // 10 // (2 * BATCH) * 2 * BATCH or 2 * BATCH, total):
        found = measured("stream", rows, 2)
        lines.append(
            [
                f"{rows:,}",
                f"{slowest(found)['seconds']:.2f}",
                f"{max(f['peak'] for f in found):.0f}",
                f"{max(f['growth'] for f in found):.1f}",
            ]
        )
    record.table(
        "A stream, by two processes",
        ["rows", "s an evaluation", "peak, MB", "MB more after the first"],
        lines,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        kind, rows, index, count, place, port = sys.argv[2:]
        child(
            kind, int(rows), int(index), int(count), pathlib.Path(place), port
        )
    else:
        main()
