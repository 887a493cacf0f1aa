"""The search: cases until the time is over, failures shrunk and told apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from tests.fuzz import child
from tests.fuzz.case import Case, replace
from tests.fuzz.child import Outcome, plain
from tests.fuzz.findings import Failure, Findings, culprits_of
from tests.fuzz.generate import draw_case
from tests.fuzz.kernels import Kernels
from tests.fuzz.script import body
from tests.fuzz.shrink import shrink

#: Kinds of failures that may be torch's own.
UPSTREAM = ("wrong", "raised")


@dataclass
class Search:
    """Which cases are drawn, and what is done with a failure."""

    seed: int
    doors: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    kernels: Kernels | None = None
    shrinking: float = 15.0
    report: Callable[[Failure], None] = print
    findings: Findings = field(default_factory=Findings)
    started: float = field(default_factory=time.monotonic)

    def run(self, minutes: float, first: int = 0, step: int = 1) -> Findings:
        """Cases of seeds from ``seed * 1000000 + first`` on, one in ``step``."""
        number = self.seed * 1_000_000 + first
        while time.monotonic() - self.started < minutes * 60:
            case = draw_case(number, self.doors, self.without)
            self._judge(case, self.execute(case))
            number += step
        return self.findings

    def execute(self, case: Case, second: bool = False) -> Outcome:
        """Run a case, or torch alone in its place."""
        return child.run(body(case, second), case.inductor, kernels=self.kernels)

    def _judge(self, case: Case, outcome: Outcome) -> None:
        self.findings.count(case, outcome)
        if outcome.failed and not self._upstream(case, outcome) and not self._explained(case, outcome):
            self._add(case, outcome)

    def _upstream(self, case: Case, outcome: Outcome, kinds: Collection[str] = ()) -> bool:
        """Whether torch alone fails as well, in the same way or one of ``kinds``."""
        second = self.execute(case, second=True)
        if found := outcome.kind in UPSTREAM and second.kind in (outcome.kind, *kinds):
            self.findings.by_kind["fails in torch alone"] += 1
            self.findings.skips[f"torch alone: {plain(second.message)}"] += 1
        return found

    def _explained(self, case: Case, outcome: Outcome) -> bool:
        """Whether a known failure of this manner lies in the case: raised at the same place, or gone once the known one's steps are."""
        for known in self.findings.failures:
            if known.outcome.manner != outcome.manner:
                continue
            if outcome.where:
                known.times += 1
                return True
            if known.culprits and known.culprits <= culprits_of(case):
                steps = tuple(replace(s, idiom="") if s.idiom in known.culprits else s for s in case.steps)
                cured = replace(case, steps=steps, actions=tuple(a for a in case.actions if a.name not in known.culprits))
                if not self.execute(cured).failed:
                    known.times += 1
                    return True
        return False

    def _add(self, case: Case, outcome: Outcome) -> None:
        smallest = shrink(case, lambda each: self.execute(each).manner == outcome.manner, self.shrinking)
        if self._upstream(smallest, outcome):
            # What is left is torch's own: the case has more than one fault, or torch fails in another way before it comes to this one.
            if self._upstream(case, outcome, UPSTREAM):
                return
            ours = lambda each: self.execute(each).manner == outcome.manner and not self.execute(each, second=True).failed  # noqa: E731
            smallest = shrink(case, ours, self.shrinking)
        final = self.execute(smallest)
        failure = Failure(smallest, final if final.failed else outcome, (time.monotonic() - self.started, child.work()))
        if self.findings.add(failure):
            self.report(failure)
