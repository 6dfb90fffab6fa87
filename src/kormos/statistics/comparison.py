"""`kormos.compare`: several models of the same data, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

import numpy as np
import scipy.stats

from kormos import markup
from kormos.optional import pandas_module
from kormos.statistics import tables
from kormos.statistics.summary import Summary

if TYPE_CHECKING:
    import pandas

# The headings of the columns, besides the model's name.
_HEADS = {
    "parameters": "parameters",
    "log_likelihood": "log-lik.",
    "aic": "AIC",
    "aicc": "AICc",
    "bic": "BIC",
    "ratio": "LR",
    "ratio_p_value": "P(LR)",
    "f": "F",
    "f_p_value": "P(F)",
}


@dataclasses.dataclass(frozen=True)
class ComparedModel:
    """One of the compared models.

    Attributes:
        name: Its name.
        parameters: The number of parameters that the data determine.
        log_likelihood: The log-likelihood.
        aic: Akaike's information criterion.
        aicc: The same, corrected for a small number of observations.
        bic: The Bayesian information criterion.
        ratio: The likelihood-ratio statistic of the model above, which has
            fewer parameters, against this one. NaN for the first model.
        ratio_p_value: The p-value of `ratio`, by the chi-squared distribution.
        f: The F statistic of the model above against this one. NaN unless both
            are fits of squared errors.
        f_p_value: The p-value of `f`.
    """

    name: str
    parameters: float
    log_likelihood: float
    aic: float
    aicc: float
    bic: float
    ratio: float
    ratio_p_value: float
    f: float
    f_p_value: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Several models of the same data; `print` shows them as a table.

    Attributes:
        models: Tuple of `ComparedModel`s, in the order of their numbers of
            parameters.
    """

    models: tuple[ComparedModel, ...]

    @property
    def best(self) -> str:
        """The name of the model with the lowest AICc."""
        return min(self.models, key=lambda model: model.aicc).name

    def to_frame(self) -> pandas.DataFrame:
        """Returns the table as a pandas `DataFrame` with one row per model.

        Raises:
            ImportError: If pandas is not installed.
        """
        pandas = pandas_module()
        rows = [dataclasses.asdict(model) for model in self.models]
        return pandas.DataFrame(rows).set_index("name")

    def __str__(self) -> str:
        return tables.aligned(self._rows())

    def _repr_html_(self) -> str:
        head, *rows = self._rows()
        return markup.table(head, rows)

    def _rows(self) -> list[list[str]]:
        """The cells of the table, beginning with the headings."""
        rows = [["", *_HEADS.values()]]
        for model in self.models:
            numbers = [getattr(model, name) for name in _HEADS]
            cells = [tables.number(value) for value in numbers]
            rows.append([model.name, *("" if c == "nan" else c for c in cells)])
        return rows


def compare(
    summaries: Sequence[Summary] | Mapping[str, Summary],
) -> Comparison:
    """Compares models of the same data by their summaries.

    AIC, AICc and BIC can compare any models of the same data. The
    likelihood-ratio test and the F test compare each model with the one above
    it in the table. They are valid only if that model is nested, which means
    that it is this model with some parameters fixed.

    Sources of the criteria: Akaike, IEEE Trans. Automatic Control 19 (1974);
    Hurvich and Tsai, Biometrika 76 (1989), for AICc; Schwarz, The Annals of
    Statistics 6 (1978), for BIC.

    Args:
        summaries: List of `Summary`s, or a dict that maps names to them.

    Returns:
        A `kormos.statistics.comparison.Comparison`.

    Raises:
        ValueError: If there are fewer than two summaries, if their numbers of
            observations differ, or if the loss of one is not a likelihood.

    Example:

    ```python
    b = keras.Variable([0.0, 1.0, 0.0])

    def residual_fn(data):
        return b[0] + b[1] * data["x"] + b[2] * data["x"] ** 2 - data["y"]

    curve = kormos.least_squares(residual_fn, [b], data={"x": x, "y": y})
    curve = curve.summary()
    b.assign([0.0, 1.0, 0.0])
    line = kormos.least_squares(
        residual_fn, [b], data={"x": x, "y": y}, fixed=[(b, [2])]
    )
    print(kormos.compare({"line": line.summary(), "curve": curve}))
    ```
    """
    if not isinstance(summaries, Mapping):
        summaries = {f"model {i + 1}": s for i, s in enumerate(summaries)}
    _check(summaries)
    order = sorted(summaries.items(), key=lambda item: item[1].parameters)
    smaller: Summary | None = None
    models = []
    for name, summary in order:
        models.append(_compared(name, summary, smaller))
        smaller = summary
    return Comparison(tuple(models))


def _check(summaries: Mapping[str, Any]) -> None:
    others = [s for s in summaries.values() if not isinstance(s, Summary)]
    if len(summaries) < 2 or others:
        raise ValueError(
            "Argument `summaries` must hold two or more summaries, of "
            "`kormos.summary` or of a result. "
            f"Received: {others[0] if others else len(summaries)!r}"
        )
    counts = {s.observations for s in summaries.values()}
    if len(counts) > 1:
        raise ValueError(
            "Only models of the same data can be compared. Received: "
            f"summaries of {sorted(counts)} observations"
        )
    for name, summary in summaries.items():
        if np.isnan(summary.log_likelihood):
            raise ValueError(
                "Models are compared by their likelihoods: state that a loss "
                "is one by `loss='nll'`. Received: a summary of "
                f"{name}, whose loss is not one ({summary.likelihood})"
            )


def _compared(
    name: str, summary: Summary, smaller: Summary | None
) -> ComparedModel:
    """A model, compared with one that has fewer parameters."""
    ratio = ratio_p = f = f_p = np.nan
    if smaller is not None and summary.parameters > smaller.parameters:
        more = summary.parameters - smaller.parameters
        gained = summary.log_likelihood - smaller.log_likelihood
        ratio = 2 * gained
        ratio_p = float(scipy.stats.chi2.sf(ratio, more))
        saved = smaller.residual_squares - summary.residual_squares
        left = summary.degrees_of_freedom
        if left > 0 and summary.residual_squares > 0:
            f = (saved / more) / (summary.residual_squares / left)
            f_p = float(scipy.stats.f.sf(f, more, left))
    return ComparedModel(
        name,
        summary.parameters,
        summary.log_likelihood,
        summary.aic,
        summary.aicc,
        summary.bic,
        float(ratio),
        ratio_p,
        float(f),
        f_p,
    )
