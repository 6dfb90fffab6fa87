"""`Report`: what `kormos.check` has found, as an object that prints."""

import dataclasses
import io
from collections.abc import Sequence

from rich.box import Box
from rich.console import Console
from rich.table import Table

from kormos import markup

# Characters of a line. Our choice: most terminals and notebooks have room for
# it.
_WIDTH = 88

# A table with a line below its headings, of characters that all terminals have.
_PLAIN = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)

_TEST_HEADS = ("test", "", "found")
_COST_HEADS = ("method", "time", "memory", "remark")


@dataclasses.dataclass(frozen=True)
class Finding:
    """The outcome of one test of an objective.

    Attributes:
        test: String, one of `"shapes"`, `"deterministic"`, `"batch size"`,
            `"finite"`, `"gradient"`, `"hessian"`, `"variables"`,
            `"identification"`, `"precision"`, `"scaling"` and `"kinks"`.
        passed: Boolean, whether the test has passed.
        detail: String, a sentence that says what was found.
        names: Tuple of the names of the layers, terms of the loss, variables or
            arrays that are concerned.
        is_fatal: Boolean, whether a fit would go wrong for this reason.

    Example:

    ```python
    finding = kormos.check(model, x, y)["gradient"]
    print(finding.passed, finding.detail)
    ```
    """

    test: str
    passed: bool
    detail: str
    names: tuple[str, ...] = ()
    is_fatal: bool = True


@dataclasses.dataclass(frozen=True)
class MethodCost:
    """The estimated cost of one iteration of a method.

    Attributes:
        method: String, the name of the method.
        seconds: Float, the seconds of one iteration.
        memory: Float, the bytes of memory in addition to the data.
        remark: String, what the method is suited for, or why it cannot be used.
        fits: Boolean, whether the method can be used.

    Example:

    ```python
    for cost in kormos.check(model, x, y).costs:
        print(cost.method, cost.seconds)
    ```
    """

    method: str
    seconds: float
    memory: float
    remark: str
    fits: bool = True


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """What `kormos.check` has found; `print` shows it.

    Attributes:
        title: String, the name of the model, with its parameters and rows.
        findings: Tuple of `Finding`s.
        loss: Float, the loss at the start.
        seconds: Float, the seconds of an evaluation of the loss and its
            gradient, the median of several.
        compile_seconds: Float, the additional seconds of the first evaluation.
        memory: Float, the estimated bytes of memory of an evaluation, in
            addition to the data.
        costs: Tuple of `MethodCost`s.
        method: String, the name of the recommended method.
        reason: String, a sentence that says why.

    Example:

    ```python
    report = kormos.check(model, x, y)
    print(report.passed, report.method, report.reason)
    ```
    """

    title: str
    findings: tuple[Finding, ...]
    loss: float
    seconds: float
    compile_seconds: float
    memory: float
    costs: tuple[MethodCost, ...]
    method: str
    reason: str

    @property
    def passed(self) -> bool:
        """Whether all tests have passed."""
        return all(finding.passed for finding in self.findings)

    @property
    def failures(self) -> list[Finding]:
        """The `Finding`s of the tests that have failed."""
        return [f for f in self.findings if not f.passed]

    def __getitem__(self, test: str) -> Finding:
        """The `Finding` of a test, by its name."""
        return next(f for f in self.findings if f.test == test)

    def raise_if_fatal(self) -> None:
        """Raises a `ValueError` if a fit would go wrong."""
        fatal = [f for f in self.failures if f.is_fatal]
        if fatal:
            raise ValueError(
                "The objective cannot be minimized as it is. "
                + " ".join(f"{f.test}: {f.detail}" for f in fatal)
            )

    def __repr__(self) -> str:
        failed = [finding.test for finding in self.failures]
        said = f"look at {', '.join(failed)}" if failed else "all tests passed"
        return f"<Report of {self.title}: {said}; suggested: {self.method!r}>"

    def _repr_html_(self) -> str:
        return "".join(
            [
                markup.paragraph(self.title, is_bold=True),
                markup.table(_TEST_HEADS, self._tests()),
                markup.paragraph(self._said_of_costs()),
                markup.table(_COST_HEADS, self._costs()),
                markup.paragraph(self._suggestion()),
            ]
        )

    def __str__(self) -> str:
        out = io.StringIO()
        # The text is plain even if a notebook or `FORCE_COLOR` asks rich for
        # colors.
        console = Console(
            file=out,
            width=_WIDTH,
            markup=False,
            emoji=False,
            highlight=False,
            color_system=None,
            force_terminal=False,
            force_jupyter=False,
        )
        console.print(self.title)
        console.print(_table(_TEST_HEADS, self._tests()))
        console.print(self._said_of_costs())
        console.print(_table(_COST_HEADS, self._costs()))
        console.print(self._suggestion())
        lines = out.getvalue().splitlines()
        return "\n".join(line.rstrip() for line in lines).strip()

    def _tests(self) -> list[list[str]]:
        """The cells of the table of tests."""
        return [
            [f.test, "ok" if f.passed else "LOOK", f.detail]
            for f in self.findings
        ]

    def _costs(self) -> list[list[str]]:
        """The cells of the table of methods."""
        return [
            [
                cost.method,
                _time(cost.seconds) if cost.fits else "-",
                _bytes(cost.memory) if cost.fits else "-",
                cost.remark,
            ]
            for cost in self.costs
        ]

    def _said_of_costs(self) -> str:
        return (
            f"An evaluation takes {_time(self.seconds)} (the first one "
            f"{_time(self.compile_seconds)} more) and about "
            f"{_bytes(self.memory)}. An iteration, estimated:"
        )

    def _suggestion(self) -> str:
        return f"Suggested: '{self.method}'. {self.reason}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=_PLAIN)
    for head in heads:
        is_number = head in ("time", "memory")
        table.add_column(head, justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
