"""Predicted cycles of the panel kernels, by the machine's ``Panels``, and the schedules worth measuring.

One vector below is 64 bytes (16 pixels), whatever the registers are. Only ratios of cycles matter for the choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sparsec.backends.base import Machine
from sparsec.lower.spec import Schedule

_LINE = 64  # bytes of a vector
_PIXELS = 16  # of a vector


def block_rows(machine: Machine) -> tuple[int, ...]:
    """The numbers of rows that block kernels come with."""
    return tuple(dict.fromkeys(rows for rows, _, _ in machine.panels.block))


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
    panels = machine.panels
    misses = max(0.0, 1 - panels.resident * machine.l1 / max(inputs * vectors * _LINE, 1))
    return 1 + panels.miss * misses**panels.crowding


def sparse_cycles(work: Work, pixels: int, unroll: int, parts: int, machine: Machine) -> float:
    """Of ``spmm`` with panels of ``pixels``, on tiles of as many pixels."""
    vectors, panels = pixels / _PIXELS, machine.panels
    per_visit = work.nonzeros / (work.outputs * parts)
    entries = per_visit + (unroll - 1) / 2 * (1 - math.exp(-per_visit))
    entry = vectors * _load(work.inputs / parts, vectors, machine) + dict(panels.broadcast)[unroll]
    visit = panels.visit + vectors * (panels.store + panels.partial * (parts > 1))
    return -(-work.pixels // pixels) * work.outputs * parts * (entries * entry + visit)


def block_cycles(work: Work, rows: int, pixels: int, tile: int, machine: Machine) -> float:
    """Of ``block`` with panels of ``rows`` x ``pixels``, on tiles of ``tile`` pixels."""
    vectors, panels = pixels / _PIXELS, machine.panels
    loads = vectors * _load(work.inputs, vectors, machine) + rows * panels.weights
    entries = work.blocks[rows] * max(rows * vectors, loads)
    visits = -(-work.outputs // rows) * (panels.visit + rows * (panels.block_row + panels.block_store * vectors))
    return -(-work.pixels // tile) * (tile // pixels) * (entries + visits)


def _sparse_candidates(work: Work, machine: Machine, tile: int) -> list[tuple[float, Schedule]]:
    found: list[tuple[float, Schedule]] = []
    lanes = machine.vector.lanes
    for pixels, unroll in machine.panels.sparse:
        part = work.inputs * pixels * 4 / machine.l1
        for parts in sorted({1, math.ceil(part / 2), math.ceil(part)}) if pixels == tile and pixels % lanes == 0 else ():
            choices = (("kernel", "spmm"), ("vectors", pixels // lanes), ("unroll", unroll), ("parts", parts), ("tile", tile))
            found.append((sparse_cycles(work, pixels, unroll, parts, machine), choices))
    return found


def _block_candidates(work: Work, machine: Machine, tile: int) -> list[tuple[float, Schedule]]:
    lanes = machine.vector.lanes
    return [
        (
            block_cycles(work, rows, pixels, tile, machine),
            (("kernel", "block"), ("rows", rows), ("vectors", pixels // lanes), ("tile", tile)),
        )
        for rows, pixels, alone in machine.panels.block
        if tile % pixels == 0 == pixels % lanes and rows in work.blocks and (pixels == tile or not alone)
    ]


def candidates(work: Work, machine: Machine, tiles: tuple[int, ...] = (64, 32)) -> list[tuple[float, Schedule]]:
    """(predicted cycles, schedule) of the candidates on tiles of any of ``tiles`` pixels, the one predicted fastest first.

    Sparse schedules have the choices kernel, vectors, unroll, parts, tile (``unroll`` and ``parts`` go to ``spmm`` and ``pack_rows``; parts
    above 1 needs ``split``); block schedules kernel, rows, vectors, tile.
    """
    found = [c for tile in tiles for make in (_sparse_candidates, _block_candidates) for c in make(work, machine, tile)]
    return sorted(found, key=lambda c: c[0])


def default_schedule(work: Work, machine: Machine, tiles: tuple[int, ...] = (64, 32)) -> Schedule:
    """The schedule predicted fastest."""
    return candidates(work, machine, tiles)[0][1]


def best_tile(works: list[Work], machine: Machine, tiles: tuple[int, ...] = (64, 32)) -> int:
    """The tile on which all ``works`` together, each with its best schedule, are predicted fastest."""
    return min(tiles, key=lambda tile: sum(candidates(work, machine, (tile,))[0][0] for work in works))
