"""Runs a program's tables in Python: for backends whose kernels are functions, and not a library with an executor of its own."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sparsec.run.kernels import Entries
from sparsec.run.program import GROUP_WIDTH, RECORD_WIDTH, Program
from sparsec.run.runtime import Runner

#: What one record does for its units [begin, end): (record, begin, end). Addresses in a record are absolute.
Kernel = Callable[[np.ndarray, int, int], object]


def memory(address: int, dtype: np.dtype, count: int) -> np.ndarray:
    """``count`` elements at an address, to read and write."""
    held = (ctypes.c_char * (count * dtype.itemsize)).from_address(int(address))
    return np.ndarray((count,), dtype, memoryview(held))


class Interpreter(Runner):
    """A runner whose kernel k is ``kernels[k]``; threads take turns.

    What kernels touch is not checked. ValueError for a program with strip buffers.
    """

    def __init__(self, executor: str, program: Program, library: Path, kernels: Sequence[Kernel], threads: int = 1, room: int = 0) -> None:
        if program.has_strips:
            raise ValueError("an interpreter has no strip buffers")
        self.executor, self._kernels = executor, kernels
        super().__init__(program, library, threads, room=room)

    def _entries(self) -> Entries:
        return Entries(self._interpret, lambda *_: 0)

    def _interpret(self, words: int) -> None:
        word = np.dtype(np.int64)
        records, groups, moves, group_count, move_count, batch, threads = memory(words, word, 7).tolist()
        flat = memory(records, word, len(self.program.records) * RECORD_WIDTH)
        rows = memory(groups, word, group_count * GROUP_WIDTH).reshape(-1, GROUP_WIDTH).tolist()
        fields, steps = memory(moves, word, 2 * move_count).reshape(-1, 2).T
        for _ in range(batch):
            for group in rows:
                self._group(flat.reshape(-1, RECORD_WIDTH), group, threads)
            flat[fields] += steps

    def _group(self, records: np.ndarray, group: Sequence[int], threads: int) -> None:
        """The strips of all threads, each through all records of the group."""
        first, end, units, strip, per_thread = group
        for number in range(threads * per_thread):
            begin = number * strip
            for record in records[first:end] if begin < units else ():
                self._kernels[record[0]](record, begin, min(begin + strip, units))
