"""The command line of the soak."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests import soak as package
from tests.soak.soak import soak, tiny_models


def main() -> int:
    """Reads the arguments, soaks, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=package.__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smollm2", metavar="FOLDER", type=Path, help="the default model's folder, as a third model")
    given = parser.parse_args()
    with tiny_models() as folders:
        if given.smollm2 is not None:
            folders[given.smollm2.name.lower()] = given.smollm2
        return int(soak(60 * given.minutes, given.clients, folders, given.seed).failed)


if __name__ == "__main__":
    sys.exit(main())
