"""The parent's side of the measuring process."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from typing import Any

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Failed(Exception):
    """The child answered with a failure; the text is its reason. Never leaves this package."""


class Lost(Failed):
    """The child, or the board that it measures on, crashed or hung and is gone."""


class Mistaken(Failed):
    """A candidate's result is wrong."""


_KINDS = {"wrong": Mistaken, "lost": Lost}


class Child:
    """One measuring process with a fixed number of threads, which runs ``module``."""

    def __init__(self, threads: int, module: str = "sparsec.autotune.worker") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(threads),
        )

    def ask(self, timeout_s: float, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its reply. Failed for a failure, Lost for a death or silence for ``timeout_s``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Lost(self._death()) from None
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            self.end()
            raise Lost(f"timed out after {timeout_s:g} s")
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise Lost(self._death())
        reply = json.loads(line)
        if "failure" in reply:
            raise _KINDS.get(reply.get("kind", ""), Failed)(reply["failure"])
        return reply

    def end(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue

    def _death(self) -> str:
        code = self._process.wait()
        return f"crashed (signal {-code})" if code < 0 else f"crashed (exit status {code})"


def _environment(threads: int) -> dict[str, str]:
    """The parent's environment and import path, thread counts fixed, waiting threads asleep."""
    paths = os.pathsep.join(path for path in sys.path if path)
    counts = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    return {**os.environ, **counts, "OMP_WAIT_POLICY": "passive", "PYTHONPATH": paths}
