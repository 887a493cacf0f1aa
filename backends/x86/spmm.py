"""Unstructured sparse matrix times activation tiles: the "skip" mode for 1x1 and same-padded kxk convolutions.

y[n, p] = act(bias[n] + sum_j value[j] * x[p + offset[j]] (+ residual[n, p])),   j over the nonzeros of row n

A nonzero carries the element offset of its input row from the tile's origin: ``k * tile`` in a packed input, ``k * stride + shift`` in a
flat one, so that one kernel serves 1x1 and kxk weights, either input layout and every size. One value is broadcast and multiplied
into ``vectors`` registers of contiguous pixels; the accumulators stay in registers over the whole row.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from sparsec.backends.base import Param, Source
from sparsec.backends.x86.expr import activate

FAR = 1 << 30  # length given to buffers whose extent is the planner's business


def spmm(lanes: int, vectors: int, index: str, activation: str, residual: bool, masked: bool) -> Source:
    """The kernel for tiles of ``lanes * vectors`` pixels.

    ``index`` is the dtype of offsets ("uint16" where the largest fits, else "int32"); ``masked`` zeroes pad positions of a flat output.
    Units of work are tiles.
    """
    tile = lanes * vectors
    symbol = f"spmm_l{lanes}_v{vectors}_{index}_{activation}{'_residual' * residual}{'_masked' * masked}"
    params = (
        Param("x", "act"),
        Param("y", "act"),
        Param("residual", "act"),
        Param("value", "ptr"),
        Param("offset", "ptr", index),
        Param("row", "ptr", "int32"),
        Param("bias", "ptr"),
        Param("mask", "ptr"),
        Param("rows", "i32"),
        Param("x_tile", "i32"),
        Param("y_tile", "i32"),
        Param("y_row", "i32"),
        Param("r_tile", "i32"),
        Param("r_row", "i32"),
        Param("lo", "f32"),
        Param("hi", "f32"),
    )

    def make() -> Any:
        @T.prim_func(private=True)
        def kernel(
            x_: T.handle("float32"),
            y_: T.handle("float32"),
            residual_: T.handle("float32"),
            value_: T.handle("float32"),
            offset_: T.handle(index),
            row_: T.handle("int32"),
            bias_: T.handle("float32"),
            mask_: T.handle("float32"),
            rows: T.int32,
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
            r = T.decl_buffer((FAR,), "float32", data=residual_, align=4)
            value = T.decl_buffer((FAR,), "float32", data=value_, align=4)
            offset = T.decl_buffer((FAR,), index, data=offset_, align=2)
            row = T.decl_buffer((FAR,), "int32", data=row_, align=4)
            bias = T.decl_buffer((FAR,), "float32", data=bias_, align=4)
            mask = T.decl_buffer((FAR,), "float32", data=mask_, align=4)
            for i in range(end - begin):
                for n in range(rows):
                    acc = T.alloc_buffer((tile,), "float32", scope="global")
                    for v in T.unroll(vectors):
                        for e in T.vectorized(lanes):
                            acc[v * lanes + e] = bias[n]
                    for j in range(row[n + 1] - row[n]):
                        for v in T.unroll(vectors):
                            for e in T.vectorized(lanes):
                                acc[v * lanes + e] = (
                                    acc[v * lanes + e]
                                    + value[row[n] + j] * x[(begin + i) * x_tile + T.Cast("int32", offset[row[n] + j]) + v * lanes + e]
                                )
                    if residual:
                        for v in T.unroll(vectors):
                            for e in T.vectorized(lanes):
                                acc[v * lanes + e] = acc[v * lanes + e] + r[(begin + i) * r_tile + n * r_row + v * lanes + e]
                    for v in T.unroll(vectors):
                        for e in T.vectorized(lanes):
                            acc[v * lanes + e] = activate(activation, acc[v * lanes + e], lo, hi)
                    if masked:
                        for v in T.unroll(vectors):
                            for e in T.vectorized(lanes):
                                acc[v * lanes + e] = T.Select(
                                    mask[(begin + i) * tile + v * lanes + e] > T.float32(0),
                                    acc[v * lanes + e],
                                    T.float32(0),
                                )
                    for v in T.unroll(vectors):
                        for e in T.vectorized(lanes):
                            y[(begin + i) * y_tile + n * y_row + v * lanes + e] = acc[v * lanes + e]
            return T.int32(0)

        return kernel

    return Source(symbol, params, make)
