"""One measured candidate of one task, as plain data that travels as a line of JSON."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any, Literal

from sparsec.autotune.tasks import restored_schedule
from sparsec.lower.spec import KernelSpec, Schedule

STATUSES = ("ok", "failed")


@dataclass(frozen=True)
class Record:
    """What a measurement found.

    run: the run in which all candidates of the task were measured in turns; only times of one run may be compared.
    spec: canonical JSON of the KernelSpec, spec_key its digest; shape: digest of spec and storages; task: shape and zero pattern.
    storages: of sources, residual and target. machine, threads: where it was measured. rank: place among the candidates, the
    default's is 0. samples_ns: of single images, without the host's cost of a start. rival: the dense candidate of the same run, with
    its median; None if there is none. error: largest difference to the float64 reference over its largest magnitude. source: digest
    of the lowered source; kernels: its symbols.
    library: digest of everything kernels are made from; a record of another digest is stale. emulated: never wins over a real one.
    board, cpu: the address of the board, empty for the machine that tuned, and the name of its processor; older records do not say.
    imported: came from a file. time: seconds since 1970.
    """

    run: str
    task: str
    shape: str
    spec: str
    spec_key: str
    storages: dict[str, Any]
    machine: str
    threads: int
    schedule: Schedule
    rank: int
    status: Literal["ok", "failed"]
    reason: str
    samples_ns: tuple[int, ...]
    rival: Schedule | None
    rival_median_ns: float | None
    error: float | None
    source: str
    kernels: tuple[str, ...]
    library: str
    tools: dict[str, str]
    emulated: bool
    time: float
    imported: bool = False
    board: str = ""
    cpu: str = ""

    @property
    def median_ns(self) -> float | None:
        """Median of the samples, None without any."""
        return median(self.samples_ns) if self.samples_ns else None

    def to_json(self) -> str:
        """One line of JSON; ``from_json`` is its inverse."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Read what ``to_json`` wrote, checked. ValueError says what is wrong with it."""
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError("it is not a JSON object")
        data = {"board": "", "cpu": "", **data}
        known = {f.name for f in fields(cls)}
        if set(data) != known:
            raise ValueError(f"fields are missing or unknown: {', '.join(sorted(known ^ set(data)))}")
        _check_types(data)
        record = cls(**{**data, **_restored(data)})
        _check(record)
        return record


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        ("run", "task", "shape", "spec", "spec_key", "machine", "status", "reason", "source", "library", "board", "cpu"), (str,)
    ),
    **dict.fromkeys(("storages", "tools"), (dict,)),
    **dict.fromkeys(("schedule", "samples_ns", "kernels"), (list,)),
    **dict.fromkeys(("threads", "rank"), (int,)),
    **dict.fromkeys(("emulated", "imported"), (bool,)),
    "rival": (list, type(None)),
    "rival_median_ns": (float, int, type(None)),
    "error": (float, int, type(None)),
    "time": (float, int),
}


def _check_types(data: Mapping[str, Any]) -> None:
    for name, types in _TYPES.items():
        if type(data[name]) not in types:
            raise ValueError(f"{name} is {type(data[name]).__name__}, not {' or '.join(t.__name__ for t in types)}")
    for name, kind in (("samples_ns", int), ("kernels", str)):
        if not all(type(item) is kind for item in data[name]):
            raise ValueError(f"{name} holds something that is not {kind.__name__}")


def _restored(data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "schedule": restored_schedule(data["schedule"]),
        "rival": None if data["rival"] is None else restored_schedule(data["rival"]),
        "samples_ns": tuple(data["samples_ns"]),
        "kernels": tuple(data["kernels"]),
    }


def _check(record: Record) -> None:
    try:
        KernelSpec.restored(record.spec)
    except (TypeError, ValueError) as error:
        raise ValueError(f"its spec cannot be read: {error}") from error
    if hashlib.sha256(record.spec.encode()).hexdigest()[:20] != record.spec_key or not record.task.startswith(f"{record.shape}-"):
        raise ValueError("its keys do not belong to its spec")
    if record.status not in STATUSES or record.threads < 1 or record.rank < 0:
        raise ValueError(f"status {record.status!r}, {record.threads} threads, rank {record.rank} make no sense together")
    numbers = (record.time, record.error or 0.0, record.rival_median_ns or 0.0)
    if any(n <= 0 for n in record.samples_ns) or not all(math.isfinite(n) and n >= 0 for n in numbers):
        raise ValueError("a time or an error is negative or not finite")
    if record.status == "ok" and (not record.samples_ns or record.error is None):
        raise ValueError("it is ok without samples or without an error")
