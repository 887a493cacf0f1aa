"""TVM's own processes of a farm, started: its tracker, and a server that makes a board of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from sparsec.autotune.tracker import Tracker
from sparsec.errors import MachineError

_START_S = 60.0


@contextlib.contextmanager
def serving(host: str, port: int, key: str | None = None) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A tracker that listens at ``host``, and with a key a server for it, until the end of the block.

    MachineError where nothing can listen there or a process ends at once.
    """
    _check_free(host, port)
    here = "127.0.0.1" if host == "0.0.0.0" else host
    lines = [["rpc_tracker", "--host", host, "--port", str(port), "--port-end", str(port + 1)]]
    if key is not None:
        lines.append(["rpc_server", "--host", host, "--tracker", f"{here}:{port}", "--key", key])
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for line in lines:
            processes.append(_started(line))
            _wait(Tracker(f"{here}:{port}"), processes, key if line[0] == "rpc_server" else None)
        yield processes
    finally:
        for process in processes:
            # A worker of TVM's is in the group as well.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _check_free(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            return
    except (OSError, OverflowError) as error:
        hint = "Another one may run there: see `sparsec farm status`. Or choose --port."
        raise MachineError(f"No tracker can listen at {host}:{port}.", why=str(error), hint=hint) from error


def _started(line: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"tvm.exec.{line[0]}", *line[1:], "--silent"]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _wait(tracker: Tracker, processes: list[subprocess.Popen[bytes]], key: str | None) -> None:
    """Until the tracker answers and, with a key, has a board of it."""
    end = time.monotonic() + _START_S
    while True:
        try:
            tracker.summary() if key is None else tracker.boards(key)
            return
        except MachineError:
            if time.monotonic() > end or any(process.poll() is not None for process in processes):
                raise
            time.sleep(0.2)
