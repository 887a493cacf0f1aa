"""Measuring on boards: one thread and one child process for each, work shared out by a ``Scheduler``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsec.autotune.board_measuring import BoardMeasuring, Died, Site
from sparsec.autotune.child import Failed
from sparsec.autotune.progress import shown
from sparsec.autotune.record import Record
from sparsec.autotune.scheduler import Scheduler
from sparsec.backends.base import Backend
from sparsec.backends.plan import Task
from sparsec.errors import MachineError
from sparsec.lower.spec import Schedule
from sparsec.tools.c_library import c_library

#: Seconds in which a board whose session has ended serves again: kernels that hang are ended there (see ``board.c``).
_RETURN_S = 45.0

logger = logging.getLogger("sparsec")


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
