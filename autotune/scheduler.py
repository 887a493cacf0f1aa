"""Which board measures what: work goes to free boards, that of lost boards to others, and who finds right results wrong is dropped.

    fresh ──take──▶ with a board ──measured──▶ accepted
      ▲                │   │ some wrong            ▲
      └──── lost ──────┘   └──▶ disputed ──────────┘ another board agrees

A unit of work is one task with its candidates: they are compared on one board. A result is numbers that were compared with the reference
here, so that a candidate that is right on one board is right: a board on which it is wrong lies, and all that it has measured is void. A
candidate that is wrong wherever it was tried is wrong.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Result = TypeVar("Result")

#: So many boards may be lost to one candidate, or to loading one unit, before it is left out.
MOST_LOST = 2
#: So often may a board come back.
MOST_RETURNS = 8


@dataclass(frozen=True)
class Opinion(Generic[Result]):
    """What a board has measured of a unit, and which candidates it found wrong."""

    board: str
    result: Result
    wrong: frozenset[int]


@dataclass
class _Losses:
    """How many boards were lost to each candidate of a unit (None: to loading it), and why candidates are left out."""

    count: dict[int | None, int] = field(default_factory=lambda: defaultdict(int))
    reasons: dict[int, str] = field(default_factory=dict)


class Scheduler(Generic[Result]):
    """The state of one run; units are names. Nothing here waits or knows of time."""

    def __init__(self, units: Iterable[str]) -> None:
        self._fresh = deque(dict.fromkeys(units))
        self._total = len(self._fresh)
        self._disputed: dict[str, Opinion[Result]] = {}
        self._running: dict[str, str] = {}
        self._losses: dict[str, _Losses] = defaultdict(_Losses)
        self._idle: set[str] = set()
        self._suspects: set[str] = set()
        self._returns: dict[str, int] = defaultdict(int)
        self.accepted: dict[str, Opinion[Result]] = {}
        self.given_up: dict[str, str] = {}
        self.dropped: dict[str, str] = {}

    @property
    def finished(self) -> bool:
        """Whether every unit is accepted or given up."""
        return len(self.accepted) + len(self.given_up) == self._total

    @property
    def boards(self) -> int:
        """How many boards have joined and are not dropped."""
        return len(self._idle) + len(self._running)

    def join(self, board: str) -> bool:
        """A board that can work. False where one of this name was dropped or is here."""
        if board in self.dropped or board in self._running or board in self._idle:
            return False
        self._idle.add(board)
        return True

    def take(self, board: str) -> str | None:
        """The next unit for an idle board, None if there is none for it now. First what others found wrong, then fresh work.

        A board that has found something wrong gets fresh work once another one has spoken.
        """
        if board not in self._idle:
            return None
        running = set(self._running.values())
        unit = next((u for u, first in self._disputed.items() if first.board != board and u not in running), None)
        if unit is None and self._fresh and board not in self._suspects:
            unit = self._fresh.popleft()
        if unit is not None:
            self._idle.remove(board)
            self._running[board] = unit
        return unit

    def left_out(self, unit: str) -> Mapping[int, str]:
        """Candidates of a unit that are not to be tried any more, and why."""
        return self._losses[unit].reasons if unit in self._losses else {}

    def measured(self, board: str, result: Result, wrong: frozenset[int] = frozenset()) -> None:
        """What a board has made of its unit. Of no effect, as the other reports, if the board was dropped meanwhile."""
        if (unit := self._freed(board)) is None:
            return
        opinions = [o for o in (self._disputed.pop(unit, None), Opinion(board, result, wrong)) if o is not None]
        liars = {a.board: b.board for a in opinions for b in opinions if a.wrong - b.wrong}
        honest = [o for o in opinions if o.board not in liars]
        self._suspects.difference_update(o.board for o in honest)
        if not honest:
            self._fresh.appendleft(unit)
        elif honest[0].wrong and len(honest) == 1:
            self._disputed[unit] = honest[0]
            self._suspects.add(honest[0].board)
        else:
            self.accepted[unit] = honest[0]
        for liar, other in liars.items():
            self._drop(liar, f"It found candidates of {unit} wrong that are right on {other}.")
            self._void(liar)
        self._settle()

    def fell(self, board: str, reason: str, candidate: int) -> None:
        """A candidate has ended the session of a board, which is back: the candidate is left out, or the board if that is its habit."""
        self._returns[board] += 1
        if self._returns[board] > MOST_RETURNS:
            self.lost(board, f"It has failed {self._returns[board]} times, at last so: {reason}", candidate)
        elif (unit := self._freed(board)) is not None:
            self._losses[unit].reasons[candidate] = reason
            self._again(unit)

    def lost(self, board: str, reason: str, candidate: int | None = None) -> None:
        """A board that died, hangs or does not answer, while it had this candidate of its unit or, None, none yet."""
        if (unit := self._freed(board)) is None:
            return
        self._drop(board, reason)
        losses = self._losses[unit]
        losses.count[candidate] += 1
        why = f"{MOST_LOST} boards were lost to it: {reason}"
        if losses.count[candidate] < MOST_LOST:
            self._again(unit)
        elif candidate is None:
            self._end(unit, why)
        else:
            losses.reasons[candidate] = why
            self._again(unit)
        self._settle()

    def give_up(self, board: str, reason: str) -> None:
        """The unit of a board cannot be measured anywhere."""
        if (unit := self._freed(board)) is not None:
            self._end(unit, reason)

    def _freed(self, board: str) -> str | None:
        """The unit that a board had; the board is idle."""
        unit = self._running.pop(board, None)
        if unit is not None:
            self._idle.add(board)
        return unit

    def _again(self, unit: str) -> None:
        if unit not in self._disputed:
            self._fresh.appendleft(unit)

    def _end(self, unit: str, reason: str) -> None:
        self._disputed.pop(unit, None)
        self.given_up[unit] = reason

    def _drop(self, board: str, reason: str) -> None:
        self.dropped.setdefault(board, reason)
        self._idle.discard(board)
        self._suspects.discard(board)
        if (unit := self._running.pop(board, None)) is not None:
            self._again(unit)

    def _void(self, board: str) -> None:
        """All that a board has said is to be measured again."""
        running = set(self._running.values())
        for opinions in (self.accepted, self._disputed):
            for unit in [u for u, o in opinions.items() if o.board == board]:
                del opinions[unit]
                if unit not in running:
                    self._fresh.append(unit)

    def _settle(self) -> None:
        """Accept what is disputed where no other board is left to ask."""
        alone = {u: o for u, o in self._disputed.items() if not (self._idle | self._running.keys()) - {o.board}}
        for unit, opinion in alone.items():
            del self._disputed[unit]
            self._suspects.discard(opinion.board)
            self.accepted[unit] = opinion
