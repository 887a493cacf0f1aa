"""What a comparison found: plain, frozen data that travels as JSON and prints as a table."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rich.table import Table
from rich.text import Text

from sparsec.bench.names import DENSE_FP32


@dataclass(frozen=True)
class Kernel:
    """One kernel of ours inside a run: time in seconds, floating-point operations done, bytes read and written."""

    name: str
    kind: str
    seconds: float
    flops: float
    bytes: float


@dataclass(frozen=True)
class RivalResult:
    """One rival's times.

    `rounds_ns` holds one tuple of nanoseconds per round; `error` is max|a - b| / max|b| against eager float32;
    `setup_s` is the time to load, compile and run once, the export to ONNX included for the first rival that needs it.
    A rival with a `failure` has that reason, and no ratio even if some of its rounds were timed.
    """

    name: str
    rounds_ns: tuple[tuple[int, ...], ...] = ()
    error: float | None = None
    setup_s: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    kernels: tuple[Kernel, ...] = ()
    failure: str | None = None

    @property
    def samples_ns(self) -> tuple[int, ...]:
        """All times in the order in which they were taken."""
        return tuple(sample for one_round in self.rounds_ns for sample in one_round)

    @property
    def timed(self) -> bool:
        """Whether it ran to the end."""
        return self.failure is None and bool(self.samples_ns)

    @property
    def median_ms(self) -> float:
        """Median over all calls, in milliseconds; ValueError if there are none."""
        return median(self.samples_ns) / 1e6

    @property
    def min_ms(self) -> float:
        """Fastest call, in milliseconds; ValueError if there are none."""
        return min(self.samples_ns) / 1e6


@dataclass(frozen=True)
class Comparison:
    """All rivals of one run. `order` names, round by round, who ran when."""

    factory: str
    threads: int
    batch: int
    cores: tuple[int, ...]
    order: tuple[tuple[str, ...], ...]
    rivals: tuple[RivalResult, ...]

    def result(self, name: str) -> RivalResult:
        """The result of the rival called `name`; KeyError if it was not asked for."""
        for rival in self.rivals:
            if rival.name == name:
                return rival
        raise KeyError(name)

    @property
    def best_dense(self) -> RivalResult | None:
        """The dense float32 rival with the lowest median, if any was timed."""
        dense = [rival for rival in self.rivals if rival.name in DENSE_FP32 and rival.timed]
        return min(dense, key=lambda rival: rival.median_ms, default=None)

    def ratio(self, name: str, over: str | None = None) -> float | None:
        """How many times as fast `name` is as `over`, by default the best dense float32 rival of this run.

        The quotient of the medians; None if one of the two was not timed. KeyError for a name not asked for.
        """
        rival, other = self.result(name), self.best_dense if over is None else self.result(over)
        return other.median_ms / rival.median_ms if other is not None and other.timed and rival.timed else None

    def to_json(self) -> str:
        """One JSON object; `from_json` is its inverse. `summary` has what follows from the rest: medians, fastest calls, ratios."""
        return json.dumps({**asdict(self), "summary": {rival.name: self._summary(rival) for rival in self.rivals}})

    def _summary(self, rival: RivalResult) -> dict[str, float | None]:
        if not rival.timed:
            return {"median_ms": None, "min_ms": None, "over_best_dense": None}
        return {"median_ms": rival.median_ms, "min_ms": rival.min_ms, "over_best_dense": self.ratio(rival.name)}

    @classmethod
    def from_json(cls, text: str) -> "Comparison":
        """Read what `to_json` wrote."""
        data = json.loads(text)
        del data["summary"]
        data["cores"] = tuple(data["cores"])
        data["order"] = tuple(tuple(names) for names in data["order"])
        data["rivals"] = tuple(_rival(entry) for entry in data["rivals"])
        return cls(**data)

    def table(self) -> Table:
        """One row per rival: median, minimum, ratio to the best dense float32 rival, error, setup.

        Below it the versions, and for each rival that failed the reason.
        """
        threads = f"{self.threads} thread" + ("s" if self.threads > 1 else "")
        table = Table(title=f"{self.factory} · batch {self.batch} · {threads}", caption=self._caption())
        table.caption_justify = "left"
        table.add_column("rival", no_wrap=True)
        for heading in ("median ms", "min ms", "× best dense", "max error", "setup s"):
            table.add_column(heading, justify="right")
        for rival in self.rivals:
            table.add_row(*self._cells(rival))
        return table

    def _cells(self, rival: RivalResult) -> tuple[str, ...]:
        times = (f"{rival.median_ms:.3f}", f"{rival.min_ms:.3f}") if rival.timed else ("failed", "–")
        ratio = _number(self.ratio(rival.name), ".2f")
        return rival.name, *times, ratio, _number(rival.error, ".1e"), _number(rival.setup_s, ".1f")

    def _caption(self) -> Text:
        versions = {package: number for rival in self.rivals for package, number in rival.versions.items()}
        lines = [", ".join(f"{package} {number}" for package, number in sorted(versions.items()))]
        lines += [f"{rival.name}: {rival.failure or 'no rounds were run'}" for rival in self.rivals if not rival.timed]
        return Text("\n".join(filter(None, lines)))


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _rival(entry: dict[str, Any]) -> RivalResult:
    rounds = tuple(tuple(samples) for samples in entry["rounds_ns"])
    kernels = tuple(Kernel(**kernel) for kernel in entry["kernels"])
    return RivalResult(**{**entry, "rounds_ns": rounds, "kernels": kernels})
