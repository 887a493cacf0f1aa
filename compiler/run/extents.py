"""Whether a program stays inside its memory: asked of the kernel library, which knows what its kernels touch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

import numpy as np

from sparsec.errors import ArtifactError
from sparsec.run.instance import split
from sparsec.run.program import RECORD_WIDTH, Program, Segment

#: Fields of a place and of a scan, and scans of a record, as in ``backends/cpu/extents.h``.
_PLACE_WIDTH, _SCANS, _SCAN_WIDTH = 4, 4, 4
#: Sets of run-time sizes that are remembered as good.
_MOST_KNOWN = 4096


class Extents:
    """The extents of one program on a number of threads. ArtifactError where a kernel would leave the program's memory.

    ``check``: the kernel library's. Tables of indices in the weights are read once, when this is made. ``room``: bytes before and after a
    caller's tensor that are the program's as well.
    """

    def __init__(self, program: Program, check: Callable[[int], int], threads: int, room: int = 0) -> None:
        self._program, self._check, self._threads, self._room = program, check, threads, room
        segments = get_args(Segment)
        self._places = np.array(
            [[r.field, segments.index(r.segment), r.offset + self._beside(r.segment), 0] for r in program.relocations], np.int64
        ).reshape(-1, _PLACE_WIDTH)
        self._scans = np.zeros((len(program.records), _SCANS, _SCAN_WIDTH), np.int64)
        self._known: set[tuple[tuple[str, int], ...]] = set()
        records = program.records.copy()
        for r in program.relocations:
            records.flat[r.field] = program.weights.address(r.offset) if r.segment == "weights" else 0
        self._require(records, split(program.groups, threads), {}, may_scan=True)

    def require(self, records: np.ndarray, groups: np.ndarray, sizes: Mapping[str, int]) -> None:
        """That tables patched for these run-time sizes stay inside as well."""
        key = tuple(sorted(sizes.items()))
        if key in self._known:
            return
        self._require(records, groups, sizes, may_scan=False)
        if len(self._known) < _MOST_KNOWN:
            self._known.add(key)

    def _require(self, records: np.ndarray, groups: np.ndarray, sizes: Mapping[str, int], may_scan: bool) -> None:
        places = self._places.copy()  # calls of other sizes may ask at the same time
        places[:, 3] = [self._size(r.segment, r.port, sizes) - r.offset + self._beside(r.segment) for r in self._program.relocations]
        tables = (records, groups, places, self._scans)
        counts = (len(records), len(groups), len(places), self._threads, int(may_scan))
        words = np.array([*(table.ctypes.data for table in tables), *counts], np.int64)
        refused = self._check(words.ctypes.data)
        if refused:
            number, field = divmod(refused - 1, RECORD_WIDTH)
            raise _outside(self._program, number, field)

    def _beside(self, segment: Segment) -> int:
        return self._room if segment in ("input", "output") else 0

    def _size(self, segment: Segment, port: int, sizes: Mapping[str, int]) -> int:
        if segment in ("arena", "weights"):
            return self._program.arena_bytes if segment == "arena" else self._program.weights.nbytes
        return (self._program.inputs if segment == "input" else self._program.outputs)[port].bytes_of(sizes)


def _outside(program: Program, number: int, field: int) -> ArtifactError:
    kernel = int(program.records[number, 0]) if number < len(program.records) else -1
    name = program.kernels[kernel] if 0 <= kernel < len(program.kernels) else "unknown"
    what = f"What field {field} says of the memory of kernel {name} does not hold." if field else f"Its numbers do not suit kernel {name}."
    return ArtifactError(
        "The program would leave its memory.", where=f"record {number}", why=what, hint="Compile the model again. If it is new, report it."
    )
