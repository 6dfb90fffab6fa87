"""Makes a Jupyter notebook of a page: its text, its code, what that prints."""

import json
import pathlib
import re

FENCE = re.compile(r"```(python|text)\n(.*?)```\n", re.DOTALL)
PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)\{[^}]*\}\n*")
DOWNLOAD = re.compile(r"\{download\}`[^`]*`\. ")
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


def lines(text):
    return text.strip("\n").splitlines(keepends=True)


def text_cell(text):
    """Pictures and pages lie on the site, not beside the notebook."""
    for pattern, put in ((PICTURE, ""), (DOWNLOAD, ""), (LINK, r"\1")):
        text = pattern.sub(put, text)
    return {"cell_type": "markdown", "metadata": {}, "source": lines(text)}


def code_cell(code):
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "outputs": [],
        "source": lines(code),
    }


def convert(page):
    """The notebook, as JSON holds it, of a page in Markdown."""
    cells = []
    parts = FENCE.split(page)
    for i, part in enumerate(parts):
        kind = parts[i - 1] if i % 3 == 2 else "prose" if i % 3 == 0 else None
        if kind == "python":
            cells.append(code_cell(part))
        elif kind == "text":
            printed = {"name": "stdout", "output_type": "stream"}
            cells[-1]["outputs"].append({**printed, "text": lines(part)})
        elif kind == "prose" and part.strip():
            cells.append(text_cell(part))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    return {
        "cells": cells,
        "metadata": {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def write(app):
    """Before the pages are read, which offer it for download."""
    page = pathlib.Path(app.srcdir) / "tutorial.md"
    notebook = convert(page.read_text(encoding="utf-8"))
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    page.with_suffix(".ipynb").write_text(text, encoding="utf-8")


def setup(app):
    app.connect("builder-inited", write)
    return {"version": "1", "parallel_read_safe": True}
