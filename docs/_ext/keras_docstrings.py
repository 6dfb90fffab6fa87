"""Turns docstrings in Keras' dialect into the text that Sphinx reads.

Napoleon knows the sections of Google style. What is left is Markdown: fences
of code, links, and single quotes around code.
"""

import re

FENCE = re.compile(r"^(\s*)```(\w*)\s*$")
CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)(\w?)")
LINK = re.compile(r"\[([^\]]+)\]\((https?://[^)\s]+)\)")


def inline(lines):
    """The lines of a paragraph; code may be broken over two of them."""
    parts = CODE.split("\n".join(lines))
    for i in range(0, len(parts), 3):
        parts[i] = LINK.sub(r"`\1 <\2>`__", parts[i].replace("|", r"\|"))
    for i in range(1, len(parts), 3):
        parts[i] = f"``{parts[i]}``"
        parts[i + 1] = rf"\ {parts[i + 1]}" if parts[i + 1] else ""
    return "".join(parts).split("\n")


def convert(lines):
    found, paragraph, is_code = [], [], False
    for line in [*lines, ""]:
        fence = FENCE.match(line)
        if is_code and not fence:
            found.append(f"   {line}" if line.strip() else "")
        elif not fence and line.strip():
            paragraph.append(line)
        else:
            found += inline(paragraph) if paragraph else []
            paragraph = []
            found.append("")
        if fence:
            is_code = not is_code
        if fence and is_code:
            language = fence[2] or "text"
            found += [f"{fence[1]}.. code-block:: {language}", ""]
    return found


def process(app, what, name, obj, options, lines):
    lines[:] = convert(lines)


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    # Before napoleon, whose priority is 500.
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"version": "1", "parallel_read_safe": True}
