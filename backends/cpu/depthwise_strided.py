"""Depthwise k x k convolution of a halo map, stride 2.

y[c, oh, ow] = act(bias[c] + sum_ij weight[c, i, j] * x[c, 2 * oh + i - r, 2 * ow + j - r] (+ residual[c, oh, ow])),   r = (k - 1) / 2

Two loads from column 2 * ow - r are split in even and odd elements: column j of the stencil is the even (j even) or odd half, shifted by
j / 2 elements. As in stride 1, the sum over rows comes before the shift, so that a step of a row has k accumulators, and of its ``lanes``
results the first ``lanes - r`` are right; the next step of the row writes over the others.

Output rows do not start at tile borders. The rows that a range of tiles touches are computed in a scratch row of the output's own flat
index space, one channel at a time, and then activated and copied tile by tile.
"""

from __future__ import annotations

from typing import Any

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.depthwise import copies, held, outputs, shifted, stencil_elements, total
from sparsec.backends.cpu.expr import activate, number
from sparsec.backends.cpu.partition import PARAMS, ROWS, row_range, tile_range
from sparsec.backends.cpu.tir import T, tirx
from sparsec.backends.extents import Let, Need, at, over, reads, writes
from sparsec.backends.vector import Vector


def scratch_elements(tiles: int, tile: int, pitch: int) -> int:
    """Elements of scratch for one thread that produces up to ``tiles`` tiles at once; ``pitch`` is the output's."""
    return tiles * tile + 2 * pitch + tile


def depthwise_strided(vector: Vector, vectors: int, kernel: int, activation: str, masked: bool, residual: bool = False) -> Source:
    """The kernel for tiles of ``lanes * vectors`` output pixels and a ``kernel`` x ``kernel`` stencil; units of work are output
    tiles or runs of channels (see ``partition``).

    ``x`` is halo with ``pad >= (kernel - 1) / 2``; ``x_channel`` is its elements per channel, ``x_pitch`` its elements per row. ``height``,
    ``width`` and ``pitch`` are the output's. ``scratch`` holds ``scratch_elements(...)`` elements per thread; its contents need not
    be set. ``masked`` zeroes pad positions of a halo output. A residual is a map on the output's index space.
    """
    lanes = vector.lanes
    tile, r, taps = lanes * vectors, kernel // 2, range(kernel)
    symbol = f"depthwise{kernel}s2_l{lanes}_v{vectors}_{activation}{'_residual' * residual}{'_masked' * masked}"
    params = (
        Param("x", "act"),
        Param("y", "act"),
        *([Param("residual", "act")] * residual),
        Param("scratch", "act"),
        Param("weight", "ptr"),
        Param("bias", "ptr"),
        Param("mask", "ptr", "float32"),
        *PARAMS,
        Param("channels", "i32"),
        Param("x_channel", "i32"),
        Param("x_pitch", "i32"),
        Param("height", "i32"),
        Param("width", "i32"),
        Param("pitch", "i32"),
        Param("y_tile", "i32"),
        Param("y_channel", "i32"),
        *([Param("r_tile", "i32"), Param("r_channel", "i32")] * residual),
        Param("lo", "f32"),
        Param("hi", "f32"),
    )

    def span(buffer: Any, at: Any) -> Any:
        return buffer[T.Ramp(at, 1, lanes)]

    def split(s: Any, x: Any, q: Any) -> None:
        """s = even elements, then odd elements of x[q .. q + 2 * lanes]."""
        for parity in range(2):
            index = [T.int32(2 * e + parity) for e in range(lanes)]
            T.buffer_store(s, tirx.Shuffle([span(x, q), span(x, q + lanes)], index), [T.Ramp(parity * lanes, 1, lanes)])

    def accumulate(s: Any, w: Any, half: Any, i: int) -> None:
        for j in taps:
            term = copies(vector, w, i * kernel + j) * span(half, (j % 2) * lanes)
            start = copies(vector, w, kernel * kernel) if j == 0 else None
            before = start if i == 0 else span(s, j * lanes)
            T.buffer_store(s, term if before is None else before + term, [T.Ramp(j * lanes, 1, lanes)])

    def columns(s: Any, half: Any, w: Any, x: Any, q: Any, pitch: Any) -> None:
        """s[j] = the sum over rows of column j of the stencil; the bias rides on the first column."""
        for i in taps:
            split(half, x, q + i * pitch)
            accumulate(s, w, half, i)

    def row_sum(s: Any) -> Any:
        return total(shifted(span(s, j * lanes), span(s, j * lanes), j // 2, lanes) for j in taps)

    def plus(value: Any, other: Any, at: Any) -> Any:
        return value + other[at] if residual else value

    def stencil(
        x, y, scratch, weight, bias, mask, runs, run_count, all_tiles, x_channel, x_pitch, height, width, pitch,
        y_tile, y_channel, lo, hi, begin, end, residual=None, r_tile=0, r_channel=0,
    ):  # fmt: skip
        tile0: T.let = tile_range(all_tiles, run_count, begin, end)[0]
        tiles: T.let = tile_range(all_tiles, run_count, begin, end)[1]
        low: T.let = row_range(runs, all_tiles, run_count, tile0, begin, end)[0]
        high: T.let = row_range(runs, all_tiles, run_count, tile0, begin, end)[1]
        first: T.let = T.truncdiv(tile0 * tile, pitch)
        last: T.let = T.min(T.truncdiv((tile0 + tiles) * tile - 1, pitch) + 1, height)
        steps: T.let = T.truncdiv(width + (lanes - r - 1), lanes - r)
        skip: T.let = tile0 * tile - first * pitch
        for c in range(low, high):
            w = T.alloc_buffer((stencil_elements(vector, kernel),), vector.dtype, scope="global")
            s = T.alloc_buffer((kernel * lanes,), vector.dtype, scope="global")
            half = T.alloc_buffer((2 * lanes,), vector.dtype, scope="global")
            out = T.alloc_buffer((lanes,), vector.dtype, scope="global")
            for t in T.unroll(kernel * kernel):
                w[t] = weight[c * (kernel * kernel) + t]
            w[kernel * kernel] = bias[c]
            weights = held(vector, w, kernel)
            for oh in range(last - first):
                for step in range(steps):
                    columns(s, half, weights, x, c * x_channel + ((first + oh) * 2 - r) * x_pitch + step * (2 * (lanes - r)) - r, x_pitch)
                    scratch[T.Ramp(oh * pitch + step * (lanes - r), 1, lanes)] = row_sum(s)
            for i in range(tiles):
                for v in T.unroll(vectors):
                    for e in T.vectorized(lanes):
                        out[e] = activate(
                            activation,
                            plus(scratch[skip + i * tile + v * lanes + e], residual, (tile0 + i) * r_tile + c * r_channel + v * lanes + e),
                            lo,
                            hi,
                        )
                    if masked:
                        for e in T.vectorized(lanes):
                            out[e] = T.Select(mask[(tile0 + i) * tile + v * lanes + e] > T.float32(0), out[e], number(vector, 0))
                    for e in T.vectorized(lanes):
                        y[(tile0 + i) * y_tile + c * y_channel + v * lanes + e] = out[e]

    steps = (
        Need("pitch > 0"),
        *outputs(tile, kernel, masked, residual),
        Need(f"is_small(tile_end * {tile})"),
        Let("row_first", f"tile_first * {tile} / pitch"),
        Let("row_end", f"least((tile_end * {tile} - 1) / pitch + 1, height)"),
        Let("steps", f"(width + {lanes - r - 1}) / {lanes - r}"),
        reads(
            "x",
            over(*ROWS, "x_channel"),
            over("row_first", "row_end", "2 * x_pitch"),
            over(-r, kernel - r, "x_pitch"),
            over(0, "steps", 2 * (lanes - r)),
            at(-r),
            width=2 * lanes,
        ),
        writes("scratch", over(0, "row_end - row_first", "pitch"), over(0, "steps", lanes - r), width=lanes),
        reads("scratch", over(0, "pitch"), over(0, "tile_end - tile_first", tile), width=tile),
    )
    return script.kernel(vector, symbol, params, stencil, steps)
