"""A problem under a constraint that records where it is evaluated."""

import keras
import numpy as np
from keras import ops

import kormos
from kormos.objective.bounds import resolve_constraints
from kormos.objective.layout import Packing
from kormos.solvers.problem import Constraint
from observing import watch


def run_recorded(stage):
    """Runs a stage; returns its outcome, and the evaluated points `(count, 2)`.

    It minimizes the sum of squares of two parameters whose sum is one at least,
    from (1, 1), within bounds whose lower ones are 0.7 and -9. The least value
    is at (0.7, 0.3).
    """
    v = keras.Variable(np.full(2, 3.0))
    (constraint,) = resolve_constraints(
        {"type": "ineq", "fun": lambda: ops.sum(v) - 1},
        Packing([v]),
        Constraint,
    )
    points = []

    def recording(x):
        points.append(x.copy())
        return constraint.fun(x)

    objective = kormos.objective.FunctionObjective(lambda: ops.sum(v**2), [v])
    problem = kormos.solvers.problem.Problem(
        objective,
        np.array([0.7, -9.0]),
        np.array([9.0, 9.0]),
        constraints=[constraint._replace(fun=recording)],
    )
    observer = watch(lambda *point: False)
    outcome = stage.run(problem, np.ones(2), None, observer)
    return outcome, np.array(points)
