"""An observer of a solver that is run without a session."""

import types


def watch(report):
    """The `Observer` that tells a function of every point.

    Args:
        report: function `(theta, loss, grad)` that returns whether to stop.
    """
    return types.SimpleNamespace(
        started=lambda point: report(*point),
        accepted=lambda iterate: report(*iterate[:3]),
    )
