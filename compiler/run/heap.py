"""What compiling leaves behind, given back to the system."""

from __future__ import annotations

import ctypes
import gc

#: Of networks with less it is not worth the time: a second where much is alive.
_FROM_BYTES = 1 << 20


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
