"""Many cases in a process of their own that may crash, hang or grow: what is done is in a file, and a run goes on from there."""

import gc
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.opdb.cases import Case, Record, cases, check

PATIENCE = 240.0
LIFETIME = 1000
AGAIN = 75


@dataclass(frozen=True)
class Plan:
    """Which operators: those named or all, of these every ``shards``-th from ``shard`` on, in an order that ``seed`` gives."""

    names: tuple[str, ...] = ()
    shard: int = 0
    shards: int = 1
    seed: int = 0

    def operators(self) -> list[str]:
        """Their names."""
        from tests.opdb.samples import operators

        names = list(self.names or operators())[self.shard :: self.shards]
        random.Random(self.seed).shuffle(names)
        return names


def work(folder: Path, seconds: float) -> int:
    """Check what the folder has no record of, until the time is up (0) or so much is done that memory should be given back (AGAIN)."""
    plan = Plan(**json.loads((folder / "plan.json").read_text()))
    done, began = keys(folder / "records.jsonl"), keys(folder / "began.jsonl")
    # Tracing makes many objects that die at once: collecting less often saves a fifth.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    end, left = time.monotonic() + seconds, LIFETIME
    for case in unfinished(cases(plan.operators()), done, began):
        if time.monotonic() > end or not left:
            return 0 if left else AGAIN
        append(folder / "began.jsonl", {"key": case.key})
        for record in check(case):
            append(folder / "records.jsonl", {**asdict(record), "case": case.key})
        left -= 1
    return 0


def unfinished(given: Iterable[Case], done: set[str], began: set[str]) -> Iterator[Case]:
    """What is not done; of a case that began and never ended, its parts."""
    for case in given:
        if case.key in began and case.key not in done and len(case.samples) > 1:
            yield from unfinished(case.parts(), done, began)
        elif case.key not in done:
            yield case


def supervise(plan: Plan, folder: Path, seconds: float = 1e9, patience: float = PATIENCE) -> list[Record]:
    """Run workers until all is done or the time is up; a sample that a worker died or hung in is recorded as crashed.

    patience: seconds that one case may take.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(asdict(plan)))
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        with (folder / "log.txt").open("a") as log:
            worker = subprocess.Popen([sys.executable, "-m", "tests.opdb.runs", str(folder), str(left)], stdout=log, stderr=log)
            _wait(worker, folder / "began.jsonl", patience)
        if worker.returncode == 0:
            break
        if worker.returncode != AGAIN:
            _bury(folder, worker.returncode)
    return [Record(**{name: entry[name] for name in Record.__dataclass_fields__}) for entry in entries(folder / "records.jsonl")]


def _wait(worker: subprocess.Popen, watched: Path, patience: float) -> None:
    since = time.time()
    while worker.poll() is None:
        time.sleep(0.1)
        moved = max(since, watched.stat().st_mtime if watched.exists() else since)
        if time.time() - moved > patience:
            worker.kill()


def _bury(folder: Path, code: int) -> None:
    began = entries(folder / "began.jsonl")
    if not began or began[-1]["key"] in keys(folder / "records.jsonl"):
        raise RuntimeError(f"A worker ended with {code} outside of any case: see {folder / 'log.txt'}.")
    key = began[-1]["key"]
    name, numbers, rest = key.split(" ", 2)
    if "," not in numbers:
        form, _, door = rest.rpartition(" ")
        append(folder / "records.jsonl", asdict(Record(key, name, [int(numbers)], form, door, "crashed", f"exit code {code}")))


def keys(path: Path) -> set[str]:
    """The cases that a file tells of."""
    return {entry.get("case", entry["key"]) for entry in entries(path)}


def entries(path: Path) -> list[dict]:
    """The lines of a file, none if there is none."""
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, entry: dict) -> None:
    """Add a line."""
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(work(Path(sys.argv[1]), float(sys.argv[2])))
