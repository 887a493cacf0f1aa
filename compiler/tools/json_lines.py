"""The child's end of a pipe: one JSON request a line in, one JSON reply a line out."""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

#: Of linux/prctl.h.
_PR_SET_PDEATHSIG = 1


def serve(answer: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Answer requests until the parent closes the pipe, then end the process at once.

    What is printed meanwhile goes to standard error. Threads that wait, hang or crash at the interpreter's end hold nothing up.
    """
    _end_with_parent()
    requests, replies = _private_channels()
    for line in requests:
        replies.write(json.dumps(answer(json.loads(line))) + "\n")
        replies.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with_parent() -> None:
    """Ask Linux to kill this process when the thread that started it is gone: a kernel that hangs would outlive its measurement."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _private_channels() -> tuple[TextIO, TextIO]:
    requests, replies = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return requests, replies
