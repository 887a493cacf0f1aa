"""Pooling over windows of a map, and over the whole map.

y[c, h, w] = max (or sum times scales[h, w]) over the pixels of x[c] in rows h * stride - pad + [0, k), columns alike.

A window's pads are no pixels: for "max" they count as -inf, for "mean" as 0 and the scale holds one over the number of counted cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sparsec.backends.base import Arguments, Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.expr import cast, is_nan
from sparsec.backends.cpu.registers import fold, load, merge_from, store, store_below
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import Let, Need, at, over, reads, writes
from sparsec.backends.vector import Vector
from sparsec.lower.layouts import Geometry

KINDS = ("max", "mean")


@dataclass(frozen=True)
class Window:
    """A pooling window; pairs are (rows, columns). ``padded_cells`` counts pads in the mean (torch: count_include_pad)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    padded_cells: bool = True


def _identity(kind: str) -> Any:
    return T.float32(float("-inf") if kind == "max" else 0.0)


def _merge(kind: str, a: Any, b: Any) -> Any:
    """max(a, b), NaN where either is NaN (b > a is false for a NaN in a); or a + b."""
    return T.Select(is_nan(b), b, T.Select(b > a, b, a)) if kind == "max" else a + b


def window_pool(vector: Vector, kind: str, columns: int, stride: int) -> Source:
    """Windows of ``columns`` columns at a column stride of ``stride``; the window's rows, row stride and pads are run-time numbers.

    Rows of a window are merged first, in whole vectors; their columns are then shuffled together. x and y are in ``halo``, y is written
    on p in [0, H * pitch) with zero pad columns. x needs ``pad_columns`` readable elements before its first pixel; nothing else is
    asked of its pads. Units of work are channels. Tables and numbers from ``window_arguments``.
    """
    lanes = vector.lanes
    if kind not in KINDS:
        raise ValueError(f"unknown pooling {kind!r}; known: {', '.join(KINDS)}")
    loads, merge = _loads(lanes, columns, stride), partial(_merge, kind)
    names = ("x_height", "x_pitch", "x_channel", "y_height", "y_pitch", "y_channel", "rows", "row_stride", "pad_rows", "pad_columns")
    params = (
        *(Param(n, "act") for n in ("x", "y")),
        *(Param(n, "ptr", "float32") for n in ("inside", "row_scale", "column_scale")),
        *(Param(n, "i32") for n in names),
    )

    def joined(out: Any, cells: Any) -> None:
        """Emit out[:lanes] = the columns of ``lanes`` windows merged; ``cells`` are ``loads`` vectors of neighbouring columns."""
        vectors = [cells[T.Ramp(v * lanes, 1, lanes)] for v in range(loads)]
        for j in range(columns):
            T.buffer_store(out, T.Shuffle(vectors, [j + stride * e for e in range(lanes)]), [T.Ramp(j * lanes, 1, lanes)])
        for j in range(1, columns):
            merge_from(out, lanes, j * lanes, merge)

    def kernel(
        x, y, inside, row_scale, column_scale, x_height, x_pitch, x_channel, y_height, y_pitch, y_channel, rows, row_stride, pad_rows,
        pad_columns, begin, end,
    ):  # fmt: skip
        for i in range(end - begin):
            for h in range(y_height):
                first: T.let = T.max(h * row_stride - pad_rows, 0)
                last: T.let = T.min(h * row_stride - pad_rows + rows, x_height)
                for v in range((y_pitch + lanes - 1) // lanes):
                    w0: T.let = v * lanes
                    x0: T.let = (begin + i) * x_channel + first * x_pitch + w0 * stride - pad_columns
                    y0: T.let = (begin + i) * y_channel + h * y_pitch + w0
                    cells = T.alloc_buffer((loads * lanes,), "float32", scope="global")
                    out = T.alloc_buffer((columns * lanes,), "float32", scope="global")
                    done = T.alloc_buffer((lanes,), vector.dtype, scope="global")
                    for j in T.unroll(loads):
                        for e in T.vectorized(lanes):
                            cells[j * lanes + e] = _identity(kind)
                    for r in range(last - first):
                        for j in T.unroll(loads):
                            for e in T.vectorized(lanes):
                                cells[j * lanes + e] = _merge(
                                    kind, cells[j * lanes + e], cast(x[x0 + r * x_pitch + j * lanes + e], "float32")
                                )
                    for j in T.unroll(loads):
                        for e in T.vectorized(lanes):
                            cells[j * lanes + e] = T.Select(
                                inside[w0 * stride + j * lanes + e] > T.float32(0), cells[j * lanes + e], _identity(kind)
                            )
                    joined(out, cells)
                    for e in T.vectorized(lanes):
                        if kind == "mean":
                            out[e] = out[e] * row_scale[h] * column_scale[w0 + e]
                        out[e] = T.Select(column_scale[w0 + e] > T.float32(0), out[e], T.float32(0))
                        done[e] = cast(out[e], vector.dtype)
                    if w0 + lanes <= y_pitch:
                        store(vector, y, y0, load(vector, done, 0))
                    else:
                        store_below(vector, y, y0, load(vector, done, 0), y_pitch - w0)

    steps = (
        Need("is_small(4 * y_height * row_stride) && is_small(4 * pad_rows) && is_small(4 * rows)"),
        Let("chunks", f"up(y_pitch, {lanes})"),
        reads(
            "x",
            over("begin", "end", "x_channel"),
            over(0, "x_height", "x_pitch"),
            over(0, "chunks", lanes * stride),
            at("-pad_columns"),
            width=loads * lanes,
        ),
        reads("inside", over(0, "chunks", lanes * stride), width=loads * lanes),
        *([reads("row_scale", over(0, "y_height"))] * (kind == "mean")),
        reads("column_scale", over(0, "chunks", lanes), width=lanes),
        writes("y", over("begin", "end", "y_channel"), over(0, "y_height", "y_pitch"), width="y_pitch"),
    )
    return script.kernel(vector, f"window_pool_{kind}_l{lanes}_k{columns}_s{stride}", params, kernel, steps)


def _loads(lanes: int, columns: int, stride: int) -> int:
    """Vectors of neighbouring columns that ``lanes`` windows cover."""
    return -(-((lanes - 1) * stride + columns) // lanes)


def window_arguments(window: Window, x: Geometry, y: Geometry, lanes: int) -> Arguments:
    """Tables and numbers of ``window_pool`` for a map of geometry x to one of geometry y (its height and width are the output size)."""
    (rows, columns), (row_stride, stride), (pad_rows, pad_columns) = window.kernel, window.stride, window.padding
    chunks = -(-y.pitch // lanes)
    column = np.arange(chunks * lanes * stride + _loads(lanes, columns, stride) * lanes) - pad_columns
    column_scale = np.zeros(chunks * lanes, np.float32)
    column_scale[: y.width] = _scales(y.width, x.width, columns, stride, pad_columns, window.padded_cells)
    return {
        "inside": ((column >= 0) & (column < x.width)).astype(np.float32),
        "row_scale": _scales(y.height, x.height, rows, row_stride, pad_rows, window.padded_cells),
        "column_scale": column_scale,
        "x_height": x.height,
        "x_pitch": x.pitch,
        "x_channel": x.stride,
        "y_height": y.height,
        "y_pitch": y.pitch,
        "y_channel": y.stride,
        "rows": rows,
        "row_stride": row_stride,
        "pad_rows": pad_rows,
        "pad_columns": pad_columns,
    }


def _scales(count: int, size: int, kernel: int, stride: int, pad: int, padded_cells: bool) -> np.ndarray:
    """One over the cells that each of ``count`` windows counts along one axis of ``size`` pixels."""
    start = np.arange(count) * stride - pad
    stop = np.minimum(start + kernel, size + pad if padded_cells else size)
    return (1.0 / (stop - (start if padded_cells else np.maximum(start, 0)))).astype(np.float32)


def global_pool(vector: Vector, vectors: int, kind: str) -> Source:
    """y[c] = max, or ``scale`` times the sum, of x[c, p] over the pixels (mask 1) of a halo or tiled map; y is a vector.

    ``scale`` is 1 / (H * W) for the mean. Units of work are channels; tiles are of ``lanes * vectors`` pixels.
    """
    lanes = vector.lanes
    if kind not in KINDS:
        raise ValueError(f"unknown pooling {kind!r}; known: {', '.join(KINDS)}")
    tile, merge = lanes * vectors, partial(_merge, kind)
    params = (
        *(Param(n, "act") for n in ("x", "y")),
        Param("mask", "ptr", "float32"),
        *(Param(n, "i32") for n in ("tiles", "x_tile", "x_channel")),
        Param("scale", "f32"),
    )

    def folded(acc: Any) -> None:
        """Emit acc[0] = all elements merged: vectors into the first, then halves of it."""
        for v in range(1, vectors):
            merge_from(acc, lanes, v * lanes, merge)
        fold(vector, acc, lanes, merge)

    def kernel(x, y, mask, tiles, x_tile, x_channel, scale, begin, end):
        for i in range(end - begin):
            x0: T.let = (begin + i) * x_channel
            acc = T.alloc_buffer((tile,), "float32", scope="global")
            part = T.alloc_buffer((lanes,), "float32", scope="global")
            for v in T.unroll(vectors):
                for e in T.vectorized(lanes):
                    acc[v * lanes + e] = _identity(kind)
            for t in range(tiles):
                for v in T.unroll(vectors):
                    for e in T.vectorized(lanes):
                        part[e] = T.Select(
                            mask[t * tile + v * lanes + e] > T.float32(0),
                            cast(x[x0 + t * x_tile + v * lanes + e], "float32"),
                            _identity(kind),
                        )
                    for e in T.vectorized(lanes):
                        acc[v * lanes + e] = _merge(kind, acc[v * lanes + e], part[e])
            folded(acc)
            y[begin + i] = cast(acc[0] * scale if kind == "mean" else acc[0], vector.dtype)

    steps = (
        reads("x", over("begin", "end", "x_channel"), over(0, "tiles", "x_tile"), width=tile),
        reads("mask", over(0, "tiles", tile), width=tile),
        writes("y", over("begin", "end")),
    )
    return script.kernel(vector, f"global_pool_{kind}_l{lanes}_v{vectors}", params, kernel, steps)
