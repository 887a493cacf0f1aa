"""Records as a table, and which of them are failures."""

import re
from collections import Counter
from collections.abc import Sequence

from tests.opdb.cases import Record

FAILURES = ("wrong", "raised", "memory", "crashed")


def failures(records: Sequence[Record]) -> list[str]:
    """A line for each: how to run it again, and what happened."""
    return [
        f"python -m tests.opdb --case {record.operator!r} {','.join(map(str, record.samples))} {record.form!r} {record.door}\n"
        f"    {record.verdict}: {record.detail}"
        for record in records
        if record.verdict in FAILURES
    ]


def table(records: Sequence[Record]) -> str:
    """Samples by door, form and verdict, and the reasons of what was not compared."""
    counts: Counter[tuple[str, ...]] = Counter()
    reasons: Counter[tuple[str, ...]] = Counter()
    for record in records:
        counts[record.door, record.form, record.verdict] += len(record.samples)
        if record.verdict in ("torch", "refused", "answered"):
            reasons[record.door, record.verdict, reason(record.detail)] += len(record.samples)
    operators = len({record.operator for record in records})
    lines = [f"{operators} operators, {sum(counts.values())} samples by form and door"]
    lines += [f"{' · '.join(key)}: {count}" for key, count in sorted(counts.items())]
    return "\n".join([*lines, "", *(f"{count} {' · '.join(key)}" for key, count in reasons.most_common())])


def reason(detail: str) -> str:
    """A detail without its numbers and names, short."""
    return re.sub(r"\s+", " ", re.sub(r"'[^']*'|[\d.]+", "…", detail))[:110]
