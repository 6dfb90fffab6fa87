"""How far a damped Gauss-Newton step goes: two ways to choose."""

# By these the radius changes: where the model is as good as exact, at any
# other accepted step, and where the loss does not fall.
_EXACT, _LONGER, _SHORTER = 2.0, 1.5, 0.7
# Parameters that are no longer than this part of the residuals, both scaled,
# do not say how far to go.
_TINY = 1e-3
# The part of its promise that an exact model keeps.
_KEPT = 0.9
# After so many steps in vain, or a bent one, the radius falls faster.
_PATIENCE, _MUCH_SHORTER = 3, 0.5


class TrustRadius:
    """The longest step that the model of the loss is trusted for.

    As in MINPACK's `lmder` (Moré 1978), but for how it changes: each accepted
    step makes it a little longer, and each that does not lower the loss a
    little shorter. On networks the best radius changes slowly, and a trial is
    cheap beside a factorization: halving and doubling it, as MINPACK does,
    ends on losses several times as high after as many iterations. The first is
    the scaled length of the parameters, or that of the residuals where the
    parameters are zero or tiny beside it.

    Args:
        radius: the radius, or zero to begin.
        damping: the damping of the latest step, from which to search.
    """

    def __init__(self, radius=0.0, damping=0.0):
        self.radius = float(radius)
        self.damping = float(damping)
        self._rejected = 0

    def begin(self, model, theta, loss):
        if self.radius == 0:
            residuals = (2 * abs(loss)) ** 0.5
            self.radius = model.scaled(theta)
            if self.radius <= _TINY * residuals:
                self.radius = residuals or 1.0

    def step(self, model):
        step = model.within(self.radius, self.damping)
        self.damping = step.damping
        return step

    def shorten(self, step):
        """Told that a step is too bent."""
        self._scale(step, _MUCH_SHORTER)

    def reject(self, step, is_wild):
        """Told that a step did not lower the loss, or raised it far."""
        self._rejected += 1
        factor = _SHORTER if self._rejected <= _PATIENCE else _MUCH_SHORTER
        self._scale(step, 0.1 if is_wild else factor)

    def accept(self, step, ratio):
        """Told by which part of the promise a step lowered the loss."""
        self._rejected = 0
        is_exact = ratio >= _KEPT or step.damping == 0
        self.radius = (_EXACT if is_exact else _LONGER) * step.length

    def _scale(self, step, factor):
        self.radius = factor * min(self.radius, step.length)

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

    def begin(self, model, theta, loss):
        del model, theta, loss

    def step(self, model):
        return model.damped(self.damping * self._unit)

    def shorten(self, step):
        self.reject(step, False)

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
