"""Choosing schedules for the tasks of a region, by records of measurements."""

from __future__ import annotations

import json
import logging
import platform
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from sparsec.autotune.board_cpu import BoardCpu
from sparsec.autotune.board_measuring import UNKNOWN, BoardMeasuring, Site
from sparsec.autotune.child import Failed
from sparsec.autotune.farm import Farm
from sparsec.autotune.measure import EFFORTS, Effort, Limits, Measuring, On
from sparsec.autotune.progress import shown
from sparsec.autotune.record import Record
from sparsec.autotune.records import Entry, Place, Records, look_up
from sparsec.autotune.tasks import pattern_key, restored_schedule, shape_key, task_key
from sparsec.autotune.tracker import Tracker
from sparsec.backends.base import Backend
from sparsec.backends.plan import Task
from sparsec.errors import TuningError
from sparsec.lower.spec import Schedule
from sparsec.settings import Settings

#: A candidate must beat the default by more than this share of its time.
TIE = 0.02
_TOOLS = ("torch", "apache-tvm", "sparsec")

logger = logging.getLogger("sparsec")


class Chosen(NamedTuple):
    """By node name: schedules of the tasks with good records, and what was measured of each candidate (schedule as JSON → median µs)."""

    schedules: Mapping[str, Schedule]
    times: Mapping[str, Mapping[str, float]]


def choose(tasks: Sequence[Task], backend: Backend, settings: Settings, limits: Limits | None = None) -> Chosen:
    """What records say of ``tasks``; first measures what has none, unless ``settings.tune`` is "off".

    Never raises for a failed measurement or a database that cannot be used: the defaults serve, and the log says why.
    """
    place, weighing = place_of(backend, settings), [task for task in tasks if task.weights]
    if settings.tune == "off":
        keys, entries = _recorded(weighing, settings, place)
    else:
        keys, entries = _tuned(weighing, backend, settings, place, limits or Limits())
    runs = latest_runs(entries)
    found = {task: best(run) for task, run in runs.items()}
    schedules = {
        task.node: schedule
        for task, key in keys
        if (winner := found.get(key)) is not None and (schedule := _offered(winner, task, backend)) is not None
    }
    return Chosen(schedules, {task.node: _times(runs[key]) for task, key in keys if key in runs})


def _times(run: Iterable[Entry]) -> dict[str, float]:
    return {e.schedule: e.median_ns / 1e3 for e in run if e.status == "ok" and e.median_ns is not None}


def place_of(backend: Backend, settings: Settings) -> Place:
    """Where records must come from to count: here, or for a machine that is not here, from any processor of its name."""
    key = backend.machine.key()
    return Place(key if backend.machine.not_here else f"{key}-{processor()}", settings.thread_count, backend.digest())


@cache
def processor() -> str:
    """The processor's own name: machines of one instruction set and cache size still differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or "unknown"


def is_emulated() -> bool:
    """Whether this processor is an emulator's, whose times say nothing of real ones."""
    return "QEMU TCG" in processor() or processor().startswith("QEMU Virtual CPU")


def latest_runs(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """By task, the entries of its latest run on a real machine, in order of rank."""
    runs: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        if not entry.emulated:
            runs[entry.task][entry.run].append(entry)
    newest = {task: max(of_task.values(), key=lambda run: (run[0].time, run[0].run)) for task, of_task in runs.items()}
    return {task: sorted(run, key=lambda e: e.rank) for task, run in newest.items()}


def best(run: Sequence[Entry]) -> Entry | None:
    """The fastest right candidate of one run; the default if it is within ``TIE`` of it. None if none is right."""
    right = [e for e in run if e.status == "ok" and e.median_ns is not None]
    if not right:
        return None
    fastest = min(right, key=lambda e: (e.median_ns, e.rank))
    default = next((e for e in right if e.rank == 0), fastest)
    tied = (default.median_ns or 0.0) * (1 - TIE) <= (fastest.median_ns or 0.0)
    return default if tied else fastest


def _offered(winner: Entry, task: Task, backend: Backend) -> Schedule | None:
    """The winner's schedule. One from a file counts only if the backend has it for this task."""
    schedule = restored_schedule(json.loads(winner.schedule))
    return None if winner.imported and schedule not in backend.schedules(task) else schedule


Keyed = list[tuple[Task, str]]


def _recorded(tasks: Sequence[Task], settings: Settings, place: Place) -> tuple[Keyed, list[Entry]]:
    """Tasks whose shape has records, with their keys, and these records. Weights are read only where the shape is known."""
    keys: Keyed = []

    def wanted(shapes: set[str]) -> list[str]:
        shaped = [(t, shape_key(t)) for t in tasks]
        keys.extend((t, f"{shape}-{pattern_key(t)}") for t, shape in shaped if shape in shapes)
        return sorted({key for _, key in keys})

    entries = look_up(settings.cache_dir, place, wanted)
    return keys, entries


def _tuned(tasks: Sequence[Task], backend: Backend, settings: Settings, place: Place, limits: Limits) -> tuple[Keyed, list[Entry]]:
    """Tasks with a choice, with their keys, and their records, after measuring what the level asks for and no record covers."""
    effort = EFFORTS[settings.tune]
    keys = [(t, task_key(t)) for t in tasks]
    distinct = {key: (task, backend.schedules(task)) for task, key in reversed(keys)}
    distinct = {key: distinct[key] for _, key in keys if len(distinct[key][1]) > 1}
    try:
        with Records(settings.cache_dir) as records:
            entries = records.entries(place, sorted(distinct))
            missing = _missing(distinct, entries, effort)
            if missing:
                cache = settings.cache_dir if records.persistent else None
                if settings.tracker is None:
                    with Measuring(place, effort, cache, limits, tools(), On("", processor(), is_emulated())) as measuring:
                        entries += _measure(missing, measuring, records, place, backend, _turn(cache))
                else:
                    session = partial(BoardMeasuring, place, effort, cache, limits, tools(), UNKNOWN)
                    _farm(backend, settings, session).measure(missing, cache, records.add)
                    entries = records.entries(place, sorted(distinct))
    except TuningError as error:
        logger.warning("Tuning stops, defaults serve: %s", error)
        entries = []
    return keys, entries


def _farm(backend: Backend, settings: Settings, session: Callable[[], BoardMeasuring]) -> Farm:
    """All boards that the settings name; only such as this machine, where kernels are for this one."""
    assert settings.tracker is not None and settings.tracker_key is not None
    like = None if backend.machine.not_here else BoardCpu.here(backend).name
    return Farm(Site(Tracker(settings.tracker), settings.tracker_key, like), backend, session)


Candidates = dict[int, Schedule]


def _missing(
    distinct: Mapping[str, tuple[Task, list[Schedule]]], entries: Iterable[Entry], effort: Effort
) -> dict[str, tuple[Task, Candidates]]:
    """Tasks whose latest run lacks a candidate that ``effort`` asks for, with all candidates by rank: they are compared within one run."""
    runs, missing = latest_runs(entries), {}
    for key, (task, schedules) in distinct.items():
        candidates = {rank: schedules[rank] for rank in effort.ranks(schedules)}
        if not _covers(runs.get(key, ()), candidates):
            missing[key] = task, candidates
    return missing


def _covers(run: Sequence[Entry], candidates: Candidates) -> bool:
    return {entry.rank for entry in run}.issuperset(candidates)


def _turn(cache: Path | None) -> AbstractContextManager[Any]:
    """One process measures at a time: they would disturb each other. Where files cannot be locked there is no such order."""
    if cache is None:
        return nullcontext()
    lock = FileLock(cache / "measuring.lock")
    try:
        with lock.acquire(timeout=0):
            return lock
    except Timeout:
        return lock
    except (OSError, NotImplementedError) as error:
        logger.warning("%s cannot be locked (%s): other processes that tune now would disturb the measurements.", cache, error)
        return nullcontext()


def _measure(
    missing: Mapping[str, tuple[Task, Candidates]],
    measuring: Measuring,
    records: Records,
    place: Place,
    backend: Backend,
    turn: AbstractContextManager[Any],
) -> list[Entry]:
    """``turn``: held while a task is measured. What another process has measured meanwhile is taken."""
    entries = []
    for key, (task, candidates) in shown(missing.items(), len(missing), "tuning"):
        with turn:
            found = records.entries(place, [key])
            if _covers(latest_runs(found).get(key, ()), candidates):
                entries += found
                continue
            try:
                measured = measuring.measure(task, candidates, backend)
            except Failed as failed:
                logger.warning("%s keeps its default schedule: it could not be measured (%s).", task.node, failed)
                continue
            entries += [_entry(record) for record in measured]
            records.add(measured)
    return entries


def _entry(r: Record) -> Entry:
    return Entry(r.task, r.run, r.rank, json.dumps(r.schedule), r.status, r.median_ns, r.emulated, r.imported, r.time)


def tools() -> dict[str, str]:
    """Versions of what measurements depend on."""
    found = {}
    for name in _TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
