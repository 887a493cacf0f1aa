"""Output-blocked sparse, and dense, matrix times activation tiles: the "tile-skip" mode for 1x1 and kxk convolutions.

y[R*b + r, p] = act(bias[R*b + r] + sum_j value[j, r] * x[p + offset[j]] (+ residual[R*b + r, p])),   j over the blocks of row block b

A block is R output rows of one input column. Its input vectors are loaded once and used by R rows, so that arithmetic, not the load
ports, is the limit. With every block present this is a dense product over pixels; with flat offsets ``k * stride + shift`` it is a
dense kxk stencil.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsec.backends.base import Source
from sparsec.backends.cpu import partition, script
from sparsec.backends.cpu.panel import Epilogue, Panel, factors, params, touches
from sparsec.backends.cpu.partition import row_range, tile_range
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import Scan, over, reads
from sparsec.backends.vector import Vector


def block(vector: Vector, rows: int, vectors: int, tile: int, index: str, activation: str, residual: bool, masked: bool) -> Source:
    """The kernel for panels of ``rows`` channels x ``vectors * lanes`` pixels on tiles of ``tile`` pixels (a multiple of the panel's).

    Parameters are those of ``spmm``. ``row_start`` counts blocks per row block, ``rows`` is the number of channels to store (it need not
    be a multiple of R), ``bias`` is padded to a multiple of R. Units of work are tiles or runs of row blocks (see ``partition``).
    """
    lanes = vector.lanes
    panel, epilogue = Panel(lanes, rows, vectors, vector.dtype), Epilogue(activation, residual, masked, vector.keeps_nan)
    if tile % panel.width:
        raise ValueError(f"tile {tile} is not a multiple of the panel's {panel.width} pixels")
    # Where it is no operand of an instruction, it is loaded once for all rows.
    held = masked and vector.by_element
    symbol = f"block_l{lanes}_r{rows}_v{vectors}_t{tile}_{index}_{epilogue.suffix}"

    def kernel(
        x, y, residual, value, offset, row_start, bias, mask, runs, run_count, all_tiles, rows, x_tile, y_tile, y_channel, r_tile,
        r_channel, lo, hi, begin, end,
    ):  # fmt: skip
        first: T.let = tile_range(all_tiles, run_count, begin, end)[0]
        for i in range(tile_range(all_tiles, run_count, begin, end)[1]):
            low: T.let = row_range(runs, all_tiles, run_count, first + i, begin, end)[0]
            high: T.let = row_range(runs, all_tiles, run_count, first + i, begin, end)[1]
            for b in range(low, high):
                for s in range(tile // panel.width):
                    acc = panel.allocate()
                    panel.fill(acc, lambda r: bias[b * panel.rows + r])
                    for j in range(row_start[b + 1] - row_start[b]):
                        _add(
                            vector,
                            panel,
                            acc,
                            value,
                            (row_start[b] + j) * panel.rows,
                            x,
                            (first + i) * x_tile + s * panel.width + T.Cast("int32", offset[row_start[b] + j]),
                        )
                    pixel = T.alloc_buffer((panel.width,), "float32", scope="global")
                    if held:
                        panel.row(pixel, 0, lambda e: mask[(first + i) * tile + s * panel.width + e])
                    panel.store(
                        y,
                        lambda r: (first + i) * y_tile + (b * panel.rows + r) * y_channel + s * panel.width,
                        lambda r, e: epilogue(
                            acc[r][e],
                            lambda: residual[(first + i) * r_tile + (b * panel.rows + r) * r_channel + s * panel.width + e],
                            lambda: pixel[e] if held else mask[(first + i) * tile + s * panel.width + e],
                            lo,
                            hi,
                        ),
                        lambda r: b * panel.rows + r < rows,
                    )

    steps = (
        *partition.TOUCHES,
        Scan("row_start", "runs_low", "runs_high + 1", ordered=True),
        reads("value", over("row_start_low", "row_start_high", rows), width=rows),
        reads("bias", over(*partition.ROWS, rows), width=rows),
        *touches(tile, residual, masked, (f"runs_low * {rows}", f"least(runs_high * {rows}, rows)")),
    )
    return script.kernel(vector, symbol, params(index), kernel, steps)


def _add(vector: Vector, panel: Panel, accumulators: Sequence[Any], value: Any, first: Any, x: Any, start: Any) -> None:
    """accumulator[r] += value[first + r] * x[start:][:width]"""
    if not vector.by_element:
        panel.multiply_add(accumulators, lambda r: value[first + r], x, start)
        return
    values, here = factors(vector, panel.rows, value, first), T.bind(start)
    for r, accumulator in enumerate(accumulators):
        panel.add(accumulator, values(r), x, here)


def pack_block(weight: np.ndarray, offsets: np.ndarray, rows: int, index: str, bias: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Constant arrays of the block kernel.

    Args:
        weight: [N, K] float32; blocks of ``rows`` outputs x 1 input that are all zero are left out.
        offsets: [K] element offset of every input row from a tile's origin.
        index: dtype of the packed offsets.
        bias: [N], zeros if None.

    Returns:
        ``value`` [blocks, rows], ``offset`` [blocks], ``row_start`` [ceil(N / rows) + 1], ``bias`` [ceil(N / rows) * rows].
    """
    count = -(-weight.shape[0] // rows)
    padded = np.zeros((count * rows, weight.shape[1]), np.float32)
    padded[: len(weight)] = weight
    blocks = padded.reshape(count, rows, -1).transpose(0, 2, 1)
    present = (blocks != 0).any(axis=2)
    full_bias = np.zeros(count * rows, np.float32)
    full_bias[: len(weight)] = 0 if bias is None else bias
    return {
        "value": np.ascontiguousarray(blocks[present]),
        "offset": np.asarray(offsets)[np.nonzero(present)[1]].astype(index),
        "row_start": np.concatenate([[0], np.cumsum(present.sum(axis=1))]).astype(np.int32),
        "bias": full_bias,
    }
