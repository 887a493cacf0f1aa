"""Locks that a forked child finds open: whoever held one in the parent is not there to give it back."""

from __future__ import annotations

import os
import weakref
from typing import Any, TypeVar

Lock = TypeVar("Lock")
_locks: weakref.WeakSet[Any] = weakref.WeakSet()


def opened_in_children(lock: Lock) -> Lock:
    """``lock``, a ``threading.Lock`` or ``RLock``, made anew in every forked child; not an ``RLock`` that the forking thread itself holds.

    What it guards must be whole at every step.
    """
    _locks.add(lock)
    return lock


def _renew() -> None:
    for lock in list(_locks):
        if not (hasattr(lock, "_is_owned") and lock._is_owned()):
            lock._at_fork_reinit()  # as the standard library does with its own


os.register_at_fork(after_in_child=_renew)
