"""The constants of a program: one blob on disk; in memory pieces, of which programs of one process share those that are equal."""

from __future__ import annotations

import hashlib
import weakref
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LINE = 64
#: Kernels may read whole vectors past the end of a constant.
TAIL = 256
#: Arrays of fewer bytes are not worth sharing.
_SHARED_FROM = 1 << 14
#: Numpy asks for large pages for arrays from here on. With pages of 4 KiB for each layer's a call of a small network takes 1 or 2% longer.
_PAGED = 1 << 22
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
        self._pieces: dict[bytes, np.ndarray] = {}
        self._new: dict[bytes, np.ndarray] = {}
        self._size = 0

    def add(self, array: np.ndarray) -> int:
        """Byte offset of ``array`` in the blob. It is read again by ``constants``."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        key = hashlib.sha256(data.data).digest()
        if key not in self._starts:
            self._starts[key] = self._size
            self._size += _lines(data.nbytes)
            if (piece := _shared.get(key)) is None:
                self._new[key] = data
            else:
                self._pieces[key] = piece
        return self._starts[key]

    def constants(self) -> Constants:
        """All of them."""
        made = dict(zip(self._new, _together(list(self._new.values())), strict=True))
        _shared.update({key: piece for key, piece in made.items() if piece.nbytes >= _SHARED_FROM})
        pieces = tuple((self._pieces | made)[key] for key in self._starts)
        return Constants(tuple(self._starts.values()) or (0,), pieces or (_copied(np.zeros(0, np.uint8)),), self._size + TAIL)


def _together(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Copies on line boundaries; those below _PAGED share one block of memory, which lives as long as one of them does."""
    block = aligned(sum(_lines(array.nbytes) for array in arrays if array.nbytes < _PAGED), TAIL)
    pieces, start = [], 0
    for array in arrays:
        if array.nbytes >= _PAGED:
            pieces.append(_copied(array))
            continue
        pieces.append(piece := block[start : start + array.nbytes])
        piece[:] = array
        start += _lines(array.nbytes)
    return pieces


def _lines(nbytes: int) -> int:
    return -(-nbytes // LINE) * LINE


def _copied(data: np.ndarray) -> np.ndarray:
    out = aligned(data.nbytes, TAIL)
    out[:] = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return out


def aligned(nbytes: int, slack: int = 0) -> np.ndarray:
    """Zeros on a line boundary, with ``slack`` bytes after them that may be read."""
    raw = np.zeros(nbytes + LINE + slack, np.uint8)
    shift = -raw.ctypes.data % LINE
    return raw[shift : shift + nbytes]
