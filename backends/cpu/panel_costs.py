"""Predicted cycles of the panel kernels, and the schedules worth measuring.

One vector below is 64 bytes (16 pixels), whatever the instruction set: AVX2 machines do half a vector per instruction and two instructions
per cycle. The constants are a least-squares fit over the 1x1 layers of MobileNetV1 at densities 0.05, 0.1 and 0.2 with six schedules each
(Zen 4, one core): 11% typical error, and the predicted best schedules take 1% longer than the measured best ones. They are cycles of a
core with one load and one multiply-add of a full vector per cycle; only their ratios matter for the choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sparsec.backends.base import Machine
from sparsec.spec import Schedule

_LINE = 64  # bytes of a vector
_PIXELS = 16  # of a vector
_BROADCAST = {1: 1.4, 2: 0.68, 4: 0.6}  # of one nonzero's value and offset, by group length
_MISS, _CROWDING = 1.0, 2.8  # a vector from L2 costs up to _MISS more: its share of misses to the power _CROWDING
_RESIDENT = 0.8  # input bytes, in units of L1, that stay in L1 between rows
_VISIT = 7.7  # of one row: loop, branch misprediction, bias
_STORE, _PARTIAL = 2.4, 2.5  # per vector of a row: store; load and store again between parts
_BLOCK_ROW, _BLOCK_STORE = 6.0, 0.4  # per row of a row block, and per vector of it

#: (pixels, group) of the sparse kernel: wide tiles share the index work, narrow ones fit L1.
_SPARSE = ((64, 2), (32, 4), (16, 4))
#: (rows, pixels) of the block kernel by lanes; 24 or 12 accumulators at most.
_BLOCK = {16: ((4, 64), (8, 32), (6, 64), (8, 16)), 8: ((6, 16), (4, 16))}
_NARROW = 16  # pixels of panels that suit no wider tile


def block_rows(machine: Machine) -> tuple[int, ...]:
    """The numbers of rows that block kernels come with."""
    return tuple(dict.fromkeys(rows for rows, _ in _BLOCK[machine.lanes]))


@dataclass(frozen=True)
class Work:
    """A product: ``outputs`` x ``inputs`` with ``nonzeros``, over ``pixels`` of flat index space.

    ``blocks`` gives, for a number of rows R, how many blocks of R outputs x 1 input hold a nonzero.
    """

    outputs: int
    inputs: int
    pixels: int
    nonzeros: int
    blocks: Mapping[int, int]


def _load(inputs: float, vectors: float, machine: Machine) -> float:
    """Cycles to load one input vector when ``inputs`` rows of ``vectors`` are read over and over."""
    misses = max(0.0, 1 - _RESIDENT * machine.l1 / max(inputs * vectors * _LINE, 1))
    return 1 + _MISS * misses**_CROWDING


def sparse_cycles(work: Work, pixels: int, group: int, parts: int, machine: Machine) -> float:
    """Of ``spmm`` with panels of ``pixels``, on tiles of as many pixels."""
    vectors = pixels // _PIXELS
    per_visit = work.nonzeros / (work.outputs * parts)
    entries = per_visit + (group - 1) / 2 * (1 - math.exp(-per_visit))
    entry = vectors * _load(work.inputs / parts, vectors, machine) + _BROADCAST[group]
    visit = _VISIT + vectors * (_STORE + _PARTIAL * (parts > 1))
    return -(-work.pixels // pixels) * work.outputs * parts * (entries * entry + visit)


def block_cycles(work: Work, rows: int, pixels: int, tile: int, machine: Machine) -> float:
    """Of ``block`` with panels of ``rows`` x ``pixels``, on tiles of ``tile`` pixels."""
    vectors = pixels / _PIXELS
    loads = vectors * _load(work.inputs, vectors, machine) + rows / 2
    entries = work.blocks[rows] * max(rows * vectors, loads)
    visits = -(-work.outputs // rows) * (_VISIT + rows * (_BLOCK_ROW + _BLOCK_STORE * vectors))
    return -(-work.pixels // tile) * (tile // pixels) * (entries + visits)


def _sparse_candidates(work: Work, machine: Machine, tile: int) -> list[tuple[float, Schedule]]:
    found: list[tuple[float, Schedule]] = []
    for pixels, group in _SPARSE:
        part = work.inputs * pixels * 4 / machine.l1
        for parts in sorted({1, math.ceil(part / 2), math.ceil(part)}) if pixels == tile else ():
            choices = (("kernel", "spmm"), ("vectors", pixels // machine.lanes), ("group", group), ("parts", parts), ("tile", tile))
            found.append((sparse_cycles(work, pixels, group, parts, machine), choices))
    return found


def _block_candidates(work: Work, machine: Machine, tile: int) -> list[tuple[float, Schedule]]:
    return [
        (
            block_cycles(work, rows, pixels, tile, machine),
            (("kernel", "block"), ("rows", rows), ("vectors", pixels // machine.lanes), ("tile", tile)),
        )
        for rows, pixels in _BLOCK[machine.lanes]
        if tile % pixels == 0 and rows in work.blocks and (pixels == tile or pixels > _NARROW or machine.lanes < _NARROW)
    ]


def space(work: Work, machine: Machine, tiles: tuple[int, ...] = (64, 32)) -> list[tuple[float, Schedule]]:
    """(predicted cycles, schedule) of the candidates on tiles of any of ``tiles`` pixels, the one predicted fastest first.

    Sparse schedules have the choices kernel, vectors, group, parts, tile (``group`` and ``parts`` go to ``spmm`` and ``pack_rows``; parts
    above 1 needs ``split``); block schedules kernel, rows, vectors, tile.
    """
    candidates = [c for tile in tiles for make in (_sparse_candidates, _block_candidates) for c in make(work, machine, tile)]
    return sorted(candidates, key=lambda c: c[0])


def default_schedule(work: Work, machine: Machine, tiles: tuple[int, ...] = (64, 32)) -> Schedule:
    """The schedule predicted fastest."""
    return space(work, machine, tiles)[0][1]


def best_tile(works: list[Work], machine: Machine, tiles: tuple[int, ...] = (64, 32)) -> int:
    """The tile on which all ``works`` together, each with its best schedule, are predicted fastest."""
    return min(tiles, key=lambda tile: sum(space(work, machine, (tile,))[0][0] for work in works))
