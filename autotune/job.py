"""A task on its way to the child process: a JSON header and the weights in an npz file, never a pickle."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsec.autotune.tasks import restored_schedule, storages
from sparsec.backends.base import Backend, Machine
from sparsec.backends.plan import Buffer, Task
from sparsec.lower.layouts import Storage
from sparsec.lower.spec import KernelSpec, Schedule

_HEADER, _WEIGHTS = "job.json", "weights.npz"


@dataclass(frozen=True, eq=False)
class Job:
    """What to measure. ``cache``: directory for kernel libraries; ``seed``: of the random activations."""

    task: Task
    schedules: tuple[Schedule, ...]
    backend: Backend
    cache: Path
    threads: int
    seed: int


def write_job(job: Job, folder: Path) -> None:
    """Write ``job`` to an existing directory. The backend travels as the name of its class and its machine."""
    kind = type(job.backend)
    header = {
        "spec": job.task.spec.json(),
        "storages": storages(job.task),
        "weights": len(job.task.weights),
        "schedules": job.schedules,
        "backend": f"{kind.__module__}:{kind.__qualname__}",
        "machine": asdict(job.backend.machine),
        "cache": str(job.cache),
        "threads": job.threads,
        "seed": job.seed,
    }
    (folder / _HEADER).write_text(json.dumps(header))
    np.savez(folder / _WEIGHTS, **{str(i): w for i, w in enumerate(job.task.weights) if w is not None})  # type: ignore[arg-type]


def read_job(folder: Path) -> Job:
    """The inverse of ``write_job``."""
    header = json.loads((folder / _HEADER).read_text())
    with np.load(folder / _WEIGHTS, allow_pickle=False) as file:
        weights = tuple(file[str(i)] if str(i) in file.files else None for i in range(header["weights"]))
    return Job(
        task=_task(header, weights),
        schedules=tuple(map(restored_schedule, header["schedules"])),
        backend=_backend(header["backend"], header["machine"]),
        cache=Path(header["cache"]),
        threads=header["threads"],
        seed=header["seed"],
    )


def _task(header: dict[str, Any], weights: Sequence[np.ndarray | None]) -> Task:
    stored = header["storages"]
    return Task(
        node="task",
        spec=KernelSpec.restored(header["spec"]),
        sources=tuple(Buffer("source", Storage.restored(s)) for s in stored["sources"]),
        residual=None if stored["residual"] is None else Buffer("residual", Storage.restored(stored["residual"])),
        target=Buffer("target", Storage.restored(stored["target"])),
        weights=tuple(weights),
    )


def _backend(name: str, machine: dict[str, Any]) -> Any:
    module, _, kind = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in kind.split("."):
        found = getattr(found, part)
    return found(Machine.of(machine))
