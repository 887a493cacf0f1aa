"""Memory of running calls: an arena and tables with absolute addresses, kept for later calls."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sparsec.run.constants import aligned
from sparsec.run.forks import opened_in_children
from sparsec.run.program import GROUP_WIDTH, Program

#: Stencils read up to a row past a channel, and the last tile up to a tile: slack after the arena keeps such reads inside it.
_SLACK = 1 << 16
#: Memory of idle calls that all programs of the process keep together; only what the latest program needs may be more.
_MOST_BYTES = 128 << 20


class Instance:
    """Private memory of one running call: the arena and a record table with absolute addresses."""

    def __init__(self, program: Program, threads: int) -> None:
        self.arena = aligned(program.arena_bytes, _SLACK)
        self.program, self.threads = program, threads
        self.records = program.records.copy()
        self.groups = split(program.groups, threads)
        flat = self.records.reshape(-1)
        arena = self.arena.ctypes.data
        ports = []
        for r in program.relocations:
            if r.segment in ("arena", "weights"):
                flat[r.field] = arena + r.offset if r.segment == "arena" else program.weights.address(r.offset)
            else:
                ports.append((r.field, r.segment == "output", r.port, r.offset))
        self.moves = np.zeros((max(len(ports), 1), 2), np.int64)
        self.ports = ports
        self.flat = flat
        tables = [self.records.ctypes.data, self.groups.ctypes.data, self.moves.ctypes.data]
        self._whole = np.array([*tables, len(self.groups), len(ports), 1, threads], np.int64)
        self._part = self._whole.copy()
        self._addresses = self._whole.ctypes.data, self._part.ctypes.data
        self.patches = _patch_arrays(program)
        self.sizes: Mapping[str, int] | None = None
        self.fit({})

    def fit(self, sizes: Mapping[str, int]) -> None:
        """Let tables follow the sizes of a call; the largest where they are not given."""
        if sizes == self.sizes:
            return
        program, self.sizes = self.program, dict(sizes)
        known = {size.name: size.most for size in program.sizes} | self.sizes
        groups = program.groups.copy() if program.patches else program.groups
        tables = {"records": self.flat, "groups": groups.reshape(-1)}
        for (table, size), (index, plus, over, scale) in self.patches.items():
            tables[table][index] = scale * _quotient_up(known[size] + plus, over)
        self.groups[:] = split(groups, self.threads)
        for row, (field, is_output, port, _) in enumerate(self.ports):
            side = program.outputs if is_output else program.inputs
            self.moves[row] = field, side[port].bytes_of(sizes)

    def words(self, batch: int) -> int:
        """Address of what a kernel library's ``run`` takes to run the program on ``batch`` samples, one after the other."""
        self._whole[5] = batch
        return self._addresses[0]

    def words_of(self, groups: range, *, moving: bool = False) -> int:
        """The same for some groups and one sample. ``moving``: go on to the next sample afterwards."""
        first = self.groups.ctypes.data + groups.start * GROUP_WIDTH * self.groups.itemsize
        self._part[1], self._part[3], self._part[4] = first, len(groups), len(self.ports) if moving else 0
        return self._addresses[1]

    def bind(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Point the records at the caller's tensors."""
        flat = self.flat
        for field, is_output, port, offset in self.ports:
            flat[field] = (outputs[port] if is_output else inputs[port]) + offset


def _patch_arrays(program: Program) -> dict[tuple[str, str], np.ndarray]:
    """Index, plus, over and scale [4, patches] of the patches of a table that follow one size."""
    found: dict[tuple[str, str], list[tuple[int, ...]]] = {}
    for p in program.patches:
        found.setdefault((p.table, p.follows.symbol), []).append((p.index, p.follows.plus, p.follows.over, p.follows.scale))
    return {key: np.array(rows, np.int64).T for key, rows in found.items()}


def split(groups: np.ndarray, threads: int) -> np.ndarray:
    """Groups with strip lengths and shares settled for a number of threads."""
    out = groups.reshape(-1, GROUP_WIDTH).copy()
    units, strip = out[:, 2], out[:, 3]
    share = _quotient_up(units, threads)
    out[:, 3] = np.where(strip > 0, np.minimum(strip, share), np.maximum(share, 1))
    out[:, 4] = _quotient_up(_quotient_up(units, np.maximum(out[:, 3], 1)), threads)
    return out


def _quotient_up(amount: np.ndarray, part: np.ndarray | int) -> np.ndarray:
    return (amount + part - 1) // part


_lock = opened_in_children(threading.Lock())
_all: weakref.WeakSet[Idle] = weakref.WeakSet()
_turns = itertools.count()


class Idle:
    """Instances of one program between calls. Safe in many threads."""

    def __init__(self, program: Program, threads: int) -> None:
        self._program, self._threads = program, threads
        self._kept: deque[Instance] = deque()
        self._used = next(_turns)
        with _lock:
            _all.add(self)

    def take(self) -> Instance:
        """One for a call. MemoryError where there is no room."""
        try:
            return self._kept.pop()
        except IndexError:
            self._make_room()
            return Instance(self._program, self._threads)

    def give_back(self, instances: Iterable[Instance]) -> None:
        """Keep what calls no longer need."""
        self._used = next(_turns)
        self._kept.extend(instances)

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return len(self._kept) * (self._program.arena_bytes + _SLACK)

    def _make_room(self) -> None:
        """Forget what other programs keep, those not used for longest first."""
        with _lock:
            others = sorted(_all - {self}, key=lambda each: each._used)
        excess = sum(each.nbytes for each in others) + self._program.arena_bytes - _MOST_BYTES
        for each in others:
            if excess <= 0:
                return
            excess -= each.nbytes
            each._kept.clear()
