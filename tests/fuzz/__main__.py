"""python -m tests.fuzz --minutes 30 --seed 1: search, print what fails as runnable scripts, exit with 1 if anything does."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Read the command line, search, report."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(100_000), help="default: a fresh one, printed")
    parser.add_argument("--doors", default="", help="separated by semicolons: names in tests/fuzz/doors.py; default: all")
    parser.add_argument("--without", default="", help="idioms to leave out, separated by semicolons")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes; default: one per processor")
    parser.add_argument("--out", type=Path, help="folder for the scripts of failures; default: print them")
    given = parser.parse_args()
    os.environ.setdefault("SPARSEC_CACHE_DIR", tempfile.mkdtemp(prefix="sparsec-fuzz-"))
    from tests.fuzz.report import search

    doors, without = (tuple(filter(None, text.split(";"))) for text in (given.doors, given.without))
    return search(given.minutes, given.seed, doors, without, given.out, given.jobs)


if __name__ == "__main__":
    sys.exit(main())
