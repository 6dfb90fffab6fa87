"""Runs the first block of Python in a page: `first_code.py README.md`."""

import pathlib
import re
import sys


def first_code(text):
    """The first block of Python of a Markdown page."""
    return re.search(r"^```python\n(.*?)^```", text, re.M | re.S).group(1)


if __name__ == "__main__":
    page = pathlib.Path(sys.argv[1]).read_text()
    exec(compile(first_code(page), sys.argv[1], "exec"), {"__name__": "page"})
