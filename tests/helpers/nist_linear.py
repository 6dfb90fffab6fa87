"""Linear regressions of the NIST StRD, whose matrices are badly conditioned.

Data and certified values are those of the pages Longley, Filip, Wampler1 to
Wampler5 of https://www.itl.nist.gov/div898/strd/lls/lls.shtml.
"""

import json
import pathlib
from typing import NamedTuple

import numpy as np

_FILE = pathlib.Path(__file__).parent / "tables" / "nist_linear.json"


class Problem(NamedTuple):
    """A linear regression and its certified solution.

    Attributes:
        name: the name of the data set.
        design: the regressors, the constant first.
        y: the response.
        certified: the certified parameters.
        deviations: their certified standard deviations.
        deviation: the certified residual standard deviation.
        r_squared: the certified R2.
    """

    name: str
    design: np.ndarray
    y: np.ndarray
    certified: np.ndarray
    deviations: np.ndarray
    deviation: float
    r_squared: float


def problems():
    given = json.loads(_FILE.read_text())["problems"]
    return [_problem(fields) for fields in given]


def _problem(fields):
    x = np.asarray(fields["x"], "float64")
    if x.ndim == 1:
        # The model is a polynomial with as many terms as parameters.
        design = x[:, None] ** np.arange(len(fields["certified"]))
    else:
        design = np.column_stack([np.ones(len(x)), x])
    return Problem(
        fields["name"],
        design,
        np.asarray(fields["y"], "float64"),
        np.asarray(fields["certified"]),
        np.asarray(fields["deviations"]),
        fields["deviation"],
        fields["r_squared"],
    )
