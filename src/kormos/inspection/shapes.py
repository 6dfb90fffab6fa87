"""Whether targets have the shapes of outputs, as a `Finding`."""

from kormos.inspection.report import Finding
from kormos.objective import Objective


def shapes(objective: Objective) -> Finding:
    """Whether Keras would compare a target with several outputs, or more."""
    broadcast = objective.program.model_loss.terms.broadcast
    if not broadcast:
        return Finding(
            "shapes", True, ("Targets have the same shapes as outputs.")
        )
    said = "; ".join(
        f"for {name}, y has rows of shape {targets[1:]} and the output of "
        f"shape {outputs[1:]}"
        for name, targets, outputs in broadcast
    )
    return Finding(
        "shapes",
        False,
        f"Keras compares every target with every output: {said}. Give them "
        "the same shape.",
        tuple(name for name, _, _ in broadcast),
    )
