"""What there is to check: operators x samples x forms x doors, several samples of an operator in one module."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.opdb.doors import DOORS, judge
from tests.opdb.modules import FORMS, make
from tests.opdb.outcomes import line, outcome
from tests.opdb.samples import empty, operators, samples, unwritten

FIRST, GROUP = 4, 32
MAIN = ("bordered", "alone")


@dataclass(frozen=True)
class Case:
    """Samples of one operator (by number), one form, one door."""

    operator: str
    samples: tuple[int, ...]
    form: str
    door: str

    @property
    def key(self) -> str:
        """Its name in records."""
        return f"{self.operator} {','.join(map(str, self.samples))} {self.form} {self.door}"

    def parts(self) -> list["Case"]:
        """The same for fewer samples: each of a few, thirds of many."""
        size = 1 if len(self.samples) <= FIRST else -(-len(self.samples) // 3)
        starts = range(0, len(self.samples), size)
        return [Case(self.operator, self.samples[start : start + size], self.form, self.door) for start in starts]


@dataclass(frozen=True)
class Record:
    """The verdict on a case; several samples in one module have one verdict if all are equal."""

    key: str
    operator: str
    samples: Sequence[int]
    form: str
    door: str
    verdict: str
    detail: str = ""


def cases(names: Sequence[str]) -> Iterator[Case]:
    """Of these operators: a few samples in main forms, the others, many together, in one form and then the other, the few in the rest."""
    spread = {name: _spread(len(samples(name))) for name in names}
    for name in names:
        yield from _of(name, spread[name], MAIN)
    rest = {name: [n for n in range(len(samples(name))) if n not in spread[name]] for name in names}
    starts = range(0, max(map(len, rest.values()), default=0), GROUP)
    for form, start, name in itertools.product(MAIN, starts, names):
        yield from _of(name, rest[name][start : start + GROUP], (form,))
    for name in names:
        yield from _of(name, spread[name], tuple(form for form in FORMS if form not in MAIN))


def _spread(count: int) -> list[int]:
    return sorted({position * (count - 1) // (FIRST - 1) for position in range(FIRST)}) if count else []


def _of(name: str, numbers: Sequence[int], forms: Sequence[str]) -> Iterator[Case]:
    hollow = {number for number in numbers if empty(samples(name)[number])}
    parts = [tuple(n for n in numbers if n not in hollow), tuple(n for n in numbers if n in hollow)]
    for form, door, part in itertools.product(forms, DOORS, filter(None, parts)):
        # ``sparsec.compile`` refuses what writes to its inputs.
        if form == "in place" and door == "sparsec.compile":
            continue
        if not form.endswith("in place") or operators()[name].inplace_variant is not None:
            yield Case(name, part, form, door)


def check(case: Case) -> list[Record]:
    """One record if all samples together are equal to eager; else one for each sample."""
    verdict, detail = _verdict(case)
    if verdict != "equal" and len(case.samples) > 1:
        return [record for part in case.parts() for record in check(part)]
    return [Record(case.key, **asdict(case), verdict=verdict, detail=detail)]


def _verdict(case: Case) -> tuple[str, str]:
    every: Any = samples(case.operator)
    try:
        module = make(case.operator, [every[number] for number in case.samples], case.form)
    except Exception as error:
        return "absent", line(error)
    if module is None:
        return "absent", "no such variant"
    if case.form.startswith("bordered") and outcome(module, module.given).error is not None:
        return "absent", "eager raises"
    return judge(module, module.given, case.door, values=not unwritten(case.operator))
