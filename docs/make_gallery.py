"""Makes the gallery's pages: runs the examples and keeps what they show.

KERAS_BACKEND=jax python docs/make_gallery.py [NAME ...]
"""

import ast
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
GALLERY = HERE / "gallery"
EXAMPLES = HERE.parent / "examples"


def run(path):
    """What the example prints; its plot goes to the gallery."""
    command = [sys.executable, "-W", "ignore", path, "--out", GALLERY]
    found = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    lines = [
        line
        for line in found.stdout.splitlines()
        if not line.startswith("Plot: ")
    ]
    return "\n".join(lines)


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
            f"![What the script draws]({path.stem}.png)",
            "",
            f"```sh\n{command.strip()}\n```",
            "",
            f"On {backend} it prints:",
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
        p.stem for p in EXAMPLES.glob("*.py") if p.stem != "quickstart"
    ]
    GALLERY.mkdir(exist_ok=True)
    for name in sorted(names):
        path = EXAMPLES / f"{name}.py"
        (GALLERY / f"{name}.md").write_text(page(path, run(path)))
        print(name, flush=True)


if __name__ == "__main__":
    main()
