"""Makes a page and its plots from the records of the benchmarks.

python benchmarks/report.py benchmarks/results docs/performance
"""

import argparse
import json
import pathlib
import re
import sys

import matplotlib
import recording

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.append(str(pathlib.Path(__file__).parents[1] / "docs"))
import pictures

# The order of the page. Records that are not named here come last.
ORDER = (
    "quasi-newton-jax",
    "quasi-newton-tensorflow",
    "quasi-newton-torch",
    "functions-jax",
    "least-squares",
    "pinns",
    "pinns-long",
    "pinns-smooth",
    "raissi",
    "style",
    "scaling",
    "predecessor",
    "newton",
    "overhead",
    "repeated-jax",
    "repeated-tensorflow",
)
STYLES = ("-", "--", "-.", ":")
# Rows of the summary: a description, the place of the figures (record, table
# and column), kormos' row, and whether more is better.
SUMMARY = (
    (
        "NIST's regressions: starts solved to nine digits, of 28",
        ("least-squares", "NIST: starts solved, of 28", "9 digits"),
        "lm",
        True,
    ),
    (
        "A curve, 20,000 rows, by least squares: loss after 50 iterations",
        ("least-squares", "Sinc, 20,000 rows, float64", "loss at 50"),
        "lm",
        False,
    ),
    (
        "The same: milliseconds of an iteration",
        ("least-squares", "Sinc, 20,000 rows, float64", "ms an iteration"),
        "lm",
        False,
    ),
    (
        "A damped oscillator: error after 30 iterations",
        ("least-squares", "A damped oscillator", "error at 30"),
        "lm",
        False,
    ),
    *(
        (
            f"{about}, {backend}: seconds to {loss}",
            (f"quasi-newton-{record}", title, f"seconds to {loss}"),
            "kormos lbfgs",
            False,
        )
        for backend, record in (
            ("JAX", "jax"),
            ("TensorFlow", "tensorflow"),
            ("PyTorch", "torch"),
        )
        for about, title, loss in (
            ("A smooth grid", "grid, float64: 4,417 parameters", "0.001"),
            ("A smooth grid", "grid, float64: 4,417 parameters", "1e-06"),
            ("Random rows", "random, float32: 4,417 parameters", "1e-05"),
            ("A convnet", "convnet, float32: 7,018 parameters", "0.03"),
        )
    ),
    (
        "Ratings, 51,670 parameters, JAX: seconds to 0.001",
        (
            "quasi-newton-jax",
            "ratings, float64: 51,670 parameters",
            "seconds to 0.001",
        ),
        "kormos lbfgs",
        False,
    ),
    (
        "Test functions of few parameters: share with the fewest evaluations",
        ("functions-jax", "Evaluations", "best"),
        "kormos ssbroyden",
        True,
    ),
)
HEAD = """# Performance

This page shows where kormos is ahead of other libraries, and where it is not.
Every figure was printed by a script of `make bench`. Each section ends with the
date, the machine and the versions.
"""
HOW = """
The better result is bold. Each row is one column of a table below.

## Where other libraries are ahead

- **The first call.** A compiled loop takes some seconds to compile, once for
  each model or function and [its shapes](faq.md#when-is-something-compiled), or
  only once if the backend
  [stores it](faq.md#why-does-the-first-iteration-take-seconds). SciPy with a
  compiled gradient starts sooner. It also ends sooner if the whole fit takes
  less time than compiling: see the seconds of the NIST problems, which include
  the first calls.
- **Short runs of small networks.** A fit takes some milliseconds to set up, and
  an iteration with a memory of 100 pairs costs more than one with 10. optax and
  jaxopt reach the first losses of the grid sooner, and also those of the
  digits. So does TFP, but only the first of the digits.
- **Smooth functions of a few parameters.** On the test functions, SciPy's BFGS
  takes the fewest evaluations most often.
- **PyTorch.** On PyTorch, kormos calls the loss as a recorded graph, but its
  own steps are Python code. SciPy's L-BFGS-B with the same graph reaches the
  first losses of the grid sooner, and those of the digits.
- **Convolutions.** SciPy's L-BFGS-B with a compiled gradient is as fast, and
  faster on TensorFlow and PyTorch. On PyTorch, `torch.optim.LBFGS` reaches the
  first loss sooner too.
- **Many outputs for each row.** On the digits, `"lm"` takes longer than
  `"lbfgs"` and does not reach as low a loss.

## How it was measured

Each script ran in its own process, on one core and one thread, and two scripts
ran at a time. Those of `make bench` used a malloc that [keeps its
memory](faq.md#why-does-the-time-of-an-iteration-vary). Times of tens of
milliseconds vary by a fifth from run to run. `make bench` takes twenty minutes;
`benchmarks/raissi.py`, and `benchmarks/pinns.py` with `--long` and `--smooth`,
take an hour and a half more. Figures of different machines cannot be compared.
"""


def load(folder):
    records = [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]
    return sorted(records, key=lambda r: (rank(r["name"]), r["name"]))


def rank(name):
    return ORDER.index(name) if name in ORDER else len(ORDER)


def slug(*parts):
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def is_ours(name, names):
    """Whether a method is kormos': if no name says so, all but Adam are."""
    ours = [n for n in names if "kormos" in n]
    return name in ours if ours else name != "Adam"


def looks(names):
    """The color, dashes and width of each curve; those of kormos stand out."""
    ours = [n for n in names if is_ours(n, names)]
    others = [n for n in names if n not in ours]
    strong = (pictures.OURS, *pictures.OURS_TOO)
    found = {}
    for i, name in enumerate(ours):
        color = strong[i % len(strong)]
        found[name] = color, STYLES[i // len(strong)], 2.5
    for i, name in enumerate(others):
        color = pictures.OTHERS[i % len(pictures.OTHERS)]
        dashes = STYLES[i // len(pictures.OTHERS) % len(STYLES)]
        found[name] = color, dashes, 1.3
    return found


def plot(curves, path):
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    options = curves["options"]
    found = looks(list(curves["series"]))
    # Curves of kormos are above the others.
    for name in reversed(found):
        color, dashes, width = found[name]
        axes.plot(
            *curves["series"][name],
            label=name,
            color=color,
            linestyle=dashes,
            linewidth=width,
            drawstyle=options.get("drawstyle", "default"),
            marker=options.get("marker"),
        )
    axes.set(
        xscale=options.get("xscale", "log"),
        yscale=options.get("yscale", "log"),
        xlabel=curves["x"],
        ylabel=curves["y"],
        title=curves["title"],
        xlim=options.get("xlim"),
    )
    axes.grid(True)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        labels[::-1],
        fontsize="small",
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=2,
        frameon=False,
    )
    pictures.save(figure, path)


def number(text):
    """The number in a cell; infinity for a dash."""
    cells = text.replace(",", "").removesuffix(" %")
    return float("inf") if cells == "–" else float(cells)


def compared(records, place, our_row, more_is_better):
    """kormos' cell, the best of the others, and its name; or `None`."""
    name, title, column = place
    tables = [
        t
        for r in records
        if r["name"] == name
        for t in r["tables"]
        if t["title"] == title
    ]
    if not tables:
        return None
    (table,) = tables
    index = table["columns"].index(column)
    cells = {row[0]: row[index] for row in table["rows"]}
    ours = cells[our_row]
    own = ("kormos", "lm,")
    others = {
        n: c
        for n, c in cells.items()
        if n != our_row and not n.startswith(own) and c != "–"
    }
    if not others:
        return ours, "not reached", "others", True
    best = max if more_is_better else min
    who = best(others, key=lambda n: number(others[n]))
    is_ahead = number(ours) != number(others[who]) and number(ours) == best(
        number(ours), number(others[who])
    )
    return ours, others[who], who, is_ahead


def summary(records):
    lines = ["| measured | kormos | the best of the others |", "|---|---|---|"]
    for about, place, our_row, more_is_better in SUMMARY:
        found = compared(records, place, our_row, more_is_better)
        if found is None:
            continue
        ours, theirs, who, is_ahead = found
        cells = [
            f"{ours} (`{our_row.removeprefix('kormos ')}`)",
            f"{theirs} ({who})",
        ]
        cells[not is_ahead] = f"**{cells[not is_ahead]}**"
        lines.append(f"| {about} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def folded(table):
    """A table that is hidden until a click on its title."""
    _, _, body = recording.markdown(table).partition("\n\n")
    return f":::{{dropdown}} {table['title']}\n{body}\n:::"


def section(record, folder, is_new):
    """A record in Markdown, with its description if that is new."""
    title, _, text = record["about"].strip().partition("\n")
    kinds = {
        "jax": "JAX",
        "tensorflow": "TensorFlow",
        "torch": "PyTorch",
        "long": "longer runs",
        "smooth": "a smoother solution",
    }
    _, _, case = record["name"].rpartition("-")
    case = f" ({kinds[case]})" if case in kinds else ""
    lines = [f"## {title.rstrip('.')}{case}", ""]
    for curves in record["curves"]:
        name = f"{slug(record['name'], curves['title'])}.svg"
        plot(curves, folder / name)
        lines += [
            pictures.markdown(f"{folder.name}/{name}", curves["title"]),
            "",
        ]
        if curves["note"]:
            lines += [curves["note"], ""]
    if is_new:
        lines += [":::{dropdown} What is measured, and how", text.strip()]
        lines += [":::", ""]
    for table in record["tables"]:
        lines += [folded(table), ""]
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    quick = " (a quick run, of small sizes)" if record["quick"] else ""
    origin = f"{record['name']}{quick}, {record['date']}, {record['machine']}"
    lines += [f"*{origin}: {versions}.*", ""]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument(
        "page", type=pathlib.Path, help="without .md: the plots' folder"
    )
    args = parser.parse_args()
    records = load(args.results)
    args.page.mkdir(parents=True, exist_ok=True)
    parts = [HEAD, summary(records), HOW]
    told = set()
    for record in records:
        parts.append(section(record, args.page, record["about"] not in told))
        told.add(record["about"])
    args.page.with_suffix(".md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
