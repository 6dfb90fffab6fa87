"""Burgers' equation by one call of `optimizer="auto"`, on all cores.

The equation and the network are those of `pinns.py`, in float64. The fit starts
from random weights, without Adam, and ends after a minute, compiling included.
Points are drawn again every 20 iterations.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import warnings

import recording
from burgers import Burgers
from burgers import Method
from burgers import fresh

import kormos

AUTO = Method("auto", 20, 6_144)
SECONDS = 60


def main():
    parser = recording.parser(__doc__)
    parser.add_argument("--seeds", type=int)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    record = recording.Record("burgers-auto", __doc__, args)
    seconds, seeds = (5, 1) if args.quick else (SECONDS, 3)
    with kormos.precision("float64"):
        problem = Burgers("float64")
        runs = [
            problem.run(
                fresh(problem, seed),
                AUTO,
                5,
                max_iterations=10**6,
                max_seconds=seconds,
            )
            for seed in range(args.seeds or seeds)
        ]
    record.table(
        f'Burgers, nu = 0.01 / pi, "auto" for {seconds} seconds',
        ["start", "error", "iterations", "evaluations", "seconds to 1.0e-04"],
        [
            [
                seed,
                run.errors[-1],
                run.iterations[-1],
                run.evaluations[-1],
                run.seconds_to(1e-4),
            ]
            for seed, run in enumerate(runs)
        ],
        f"{AUTO.points:,} points.",
    )


if __name__ == "__main__":
    main()
