"""Why a run of an optimizer ended."""

CONVERGED = "converged"
NOISE_FLOOR = "noise floor"
ITERATION_LIMIT = "iteration limit"
EVALUATION_LIMIT = "evaluation limit"
TIME_LIMIT = "time limit"
TARGET_REACHED = "target reached"
STOPPED_BY_CALLBACK = "stopped by callback"
PLATEAU = "plateau"
INTERRUPTED = "interrupted"
LINE_SEARCH_FAILED = "line search failed"
STALLED = "stalled"
UNBOUNDED = "unbounded"
INFEASIBLE = "infeasible"
NON_FINITE = "non-finite"

# Advice for the user, if it follows from the status alone.
ADVICE = {
    ITERATION_LIMIT: (
        "To continue, give more `epochs` (`max_iterations` in "
        "`kormos.minimize`)."
    ),
    EVALUATION_LIMIT: "To continue, raise the limit on evaluations.",
    TIME_LIMIT: "To continue, give more `max_seconds`.",
    NON_FINITE: "The loss or its gradient is NaN or infinite.",
}

# Ends at an optimum: by a tolerance, or by the rounding of the loss.
SUCCESSES = (CONVERGED, NOISE_FLOOR)

# Ends at a limit of time or of evaluations.
LIMITS = (TIME_LIMIT, EVALUATION_LIMIT)

# Statuses without a warning: the end is right, or the user has asked for it.
QUIET = (
    *SUCCESSES,
    TARGET_REACHED,
    STOPPED_BY_CALLBACK,
    PLATEAU,
    INTERRUPTED,
)

# With these statuses, a run in a wider dtype may get further.
WIDENING = (
    CONVERGED,
    NOISE_FLOOR,
    LINE_SEARCH_FAILED,
    STALLED,
    NON_FINITE,
)

# After these statuses, no other run of the same fit follows.
FINAL = (
    INTERRUPTED,
    NON_FINITE,
    TARGET_REACHED,
    TIME_LIMIT,
    EVALUATION_LIMIT,
)
