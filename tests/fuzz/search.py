"""The search: cases until the time is over, failures shrunk and told apart, counts of everything."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.fuzz import child
from tests.fuzz.case import Case, replace
from tests.fuzz.child import Outcome, plain
from tests.fuzz.generate import draw_case
from tests.fuzz.kernels import Kernels
from tests.fuzz.script import body
from tests.fuzz.shrink import PLAIN, shrink


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
class Search:
    """What has been found so far."""

    seed: int
    doors: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    kernels: Kernels | None = None
    shrinking: float = 30.0
    report: Callable[[Failure], None] = print
    failures: list[Failure] = field(default_factory=list)
    by_door: Counter[str] = field(default_factory=Counter)
    by_idiom: Counter[str] = field(default_factory=Counter)
    by_kind: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    skips: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)

    def run(self, minutes: float) -> list[Failure]:
        """Cases of seeds from ``seed * 1000000`` on."""
        number = self.seed * 1_000_000
        while time.monotonic() - self.started < minutes * 60:
            case = draw_case(number, self.doors, self.without)
            self._judge(case, self.execute(case))
            number += 1
        return self.failures

    def execute(self, case: Case, second: bool = False) -> Outcome:
        """Run a case, or torch alone in its place."""
        return child.run(body(case, second), case.inductor, kernels=self.kernels)

    def _judge(self, case: Case, outcome: Outcome) -> None:
        self.by_door[case.door] += 1
        self.by_idiom.update(idioms_of(case))
        self.by_kind[outcome.kind] += 1
        self.reasons.update({plain(line) for line in outcome.said})
        if outcome.kind in ("refused", "skip"):
            (self.reasons if outcome.kind == "refused" else self.skips)[plain(outcome.message)] += 1
        if outcome.failed and not self._upstream(case, outcome) and not self._explained(case, outcome):
            self._add(case, outcome)

    def _upstream(self, case: Case, outcome: Outcome) -> bool:
        """Whether torch alone fails as well."""
        second = self.execute(case, second=True)
        if found := outcome.kind in ("wrong", "raised") and second.kind == outcome.kind:
            self.by_kind["fails in torch alone"] += 1
            self.skips[f"torch alone: {plain(second.message)}"] += 1
        return found

    def _explained(self, case: Case, outcome: Outcome) -> bool:
        """Whether a known failure of this manner lies in the case, which is fine once one of its steps is left out."""
        for known in self.failures:
            if known.outcome.manner == outcome.manner and known.culprits and known.culprits <= culprits_of(case):
                steps = tuple(replace(s, idiom="") if s.idiom in known.culprits else s for s in case.steps)
                cured = replace(case, steps=steps, actions=tuple(a for a in case.actions if a.name not in known.culprits))
                if not self.execute(cured).failed:
                    known.times += 1
                    return True
        return False

    def _add(self, case: Case, outcome: Outcome) -> None:
        smallest = shrink(case, lambda each: self.execute(each).manner == outcome.manner, self.shrinking)
        final = self.execute(smallest)
        twin = next((f for f in self.failures if f.outcome.manner == final.manner and f.culprits == culprits_of(smallest)), None)
        if twin is not None:
            twin.times += 1
            return
        failure = Failure(smallest, final if final.failed else outcome, (time.monotonic() - self.started, child.work()))
        self.failures.append(failure)
        self.report(failure)

    def summary(self) -> str:
        """Counts of everything."""
        minutes = (time.monotonic() - self.started) / 60
        parts = [f"seed {self.seed}: {self.by_kind.total()} cases in {minutes:.1f} minutes, {len(self.failures)} failures"]
        tables = {
            "outcomes": self.by_kind,
            "doors": self.by_door,
            "idioms": self.by_idiom,
            "reasons given": self.reasons,
            "skipped": self.skips,
        }
        for title, counts in tables.items():
            parts += [f"{title}:", *(f"  {count:5} {name}" for name, count in counts.most_common())]
        return "\n".join(parts)


def idioms_of(case: Case) -> frozenset[str]:
    """The idioms of a case's steps."""
    return frozenset(step.idiom for step in case.steps if step.idiom)


def culprits_of(case: Case) -> frozenset[str]:
    """Its idioms, but for those that may stand for any, and its events."""
    return (idioms_of(case) | {action.name for action in case.actions}) - {*PLAIN, "call"}
