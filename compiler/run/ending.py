"""Calls in threads that an interpreter does not wait for: it ends when those under way have, and later ones end their threads.

CPython unwinds such a thread where it comes back to Python; C++ that it called from does not allow that and aborts the process. PyTorch
leaves and comes back also where a tensor's memory is freed: what a call gave, after the call.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from functools import wraps
from threading import get_ident
from typing import ParamSpec, TypeVar

#: Seconds that an interpreter waits for calls that do not end.
PATIENCE = 10.0
#: Seconds that it gives a thread after a call, to drop what that gave and to make its next or to end.
_GRACE = 0.2
_STEP = 0.001

P = ParamSpec("P")
R = TypeVar("R")
_running: set[object] = set()
#: When each thread last left a call, by its identifier.
_left: dict[int, float] = {}
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
            _left[get_ident()] = time.monotonic()
            _running.discard(token)

    return waited


def _just_left() -> bool:
    """Whether a thread that lives has left a call just now, that which ends the interpreter aside."""
    since, alive = time.monotonic() - _GRACE, {thread.ident for thread in threading.enumerate()}
    return any(left > since and thread in alive for thread, left in _left.copy().items() if thread != _ended_by)


def _wait() -> None:
    global _ended_by
    _ended_by, end = get_ident(), time.monotonic() + PATIENCE
    while (_running or _just_left()) and time.monotonic() < end:
        time.sleep(_STEP)


atexit.register(_wait)
os.register_at_fork(after_in_child=_running.clear)
