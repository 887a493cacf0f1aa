"""Calls in threads that an interpreter does not wait for: it ends when those under way have, and later ones end their threads.

CPython unwinds such a thread where it comes back to Python; C++ that it called from does not allow that and aborts the process.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable
from functools import wraps
from threading import get_ident
from typing import ParamSpec, TypeVar

#: Seconds that an interpreter waits for calls that do not end.
PATIENCE = 10.0
_STEP = 0.001

P = ParamSpec("P")
R = TypeVar("R")
_running: set[object] = set()
_ended_by: int | None = None


def waited_for(call: Callable[P, R]) -> Callable[P, R]:
    """``call``, not left by the end of the interpreter. Then only the thread that ends it may call: SystemExit in others."""

    @wraps(call)
    def waited(*args: P.args, **kwargs: P.kwargs) -> R:
        token = object()
        _running.add(token)
        try:
            if _ended_by is not None and _ended_by != get_ident():
                raise SystemExit
            return call(*args, **kwargs)
        finally:
            _running.discard(token)

    return waited


def _wait() -> None:
    global _ended_by
    _ended_by, end = get_ident(), time.monotonic() + PATIENCE
    while _running and time.monotonic() < end:
        time.sleep(_STEP)


atexit.register(_wait)
os.register_at_fork(after_in_child=_running.clear)
