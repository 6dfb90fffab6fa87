"""Makes the gallery's pages: runs the examples and keeps what they show.

KERAS_BACKEND=jax python docs/make_gallery.py [NAME ...]
"""

import ast
import os
import pathlib
import subprocess
import sys

import pictures

HERE = pathlib.Path(__file__).parent
GALLERY = HERE / "gallery"
EXAMPLES = HERE.parent / "examples"
# Another page has these.
OTHERS = ("quickstart", "many_processes")
# Runs a script with a figure's `savefig` that writes both pictures.
RUNNER = """
import runpy, sys
import pictures
pictures.write_both()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(path):
    """What the example prints; its plots go to the gallery."""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUNNER]
        + [str(path), "--out", str(GALLERY)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ
        | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": search_path()},
    )
    lines = [
        line
        for line in found.stdout.splitlines()
        if not line.startswith("Plot: ")
    ]
    return "\n".join(lines)


def search_path():
    earlier = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(HERE), *([earlier] if earlier else [])])


def page(path, printed):
    source = path.read_text()
    about = ast.get_docstring(ast.parse(source))
    title, _, text = about.partition("\n")
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    text, _, command = text.strip().rpartition("\n\n")
    return "\n".join(
        [
            f"# {title.rstrip('.')}",
            "",
            text,
            "",
            pictures.markdown(
                f"{path.stem}.png", f"What {path.name} draws, as described here"
            ),
            "",
            "## Run it",
            "",
            f"```sh\n{command.strip()}\n```",
            "",
            f"With `KERAS_BACKEND={backend}` it prints:",
            "",
            f"```text\n{printed}\n```",
            "",
            f"## The script, `examples/{path.name}`",
            "",
            f"```python\n{source}```",
            "",
        ]
    )


def main():
    names = sys.argv[1:] or [
        p.stem for p in EXAMPLES.glob("*.py") if p.stem not in OTHERS
    ]
    GALLERY.mkdir(exist_ok=True)
    for name in sorted(names):
        path = EXAMPLES / f"{name}.py"
        (GALLERY / f"{name}.md").write_text(page(path, run(path)))
        print(name, flush=True)


if __name__ == "__main__":
    main()
