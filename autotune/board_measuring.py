"""Measuring on one board: the parent's side of a child process that has a session with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sparsec.autotune.board_cpu import BoardCpu
from sparsec.autotune.child import Child, Failed, Lost
from sparsec.autotune.measure import Measuring, On, Outcome
from sparsec.autotune.record import Record
from sparsec.autotune.tracker import Tracker
from sparsec.backends.base import Backend
from sparsec.backends.plan import Task
from sparsec.lower.spec import Schedule

#: Seconds that a child may take to start and import, besides those that it waits for a board.
_START_S = 120.0
#: Of a session that is not connected.
UNKNOWN = On("", "", emulated=True)


class Died(Exception):
    """The board is lost; ``candidate``: which one it had, None if none yet."""

    def __init__(self, reason: str, candidate: int | None = None) -> None:
        super().__init__(reason)
        self.candidate = candidate


@dataclass(frozen=True)
class Site:
    """Where boards are had. ``like``: the name of the processor that they must have, None: any that suits the kernels.

    ``patience_s``: how long to wait for one that is free.
    """

    tracker: Tracker
    key: str
    like: str | None = None
    patience_s: float = 60.0


class BoardMeasuring(Measuring):
    """A session of measurements on one board."""

    def connect(self, site: Site, library: Path, backend: Backend) -> str:
        """The address of a board that is ours until the end of the session. Failed where there is none, or one with another processor."""
        self._end()
        self._child = Child(self._place.threads, "sparsec.autotune.board_worker")
        asked = {"tracker": site.tracker.address, "key": site.key, "patience": site.patience_s, "library": str(library)}
        reply = self._child.ask(_START_S + site.patience_s, do="connect", **asked)
        cpu = BoardCpu.of(backend, *map(bytes.fromhex, reply["files"]))
        if why := cpu.other_than(backend) or ("" if site.like in (None, cpu.name) else f"It is {cpu.name}, this machine is {site.like}."):
            raise Failed(f"The board {reply['board']} has another processor. {why}")
        self._on = On(reply["board"], cpu.name, cpu.emulated)
        return self._on.board

    def measure_all(
        self, task: Task, candidates: Mapping[int, Schedule], backend: Backend, left_out: Mapping[int, str]
    ) -> tuple[list[Record], frozenset[int]]:
        """As ``measure``, but for candidates that are left out for a reason, and the ranks whose results are wrong.

        Died where the board is lost, Failed where the task cannot be loaded.
        """
        outcomes = [Outcome(reason=left_out.get(rank, "")) for rank in candidates]
        try:
            job = self._job(task, candidates, backend)
            self._fill(outcomes)
        except Lost as lost:
            raise Died(str(lost)) from lost
        except Died as died:
            raise Died(str(died), None if died.candidate is None else list(candidates)[died.candidate]) from died
        wrong = frozenset(rank for rank, outcome in zip(candidates, outcomes, strict=True) if outcome.wrong)
        return self._records(job, list(candidates), outcomes), wrong

    def _load(self) -> None:
        assert self._child is not None
        self._child.ask(self._limits.load, do="load", folder=str(self._scratch.path))

    def _recover(self, lost: Lost, candidate: int) -> None:
        raise Died(str(lost), candidate)
