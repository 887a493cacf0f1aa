"""Work in forked children with a time limit: a hang is a failure."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

LIMIT = 120.0


def forked(work: Callable[[], object], limit: float = LIMIT) -> None:
    """Run ``work`` in a forked child. AssertionError if it raises, dies or takes more than ``limit`` seconds."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, f"the child ended with status {status}"
            return
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"the child did not end in {limit} seconds")


def os_threads() -> int:
    """Threads of this process that the system knows of."""
    return len(list(Path("/proc/self/task").iterdir()))


def keeps_to_os_threads(most: int, seconds: float = 10) -> bool:
    """Whether there are soon at most so many: the system knows a thread for a moment after it was joined."""
    end = time.monotonic() + seconds
    while os_threads() > most and time.monotonic() < end:
        time.sleep(0.01)
    return os_threads() <= most
