"""The child process that measures: ``python -m sparsec.autotune.worker``, driven by JSON lines on its standard input.

    {"do": "load", "folder": ...}                  -> {"candidates": 3}
    {"do": "prepare", "candidate": 0}              -> {"error": 1e-7, "source": ..., "kernels": [...], "flops": ...}
    {"do": "time", "candidate": 0, "samples": 5}   -> {"samples_ns": [...]}

A failure answers {"failure": reason}, of a wrong result {"failure": reason, "kind": "wrong"}. Crashes and hangs are the parent's to
notice. Thread counts are set by the parent.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec.tools.json_lines import serve

if TYPE_CHECKING:
    from sparsec.autotune.candidate import Bench
    from sparsec.autotune.job import Job

_REASON_LENGTH = 300


class Worker:
    """Holds the bench of the one task under measurement."""

    def __init__(self) -> None:
        self._loaded: Bench | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request; whatever a candidate raises becomes {"failure": reason}."""
        handlers: dict[str, Callable[..., dict[str, Any]]] = {"load": self._load, "prepare": self._prepare, "time": self._time}
        try:
            return handlers[request.pop("do")](**request)
        except Exception as error:
            return self._failure(error)

    def _failure(self, error: Exception) -> dict[str, Any]:
        from sparsec.autotune.candidate import Wrong

        if isinstance(error, Wrong):
            return {"failure": str(error), "kind": "wrong"}
        return {"failure": f"{type(error).__name__}: {first_line(error)}"[:_REASON_LENGTH]}

    def _load(self, folder: str) -> dict[str, Any]:
        import torch

        from sparsec.autotune.job import read_job

        job = read_job(Path(folder))
        torch.set_num_threads(job.threads)
        self._loaded = None
        self._loaded = self._made(job)
        return {"candidates": len(job.schedules)}

    def _made(self, job: Job) -> Bench:
        from sparsec.autotune.candidate import Bench

        return Bench(job)

    def _prepare(self, candidate: int) -> dict[str, Any]:
        return self._bench.prepare(candidate)

    def _time(self, candidate: int, samples: int) -> dict[str, Any]:
        return {"samples_ns": self._bench.time(candidate, samples)}

    @property
    def _bench(self) -> Bench:
        if self._loaded is None:
            raise RuntimeError("no task is loaded: send a load request first")
        return self._loaded


def first_line(error: Exception) -> str:
    """The first line of an error's text that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


if __name__ == "__main__":
    serve(Worker().answer)
