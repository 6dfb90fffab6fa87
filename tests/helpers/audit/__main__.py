"""Prints the deviations: `python tests/helpers/audit [group ...]`."""

import sys
from pathlib import Path

# Python puts a folder that it runs first on the path, not the folder's parent.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import kormos
from audit import GROUPS
from audit import measuring


def main():
    print("| | values | gradients |\n|-|-|-|")
    with kormos.precision("float64"):
        for group in sys.argv[1:] or GROUPS:
            cases = measuring.supported(GROUPS[group])
            for name, sizes in measuring.deviations(cases).items():
                if max(sizes) > 1e-12:
                    print("| {} | {:.1e} | {:.1e} |".format(name, *sizes))


if __name__ == "__main__":
    main()
