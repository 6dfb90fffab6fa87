"""Checks the English of the pages: proselint, and phrases of our own list.

python docs/lint_prose.py

Code, links and equations are blanked out first, so that lines keep their
numbers. The list is also checked in the sources of kormos and of the examples.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
CODE = re.compile(r"^( *)(```|\$\$).*?^ *\2$|`[^`]+`|\$[^$\n]+\$", re.S | re.M)
TARGET = re.compile(r"\]\([^)]*\)|\]\[[^\]]*\]|\{[^}\n]*\}|<[^>]+>")
INDENTED = re.compile(r"^    .*$", re.M)
# A comment, or a message, that goes on in the next line.
BREAK = re.compile(r'[ "]*\n *(?:# |f?")?')
# These checks complain about mathematics, and about the blanks that stand for
# code: they are left out.
IGNORED = (": typography.", ": lexical_illusions:", ": dates_times.")
# A reader who has never met the author stumbles over these.
PHRASES = (
    "to the bit",
    "gives theirs away",
    "weighed right",
    "'s ground",
    "asking after",
    "data so many",
    "fit for it",
    "of your own",
    "for being hard",
    "to the same end",
    "goes by ",
    "go by the",
    "by itself: the best",
    "next to nothing",
    "without a word",
    "is to be had",
    "what gains",
    "asks after",
    "behind every door",
    "gone on with",
    "gone on from",
    "goes on from",
    "goes on in",
    "goes on where",
    "goes on with",
    "go on from",
    "go on in",
    "go on where",
    "go on with",
    "next to no ",
    "choice of ours",
    "choices of ours",
    "is another one",
    "as it has it",
    "` has it.",
    "` has them.",
    "so often at most",
    "so many more",
    "so much farther",
    "some thousand ",
    "some tens ",
    "drawn anew",
    "compiled anew",
    "evaluated anew",
    "are told of",
    "is told of",
)
SOURCES = (
    *sorted((ROOT / "src").rglob("*.py")),
    *sorted((ROOT / "examples").glob("*.py")),
)
PATHS = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *(p.relative_to(ROOT) for p in sorted((ROOT / "docs").rglob("*.md"))),
)


def blank(match):
    return re.sub(r"[^\n]", " ", match[0])


def prose(text):
    # Indented lines come first: a line that begins with code is none of them.
    for kind in INDENTED, CODE, TARGET:
        text = kind.sub(blank, text)
    return text


def own(path, text):
    flat = re.sub(r"\s", " ", text).lower()
    return [
        f"{path}:{text.count(chr(10), 0, flat.index(phrase)) + 1}: say "
        f"otherwise: {phrase!r}"
        for phrase in PHRASES
        if phrase in flat
    ]


def main():
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for path in PATHS:
            text = prose((ROOT / path).read_text(encoding="utf-8"))
            found += own(path, text)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        for path in SOURCES:
            text = BREAK.sub("\n", path.read_text(encoding="utf-8"))
            found += own(path.relative_to(ROOT), text)
        linted = subprocess.run(
            [sys.executable, "-m", "proselint", "check"]
            + [str(p) for p in PATHS],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        lines = (linted.stdout + linted.stderr).splitlines()
        found += [
            line.replace(f"{folder.resolve()}/", "")
            for line in lines
            if line.startswith(str(folder.resolve()))
            and not any(name in line for name in IGNORED)
        ]
    print("\n".join(found))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
