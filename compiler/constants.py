"""The constants of a program: one blob on disk; in memory pieces, of which programs of one process share those that are equal."""

from __future__ import annotations

import hashlib
import weakref
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

LINE = 64
#: Kernels may read whole vectors past the end of a constant.
TAIL = 256
#: Arrays of fewer bytes are not worth sharing.
_SHARED_FROM = 1 << 14
_shared: weakref.WeakValueDictionary[bytes, np.ndarray] = weakref.WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class Constants:
    """Bytes at offsets of a blob of ``nbytes``: ``starts`` in order, ``pieces`` on line boundaries of memory, readable ``TAIL`` bytes on.

    What lies between pieces is zero on disk and not in memory: an offset is that of a constant, or inside one.
    """

    starts: tuple[int, ...]
    pieces: tuple[np.ndarray, ...]
    nbytes: int

    @classmethod
    def of(cls, blob: np.ndarray) -> Constants:
        """The constants of a whole blob, copied to a line boundary."""
        return cls((0,), (_copied(blob),), blob.nbytes)

    def address(self, offset: int) -> int:
        """Where the byte at ``offset`` of the blob is, for as long as this object is kept."""
        number = bisect_right(self.starts, offset) - 1
        return self.pieces[number].ctypes.data + offset - self.starts[number]

    def blob(self) -> np.ndarray:
        """All bytes, as on disk."""
        out = np.zeros(self.nbytes, np.uint8)
        for start, piece in zip(self.starts, self.pieces, strict=True):
            out[start : start + piece.nbytes] = piece
        return out


class Gathering:
    """Arrays laid one after the other on line boundaries; equal ones are stored once."""

    def __init__(self) -> None:
        self._starts: dict[bytes, int] = {}
        self._pieces: list[np.ndarray] = []
        self._size = 0

    def add(self, array: np.ndarray) -> int:
        """Byte offset of ``array`` in the blob."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        key = hashlib.sha256(data.data).digest()
        if key not in self._starts:
            self._starts[key] = self._size
            self._pieces.append(_piece(key, data))
            self._size += -(-data.nbytes // LINE) * LINE
        return self._starts[key]

    def constants(self) -> Constants:
        """All of them."""
        return Constants(tuple(self._starts.values()) or (0,), tuple(self._pieces) or (_copied(np.zeros(0, np.uint8)),), self._size + TAIL)


def _piece(key: bytes, data: np.ndarray) -> np.ndarray:
    """These bytes in memory: those of another program where it has the same."""
    if data.nbytes < _SHARED_FROM:
        return _copied(data)
    found = _shared.get(key)
    if found is None:
        _shared[key] = found = _copied(data)
    return found


def _copied(data: np.ndarray) -> np.ndarray:
    out = aligned(data.nbytes, TAIL)
    out[:] = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return out


def aligned(nbytes: int, slack: int = 0) -> np.ndarray:
    """Zeros on a line boundary, with ``slack`` bytes after them that may be read."""
    raw = np.zeros(nbytes + LINE + slack, np.uint8)
    shift = -raw.ctypes.data % LINE
    return raw[shift : shift + nbytes]
