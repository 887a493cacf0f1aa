"""The constants of a program: one blob on disk; in memory pieces, of which programs of one process share those that are equal."""

from __future__ import annotations

import hashlib
import weakref
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sparsec.run.heap import trim

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
    """Arrays laid one after the other on line boundaries; equal ones are stored once. ``sizes``: bytes of all that will be added.

    Those below _PAGED share blocks of memory. A block lives as long as one of its arrays does.
    """

    def __init__(self, sizes: Iterable[int]) -> None:
        self._starts: dict[bytes, int] = {}
        self._pieces: dict[bytes, np.ndarray] = {}
        self._size, self._left = 0, sum(map(_lines, sizes))
        self._block, self._used = aligned(0), 0

    def add(self, array: np.ndarray) -> tuple[int, np.ndarray]:
        """Byte offset of ``array`` in the blob, and the array as it is kept."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        piece = self._laid(data) if data.nbytes < _PAGED else _copied(data)
        # Of the copy, which nobody else can write to.
        key = hashlib.sha256(piece.data).digest()
        if key not in self._starts:
            self._starts[key], self._pieces[key] = self._size, self._kept(key, piece)
            self._size += _lines(data.nbytes)
        if self._pieces[key] is not piece and data.nbytes < _PAGED:
            self._used -= _lines(data.nbytes)
        self._left -= _lines(data.nbytes)
        return self._starts[key], self._pieces[key].view(array.dtype).reshape(array.shape)

    def _kept(self, key: bytes, piece: np.ndarray) -> np.ndarray:
        """These bytes in memory: those of another program where it has the same."""
        return piece if piece.nbytes < _SHARED_FROM else _shared.setdefault(key, piece)

    def _laid(self, data: np.ndarray) -> np.ndarray:
        if self._used + data.nbytes > self._block.nbytes:
            if self._block.nbytes >= _PAGED:
                # Arrays that were added are often free by now: their pages, before more are taken.
                trim()
            self._block, self._used = aligned(max(min(self._left, _PAGED), data.nbytes), TAIL), 0
        piece = self._block[self._used : self._used + data.nbytes]
        piece[:] = data
        self._used += _lines(data.nbytes)
        return piece

    def constants(self) -> Constants:
        """All of them."""
        pieces = tuple(self._pieces.values()) or (_copied(np.zeros(0, np.uint8)),)
        return Constants(tuple(self._starts.values()) or (0,), pieces, self._size + TAIL)


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
