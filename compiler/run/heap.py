"""What compiling leaves behind, given back to the system."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

#: Of networks with less it is not worth the time: a second where much is alive.
_FROM_BYTES = 1 << 20


@contextmanager
def older_objects_aside() -> Iterator[None]:
    """Collections of garbage look at what was made since only: with torch imported each of them takes 0.1 to 0.2 s otherwise.

    Where somebody else has frozen objects, this does nothing, as it could not give them back as they were.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def give_back(held: int) -> None:
    """Collect graphs, which hold weights in cycles, and return free pages of the heap: together several times a network's weights.

    ``held``: bytes of constants that the program keeps.
    """
    if held < _FROM_BYTES:
        return
    gc.collect()
    trim()


def trim() -> None:
    """Return free pages of the heap to the system, where its allocator can (glibc)."""
    found = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if found is not None:
        found(0)
