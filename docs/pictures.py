"""Pictures for light and for dark pages, with one colour for kormos."""

import contextlib
import pathlib

import matplotlib.pyplot as plt
from matplotlib import colors
from matplotlib.figure import Figure

# Contrasts of 3 and more against white and against the dark page.
OURS = "#D1570A"
OURS_TOO = ("#0A7EC2", "#B0478F", "#17876D")
OTHERS = ("#7A7A7A", "#8A8058", "#6A7F99", "#96727A")

# Ink and lines of the two pages; both are transparent.
INKS = {"light": "#24292F", "dark": "#CED6DD"}
GRIDS = {"light": "#E3E6E8", "dark": "#333B44"}


def recolour(figure, scheme):
    """Gives a figure the ink of a page; colours of curves stay."""
    ink, grid = INKS[scheme], GRIDS[scheme]
    figure.patch.set_alpha(0)
    texts = [figure._suptitle] if figure._suptitle else []
    for axis in figure.axes:
        axis.patch.set_alpha(0)
        axis.tick_params(which="both", color=ink, labelcolor=ink)
        texts += [axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts]
        texts += [axis.xaxis.offsetText, axis.yaxis.offsetText]
        for spine in axis.spines.values():
            spine.set_color(ink)
        for line in (*axis.get_xgridlines(), *axis.get_ygridlines()):
            line.set_color(grid)
        for line in axis.lines:
            if is_ink(line.get_color()):
                line.set_color(ink)
        legend = axis.get_legend()
        if legend:
            legend.get_frame().set(alpha=0)
            texts += legend.get_texts()
            for handle in legend.get_lines():
                if is_ink(handle.get_color()):
                    handle.set_color(ink)
    for text in texts:
        if is_ink(text.get_color()):
            text.set_color(ink)


def is_ink(colour):
    """Whether it is black, or the ink that another page was given."""
    inks = {colors.to_hex(c) for c in ("black", *INKS.values())}
    return colors.to_hex(colour) in inks


def save(figure, path, **options):
    """Writes `name-light` and `name-dark` beside one another."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for scheme in INKS:
        recolour(figure, scheme)
        figure.savefig(
            path.with_stem(f"{path.stem}-{scheme}"),
            metadata={"Date": None} if path.suffix == ".svg" else None,
            **options,
        )
    plt.close(figure)


@contextlib.contextmanager
def style():
    """Text of SVG as text, with names that are the same in every run."""
    with plt.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "kormos", "font.size": 11}
    ):
        yield


def markdown(path, about, classes=""):
    """Both pictures in MyST; the page shows the one that suits it."""
    path = pathlib.PurePosixPath(path)
    return "\n\n".join(
        f"![{about}]({path.with_stem(f'{path.stem}-{scheme}')})"
        f"{{.only-{scheme}{classes}}}"
        for scheme in INKS
    )


# Curves of other libraries, and what a curve is compared with.
PEERS = ("Adam", "jaxopt", "optax", "TFP", "torch", "SciPy", "true")


def stand_out(figure):
    """Gives our curves the strong colors, and others thin grey ones."""
    for axis in figure.axes:
        lines = [line for line in axis.lines if not is_ink(line.get_color())]
        peers = [n for n in lines if any(p in n.get_label() for p in PEERS)]
        ours = [line for line in lines if line not in peers]
        for i, line in enumerate(ours):
            strong = (OURS, *OURS_TOO)
            line.set(color=strong[i % len(strong)], linewidth=2.2)
        for i, line in enumerate(peers):
            line.set(color=OTHERS[i % len(OTHERS)], linewidth=1.3)
        legend = axis.get_legend()
        if legend and lines:
            # A legend copies the colors that it finds.
            axis.legend(frameon=False)


def write_both():
    """Makes `savefig` of a script write the pictures of both pages."""
    original = Figure.savefig

    def savefig(figure, path, **options):
        stand_out(figure)
        Figure.savefig = original
        with style():
            save(figure, path, **options)
        Figure.savefig = savefig

    Figure.savefig = savefig
