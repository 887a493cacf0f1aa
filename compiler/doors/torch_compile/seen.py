"""Memory as it was, compared at every call: in C (``seen.c``) where there is a compiler, else by numpy, which takes twice as long."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparsec.doors.torch_compile import stamps
from sparsec.settings import Settings
from sparsec.tools.c_library import c_library

logger = logging.getLogger("sparsec")
_SOURCE = Path(__file__).with_suffix(".c")

Piece = tuple[int, int]


class Native(NamedTuple):
    """The functions of the library. They hold the interpreter's lock, so that no thread takes the memory away that they read."""

    words_same: Any
    seem_same: Any
    digest: Any


@functools.cache
def native() -> Native | None:
    """None where the library cannot be made."""
    import tvm_ffi

    try:
        module = tvm_ffi.load_module(str(c_library(_SOURCE, Settings().cache_dir)))
        functions = Native(*(module.get_function(name) for name in Native._fields))
    except Exception as error:
        logger.info("Weights are compared by numpy: %s", error)
        return None
    for function in functions:
        function.release_gil = False
    return functions


class Words:
    """64-bit words of this process as they are now, at places of ``stamps``."""

    def __init__(self, places: np.ndarray) -> None:
        self._places, self._native = places, native()
        self._values = stamps.read(places)
        self._bytes = self._values.tobytes()
        self._addresses = stamps.addresses(places)
        self._given = self._addresses.ctypes.data, self._values.ctypes.data, len(places)

    def same(self) -> bool:
        """Whether all are as they were."""
        if self._native is None:
            return stamps.read(self._places).tobytes() == self._bytes
        return bool(self._native.words_same(*self._given))

    def changed(self) -> np.ndarray:
        """Which are not as they were."""
        return stamps.read(self._places) != self._values


class Samples:
    """32-bit words at some addresses, and slices of memory, each of some pieces, as they are now."""

    def __init__(self, addresses: np.ndarray, slices: Sequence[Sequence[Piece]]) -> None:
        self.pieces = np.array([piece for pieces in slices for piece in pieces], np.int64).reshape(-1, 2)
        self._addresses, self._places, self._native = addresses, stamps.halves(addresses), native()
        self._values = stamps.read_halves(self._places)
        self._bytes = self._values.tobytes()
        self._starts = np.array([0, *itertools.accumulate(map(len, slices))], np.int64)
        self._digests = np.array([self._digest(number) for number in range(len(slices))], np.int64)
        self._turn = itertools.count()
        arrays = self._addresses, self._values, self.pieces, self._starts, self._digests
        places, values, pieces, starts, digests = (array.ctypes.data for array in arrays)
        self._table = np.array([places, values, len(addresses), pieces, starts, digests, len(slices), 0], np.int64)
        self._given = self._table.ctypes.data

    def same(self) -> bool:
        """Whether all words and the next slice are as they were."""
        if self._native is not None:
            return bool(self._native.seem_same(self._given))
        if stamps.read_halves(self._places).tobytes() != self._bytes:
            return False
        turn = next(self._turn) % max(len(self._digests), 1)
        return not len(self._digests) or self._digest(turn) == self._digests[turn]

    def all_same(self) -> bool:
        """Whether all slices are as they were."""
        return all(self._digest(number) == digest for number, digest in enumerate(self._digests.tolist()))

    def _digest(self, number: int) -> int:
        first, end = self._starts[number : number + 2].tolist()
        if self._native is not None:
            return self._native.digest(self.pieces[first:].ctypes.data, end - first)
        return hash(b"".join(stamps.read_stretch(stamps.stretch(*piece)) for piece in self.pieces[first:end].tolist()))
