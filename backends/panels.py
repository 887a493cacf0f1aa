"""The register panels that suit a processor, and what they cost: data of a machine."""

from __future__ import annotations

from dataclasses import dataclass


def line_of(vectors: int, most: int) -> int:
    """How many of ``vectors`` registers go in one straight line: the largest divisor that is at most ``most``."""
    return max(part for part in range(1, min(vectors, most) + 1) if vectors % part == 0)


@dataclass(frozen=True)
class Panels:
    """Panels of products and of attention, and a model of the cycles that those of products take.

    A vector is 64 bytes (16 pixels) here, whatever the registers are; cycles are those of a core with one load and one multiply-add of
    a vector per cycle. Only ratios matter. A machine that other kernels are for has none of all this.

    tiles: pixels of a tile that maps come with. sparse: (pixels, unroll) of the sparse kernel. block: (rows, pixels, whether they suit
    tiles of as many pixels only) of the other one.
    attention: (rows, registers of queries, time per multiplication relative to the first).
    unrolled: registers of a stencil or an exponential in one straight line: compilers mix them, and each has sums and constants of its own.
    broadcast: (unroll, cycles of one nonzero's value and offset). visit: of one row: loop, branch misprediction, bias.
    miss, crowding: a vector from L2 costs up to ``miss`` more, its share of misses to the power ``crowding``.
    resident: input bytes, in units of L1, that stay in L1 between rows. store, partial: per vector of a row: store; load and store again
    between parts. block_row, block_store: per row of a row block, and per vector of it. weights: loads of the weights of a block, per row.
    """

    tiles: tuple[int, ...] = (64, 32)
    sparse: tuple[tuple[int, int], ...] = ()
    block: tuple[tuple[int, int, bool], ...] = ()
    attention: tuple[tuple[int, int, float], ...] = ()
    unrolled: int = 16
    broadcast: tuple[tuple[int, float], ...] = ()
    visit: float = 0.0
    miss: float = 0.0
    crowding: float = 0.0
    resident: float = 0.0
    store: float = 0.0
    partial: float = 0.0
    block_row: float = 0.0
    weights: float = 0.5
    block_store: float = 0.0
