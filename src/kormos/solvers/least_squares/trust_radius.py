"""How far a damped Gauss-Newton step goes: two rules, both a `Damping`."""

from kormos.solvers.least_squares.spectrum import Step
from kormos.solvers.protocols import LocalModel
from kormos.types import Vector

# The radius is multiplied by these: after a step that the model predicted
# nearly exactly, after any other accepted step, and after a rejected one. Our
# choice, from runs on networks and on NIST's regressions, both of which
# `benchmarks/least_squares.py` has. MINPACK halves and doubles the radius. With
# its factors, networks end at losses that are several times higher after the
# same number of iterations, and NIST's regressions take the same number of
# evaluations.
_EXACT, _LONGER, _SHORTER = 2.0, 1.5, 0.7
# A model is nearly exact if this part of the predicted decrease comes true. Our
# choice: MINPACK's `lmder` asks for 0.75.
_NEARLY_EXACT = 0.9
# After this many rejected steps in a row, and after a bent one, the radius is
# halved. Our choice: with a larger number a poor start takes more trials.
_PATIENCE, _MUCH_SHORTER = 3, 0.5
# It is multiplied by this after a wild step, as `lmder` does where residuals
# have grown tenfold.
_WILD = 0.1
# Scaled parameters that are shorter than this part of the residuals do not say
# how long the first step may be. Our choice: it only matters for starts near
# zero.
_SHORT_START = 1e-3
# A radius this close to underflow ends the run.
_LEAST_RADIUS = 1e-300


class TrustRadius:
    """The longest step for which the model of the loss is trusted.

    As in MINPACK's `lmder` (Moré 1978), except for how the radius changes. Each
    accepted step makes it a little longer, and each rejected one a little
    shorter: on networks the best radius changes slowly, and a trial is cheap
    beside a factorization. The first radius is the scaled length of the
    parameters. Where they are zero or tiny, it is the length of the residuals.

    Args:
        radius: the radius, or zero to choose one in `begin`.
        damping: the damping of the latest step, from which to search.
    """

    def __init__(self, radius: float = 0.0, damping: float = 0.0):
        self.radius = float(radius)
        self.damping = float(damping)
        self._rejected = 0
        self.is_guess = False

    def begin(self, model: LocalModel, theta: Vector, loss: float) -> None:
        if self.radius == 0:
            residuals = (2 * abs(loss)) ** 0.5
            self.radius = model.scaled(theta)
            if self.radius <= _SHORT_START * residuals:
                self.radius = residuals or 1.0
                self.is_guess = bool(theta.any())

    def step(self, model: LocalModel) -> Step:
        step = model.within(self.radius, self.damping)
        self.damping = step.damping
        return step

    def shorten(self, step: Step) -> None:
        self._multiply(step, _MUCH_SHORTER)

    def reject(self, step: Step, is_wild: bool) -> None:
        self._rejected += 1
        factor = _SHORTER if self._rejected <= _PATIENCE else _MUCH_SHORTER
        self._multiply(step, _WILD if is_wild else factor)

    def accept(self, step: Step, ratio: float) -> None:
        self._rejected = 0
        self.is_guess = False
        is_exact = ratio >= _NEARLY_EXACT or step.damping == 0
        self.radius = (_EXACT if is_exact else _LONGER) * step.length

    def _multiply(self, step: Step, factor: float) -> None:
        self.radius = factor * min(self.radius, step.length)

    @property
    def is_exhausted(self) -> bool:
        return self.radius < _LEAST_RADIUS

    def logs(self) -> dict[str, float]:
        return {"damping": self.damping, "radius": self.radius}


class Multiplicative:
    """A damping that is multiplied by constants: mu of MATLAB's `trainlm`.

    Args:
        mu: the damping of J'J of the errors, or zero to begin with `first`.
        unit: what mu is multiplied by, because the matrix is not J'J of the
            errors but that times a constant.
        first, increase, decrease, most: `trainlm`'s `mu`, `mu_inc`, `mu_dec`
            and `mu_max`, with its defaults.

    Attributes:
        unit: the present unit, which may change from step to step.
    """

    def __init__(
        self,
        mu: float,
        unit: float,
        first: float = 1e-3,
        increase: float = 10.0,
        decrease: float = 0.1,
        most: float = 1e10,
    ):
        self.damping = float(mu) or first
        self.radius = 0.0
        self.is_guess = False
        self.unit = unit
        self._increase = increase
        self._decrease = decrease
        self._most = most

    def begin(self, model: LocalModel, theta: Vector, loss: float) -> None:
        del model, theta, loss

    def step(self, model: LocalModel) -> Step:
        return model.damped(self.damping * self.unit)

    def shorten(self, step: Step) -> None:
        self.reject(step, False)

    def reject(self, step: Step, is_wild: bool) -> None:
        del step, is_wild
        self.damping *= self._increase

    def accept(self, step: Step, ratio: float) -> None:
        del step, ratio
        self.damping *= self._decrease

    @property
    def is_exhausted(self) -> bool:
        return self.damping > self._most

    def logs(self) -> dict[str, float]:
        return {"damping": self.damping}
