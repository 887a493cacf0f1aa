"""Our answers beside those of eager mode or ONNX Runtime on the user's own data: how far apart, and at which node that begins."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparsec.doors.npy import read_arrays
from sparsec.errors import InvalidInput

#: Ranks that are compared: the best answer, and the best five.
TOPS = (1, 5)


@dataclass(frozen=True)
class ResultAgreement:
    """One result over all samples.

    largest, mean: of |a - b|. relative: the largest over the largest magnitude of the reference. unlike: elements that are finite in one
    only. top: by k, the share of rows [.., classes] whose k best classes are the same ones; empty where a result has no such rows.
    """

    name: str
    shape: tuple[int, ...]
    largest: float
    relative: float
    mean: float
    unlike: int
    top: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Agreement:
    """All results, and where a difference above ``tolerance`` begins ("" where there is none)."""

    reference: str
    samples: int
    tolerance: float
    results: tuple[ResultAgreement, ...]
    begins: str = ""

    @property
    def holds(self) -> bool:
        """Whether every result is within the tolerance."""
        return all(result.relative <= self.tolerance and not result.unlike for result in self.results)

    def to_json(self) -> str:
        """One JSON object; what is infinite or no number is null."""
        data = asdict(self) | {"holds": self.holds}
        return json.dumps(_finite(data), allow_nan=False)

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title=f"Beside {self.reference}, {self.samples} samples", title_justify="left")
        for heading in ("result", "shape", "largest", "relative", "mean", *(f"top {k}" for k in TOPS)):
            table.add_column(heading, justify="left" if heading in ("result", "shape") else "right")
        for r in self.results:
            tops = [f"{r.top[k]:.2%}" if k in r.top else "–" for k in TOPS]
            table.add_row(r.name, "×".join(map(str, r.shape)), f"{r.largest:.2e}", f"{r.relative:.2e}", f"{r.mean:.2e}", *tops)
        lines = [f"{r.name}: {r.unlike} elements are finite in one only" for r in self.results if r.unlike]
        lines.append(f"within {self.tolerance:g}" if self.holds else f"NOT within {self.tolerance:g}")
        return Group(table, *map(Text, [*lines, *([f"begins at {self.begins}"] if self.begins else [])]))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read_data(path: Path, names: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """Batches by input name: a .npy of a model with one input, a .npz by names (or in order), or a folder of such files, sorted.

    InvalidInput for what is no such file, and for names that the model does not have.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".npy", ".npz"))
        if not files:
            raise InvalidInput("The folder holds no data.", where=str(path), hint="Write .npy or .npz files with numpy.")
        return [batch for file in files for batch in read_data(file, names)]
    found = read_arrays(path)
    arrays = found if isinstance(found, dict) else {"arr_0": found}
    if len(arrays) == len(names) and not set(arrays) <= set(names) and all(name.startswith("arr_") for name in arrays):
        arrays = dict(zip(names, arrays.values(), strict=True))
    if set(arrays) != set(names):
        raise InvalidInput("The data are not the model's inputs.", where=str(path), why=f"{sorted(arrays)} for {sorted(names)}.")
    return [{name: arrays[name] for name in names}]


def compare_results(
    names: Sequence[str], pairs: Iterator[tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]
) -> tuple[tuple[ResultAgreement, ...], int]:
    """What is between ours and the reference over all batches, and the number of samples. InvalidInput for other numbers or shapes."""
    sums = [_Sum() for _ in names]
    samples = 0
    for ours, theirs in pairs:
        if [a.shape for a in ours] != [b.shape for b in theirs]:
            raise InvalidInput("The results have other shapes.", why=f"{[a.shape for a in ours]} and {[b.shape for b in theirs]}")
        samples += len(ours[0]) if ours and ours[0].ndim else 1
        for total, a, b in zip(sums, ours, theirs, strict=True):
            total.add(a, b)
    return tuple(total.result(name) for name, total in zip(names, sums, strict=True)), samples


class _Sum:
    """The differences of one result so far."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.largest = self.scale = self.total = 0.0
        self.count = self.unlike = self.rows = 0
        self.same = dict.fromkeys(TOPS, 0)

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        self.shape = self.shape or a.shape
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        alike = (np.isfinite(a) & np.isfinite(b)) | (a == b) | (np.isnan(a) & np.isnan(b))
        self.unlike += int((~alike).sum())
        with np.errstate(invalid="ignore"):
            difference = np.where(np.isfinite(a) & np.isfinite(b), np.abs(a - b), 0.0)
        self.largest = max(self.largest, float(difference.max(initial=0.0)))
        self.scale = max(self.scale, float(np.abs(b[np.isfinite(b)]).max(initial=0.0)))
        self.total, self.count = self.total + float(difference.sum()), self.count + difference.size
        if a.ndim >= 2 and a.shape[-1] > 1:
            self._rank(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]))

    def _rank(self, a: np.ndarray, b: np.ndarray) -> None:
        self.rows += len(a)
        for k in TOPS:
            if k < a.shape[1]:
                best = [np.sort(np.argsort(-x, axis=1, kind="stable")[:, :k], axis=1) for x in (a, b)]
                self.same[k] += int((best[0] == best[1]).all(1).sum())

    def result(self, name: str) -> ResultAgreement:
        classes = self.shape[-1] if len(self.shape) >= 2 else 0
        top = {k: self.same[k] / self.rows for k in TOPS if self.rows and k < classes}
        relative = self.largest / self.scale if self.scale else (0.0 if not self.largest else float("inf"))
        return ResultAgreement(name, self.shape, self.largest, relative, self.total / max(self.count, 1), self.unlike, top)


def first_different(count: int, error_at: Callable[[int], float], tolerance: float) -> int | None:
    """The first of ``count`` places in order whose error is above the tolerance, by bisection: errors once made stay. None if none is."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if error_at(middle) > tolerance:
            high = middle
        else:
            low = middle + 1
    return low if low < count else None
