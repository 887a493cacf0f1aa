"""Memory with pages before and behind it that nobody may touch: who goes past its end dies there."""

from __future__ import annotations

import ctypes
import mmap

PAGE = mmap.PAGESIZE


class Memory:
    """Writable zeros from ``first`` to ``end``, whole pages of at least ``size`` bytes."""

    def __init__(self, size: int) -> None:
        pages = -(-size // PAGE) * PAGE
        self._whole = mmap.mmap(-1, pages + 2 * PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._whole))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.first, self.end = base + PAGE, base + PAGE + pages
        if protect(base, PAGE, 0) or protect(self.end, PAGE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
