"""One candidate on a board: built and checked here as in ``candidate``, run and timed there, by the same rules.

A program's tables are bound here to addresses of the board, one table of records for each image.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from sparsec.autotune.board import Board
from sparsec.autotune.candidate import EMPTY_CALLS, IMAGES, SLACK, Bench, above
from sparsec.autotune.job import Job
from sparsec.run.instance import split
from sparsec.run.program import Program, Relocation


class BoardBench(Bench):
    """A bench whose activations live on a board as well."""

    def __init__(self, job: Job, board: Board) -> None:
        super().__init__(job)
        self._board = board
        self._arrays = [board.put(x.whole) for x in (*self._inputs, self._output)]
        self._bases = [board.address(array) for array in self._arrays]
        self._swept = board.put(self._sweep)

    def time(self, candidate: int, samples: int) -> list[int]:
        """As of the base: here the clock is the board's."""
        entry, plan, start, _ = self._ready[candidate]
        return above(start, self._board.time(entry, plan, samples + 1))

    def _loaded(self, program: Program, path: Path) -> Any:
        """Entry, plan, nanoseconds of a run of nothing, and what must stay on the board meanwhile."""
        board = self._board
        entry = board.kernels(path)
        kept = [board.put(a) for a in (_filled(program.weights.blob()), np.zeros(program.arena_bytes + SLACK, np.uint8))]
        weights, arena = map(board.address, kept)
        groups = board.put(_filled(split(program.groups, self.job.threads)))
        records = [board.put(_filled(self._bound(program, image, weights, arena))) for image in range(IMAGES)]
        words = [[board.address(r), board.address(groups), 0, len(program.groups), 0, 1, self.job.threads] for r in records]
        plan = board.put(np.array([[*row, *self._touched(image)] for image, row in enumerate(words)], np.int64))
        empty = board.put(np.array([[*row[:3], 0, *row[4:]] for row in words], np.int64))
        self._arrays[-1].copyfrom(self._output.whole)
        board.time(entry, plan, 1)
        self._output.whole[:] = board.get(self._arrays[-1])
        return entry, plan, median(board.time(entry, empty, EMPTY_CALLS)), (*kept, groups, *records)

    def _bound(self, program: Program, image: int, weights: int, arena: int) -> np.ndarray:
        """The records with the board's addresses."""
        records = program.records.copy()
        activations = [x.address(image, base) for x, base in zip((*self._inputs, self._output), self._bases, strict=True)]

        def base(r: Relocation) -> int:
            if r.segment in ("weights", "arena"):
                return weights if r.segment == "weights" else arena
            return activations[r.port if r.segment == "input" else -1]

        for r in program.relocations:
            records.flat[r.field] = base(r) + r.offset
        return records

    def _touched(self, image: int) -> list[int]:
        """Address and bytes of what is read before the clock starts: an array that empties the cache, then the inputs."""
        found = [self._board.address(self._swept), self._sweep.nbytes]
        for images, base in zip(self._inputs, self._bases, strict=False):
            found += [images.begin(image, base), images.one(image).nbytes]
        return found


def _filled(array: np.ndarray) -> np.ndarray:
    """At least one element: a board has no arrays without."""
    return array if array.size else np.zeros(1, array.dtype)
