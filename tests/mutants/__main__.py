"""`python -m tests.mutants`: plants each mutant in a copy of the tree, runs the fast tests until one fails, and says which mutants live."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated

import typer

from tests.mutants.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
ROOMS = ("passes", "backends", "autotune", "models")
#: How many of 40 the tests have to notice.
SHARE = 38 / 40
_LIMIT_S = 1800


class Copy:
    """The tree in another place, whose package comes before the installed one."""

    def __init__(self, place: Path) -> None:
        self.place = place
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        for name in filter(None, listed):
            target = place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
        package = place / "build" / "package" / "sparsec"
        package.mkdir(parents=True)
        for part in (place / "compiler").iterdir():
            (package / part.name).symlink_to(part)
        for room in ROOMS:
            (package / room).symlink_to(place / room)

    def notices(self, mutant: Mutant, whole: bool) -> str:
        """The first test that fails with ``mutant`` planted; "" if none does.

        ``whole``: all fast tests after those of its own, but for those of the mutants, which see that the tree is another.
        """
        file = self.place / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            raise typer.BadParameter(f"{mutant.name} cannot be planted.")
        file.write_text(text.replace(mutant.old, mutant.new))
        try:
            return self.failing(tests_of(mutant)) or (self.failing(["tests", "--ignore=tests/mutants"]) if whole else "")
        finally:
            file.write_text(text)

    def failing(self, tests: list[str]) -> str:
        """The first failure of these fast tests; "" if there is none."""
        environment = {**os.environ, "PYTHONPATH": str(self.place / "build" / "package"), "OMP_NUM_THREADS": "1", "CI": "true"}
        environment["SPARSEC_CACHE_DIR"] = str(self.place / "build" / "cache")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--show-capture=no", *tests]
        try:
            done = subprocess.run(
                command,
                cwd=self.place,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"no end after {_LIMIT_S} s"
        found = next((line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
        return found or (f"pytest ended with {done.returncode}" if done.returncode else "")


def tests_of(mutant: Mutant) -> list[str]:
    """The files that a mutant's own tests are in."""
    return [f"tests/{Path(name).parent}/test_{Path(name).name}.py" for name in mutant.tests.split()]


def main(
    only: Annotated[str, typer.Option(help="Mutants whose names have this in them.")] = "",
    whole: Annotated[bool, typer.Option(help="All fast tests for those that their own tests do not notice.")] = True,
    jobs: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Count the mutants that the fast tests notice; exits with 1 if they are too few, or the tests fail without any."""
    chosen = [mutant for mutant in MUTANTS if only in mutant.name]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        free: SimpleQueue[Copy] = SimpleQueue()
        for number in range(jobs):
            free.put(Copy(Path(folder) / str(number)))
        unharmed = free.get()
        if reason := unharmed.failing(sorted({name for mutant in chosen for name in tests_of(mutant)})):
            raise typer.BadParameter(f"The tests fail without a mutant: {reason}")
        free.put(unharmed)

        def judged(mutant: Mutant) -> bool:
            copy, begin = free.get(), time.monotonic()
            try:
                noticed = copy.notices(mutant, whole)
            finally:
                free.put(copy)
            print(f"{'killed' if noticed else 'LIVES '} {time.monotonic() - begin:4.0f} s  {mutant.name}  {noticed[:100]}", flush=True)
            return bool(noticed)

        with ThreadPoolExecutor(jobs) as pool:
            killed = sum(pool.map(judged, chosen))
    print(f"{killed} of {len(chosen)} mutants are noticed")
    raise typer.Exit(int(killed < SHARE * len(chosen)))


if __name__ == "__main__":
    typer.run(main)
