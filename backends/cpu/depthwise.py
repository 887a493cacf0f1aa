"""Depthwise k x k convolution of a halo map, stride 1: a stencil over the flat index, the same for every tile.

y[c, p] = act(bias[c] + sum_ij weight[c, i, j] * x[c, p + (i - r) * pitch + (j - r)] (+ residual[c, p])),   r = (k - 1) / 2

The sum over rows comes first: column sums S_j[q] = sum_i weight[i, j] * x[q + (i - r) * pitch] need one load per row of the stencil
(k loads for k*k multiplications), and the shift along a row is a shuffle of neighbouring registers:
y[p] = S_r[p] + sum_{j != r} S_j[p + j - r]. A channel is walked from its first to its last vector, one vector ahead of the output; the
walk carries the k column sums of the previous vector in registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.expr import activate, number
from sparsec.backends.cpu.partition import PARAMS, ROWS, TILES, TOUCHES, row_range, tile_range
from sparsec.backends.cpu.tir import T, fenced, tirx
from sparsec.backends.extents import Step, at, over, reads, writes
from sparsec.backends.panels import line_of
from sparsec.backends.vector import Vector
from sparsec.lower.layouts import ceil_to


def pack_depthwise(weight: np.ndarray, bias: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Constants of both depthwise kernels.

    Args:
        weight: ``[C, 1, k, k]``.
        bias: ``[C]``, zero if absent.
    """
    channels = len(weight)
    return {
        "weight": np.ascontiguousarray(weight, np.float32).reshape(channels, -1),
        "bias": np.zeros(channels, np.float32) if bias is None else np.ascontiguousarray(bias, np.float32),
    }


def outputs(tile: int, kernel: int, masked: bool, residual: bool) -> tuple[Step, ...]:
    """What both depthwise kernels touch besides x."""
    return (
        *TOUCHES,
        reads("weight", over(*ROWS, kernel**2), width=kernel**2),
        reads("bias", over(*ROWS)),
        writes("y", over(*TILES, "y_tile"), over(*ROWS, "y_channel"), width=tile),
        *([reads("residual", over(*TILES, "r_tile"), over(*ROWS, "r_channel"), width=tile)] * residual),
        *([reads("mask", over(*TILES, tile), width=tile)] * masked),
    )


def total(terms: Any) -> Any:
    """The sum of expressions, left to right."""
    first, *rest = terms
    for term in rest:
        first = first + term
    return first


def stencil_elements(vector: Vector, kernel: int) -> int:
    """Elements of a buffer for the weights of a channel and its bias, of which registers are made."""
    return ceil_to(kernel * kernel + 1, vector.lanes if vector.by_element else 1)


def held(vector: Vector, w: Any, kernel: int) -> Any:
    """What copies of w[t] are made of: where multiply-adds take an element, as few registers as hold them all, else w."""
    if not vector.by_element:
        return w
    return [fenced(w[T.Ramp(t, 1, vector.lanes)], vector.dtype, vector.lanes) for t in range(0, kernel * kernel + 1, vector.lanes)]


def copies(vector: Vector, held: Any, t: int) -> Any:
    """A register of copies of w[t]."""
    lanes = vector.lanes
    return tirx.Shuffle([held[t // lanes]], [T.int32(t % lanes)] * lanes) if vector.by_element else T.Broadcast(held[t], lanes)


def shifted(low: Any, high: Any, by: int, lanes: int) -> Any:
    """Elements ``by .. by + lanes`` of two registers side by side."""
    return tirx.Shuffle([low, high], [T.int32(by + e) for e in range(lanes)])


def depthwise(
    vector: Vector, vectors: int, kernel: int, activation: str, masked: bool, residual: bool = False, unrolled: int = 16
) -> Source:
    """The kernel for tiles of ``lanes * vectors`` pixels and a ``kernel`` x ``kernel`` stencil; units of work are tiles or runs
    of channels (see ``partition``).

    ``x`` is halo with ``pad >= (kernel - 1) / 2`` and tiles as wide as these; ``x_channel`` is its elements per channel, ``pitch`` its
    elements per row. ``masked`` zeroes pad positions of a halo output. A residual is a map on the same index space.
    ``unrolled``: see ``Panels``, for a stencil of 3 x 3; wider ones have more sums.
    """
    lanes = vector.lanes
    tile, r, taps, added = lanes * vectors, kernel // 2, range(kernel), residual
    line = line_of(vectors, max(1, unrolled + 1 - r))
    lines = vectors // line
    shape = f"l{lanes}_v{vectors}" + (f"_u{line}" if line < vectors else "")
    symbol = f"depthwise{kernel}_{shape}_{activation}{'_residual' * residual}{'_masked' * masked}"
    params = (
        Param("x", "act"),
        Param("y", "act"),
        *([Param("residual", "act")] * residual),
        Param("weight", "ptr"),
        Param("bias", "ptr"),
        Param("mask", "ptr", "float32"),
        *PARAMS,
        Param("channels", "i32"),
        Param("x_channel", "i32"),
        Param("pitch", "i32"),
        Param("y_tile", "i32"),
        Param("y_channel", "i32"),
        *([Param("r_tile", "i32"), Param("r_channel", "i32")] * residual),
        Param("lo", "f32"),
        Param("hi", "f32"),
    )

    def span(buffer: Any, at: Any) -> Any:
        return buffer[T.Ramp(at, 1, lanes)]

    def column(w: Any, x: Any, q: Any, j: int, pitch: Any) -> Any:
        return total(copies(vector, w, i * kernel + j) * span(x, q + (i - r) * pitch) for i in taps)

    def columns(s: Any, w: Any, x: Any, q: Any, pitch: Any) -> None:
        """s[j] = S_j[q]; the bias rides on the middle column."""
        for j in taps:
            value = column(w, x, q, j, pitch)
            T.buffer_store(s, value + copies(vector, w, kernel * kernel) if j == r else value, [T.Ramp(j * lanes, 1, lanes)])

    def add(s: Any, j: int, value: Any) -> None:
        T.buffer_store(s, span(s, j * lanes) + value, [T.Ramp(j * lanes, 1, lanes)])

    def beside(w: Any, x: Any, q: Any, pitch: Any) -> Any:
        """What the columns left of the middle add at q, read from memory: the walk has no vector before its first."""
        return total(column(w, x, q + j - r, j, pitch) for j in range(r))

    def left(old: Any, s: Any) -> Any:
        return total(shifted(span(old, j * lanes), span(s, j * lanes), lanes + j - r, lanes) for j in range(r))

    def right(old: Any, s: Any) -> Any:
        return total(shifted(span(old, j * lanes), span(s, j * lanes), j - r, lanes) for j in range(r + 1, kernel))

    def stencil(
        x, y, weight, bias, mask, runs, run_count, all_tiles, x_channel, pitch, y_tile, y_channel, lo, hi,
        begin, end, residual=None, r_tile=0, r_channel=0,
    ):  # fmt: skip
        tile0: T.let = tile_range(all_tiles, run_count, begin, end)[0]
        tiles: T.let = tile_range(all_tiles, run_count, begin, end)[1]
        low: T.let = row_range(runs, all_tiles, run_count, tile0, begin, end)[0]
        high: T.let = row_range(runs, all_tiles, run_count, tile0, begin, end)[1]
        for c in range(low, high):
            w = T.alloc_buffer((stencil_elements(vector, kernel),), vector.dtype, scope="global")
            s = T.alloc_buffer((kernel * lanes,), vector.dtype, scope="global")
            old = T.alloc_buffer((kernel * lanes,), vector.dtype, scope="global")
            out = T.alloc_buffer((lanes,), vector.dtype, scope="global")
            for t in T.unroll(kernel * kernel):
                w[t] = weight[c * (kernel * kernel) + t]
            w[kernel * kernel] = bias[c]
            weights = held(vector, w, kernel)
            columns(old, weights, x, c * x_channel + tile0 * tile, pitch)
            add(old, r, beside(weights, x, c * x_channel + tile0 * tile, pitch))
            # One loop for tiles and lines: one of known length would be unrolled.
            for g in range(tiles * lines):
                i: T.let = T.truncdiv(g, lines)
                for u in T.unroll(line):
                    v: T.let = T.truncmod(g, lines) * line + u
                    columns(s, weights, x, c * x_channel + (tile0 + i) * tile + (v + 1) * lanes, pitch)
                    out[T.Ramp(0, 1, lanes)] = span(old, r * lanes) + right(old, s)
                    add(s, r, left(old, s))
                    for j in T.unroll(kernel):
                        old[T.Ramp(j * lanes, 1, lanes)] = s[T.Ramp(j * lanes, 1, lanes)]
                    if added:
                        for e in T.vectorized(lanes):
                            out[e] = out[e] + residual[(tile0 + i) * r_tile + c * r_channel + v * lanes + e]
                    for e in T.vectorized(lanes):
                        out[e] = activate(activation, out[e], lo, hi)
                    if masked:
                        for e in T.vectorized(lanes):
                            out[e] = T.Select(mask[(tile0 + i) * tile + v * lanes + e] > T.float32(0), out[e], number(vector, 0))
                    for e in T.vectorized(lanes):
                        y[(tile0 + i) * y_tile + c * y_channel + v * lanes + e] = out[e]

    steps = (
        *outputs(tile, kernel, masked, residual),
        reads("x", over(*ROWS, "x_channel"), over(-r, r + 1, "pitch"), over(*TILES, tile), at(-r), width=r + tile + lanes),
    )
    return script.kernel(vector, symbol, params, stencil, steps)
