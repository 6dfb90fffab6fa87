"""Makes a page and its plots of what the benchmarks recorded.

python benchmarks/report.py benchmarks/results docs/performance
"""

import argparse
import json
import pathlib
import re

import matplotlib
import recording

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# The order of the page; what is not named here comes last.
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
    "overhead",
    "repeated-jax",
    "repeated-tensorflow",
)
STYLES = ("-", "--", "-.", ":")
HEAD = """# Performance

Every figure on this page is what the scripts of `make bench` (and, in another
hour and a half, `benchmarks/raissi.py` and `benchmarks/pinns.py` with `--long`
and `--smooth`) printed on the machine named below, each in a process of its own
on one core and one thread, two at a time; those of `make bench` with a malloc
that [keeps its memory](faq.md#why-do-iterations-vary-in-time). Times of tens of
milliseconds vary by a fifth from run to run.

## Where others are ahead

- **The first calls.** A compiled loop takes some seconds to compile, once for a
  model or a function and [its
  shapes](faq.md#when-is-something-compiled) (and once for all where the backend
  [keeps it](faq.md#why-does-the-first-iteration-take-seconds)); SciPy around a
  compiled gradient starts sooner, and is done sooner where a whole fit takes
  less than that: see the seconds of the NIST problems, which are of first
  calls.
- **Short runs of small networks.** A fit has some milliseconds of set-up, and a
  memory of 100 pairs costs more an iteration than one of 10: optax and jaxopt
  reach the first losses of the 11 x 11 grid sooner, and jaxopt those of the
  digits; so does TFP on the grid in float32.
- **Smooth functions of a few parameters.** On the test functions SciPy's BFGS
  takes the fewest evaluations most often.
- **PyTorch.** kormos runs eagerly there, and its logic costs more than that of
  `torch.optim.LBFGS` on small networks; it takes fewer evaluations.
- **Convolutions.** SciPy's L-BFGS-B around a compiled gradient is as fast, and
  faster on TensorFlow and PyTorch.
- **Many outputs a row.** On the digits `"lm"` takes longer than `"lbfgs"` and
  reaches less.
"""


def load(folder):
    records = [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]
    return sorted(records, key=lambda r: (rank(r["name"]), r["name"]))


def rank(name):
    return ORDER.index(name) if name in ORDER else len(ORDER)


def slug(*parts):
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def plot(curves, path):
    plt.style.use("seaborn-v0_8-colorblind")
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    colors = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    options = curves["options"]
    # Ours above the others.
    names = sorted(curves["series"], key=lambda name: "kormos" in name)
    for i, name in enumerate(names):
        axes.plot(
            *curves["series"][name],
            label=name,
            color=colors[i % len(colors)],
            linestyle=STYLES[i // len(colors) % len(STYLES)],
            linewidth=2.5 if "kormos" in name else 1.5,
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
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path)
    plt.close(figure)


def section(record, folder, is_new):
    """A record in Markdown; what it is about, if no other one said so."""
    title, _, text = record["about"].strip().partition("\n")
    _, _, case = record["name"].rpartition("-")
    case = f" ({case})" if case in ("jax", "tensorflow", "torch") else ""
    lines = [f"## {title.rstrip('.')}{case}", ""]
    if is_new:
        lines += [text.strip(), ""]
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    for curves in record["curves"]:
        name = f"{slug(record['name'], curves['title'])}.svg"
        plot(curves, folder / name)
        lines += [f"![{curves['title']}]({folder.name}/{name})", ""]
        if curves["note"]:
            lines += [curves["note"], ""]
    for table in record["tables"]:
        lines += [recording.markdown(table), ""]
    quick = " (a quick run, of small sizes)" if record["quick"] else ""
    lines += [f"*{record['name']}{quick}, {record['date']}: {versions}.*", ""]
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
    machines = " ".join(sorted({f"{r['machine']}." for r in records}))
    parts = [HEAD, machines, ""]
    told = set()
    for record in records:
        parts.append(section(record, args.page, record["about"] not in told))
        told.add(record["about"])
    args.page.with_suffix(".md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
