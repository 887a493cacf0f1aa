"""Output-blocked sparse, and dense, matrix times activation tiles: the "tile-skip" mode for 1x1 and kxk convolutions.

y[R*b + r, p] = act(bias[R*b + r] + sum_j value[j, r] * x[p + offset[j]] (+ residual[R*b + r, p])),   j over the blocks of row block b

A block is R output rows of one input column. Its input vectors are loaded once and used by R rows, so that arithmetic, not the load
ports, is the limit. With every block present this is a dense product over pixels; with flat offsets ``k * stride + shift`` it is a
dense kxk stencil.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script import tirx as T

from sparsec.backends.base import Source
from sparsec.backends.cpu import script, shares
from sparsec.backends.cpu.panel import FAR, Epilogue, Panel, params, touches
from sparsec.backends.cpu.shares import row_range, tile_range
from sparsec.backends.extents import Scan, over, reads
from sparsec.backends.vector import Vector


def block(vector: Vector, rows: int, vectors: int, tile: int, index: str, activation: str, residual: bool, masked: bool) -> Source:
    """The kernel for panels of ``rows`` channels x ``vectors * lanes`` pixels on tiles of ``tile`` pixels (a multiple of the panel's).

    Parameters are those of ``spmm``. ``row`` counts blocks per row block, ``rows`` is the number of channels to store (it need not be a
    multiple of R), ``bias`` is padded to a multiple of R. Units of work are tiles or runs of row blocks (see ``shares``).
    """
    lanes = vector.lanes("float32")
    panel, epilogue = Panel(lanes, rows, vectors), Epilogue(activation, residual, masked)
    if tile % panel.width:
        raise ValueError(f"tile {tile} is not a multiple of the panel's {panel.width} pixels")
    symbol = f"block_l{lanes}_r{rows}_v{vectors}_t{tile}_{index}_{epilogue.suffix}"

    def make() -> Any:
        @script.prim_func(private=True)
        def kernel(
            x_: T.handle("float32"),
            y_: T.handle("float32"),
            residual_: T.handle("float32"),
            value_: T.handle("float32"),
            offset_: T.handle(index),
            row_: T.handle("int32"),
            bias_: T.handle("float32"),
            mask_: T.handle("float32"),
            runs_: T.handle("int32"),
            run_count: T.int32,
            all_tiles: T.int32,
            channels: T.int32,
            x_tile: T.int32,
            y_tile: T.int32,
            y_row: T.int32,
            r_tile: T.int32,
            r_row: T.int32,
            lo: T.float32,
            hi: T.float32,
            begin: T.int32,
            end: T.int32,
        ) -> T.int32:
            x = T.decl_buffer((FAR,), "float32", data=x_, align=4)
            y = T.decl_buffer((FAR,), "float32", data=y_, align=4)
            other = T.decl_buffer((FAR,), "float32", data=residual_, align=4)
            value = T.decl_buffer((FAR,), "float32", data=value_, align=4)
            offset = T.decl_buffer((FAR,), index, data=offset_, align=2)
            row = T.decl_buffer((FAR,), "int32", data=row_, align=4)
            bias = T.decl_buffer((FAR,), "float32", data=bias_, align=4)
            mask = T.decl_buffer((FAR,), "float32", data=mask_, align=4)
            runs = T.decl_buffer((FAR,), "int32", data=runs_, align=4)
            first: T.let = tile_range(all_tiles, run_count, begin, end)[0]
            for i in range(tile_range(all_tiles, run_count, begin, end)[1]):
                low: T.let = row_range(runs, all_tiles, run_count, first + i, begin, end)[0]
                high: T.let = row_range(runs, all_tiles, run_count, first + i, begin, end)[1]
                for b in range(low, high):
                    for s in range(tile // panel.width):
                        acc = panel.allocate()
                        panel.fill(acc, lambda r: bias[b * rows + r])
                        for j in range(row[b + 1] - row[b]):
                            panel.multiply_add(
                                acc,
                                lambda r: value[(row[b] + j) * rows + r],
                                x,
                                (first + i) * x_tile + s * panel.width + T.Cast("int32", offset[row[b] + j]),
                            )
                        panel.store(
                            y,
                            lambda r: (first + i) * y_tile + (b * rows + r) * y_row + s * panel.width,
                            lambda r, e: epilogue(
                                acc[r][e],
                                lambda: other[(first + i) * r_tile + (b * rows + r) * r_row + s * panel.width + e],
                                lambda: mask[(first + i) * tile + s * panel.width + e],
                                lo,
                                hi,
                            ),
                            lambda r: b * rows + r < channels,
                        )
            return T.int32(0)

        return kernel

    steps = (
        *shares.TOUCHES,
        Scan("row", "runs_low", "runs_high + 1", ordered=True),
        reads("value", over("row_low", "row_high", rows), width=rows),
        reads("bias", over(*shares.ROWS, rows), width=rows),
        *touches(tile, residual, masked, (f"runs_low * {rows}", f"least(runs_high * {rows}, rows)")),
    )
    return Source(symbol, params(index), make, steps)


def pack_block(weight: np.ndarray, offsets: np.ndarray, rows: int, index: str, bias: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Constant arrays of the block kernel.

    Args:
        weight: [N, K] float32; blocks of ``rows`` outputs x 1 input that are all zero are left out.
        offsets: [K] element offset of every input row from a tile's origin.
        index: dtype of the packed offsets.
        bias: [N], zeros if None.

    Returns:
        ``value`` [blocks, rows], ``offset`` [blocks], ``row`` [ceil(N / rows) + 1], ``bias`` [ceil(N / rows) * rows].
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
        "row": np.concatenate([[0], np.cumsum(present.sum(axis=1))]).astype(np.int32),
        "bias": full_bias,
    }
