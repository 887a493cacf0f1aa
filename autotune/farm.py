"""Measuring on boards: one thread and one child process for each, work shared out by a ``Scheduler``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparsec.autotune.board_cpu import BoardCpu
from sparsec.autotune.child import Child, Failed, Lost
from sparsec.autotune.measure import Measuring, On, Outcome
from sparsec.autotune.progress import shown
from sparsec.autotune.record import Record
from sparsec.autotune.scheduler import Scheduler
from sparsec.autotune.tracker import Tracker
from sparsec.backends.base import Backend
from sparsec.backends.plan import Task
from sparsec.errors import MachineError
from sparsec.lower.spec import Schedule
from sparsec.tools.c_library import c_library

#: Seconds that a child may take to start and import, besides those that it waits for a board.
_START_S = 120.0
#: Seconds in which a board whose session has ended serves again: kernels that hang are ended there (see ``board.c``).
_RETURN_S = 45.0

#: Of a session that is not connected.
UNKNOWN = On("", "", emulated=True)

logger = logging.getLogger("sparsec")


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
        cpu = BoardCpu.of(backend, reply["cpuinfo"], bytes.fromhex(reply["auxv"]), reply["maps"])
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


Work = Mapping[str, tuple[Task, Mapping[int, Schedule]]]


class Farm:
    """One run of measurements on all boards of a key.

    ``session``: makes what measures on one board.
    """

    def __init__(self, site: Site, backend: Backend, session: Callable[[], BoardMeasuring]) -> None:
        self._site, self._backend, self._session = site, backend, session
        self._changed = threading.Condition()
        self._absent: list[str] = []
        self._ended = False

    def measure(self, work: Work, cache: Path | None, keep: Callable[[list[Record]], object]) -> None:
        """Measure tasks, given by their keys, and keep the records of each, also if this is interrupted.

        The log says which tasks no board can measure, and which boards were dropped. MachineError where the tracker does not answer, no
        board has the key, none is free, all have another processor, or all are lost before everything is measured.
        """
        count = min(self._site.tracker.boards(self._site.key), len(work))
        self._library = c_library(Path(__file__).with_name("board.c"), cache, self._backend.machine.arch)
        self._work, self._scheduler = work, Scheduler[list[Record]](work)
        threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            for _ in shown(self._accepted(threads), len(work), "tuning"):
                continue
        finally:
            self._report(self._end)
            for opinion in self._scheduler.accepted.values():
                keep(opinion.result)
        for unit, reason in self._scheduler.given_up.items():
            logger.warning("%s keeps its default schedule: it could not be measured (%s).", work[unit][0].node, reason)
        for board, reason in self._scheduler.dropped.items():
            logger.warning("The board %s was dropped: %s", board, reason)
        if not self._scheduler.finished:
            raise self._unfinished()

    def _end(self) -> None:
        self._ended = True

    def _unfinished(self) -> MachineError:
        dropped, key = self._scheduler.dropped, self._site.key
        reasons = [*(f"{board}: {reason}" for board, reason in dropped.items()), *dict.fromkeys(self._absent)]
        return MachineError(
            f"No board of key {key!r} is left to measure on." if dropped else f"No board of key {key!r} can be had.",
            where=self._site.tracker.address,
            why=" · ".join(reasons),
            hint="What was measured is kept. See `sparsec farm status`, and tune again.",
        )

    def _accepted(self, threads: list[threading.Thread]) -> Iterator[int]:
        """Counts up as units are accepted, until all threads have ended."""
        said = 0
        while any(thread.is_alive() for thread in threads):
            with self._changed:
                self._changed.wait(0.2)
                done = len(self._scheduler.accepted)
            yield from range(said, done)
            said = max(said, done)

    def _serve(self) -> None:
        """One board, from its request to the end of the work or of the board."""
        with self._session() as measuring:
            try:
                board = measuring.connect(self._site, self._library, self._backend)
            except Failed as failed:
                self._absent.append(str(failed))
                return
            with self._changed:
                joined = self._scheduler.join(board)
            try:
                while joined and (unit := self._next(board)) is not None:
                    self._measure(measuring, board, unit)
            finally:
                self._report(self._scheduler.lost, board, "Its session ended.")

    def _next(self, board: str) -> str | None:
        """A unit for a board, as soon as there is one; None when there will be none any more."""
        with self._changed:
            while (unit := self._scheduler.take(board)) is None:
                if self._ended or self._scheduler.finished or board in self._scheduler.dropped:
                    return None
                self._changed.wait()
            return unit

    def _measure(self, measuring: BoardMeasuring, board: str, unit: str) -> None:
        task, candidates = self._work[unit]
        try:
            records, wrong = measuring.measure_all(task, candidates, self._backend, dict(self._scheduler.left_out(unit)))
        except Died as died:
            fell = died.candidate is not None and self._is_back(measuring, board)
            self._report(self._scheduler.fell if fell else self._scheduler.lost, board, str(died), died.candidate)
        except Failed as failed:
            self._report(self._scheduler.give_up, board, str(failed))
        else:
            self._report(self._scheduler.measured, board, records, wrong)

    def _is_back(self, measuring: BoardMeasuring, board: str) -> bool:
        """Whether a board whose session has ended serves again."""
        try:
            return measuring.connect(replace(self._site, patience_s=_RETURN_S), self._library, self._backend) == board
        except Failed:
            return False

    def _report(self, what: Callable[..., None], *arguments: Any) -> None:
        with self._changed:
            what(*arguments)
            self._changed.notify_all()
