"""Claims: does a success hold against a fresh run, and is the problem solved?

Every method minimizes every problem from its standard start, within 10,000
evaluations and a minute, or `--seconds`. A problem is solved if the loss comes
within 1e-6 of the way from the start to the best known value.

A success is a claim, which is tested: a fresh run of the same method and one of
`dense-bfgs` start at its end, with 2,000 evaluations each. A claim is false if
one of them lowers the loss by more than each of three limits: 1e-6 of the loss;
its rounding there, which is measured at points a few units in the last place
away; and 2^-104 of the loss at the start, which is zero for a sum of squares. A
claim is far if the gain is also more than 1e-11, and more than 1e-11 of the
loss at the start: then more is wrong than a minimum of zero that is only
reached to ten digits. The second fit is the fresh run of the same method; the
table says how it ends. If there are residuals, `lm` tries too. Its gain is
reported, but proves nothing: it can leave plateaus on which a method that only
sees the loss cannot find a direction.

`--part` chooses the problems. `cutest`: unconstrained problems of CUTEst, on
PyTorch (`lm`, and all methods if desired, on JAX with `KERAS_BACKEND=jax`).
`bounded`: problems of CUTEst with bounds, in 5,000 evaluations. `mgh`: the
functions of Moré, Garbow and Hillstrom. `nist`: the nonlinear regressions of
the NIST StRD from both starts. `networks`: small networks in many units.
`float32`: fits that converge, and fits that are stopped early.
"""

import os

# On PyTorch kormos compiles nothing, so a problem only costs its evaluations.
os.environ.setdefault("KERAS_BACKEND", "torch")

import one_thread  # noqa: F401

# isort: split
import math
import pathlib
import sys
import time
import warnings

import claim_findings as findings
import numpy as np
import recording
from claim_findings import Fit
from claim_findings import Second

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests" / "helpers"))

import trials

PARTS = ("cutest", "bounded", "mgh", "nist", "networks", "float32")
OURS = ("lbfgs", "ssbroyden", "dense-bfgs", "ssbfgs")

# A problem is solved at this distance from the best value, as a part of the way
# from the start.
NEAR = 1e-6
RUN = {"max_iterations": 10**6, "max_evals": 10_000}
TRIAL = {"max_iterations": 10**6, "max_evals": 2_000, "max_seconds": 60}
OTHER = "dense-bfgs"
QUICK = 12


def run(case, method, seconds):
    """Runs a method from the standard start, and tries its claim."""
    fit = Fit(case.name, not math.isnan(case.best), "raised")
    losses = []
    begin = time.perf_counter()
    try:
        limits = RUN | {"max_seconds": seconds} | case.limits
        result, end = case.fit(method, case.start, losses, **limits)
    except Exception as error:
        # An error of one method on one problem is a finding, like a status.
        fit.message = first_line(error)
        return fit
    fit.seconds = time.perf_counter() - begin
    fit.status, fit.success = result.status, result.success
    fit.first, fit.loss = result.initial_loss, result.loss
    fit.evaluations = result.evaluations
    fit.products = result.hessian_products
    fit.message = result.message
    fit.solved = evaluations_to_solve(case, result, losses)
    if fit.success:
        attempt(case, method, fit, end)
    return fit


def evaluations_to_solve(case, result, losses):
    """Evaluations until the loss was near the best value, or infinity."""
    first = result.initial_loss
    goal = case.best + NEAR * (first - case.best)
    counts = range(1, len(losses) + 1)
    if not losses:
        # Only the losses of accepted iterates are known.
        losses = [first, *result.history.get("loss", [])]
        counts = [1, *result.history.get("fg_evals", [])]
    reached = np.flatnonzero(np.array(losses) <= goal)
    return counts[reached[0]] if len(reached) else math.inf


def attempt(case, method, fit, end):
    """Tries a claim from its end."""
    rounding = case.rounding(end)
    fit.allowed = trials.gain_allowed(case.value(end), rounding, fit.first)
    fit.second, fit.same = run_from(case, method, end, fit)
    fit.other = fit.same
    if method != OTHER:
        _, fit.other = run_from(case, OTHER, end, fit)
    if method != "lm" and case.has_residuals:
        _, fit.by_lm = run_from(case, "lm", end, fit)


def run_from(case, method, end, fit):
    """Makes a fresh run from an end: a `Second`, and its gain."""
    try:
        result, after = case.fit(method, end, **TRIAL | case.limits)
    except Exception as error:
        fit.message += f" Then {method} raised {first_line(error)}"
        return Second("raised", False, 0), math.nan
    gain = case.value(end) - case.value(after)
    return Second(result.status, result.success, result.evaluations), gain


def first_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0]


def campaign(record, part, cases, methods, seconds):
    """Runs methods on problems, and tabulates."""
    found = {}
    for method in methods:
        fits = found[method] = []
        for case in cases:
            if method == "lm" and not case.has_residuals:
                continue
            fits.append(run(case, method, seconds))
            print(
                findings.described(method, fits[-1]),
                file=sys.stderr,
                flush=True,
            )
        rows = [fit.row() for fit in fits]
        record.table(f"{part}: {method}", findings.COLUMNS, rows)
    rows = [findings.summary(method, fits) for method, fits in found.items()]
    rows.append(findings.best_of(found))
    record.table(f"{part}: methods", findings.SUMMARY, rows)
    columns = ["method", "not solved", "false claims"]
    rows = [findings.names(method, fits) for method, fits in found.items()]
    record.table(f"{part}: by name", columns, rows)


def cases_of(part):
    if part in ("cutest", "bounded"):
        import cutest

        return cutest.cases("unconstrained" if part == "cutest" else part)
    import claim_cases

    return getattr(claim_cases, f"{part}_cases")()


def main():
    parser = recording.parser(__doc__)
    parser.add_argument("--part", choices=PARTS, default="cutest")
    parser.add_argument("--methods", nargs="+", default=OURS)
    parser.add_argument("--problems", nargs="+", help="their names")
    parser.add_argument("--seconds", type=float, default=60, help="of a run")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    record = recording.Record(f"claims-{args.part}", __doc__, args)
    if args.part == "float32":
        import float32_fits

        float32_fits.study(record, args.methods, args.quick)
        return
    cases = cases_of(args.part)
    if args.problems:
        cases = [case for case in cases if case.name in args.problems]
    step = max(1, len(cases) // QUICK) if args.quick else 1
    campaign(record, args.part, cases[::step], args.methods, args.seconds)


if __name__ == "__main__":
    main()
