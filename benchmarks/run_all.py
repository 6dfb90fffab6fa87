"""Runs the benchmarks, two at a time, each on a core of its own.

    python benchmarks/run_all.py [--quick] [--only NAME ...]

Records and prints go to `benchmarks/results`.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results"

FEWER = ("--problem", "grid", "random", "convnet", "--seeds", "1")

# What a core runs, one after the other: name, script, backend, arguments.
LANES = (
    (
        ("quasi-newton-jax", "quasi_newton", "jax", ()),
        ("least-squares", "least_squares", "jax", ()),
        ("style", "style", "tensorflow", ()),
        ("scaling", "scaling", "jax", ()),
        ("overhead", "overhead", "jax", ()),
    ),
    (
        ("pinns", "pinns", "jax", ("--dtype", "float32")),
        ("predecessor", "predecessor", "jax", ()),
        ("functions-jax", "quasi_newton", "jax", ("--functions",)),
        ("quasi-newton-torch", "quasi_newton", "torch", FEWER),
        ("quasi-newton-tensorflow", "quasi_newton", "tensorflow", FEWER),
    ),
)


def pinned(core):
    """What a child process does first: it keeps to a core, where it can."""

    def pin():
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[core % len(cores)]})

    return pin


def run(core, suites, quick, failed):
    for name, script, backend, arguments in suites:
        command = [sys.executable, HERE / f"{script}.py", *arguments]
        command += ["--out", RESULTS / f"{name}.json"]
        command += ["--quick"] * quick
        begin = time.perf_counter()
        with open(RESULTS / f"{name}.log", "w") as log:
            code = subprocess.run(
                command,
                env=os.environ | {"KERAS_BACKEND": backend},
                preexec_fn=pinned(core),
                stdout=log,
                stderr=subprocess.STDOUT,
            ).returncode
        seconds = time.perf_counter() - begin
        print(f"{name}: {'failed' if code else 'done'}, {seconds:.0f} s")
        if code:
            failed.append(name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", help="names of benchmarks")
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    failed, threads = [], []
    for core, lane in enumerate(LANES):
        lane = [s for s in lane if args.only is None or s[0] in args.only]
        arguments = core, lane, args.quick, failed
        threads.append(threading.Thread(target=run, args=arguments))
        threads[-1].start()
    for thread in threads:
        thread.join()
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}. See {RESULTS}/NAME.log.")


if __name__ == "__main__":
    main()
