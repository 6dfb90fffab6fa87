"""Lists Keras' classes for the tests that try all of them, and fits models."""

import inspect
import warnings

import numpy as np

import kormos

ROWS, EPOCHS = 6, 2
TOLERANCE = 2e-5

# The rounding of residuals of float32 outputs, relative to those at the start.
ROUNDING = 5e-7


def classes(module, base):
    """`{name: class}` of a module's public classes, without their aliases."""
    found = {}
    for name, kind in sorted(vars(module).items()):
        if inspect.isclass(kind) and issubclass(kind, base):
            found.setdefault(kind, []).append(name)
    return {
        kind.__name__ if kind.__name__ in names else names[0]: kind
        for kind, names in found.items()
    }


def needs(kind):
    """The required arguments of a class."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())
    return [
        p.name
        for p in parameters[1:]
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]


def draw_weights(model, seed=0):
    """Draws the same weights on every backend."""
    random = np.random.RandomState(seed)
    for v in model.trainable_variables:
        v.assign(random.normal(0.0, 0.5, v.shape))


def assert_agrees(actual, expected, start):
    # If a fit has reached zero, the residuals are only rounding, and the loss
    # may differ by their squares.
    residual = ROUNDING * abs(start) ** 0.5
    rounding = residual * (2 * abs(expected) ** 0.5 + residual)
    assert abs(actual - expected) <= TOLERANCE * abs(expected) + rounding, (
        f"{actual} is not {expected}, which `evaluate` says"
    )


def fit(model, x, y, method, epochs=EPOCHS, **kwargs):
    """Checks that a fit's losses are those of `evaluate`; returns both."""

    def evaluate():
        return model.evaluate(x, y, verbose=0, return_dict=True, **kwargs)

    before = evaluate()["loss"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kormos.ConvergenceWarning)
        history = kormos.fit(
            model, x, y, optimizer=method, epochs=epochs, verbose=0, **kwargs
        )
    after = evaluate()
    assert_agrees(history.result.initial_loss, before, before)
    assert_agrees(history.history["loss"][-1], after["loss"], before)
    assert after["loss"] < before
    return history, after


def refuses(error, *names):
    """Whether an error is kormos' own and names the layer or the loss."""
    frames = inspect.getinnerframes(error.__traceback__)
    message = str(error).lower().replace("_", "")
    return (
        isinstance(error, (ValueError, NotImplementedError))
        and "kormos" in frames[-1].filename
        and any(name.lower() in message for name in names)
    )
