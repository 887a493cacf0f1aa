"""What a search has found: failures in their smallest form, and counts of everything."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields

from tests.fuzz.case import Case
from tests.fuzz.child import Outcome, plain
from tests.fuzz.shrink import PLAIN


@dataclass
class Failure:
    """A failure in its smallest form, after how many seconds of the clock and of the processor, and how often it came again."""

    case: Case
    outcome: Outcome
    found_after: tuple[float, float]
    times: int = 1

    @property
    def culprits(self) -> frozenset[str]:
        """What cannot be left out."""
        return culprits_of(self.case)

    def __str__(self) -> str:
        clock, processor = self.found_after
        what = f"{self.outcome.kind} {self.outcome.message[:200]} {self.outcome.where}"
        names = ", ".join(sorted(self.culprits | idioms_of(self.case)))
        return f"[{clock:.0f} s, {processor:.0f} s of the processor] seed {self.case.seed}, {self.case.door}: {what}: {names}"


@dataclass
class Findings:
    """Failures that differ, and how many cases went through which door, had which idiom, ended how, and were refused or skipped why."""

    failures: list[Failure] = field(default_factory=list)
    by_kind: Counter[str] = field(default_factory=Counter)
    by_door: Counter[str] = field(default_factory=Counter)
    by_idiom: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    skips: Counter[str] = field(default_factory=Counter)

    def count(self, case: Case, outcome: Outcome) -> None:
        """One case."""
        self.by_door[case.door] += 1
        self.by_idiom.update(idioms_of(case))
        self.by_kind[outcome.kind] += 1
        self.reasons.update({plain(line) for line in outcome.said})
        if outcome.kind in ("refused", "skip"):
            (self.reasons if outcome.kind == "refused" else self.skips)[plain(outcome.message)] += 1

    def add(self, failure: Failure) -> bool:
        """Whether it is a new one."""
        twin = next((f for f in self.failures if (f.outcome.manner, f.culprits) == (failure.outcome.manner, failure.culprits)), None)
        if twin is None:
            self.failures.append(failure)
        else:
            twin.times += failure.times
        return twin is None

    def merge(self, other: Findings) -> None:
        """Add those of a search of other cases."""
        for failure in other.failures:
            self.add(failure)
        for each in fields(self)[1:]:
            getattr(self, each.name).update(getattr(other, each.name))

    def __str__(self) -> str:
        """Counts of everything."""
        titles = ("outcomes", "doors", "idioms", "reasons given", "skipped")
        lines = []
        for title, each in zip(titles, fields(self)[1:], strict=True):
            lines += [f"{title}:", *(f"  {count:5} {name}" for name, count in getattr(self, each.name).most_common())]
        return "\n".join(lines)


def idioms_of(case: Case) -> frozenset[str]:
    """The idioms of a case's steps."""
    return frozenset(step.idiom for step in case.steps if step.idiom)


def culprits_of(case: Case) -> frozenset[str]:
    """Its idioms, but for those that may stand for any, and its events."""
    return (idioms_of(case) | {action.name for action in case.actions}) - {*PLAIN, "call"}
