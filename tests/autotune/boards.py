"""Boards on this machine: processes that serve, and the C file of boards changed so that it lies."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsec.autotune import farm
from sparsec.autotune.tracker import Tracker
from sparsec.tools.c_library import c_library

SERVER = Path(__file__).with_name("board_server.py")
#: A Python for ARM, and its TVM.
ARM = Path(__file__).parents[2] / "build/arm"
EMULATOR = "qemu-aarch64-static"


def has_arm() -> bool:
    """Whether a board with an ARM processor can be emulated."""
    return (ARM / "board/complete").is_file() and shutil.which(EMULATOR) is not None


needs_arm = pytest.mark.skipif(
    not has_arm(),
    reason=f"no TVM for ARM in build/arm (make arm-board puts it there), or no {EMULATOR} on PATH (make arm-tools)",
)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


#: Changes some of the inputs before each run.
LIES = "total += values[i]", "total += ((float *)values)[i] *= 1.5f"
#: Dies where it times a candidate, after it was checked.
CRASHES = "int64_t begin = nanoseconds();", "int64_t begin = nanoseconds(); if (wanted > 1 && wanted < 10) raise(SIGSEGV);"


def bad_library(folder: Path, change: tuple[str, str]) -> Path:
    """What a board is measured by, with one change."""
    honest = Path(farm.__file__).with_name("board.c").read_text()
    assert honest.count(change[0]) == 1
    source = folder / "bad.c"
    source.write_text(honest.replace(*change))
    return c_library(source, folder)


def emulated(cpu: str) -> tuple[list[str], dict[str, str]]:
    """How to start Python on an emulated ARM processor: the line, and what is added to the environment."""
    python = ARM / "root/usr/bin/python3"
    return [EMULATOR, "-L", str(ARM / "root"), "-cpu", cpu, str(python)], {"PYTHONPATH": str(ARM / "board")}


@contextlib.contextmanager
def serving(
    tracker: Tracker, key: str, port: int, *library: Path, python: tuple[list[str], dict[str, str]] = ([sys.executable], {})
) -> Iterator[subprocess.Popen]:
    """A board that serves ``key`` at ``port`` until the end of the block."""
    line = [*python[0], str(SERVER), str(port), tracker.address.rpartition(":")[2], key, *map(str, library)]
    process = subprocess.Popen(line, env={**os.environ, **python[1]}, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 90
        while [f"server:{key}", port] not in [[entry["key"], entry["addr"][1]] for entry in tracker.summary()["server_info"]]:
            assert process.poll() is None and time.monotonic() < end, "the board did not start"
            time.sleep(0.2)
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
