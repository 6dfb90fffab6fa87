"""Draws the pictures of the tutorial: what its own code draws.

KERAS_BACKEND=jax python docs/make_pictures.py
"""

import pathlib
import re

import matplotlib
import pictures

matplotlib.use("Agg")

HERE = pathlib.Path(__file__).parent
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
# Of the calls that draw, in the order of the page.
NAMES = ("tutorial", "band")


def main():
    page = (HERE / "tutorial.md").read_text(encoding="utf-8")
    names, drawn = {}, iter(NAMES)
    with pictures.style():
        for block in CODE.findall(page):
            if ".save(" in block:
                continue
            block = re.sub(r', path="[^"]*"', "", block)
            exec(compile(block, "tutorial.md", "exec"), names)
            if "figure = " in block:
                path = HERE / "_static" / f"{next(drawn)}.svg"
                pictures.save(names["figure"], path)
                print(path)


if __name__ == "__main__":
    main()
