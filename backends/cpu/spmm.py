"""Unstructured sparse matrix times activation tiles: the "skip" mode for 1x1 and same-padded kxk convolutions.

y[n, p] = act(bias[n] (+ residual[n, p]) + sum_j value[j] * x[p + offset[j]]),   j over the nonzeros of row n

A nonzero carries the element offset of its input row from the tile's origin: ``k * tile`` in a tiled input, ``k * stride + shift`` in a
halo one, so that one kernel serves 1x1 and kxk weights, either input layout and every size. One value is broadcast and multiplied
into ``vectors`` registers of contiguous pixels; the accumulators stay in registers over the whole row.

Every multiplication loads its own vector, so the load ports are the limit and three choices save loads:

- ``unroll``: the values of 2 or 4 nonzeros are loaded once and broadcast by in-register shuffles. Rows are padded to multiples of it.
- ``vectors``: few keep the input tile (K * vectors * 64 bytes) near L1, many share the index work.
- ``split``: the input rows are taken in parts that stay in L1; y holds the partial sums. Each part
  visits every row again, for the time of about 5 nonzeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import partition, script
from sparsec.backends.cpu.expr import cast
from sparsec.backends.cpu.offsets import Offsets
from sparsec.backends.cpu.panel import Epilogue, Panel, factors, params, touches
from sparsec.backends.cpu.partition import row_range, tile_range
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import Let, Need, Scan, over, reads
from sparsec.backends.vector import Vector

#: What must be independent of accumulators to hide the latency of a multiply-add, and at most so many registers.
_CHAIN_BYTES, _CHAIN_REGISTERS = 256, 8


def spmm(
    vector: Vector,
    vectors: int,
    index: str,
    activation: str,
    residual: bool,
    masked: bool,
    *,
    unroll: int = 1,
    split: bool = False,
    tile: int = 0,
) -> Source:
    """The kernel for tiles of ``tile`` pixels (0: ``lanes * vectors``, of which it must be a multiple).

    ``index`` is the dtype of offsets ("uint16" where the largest fits, else "int32"); ``masked`` zeroes pad positions of a halo output.
    ``unroll`` is 1, 2 or 4, as given to ``pack_rows``. With ``split`` there is one more parameter, ``parts`` (int32), as given to
    ``pack_rows``; y may still be the residual's own storage. Units of work are tiles or runs of rows (see ``partition``).
    """
    lanes = vector.lanes
    panel, epilogue = Panel(lanes, 1, vectors, vector.dtype), Epilogue(activation, False, masked, vector.keeps_nan)
    chains = min(unroll, max(1, min(_CHAIN_BYTES // vector.nbytes, _CHAIN_REGISTERS) // vectors))
    tile = tile or panel.width
    if tile % panel.width:
        raise ValueError(f"tile {tile} is not a multiple of the panel's {panel.width} pixels")
    shift = {1: 0, 2: 1, 4: 2}[unroll]
    offsets = Offsets(index, unroll, vector.ahead and unroll > 1)
    flags = f"{'_residual' * residual}{'_masked' * masked}{'_split' * split}"
    symbol = f"spmm_l{lanes}_v{vectors}_t{tile}_u{unroll}_{index}_{activation}{flags}"
    added = residual

    def kernel(
        x, y, residual, value, offset, row_start, bias, mask, runs, run_count, all_tiles, rows, x_tile, y_tile, y_channel, r_tile,
        r_channel, lo, hi, begin, end, parts=1,
    ):  # fmt: skip
        first: T.let = tile_range(all_tiles, run_count, begin, end)[0]
        for i in range(tile_range(all_tiles, run_count, begin, end)[1]):
            low: T.let = row_range(runs, all_tiles, run_count, first + i, begin, end)[0]
            high: T.let = row_range(runs, all_tiles, run_count, first + i, begin, end)[1]
            for s in range(tile // panel.width):
                pixel = T.alloc_buffer((panel.width,), "float32", scope="global")
                if masked:
                    panel.row(pixel, 0, lambda e: mask[(first + i) * tile + s * panel.width + e])
                for part in range(parts):
                    at = T.alloc_buffer((1,), "int32", scope="global")
                    at[0] = row_start[part * rows + low]
                    held = offsets.begin(offset, at[0])
                    for n in range(low, high):
                        stop: T.let = row_start[part * rows + n + 1]
                        acc = [panel.allocate()[0] for _ in range(chains)]
                        _clear(panel, acc[1:])
                        if part > 0:
                            panel.row(acc[0], 0, lambda e: y[(first + i) * y_tile + n * y_channel + s * panel.width + e])
                        else:
                            if added:
                                panel.row(
                                    acc[0],
                                    0,
                                    lambda e: bias[n] + residual[(first + i) * r_tile + n * r_channel + s * panel.width + e],
                                )
                            else:
                                panel.row(acc[0], 0, lambda e: bias[n])
                        for j in range((stop - at[0]) >> shift):
                            _unrolled(
                                panel,
                                acc,
                                unroll,
                                factors(vector, unroll, value, at[0] + j * unroll),
                                offsets.take(held, offset, at[0] + j * unroll),
                                x,
                                (first + i) * x_tile + s * panel.width,
                            )
                        at[0] = stop
                        _sum(panel, acc)
                        if part == parts - 1:
                            panel.row(acc[0], 0, lambda e: epilogue(acc[0][e], None, lambda: pixel[e], lo, hi))
                        panel.row(y, (first + i) * y_tile + n * y_channel + s * panel.width, lambda e: acc[0][e])

    steps = (
        *partition.TOUCHES,
        *([] if split else [Let("parts", "1")]),
        Need("rows >= 0 && parts > 0"),
        Scan("row_start", "runs_low", "(parts - 1) * rows + runs_high + 1", ordered=True),
        reads("value", over("row_start_low", "row_start_high")),
        *([reads("offset", over("row_start_low", "row_start_high + 1"), width=offsets.past)] * bool(offsets.past)),
        reads("bias", over(*partition.ROWS)),
        *touches(tile, residual, masked),
    )
    return script.kernel(vector, symbol, (*params(index), *([Param("parts", "i32")] * split)), kernel, steps)


def _clear(panel: Panel, accumulators: Sequence[Any]) -> None:
    for a in accumulators:
        panel.row(a, 0, lambda e: cast(T.float32(0), panel.dtype))


def _sum(panel: Panel, accumulators: Sequence[Any]) -> None:
    """Add all accumulators to the first."""
    first, *others = accumulators
    for a in others:
        panel.row(first, 0, lambda e, a=a: first[e] + a[e])  # type: ignore[misc]


def _unrolled(
    panel: Panel, accumulators: Sequence[Any], unroll: int, values: Callable[[int], Any], offsets: Callable[[int], Any], x: Any, origin: Any
) -> None:
    """accumulator += values(g) * x[origin + offsets(g):][:width] for ``unroll`` nonzeros g, accumulators taken in turn."""
    for g in range(unroll):
        acc = accumulators[g % len(accumulators)]
        start = T.bind(origin + offsets(g))
        panel.add(acc, T.bind(values(g)), x, start)


def pack_rows(
    weight: np.ndarray, offsets: np.ndarray, index: str, bias: np.ndarray | None = None, *, unroll: int = 1, parts: int = 1
) -> dict[str, np.ndarray]:
    """Constant arrays of ``spmm``.

    Args:
        weight: [N, K] float32.
        offsets: [K] element offset of every input row from a tile's origin.
        index: dtype of the packed offsets.
        bias: [N], zeros if None.
        unroll: rows are padded to multiples of it; a padding entry is zero times the row's last input.
        parts: the K inputs are cut in this many equal runs.

    Returns:
        ``value`` and ``offset`` [entries], ordered by part, row, input; ``row_start`` [parts * N + 1]; ``bias`` [N].
    """
    rows, inputs = weight.shape
    cuts = [-(-part * inputs // parts) for part in range(parts + 1)]
    count, k, kept = (np.concatenate(each) for each in zip(*(_entries(weight, *cut) for cut in pairwise(cuts)), strict=True))
    row_start = np.concatenate([[0], np.cumsum(-(-count // unroll) * unroll)])
    place = np.arange(len(k)) + np.repeat(row_start[:-1] - (np.cumsum(count) - count), count)
    value, source = np.zeros(row_start[-1], np.float32), np.zeros(row_start[-1], np.int64)
    value[place], source[place] = kept, np.arange(len(k))
    moved = np.asarray(offsets).astype(index)[k]
    return {
        "value": value,
        "offset": moved[np.maximum.accumulate(source)] if len(k) else moved,
        "row_start": row_start.astype(np.int32),
        "bias": np.zeros(rows, np.float32) if bias is None else bias.astype(np.float32),
    }


def _entries(weight: np.ndarray, first: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nonzeros of each row among the inputs ``first`` to ``end``; the input and the value of each, row by row."""
    part = np.ascontiguousarray(weight[:, first:end])
    mask = part != 0
    flat, count = np.flatnonzero(mask), np.count_nonzero(mask, axis=1)
    return count, flat + np.repeat(first - (end - first) * np.arange(len(part)), count), part.reshape(-1)[flat]
