"""Measuring a task: every candidate prepared and checked, then timed in turns, in a child process that may die of them.

prepare 0, 1, 2        round 0: 0 1 2        round 1: 1 2 0        round 2: 2 0 1   ...
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, TypeVar

from sparsec.autotune.child import Child, Failed, Lost, Mistaken
from sparsec.autotune.job import Job, write_job
from sparsec.autotune.record import Record
from sparsec.autotune.records import Place
from sparsec.autotune.tasks import shape_key, storages, task_key
from sparsec.backends.base import Backend
from sparsec.backends.plan import Task
from sparsec.lower.spec import Schedule
from sparsec.tools.scratch import Scratch

#: Kernels that can compute every block of a weight, zero or not.
_DENSE_KERNELS = ("block", "gemv_dense")
_SEED = 7
Session = TypeVar("Session", bound="Measuring")


def is_dense(schedule: Schedule) -> bool:
    """Whether a schedule is of a family that computes zeros too."""
    return dict(schedule).get("kernel") in _DENSE_KERNELS


@dataclass(frozen=True)
class Effort:
    """How much to measure: candidates per task (None: all) besides the dense rival, rounds, samples per round."""

    candidates: int | None
    rounds: int
    samples: int

    def ranks(self, schedules: Sequence[Schedule]) -> list[int]:
        """Which of the candidates to measure: the first ones, and a dense rival even if none is among them."""
        first = list(range(len(schedules) if self.candidates is None else min(len(schedules), self.candidates)))
        dense = [rank for rank, schedule in enumerate(schedules) if is_dense(schedule)]
        return first if set(first) & set(dense) else first + dense[:1]


EFFORTS = {"quick": Effort(3, 5, 5), "full": Effort(None, 9, 9)}


@dataclass(frozen=True)
class Limits:
    """Seconds after which the child is taken to hang: while it starts and loads a task, builds and checks a candidate, takes samples."""

    load: float = 120.0
    prepare: float = 60.0
    time: float = 20.0


@dataclass(frozen=True)
class On:
    """What times were taken on: the board's address, empty for this machine, its processor's name, whether that is an emulator's."""

    board: str
    cpu: str
    emulated: bool


@dataclass
class Outcome:
    """What is known of a candidate so far, and the process that has it built. ``wrong``: it failed for its result."""

    facts: dict[str, Any] = field(default_factory=dict)
    samples: list[int] = field(default_factory=list)
    reason: str = ""
    wrong: bool = False
    child: Child | None = None


class Measuring:
    """A session of measurements with at most one child process at a time, started when it is first needed.

    ``cache``: directory for kernel libraries, None for a temporary one.
    """

    def __init__(self, place: Place, effort: Effort, cache: Path | None, limits: Limits, tools: dict[str, str], on: On) -> None:
        self._place, self._effort, self._cache, self._limits = place, effort, cache, limits
        self._tools, self._on = tools, on
        self._scratch = Scratch()
        self._child: Child | None = None

    def __enter__(self: Session) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._end()
        self._scratch.remove()

    def measure(self, task: Task, candidates: Mapping[int, Schedule], backend: Backend) -> list[Record]:
        """Measure candidates of ``task``, given by rank, in one run. Failed if the task itself cannot be loaded in a child process."""
        outcomes = [Outcome() for _ in candidates]
        job = self._job(task, candidates, backend)
        self._fill(outcomes)
        return self._records(job, list(candidates), outcomes)

    def _job(self, task: Task, candidates: Mapping[int, Schedule], backend: Backend) -> Job:
        """The job of these candidates, loaded by the child."""
        folder = self._scratch.path
        job = Job(task, tuple(candidates.values()), backend, self._cache or folder, self._place.threads, _SEED)
        write_job(job, folder)
        self._load()
        return job

    def _fill(self, outcomes: Sequence[Outcome]) -> None:
        """Prepare and time those that have not failed already."""
        for number, outcome in enumerate(outcomes):
            if not outcome.reason:
                self._prepare(outcome, number)
        for turn in range(self._effort.rounds):
            for number in rotated(len(outcomes), turn):
                self._take(outcomes[number], number)

    def _prepare(self, outcome: Outcome, number: int) -> None:
        outcome.facts = self._ask(outcome, self._limits.prepare, do="prepare", candidate=number)
        outcome.child = self._child

    def _take(self, outcome: Outcome, number: int) -> None:
        """One turn of one candidate, built again first if another one has taken the process down."""
        if not outcome.reason and outcome.child is not self._child:
            self._prepare(outcome, number)
        if not outcome.reason:
            reply = self._ask(outcome, self._limits.time, do="time", candidate=number, samples=self._effort.samples)
            outcome.samples += reply.get("samples_ns", [])

    def _ask(self, outcome: Outcome, timeout_s: float, **request: Any) -> dict[str, Any]:
        """The child's reply, or nothing and the candidate's reason to have failed."""
        assert self._child is not None
        try:
            return self._child.ask(timeout_s, **request)
        except Lost as lost:
            outcome.reason = str(lost)
            self._end()
            self._recover(lost, request["candidate"])
        except Failed as failed:
            outcome.reason, outcome.wrong = str(failed), isinstance(failed, Mistaken)
        return {}

    def _recover(self, lost: Lost, candidate: int) -> None:
        """After ``candidate`` has taken the child down: another one."""
        self._load()

    def _load(self) -> None:
        if self._child is None:
            self._child = Child(self._place.threads)
        try:
            self._child.ask(self._limits.load, do="load", folder=str(self._scratch.path))
        except Failed:
            self._end()
            raise

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def _records(self, job: Job, ranks: Sequence[int], outcomes: Sequence[Outcome]) -> list[Record]:
        rival = _dense_rival(job.schedules, outcomes)
        common: dict[str, Any] = {
            "run": uuid.uuid4().hex,
            "task": task_key(job.task),
            "shape": shape_key(job.task),
            "spec": job.task.spec.json(),
            "spec_key": job.task.spec.key,
            "storages": storages(job.task),
            "machine": self._place.machine,
            "threads": self._place.threads,
            "library": self._place.library,
            "rival": None if rival is None else job.schedules[rival],
            "rival_median_ns": None if rival is None else median(outcomes[rival].samples),
            "tools": self._tools,
            **asdict(self._on),
            "time": time.time(),
        }
        return [
            Record(
                schedule=schedule,
                rank=rank,
                status="failed" if outcome.reason else "ok",
                reason=outcome.reason,
                samples_ns=tuple(outcome.samples),
                error=outcome.facts.get("error"),
                source=outcome.facts.get("source", ""),
                kernels=tuple(outcome.facts.get("kernels", ())),
                **common,
            )
            for rank, schedule, outcome in zip(ranks, job.schedules, outcomes, strict=True)
        ]


def rotated(count: int, turn: int) -> list[int]:
    """0 .. count - 1, begun at ``turn``: nobody always follows the same neighbour."""
    return [(turn + i) % count for i in range(count)]


def _dense_rival(schedules: Sequence[Schedule], outcomes: Sequence[Outcome]) -> int | None:
    """The candidate that computes every block or the most of them; among equals the fastest."""
    able = [i for i, o in enumerate(outcomes) if not o.reason and o.samples and is_dense(schedules[i])]
    return max(able, key=lambda i: (outcomes[i].facts["flops"], -median(outcomes[i].samples)), default=None)
