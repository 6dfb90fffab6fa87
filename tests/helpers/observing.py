"""An observer for a solver that runs without a session."""

import types


def watch(report):
    """An `Observer` that calls a function with every point.

    Args:
        report: function `(theta, loss, grad)` that returns whether to stop.
    """
    return types.SimpleNamespace(
        started=lambda point: report(*point),
        accepted=lambda iterate: report(*iterate[:3]),
    )
