"""The child process of one rival: `python -m sparsec.bench.worker`, driven by JSON lines on its standard input.

    {"do": "load", "rival": ..., "factory": ..., "batch": 1, "threads": 1, "folder": ..., "tune": "off"}
        -> {"setup_s": ..., "error": ..., "warm_ns": [...], "versions": {...}}
    {"do": "run", "iterations": 20}   -> {"samples_ns": [...]}
    {"do": "profile"}                 -> {"kernels": [[name, kind, seconds, flops, bytes], ...]}

A failure answers {"failure": reason}. Between requests the process blocks in a read and uses no processor time. Core
pinning and thread counts are set by the parent before this file is imported.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec.settings import Tune
from sparsec.tools.json_lines import serve

if TYPE_CHECKING:
    from sparsec.bench.rivals import Loaded

Handler = Callable[..., dict[str, Any]]

WARMUP_CALLS = 5
REASON_LINES = 3


class Worker:
    """Holds the one loaded rival and answers requests about it."""

    def __init__(self) -> None:
        self._rival: Loaded | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request; what an engine raises becomes {"failure": reason}."""
        handlers: dict[str, Handler] = {"load": self._load, "run": self._run, "profile": self._profile}
        arguments = {key: value for key, value in request.items() if key != "do"}
        try:
            return handlers[request["do"]](**arguments)
        except Exception as error:
            return {"failure": _reason(error)}

    def _load(
        self, rival: str, factory: str, batch: int, threads: int, folder: str, tune: Tune, shapes: Sequence[str] = ()
    ) -> dict[str, Any]:
        import torch

        from sparsec.bench.program import arrays, load_program, relative_error
        from sparsec.bench.rivals import load_rival

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        program = load_program(factory, batch, Path(folder), threads, tune, shapes)
        begin = time.perf_counter()
        self._rival = load_rival(rival, program)
        outputs = arrays(self._rival.run())
        setup = time.perf_counter() - begin
        error = relative_error(outputs, program.expected)
        warm = self._run(WARMUP_CALLS)["samples_ns"]
        return {"setup_s": setup, "error": error, "warm_ns": warm, "versions": self._rival.versions}

    def _run(self, iterations: int) -> dict[str, Any]:
        run, clock = self._loaded().run, time.perf_counter_ns
        samples = []
        for _ in range(iterations):
            begin = clock()
            run()
            samples.append(clock() - begin)
        return {"samples_ns": samples}

    def _profile(self) -> dict[str, Any]:
        profile = self._loaded().profile
        return {"kernels": profile() if profile else []}

    def _loaded(self) -> "Loaded":
        if self._rival is None:
            raise RuntimeError("no rival is loaded: send a load request first")
        return self._rival


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {'; '.join(lines[:REASON_LINES])}" if lines else type(error).__name__


if __name__ == "__main__":
    serve(Worker().answer)
