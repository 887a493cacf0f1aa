"""Who takes what of a call over tiles and channels: its units of work are tiles, or runs of rows (output channels) over all tiles.

Threads that take tiles read only their own part of the input. Threads that take rows write whole channels, where the tiles of two
threads lie side by side in every channel of a halo map and prefetchers fetch lines that the other thread is writing. So rows suit a layer
that writes many times the channels it reads, and the depthwise layer after it; and layers of too few tiles to be shared evenly.
A row is summed in the same order either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sparsec.backends.base import Param
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import Let, Need, Scan
from sparsec.backends.plan import Buffer, Call, Group
from sparsec.run.affine import scaled

#: ``runs`` [run_count + 1]: run r is rows runs[r] .. runs[r + 1]. Units are runs over all ``all_tiles`` tiles; where that is 0, those
#: of the first tile, then those of the second, and so on.
PARAMS = (Param("runs", "ptr", "int32"), Param("run_count", "i32"), Param("all_tiles", "i32"))
#: What every kernel over tiles and rows touches of ``runs``; then names of the first and the end of its units' tiles, and rows.
TOUCHES = (
    Need("run_count > 0"),
    Let("tile_first", "all_tiles > 0 ? 0 : begin / run_count"),
    Let("tile_end", "all_tiles > 0 ? all_tiles : up(end, run_count)"),
    Scan("runs", "0", "most(run_count, all_tiles > 0 ? end - 1 : 0) + 1", ordered=True),
)
TILES, ROWS = ("tile_first", "tile_end"), ("runs_low", "runs_high")
_MOST_UNITS = 32
_FEW_UNITS = 4
_EXPANDING = 2.5
_ROW_COST = 5.0  # multiplications that starting and storing a row takes the time of


def tile_range(all_tiles: Any, run_count: Any, begin: Any, end: Any) -> tuple[Any, Any]:
    """(first tile, number of tiles) that the units [begin, end) touch."""
    first = T.truncdiv(begin, run_count)
    last = T.truncdiv(end + run_count - 1, run_count)
    return T.Select(all_tiles > 0, T.int32(0), first), T.Select(all_tiles > 0, all_tiles, last - first)


def row_range(runs: Any, all_tiles: Any, run_count: Any, tile: Any, begin: Any, end: Any) -> tuple[Any, Any]:
    """(first row, end of rows) of a tile in the units [begin, end)."""
    before = T.Select(all_tiles > 0, T.int32(0), tile * run_count)
    return runs[T.max(begin - before, 0)], runs[T.min(end - before, run_count)]


def units_of(tiles: int, runs: np.ndarray, by_rows: bool) -> tuple[int, dict[str, int]]:
    """Units of work, and the kernel's scalars that say what they are."""
    count = len(runs) - 1
    return (count if by_rows else scaled(tiles, count)), {"run_count": count, "all_tiles": tiles if by_rows else 0}


def one_run(rows: int) -> np.ndarray:
    """``runs`` where every tile is one unit."""
    return np.array([0, rows], np.int32)


def runs_of(work: np.ndarray, most: int) -> np.ndarray:
    """Bounds of at most ``most`` runs of rows, of about equal ``work`` [rows] (multiplications per pixel), none empty."""
    done = np.concatenate([[0], np.cumsum(work + _ROW_COST)])
    count = min(len(work), most)
    inner = np.searchsorted(done, done[-1] * np.arange(1, count) / count)
    return np.unique(np.concatenate([[0], inner, [len(work)]])).astype(np.int32)


def settle(groups: Sequence[Group]) -> list[Group]:
    """``groups`` with the units of every call decided. The calls of a longer group go strip by strip, tile after tile."""
    out: list[Group] = []
    in_rows: set[Buffer] = set()
    for group in groups:
        call = group.calls[0]
        if len(group.calls) == 1 and "all_tiles" in call.scalars:
            by_rows = _wants_rows(call, call.buffers["x"] in in_rows)
            if by_rows:
                in_rows.add(call.buffers["y"])
            group = Group((_shared(call, by_rows),))
        out.append(group)
    return out


def _wants_rows(call: Call, reads_rows: bool) -> bool:
    if call.kind == "depthwise":
        return reads_rows or call.units < _FEW_UNITS
    return bool(call.detail["size"] * _EXPANDING <= call.scalars["rows"] ** 2)


def _shared(call: Call, by_rows: bool) -> Call:
    tiles = call.units
    if call.kind == "depthwise":
        runs = runs_of(np.ones(int(call.scalars["channels"])), _MOST_UNITS) if by_rows else call.constants["runs"]
    else:
        work = np.diff(call.constants["row_start"]).reshape(int(call.scalars["parts"]), -1).sum(axis=0)
        runs = runs_of(work, _MOST_UNITS if by_rows else -(-_MOST_UNITS // tiles))
    units, scalars = units_of(tiles, runs, by_rows)
    return replace(call, constants={**call.constants, "runs": runs}, scalars={**call.scalars, **scalars}, units=units)
