"""The parent's side of one rival's process."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
TAIL_BYTES = 4000


class RivalFailed(Exception):
    """A rival could not be loaded or run; the text is the reason that is reported. Never leaves this package."""


class Child:
    """One rival's process, pinned to `cores`, with as many threads as cores."""

    def __init__(self, cores: Sequence[int], log: Path) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sparsec.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment(len(cores)),
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send one request and wait for its reply; RivalFailed on failure, death or silence for `timeout_s`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RivalFailed(self._death()) from None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        if not ready:
            self._process.kill()
            raise RivalFailed(f"no answer to {request['do']!r} within {timeout_s:g} s; its process was ended")
        line = self._process.stdout.readline()
        if not line:
            raise RivalFailed(self._death())
        reply = json.loads(line)
        if "failure" in reply:
            raise RivalFailed(reply["failure"])
        return reply

    def close(self) -> None:
        """End the process: politely by closing its input, by force if it lingers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _death(self) -> str:
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        tail = self._log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip().splitlines()
        return f"its process was {how}" + (f"; last words: {tail[-1].strip()}" if tail else "")


def environment(threads: int) -> dict[str, str]:
    """The parent's environment with thread counts fixed, waiting threads asleep and the same import path."""
    counts = dict.fromkeys(THREAD_VARIABLES, str(threads))
    paths = os.pathsep.join(path for path in sys.path if path)
    policy = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
    return {**os.environ, **counts, **policy, "PYTHONPATH": paths}
