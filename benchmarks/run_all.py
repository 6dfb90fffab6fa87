"""Runs the benchmarks, two at a time, each on its own core.

    python benchmarks/run_all.py [--quick] [--only NAME ...]

Records and output go to `benchmarks/results`. Those of `--quick` go to a folder
in it, because they are not kept.
"""

import argparse
import concurrent.futures
import os
import pathlib
import queue
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results"

CORES = 2
# Otherwise it depends on the history of a process whether glibc returns memory
# to the system and requests it again, which changes the times of large arrays
# by a factor of two.
KEEPS_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**28),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}
FEWER = ("--problem", "grid", "random", "convnet", "--seeds", "1")

# Name, script, backend and arguments. A free core takes the next one, so the
# longest come first.
SUITES = (
    ("pinns", "pinns", "jax", ("--dtype", "float32")),
    ("quasi-newton-jax", "quasi_newton", "jax", ()),
    ("least-squares", "least_squares", "jax", ()),
    ("scaling", "scaling", "jax", ()),
    ("functions-jax", "quasi_newton", "jax", ("--functions",)),
    ("quasi-newton-tensorflow", "quasi_newton", "tensorflow", FEWER),
    ("predecessor", "predecessor", "jax", ()),
    ("quasi-newton-torch", "quasi_newton", "torch", FEWER),
    ("style", "style", "tensorflow", ()),
    ("newton", "newton", "jax", ()),
    ("overhead", "overhead", "jax", ()),
    ("repeated-tensorflow", "repeated_calls", "tensorflow", ()),
    ("repeated-jax", "repeated_calls", "jax", ()),
)


def pinned(core):
    """A function that binds a child process to a core, if the system can."""

    def pin():
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[core % len(cores)]})

    return pin


def run(suite, core, folder, quick):
    """Runs a benchmark, and returns its exit code."""
    name, script, backend, arguments = suite
    command = [sys.executable, HERE / f"{script}.py", *arguments]
    command += ["--out", folder / f"{name}.json"]
    command += ["--quick"] * quick
    begin = time.perf_counter()
    with open(folder / f"{name}.log", "w") as log:
        code = subprocess.run(
            command,
            env=os.environ | KEEPS_MEMORY | {"KERAS_BACKEND": backend},
            preexec_fn=pinned(core),
            stdout=log,
            stderr=subprocess.STDOUT,
        ).returncode
    seconds = time.perf_counter() - begin
    print(f"{name}: {'failed' if code else 'done'}, {seconds:.0f} s")
    return code


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", help="names of benchmarks")
    args = parser.parse_args()
    folder = RESULTS / "quick" if args.quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    suites = [s for s in SUITES if args.only is None or s[0] in args.only]
    free = queue.SimpleQueue()
    for core in range(CORES):
        free.put(core)

    def run_on_a_free_core(suite):
        core = free.get()
        try:
            return run(suite, core, folder, args.quick)
        finally:
            free.put(core)

    with concurrent.futures.ThreadPoolExecutor(CORES) as pool:
        codes = list(pool.map(run_on_a_free_core, suites))
    failed = [s[0] for s, code in zip(suites, codes, strict=True) if code]
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}. See {folder}/NAME.log.")


if __name__ == "__main__":
    main()
