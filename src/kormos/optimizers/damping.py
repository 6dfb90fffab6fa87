"""How far a damped Gauss-Newton step goes: two ways to choose."""


class TrustRadius:
    """The longest step that the model of the loss is trusted for.

    MINPACK's `lmder` (Moré 1978): the radius halves where the loss falls by
    less than a quarter of what the model promises and doubles where by more
    than three quarters. The first is the scaled length of the parameters.

    Args:
        radius: the radius, or zero to begin.
        damping: the damping of the latest step, from which to search.
    """

    def __init__(self, radius=0.0, damping=0.0):
        self.radius = float(radius)
        self.damping = float(damping)

    def begin(self, model, theta):
        if self.radius == 0:
            self.radius = model.scaled(theta) or 1.0

    def step(self, model):
        step = model.within(self.radius, self.damping)
        self.damping = step.damping
        return step

    def reject(self, step, is_wild):
        """Told that a step did not lower the loss, or is too bent."""
        factor = 0.1 if is_wild else 0.5
        self.radius = factor * min(self.radius, step.length)

    def accept(self, step, ratio):
        """Told by which part of the promise a step lowered the loss."""
        if ratio < 0.25:
            self.radius = 0.5 * min(self.radius, step.length)
        elif step.damping == 0:
            self.radius = 2 * step.length
        elif ratio >= 0.75:
            self.radius = max(self.radius, 2 * step.length)

    @property
    def is_exhausted(self):
        return self.radius < 1e-300

    def logs(self):
        return {"damping": self.damping, "radius": self.radius}


class Multiplicative:
    """A damping that grows by a factor and falls by one: `trainlm`'s mu.

    Args:
        mu: the damping of J'J of the errors, or zero to begin.
        unit: by what mu is multiplied for the matrix at hand.
        first, increase, decrease, most: as in `trainlm`.
    """

    def __init__(
        self, mu, unit, first=1e-3, increase=10.0, decrease=0.1, most=1e10
    ):
        self.damping = float(mu) or first
        self.radius = 0.0
        self._unit = unit
        self._increase = increase
        self._decrease = decrease
        self._most = most

    def begin(self, model, theta):
        del model, theta

    def step(self, model):
        return model.damped(self.damping * self._unit)

    def reject(self, step, is_wild):
        del step, is_wild
        self.damping *= self._increase

    def accept(self, step, ratio):
        del step, ratio
        self.damping *= self._decrease

    @property
    def is_exhausted(self):
        return self.damping > self._most

    def logs(self):
        return {"damping": self.damping}
