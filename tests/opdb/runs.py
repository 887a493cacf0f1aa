"""Many cases in a process of their own that may crash, hang or grow: what is done is in a file, and a run goes on from there."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.opdb.cases import Case, Record, cases, check

PATIENCE = 240.0
LIFETIME = 1000
AGAIN = 75


def work(names: Sequence[str], folder: Path, seconds: float) -> None:
    """Check what the folder has no record of, until the time is up or so many are done that memory should be given back."""
    done, began = keys(folder / "records.jsonl"), keys(folder / "began.jsonl")
    end, left = time.monotonic() + seconds, LIFETIME
    for case in expanded(cases(names), done, began):
        if time.monotonic() > end or not left:
            sys.exit(0 if left else AGAIN)
        _append(folder / "began.jsonl", {"key": case.key})
        for record in check(case):
            _append(folder / "records.jsonl", {**asdict(record), "case": case.key})
        left -= 1


def expanded(given: Iterable[Case], done: set[str], began: set[str]) -> Iterator[Case]:
    """What is not done; of a case that began and never ended, its parts."""
    for case in given:
        if case.key in done:
            continue
        if case.key in began and len(case.samples) > 1:
            yield from expanded(case.parts(), done, began)
        else:
            yield case


def keys(path: Path) -> set[str]:
    """The cases that a file tells of."""
    return {entry.get("case", entry["key"]) for entry in entries(path)}


def entries(path: Path) -> list[dict]:
    """The lines of a file, none if there is none."""
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def supervise(names: Sequence[str], folder: Path, seconds: float = 1e9) -> list[dict]:
    """Run workers until all is done or the time is up; a case that a worker died or hung in is recorded as crashed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "names.json").write_text(json.dumps(list(names)))
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        command = [sys.executable, "-m", "tests.opdb.runs", str(folder), str(left)]
        with (folder / "log.txt").open("a") as log:
            worker = subprocess.Popen(command, stdout=log, stderr=log)
            _wait(worker, folder / "began.jsonl")
        if worker.returncode == 0:
            break
        if worker.returncode != AGAIN:
            _bury(folder, worker.returncode)
    return entries(folder / "records.jsonl")


def _wait(worker: subprocess.Popen, watched: Path) -> None:
    since = time.time()
    while worker.poll() is None:
        time.sleep(0.2)
        moved = max(since, watched.stat().st_mtime if watched.exists() else since)
        if time.time() - moved > PATIENCE:
            worker.kill()


def _bury(folder: Path, code: int) -> None:
    done, began = keys(folder / "records.jsonl"), entries(folder / "began.jsonl")
    if not began or began[-1]["key"] in done:
        raise RuntimeError(f"A worker ended with {code} before it began anything: see {folder / 'log.txt'}.")
    key = began[-1]["key"]
    name, numbers, rest = key.split(" ", 2)
    if "," not in numbers:
        form, _, door = rest.rpartition(" ")
        _append(folder / "records.jsonl", asdict(Record(key, name, [int(numbers)], form, door, "crashed", f"exit code {code}")))


def _append(path: Path, entry: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    work(json.loads((Path(sys.argv[1]) / "names.json").read_text()), Path(sys.argv[1]), float(sys.argv[2]))
