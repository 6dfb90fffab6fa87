"""The nonlinear regression problems of the NIST StRD, in `keras.ops`.

Statistical Reference Datasets, itl.nist.gov/div898/strd. Each function returns
the predicted responses, of a float64 vector `b` of parameters and a float64
vector `x` of the predictor.
"""

import json
import math
import pathlib
from typing import NamedTuple

import numpy as np
from keras import ops

_FILE = pathlib.Path(__file__).parent / "tables" / "nist_strd.json"

# The certified values have eleven significant digits.
_MOST_DIGITS = 11


class Problem(NamedTuple):
    """A regression with its starts and its certified solution.

    Attributes:
        name: the name of the data set.
        starts: the two standard starts, the farther one first.
        certified: the certified parameters.
        deviations: their certified standard deviations.
        rss: the certified residual sum of squares.
        x: the predictor.
        y: the response.
    """

    name: str
    starts: list
    certified: list
    deviations: list
    rss: float
    x: list
    y: list

    def residuals(self, b):
        return _MODELS[self.name](b, _constant(self.x)) - _constant(self.y)

    def digits(self, b):
        """The digits of `b` that are right, in the worst parameter."""
        certified = np.asarray(self.certified)
        b = np.asarray(ops.convert_to_numpy(b), dtype="float64")
        error = np.max(np.abs(b - certified) / np.abs(certified))
        return float(-np.log10(np.maximum(error, 10.0**-_MOST_DIGITS)))


def problems():
    given = json.loads(_FILE.read_text())["problems"]
    return [
        Problem(
            name=fields["name"],
            starts=[fields["start1"], fields["start2"]],
            certified=fields["cert"],
            deviations=fields["cert_sd"],
            rss=fields["rss"],
            x=fields["x"],
            y=fields["y"],
        )
        for fields in given
    ]


def _constant(values):
    return ops.convert_to_tensor(np.asarray(values, dtype="float64"))


def saturation(b, x):
    return b[0] * (1 - ops.exp(-b[1] * x))


def chwirut(b, x):
    return ops.exp(-b[0] * x) / (b[1] + b[2] * x)


def eckerle(b, x):
    return b[0] / b[1] * ops.exp(-0.5 * ((x - b[2]) / b[1]) ** 2)


def gauss(b, x):
    first = b[2] * ops.exp(-((x - b[3]) ** 2) / b[4] ** 2)
    second = b[5] * ops.exp(-((x - b[6]) ** 2) / b[7] ** 2)
    return b[0] * ops.exp(-b[1] * x) + first + second


def cubic_ratio(b, x):
    top = b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3
    return top / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3)


def lanczos(b, x):
    first, second = b[0] * ops.exp(-b[1] * x), b[2] * ops.exp(-b[3] * x)
    return first + second + b[4] * ops.exp(-b[5] * x)


def mgh09(b, x):
    return b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3])


def mgh10(b, x):
    return b[0] * ops.exp(b[1] / (x + b[2]))


def misra1c(b, x):
    return b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5)


def rat42(b, x):
    return b[0] / (1 + ops.exp(b[1] - b[2] * x))


def roszman(b, x):
    return b[0] - b[1] * x - ops.arctan(b[2] / (x - b[3])) / math.pi


_MODELS = {
    "BoxBOD": saturation,
    "Chwirut2": chwirut,
    "Eckerle4": eckerle,
    "Gauss1": gauss,
    "Hahn1": cubic_ratio,
    "Lanczos1": lanczos,
    "Lanczos3": lanczos,
    "MGH09": mgh09,
    "MGH10": mgh10,
    "Misra1a": saturation,
    "Misra1c": misra1c,
    "Rat42": rat42,
    "Roszman1": roszman,
    "Thurber": cubic_ratio,
}
