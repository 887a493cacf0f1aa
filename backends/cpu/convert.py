"""Copies between storage layouts: the edges of a region and the seams between kernels that want different layouts.

- ``copy_rows``: contiguous tensor <-> halo rows <-> single pixels, as a strided copy of rows.
- ``to_planes``: contiguous tensor or halo rows -> space-to-depth in halo rows, which makes a strided stem a stride-1 stencil.
- ``retile``: halo <-> tiled.
"""

from __future__ import annotations

from typing import Any

from sparsec.backends.base import Arguments, Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.expr import number
from sparsec.backends.cpu.planes import lines_read, wide_planes
from sparsec.backends.cpu.registers import load_below, store, store_below
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import Let, Need, over, reads, writes
from sparsec.backends.vector import Vector
from sparsec.lower.layouts import Geometry

#: Strides up to this one are shuffled apart in registers.
_SHUFFLED = 4


def copy_rows(vector: Vector) -> Source:
    """y[c, h, w] = x[c, h, w] on ``width`` columns, then ``fill`` zero columns; rows lie at ``x_pitch`` and ``y_pitch``.

    Neither reads nor writes an element outside of those, so that either side may be the caller's tensor, at any alignment.
    Units of work are channels.
    """
    lanes = vector.lanes
    names = ("height", "width", "fill", "x_pitch", "x_channel", "y_pitch", "y_channel")
    params = (Param("x", "act"), Param("y", "act"), *(Param(n, "i32") for n in names))

    def kernel(x, y, height, width, fill, x_pitch, x_channel, y_pitch, y_channel, begin, end):
        whole: T.let = width // lanes
        for i in range(end - begin):
            for h in range(height):
                x0: T.let = (begin + i) * x_channel + h * x_pitch
                y0: T.let = (begin + i) * y_channel + h * y_pitch
                for v in range(whole):
                    for e in T.vectorized(lanes):
                        y[y0 + v * lanes + e] = x[x0 + v * lanes + e]
                for w in range((width + fill + lanes - 1) // lanes - whole):
                    last: T.let = (whole + w) * lanes
                    part: T.let = load_below(vector, x, x0 + last, width - last)
                    store_below(vector, y, y0 + last, part, width + fill - last)

    steps = (
        Need("width >= 0 && fill >= 0"),
        reads("x", over("begin", "end", "x_channel"), over(0, "height", "x_pitch"), width="width"),
        writes("y", over("begin", "end", "y_channel"), over(0, "height", "y_pitch"), width="width + fill"),
    )
    return script.kernel(vector, f"copy_rows_l{lanes}", params, kernel, steps)


def nchw_to_halo(geometry: Geometry) -> Arguments:
    """Scalars of ``copy_rows`` for contiguous [C, H, W] -> halo; writes p in [0, H * pitch), pad columns as zero."""
    g = geometry
    rows = _rows(g, g.pitch - g.width)
    return rows | {"x_pitch": g.width, "x_channel": g.height * g.width, "y_pitch": g.pitch, "y_channel": g.stride}


def halo_to_nchw(geometry: Geometry) -> Arguments:
    """Scalars of ``copy_rows`` for halo -> contiguous [C, H, W]."""
    g = geometry
    return _rows(g, 0) | {"x_pitch": g.pitch, "x_channel": g.stride, "y_pitch": g.width, "y_channel": g.height * g.width}


def copy_vector(length: int) -> Arguments:
    """Scalars of ``copy_rows`` for contiguous [C] or [C, 1, 1] <-> vector, all in one unit of work."""
    return {"height": 1, "width": length, "fill": 0, "x_pitch": 0, "x_channel": 0, "y_pitch": 0, "y_channel": 0}


def _rows(g: Geometry, fill: int) -> dict[str, int]:
    """Rows that touch one another on both sides are copied as one."""
    if g.pitch == g.width:
        return {"height": 1, "width": g.pixels, "fill": 0}
    return {"height": g.height, "width": g.width, "fill": fill}


def to_planes(vector: Vector, step: int, only_first: bool = False) -> Source:
    """Space-to-depth: y[(c * step + a) * step + b, h, w] = x[c, step * h + a, step * w + b], zero where x has no such pixel.

    x is [C, height, width], channels at ``x_channel`` and lines at ``x_pitch``; y is halo, ``step**2 * C`` channels of ``y_height``
    rows at ``y_pitch``, channels at ``y_channel``; its pad columns become zero. Every x pixel is loaded once, in whole vectors, and
    shuffled apart. Units of work are the pairs (c, a): ``step * C`` of them. ``only_first`` keeps a = b = 0: C channels, as many units.
    Long steps have a kernel of their own.
    """
    lanes = vector.lanes
    if step > _SHUFFLED:
        return wide_planes(vector, step)
    kept, lines = (1, 1) if only_first else (step, step)
    names = ("height", "width", "x_channel", "x_pitch", "y_height", "y_pitch", "y_channel")
    params = (Param("x", "act"), Param("y", "act"), *(Param(n, "i32") for n in names))

    def store_columns(y: Any, y0: Any, pixels: Any, limit: Any) -> None:
        """Emit the stores of every ``step``-th pixel to the planes; ``limit`` columns of them, all where it is None."""
        for b in range(kept):
            column = T.Shuffle([pixels[T.Ramp(j * lanes, 1, lanes)] for j in range(step)], [b + step * e for e in range(lanes)])
            if limit is None:
                store(vector, y, y0[b], column)
            else:
                store_below(vector, y, y0[b], column, limit)

    def kernel(x, y, height, width, x_channel, x_pitch, y_height, y_pitch, y_channel, begin, end):
        for i in range(end - begin):
            for h in range(y_height):
                line: T.let = h * step + (begin + i) % lines
                x0: T.let = (begin + i) // lines * x_channel + line * x_pitch
                y0: T.let = (begin + i) * kept * y_channel + h * y_pitch
                present: T.let = T.Select(line < height, width, T.int32(0))
                whole: T.let = present // (step * lanes)
                pixels = T.alloc_buffer((step * lanes,), vector.dtype, scope="global")
                for v in range(whole):
                    for j in T.unroll(step):
                        for e in T.vectorized(lanes):
                            pixels[j * lanes + e] = x[x0 + (v * step + j) * lanes + e]
                    store_columns(y, [y0 + b * y_channel + v * lanes for b in range(kept)], pixels, None)
                for v in range((y_pitch + lanes - 1) // lanes - whole):
                    for j in T.unroll(step):
                        at: T.let = ((whole + v) * step + j) * lanes
                        store(vector, pixels, j * lanes, load_below(vector, x, x0 + at, present - at))
                    last: T.let = (whole + v) * lanes
                    store_columns(y, [y0 + b * y_channel + last for b in range(kept)], pixels, y_pitch - last)

    steps = (
        *lines_read(lines, step),
        # Whole vectors of a line that is longer than the planes' rows go past these.
        Let("written", f"most(y_pitch, width / {step * lanes} * {lanes})"),
        writes(
            "y", over("begin", "end", f"{kept} * y_channel"), over(0, kept, "y_channel"), over(0, "y_height", "y_pitch"), width="written"
        ),
    )
    return script.kernel(vector, f"to_planes_l{lanes}_s{step}{'_first' * only_first}", params, kernel, steps)


def retile(vector: Vector, vectors: int, masked: bool) -> Source:
    """halo <-> tiled: copies the tiles of all channels; ``masked`` (for a halo y) writes zero where mask is 0.

    x and y are described by the distance of tiles and of channels. Units of work are tiles of ``lanes * vectors`` pixels.
    """
    lanes = vector.lanes
    tile = lanes * vectors
    names = ("channels", "x_tile", "x_channel", "y_tile", "y_channel")
    params = (Param("x", "act"), Param("y", "act"), Param("mask", "ptr", "float32"), *(Param(n, "i32") for n in names))

    def kernel(x, y, mask, channels, x_tile, x_channel, y_tile, y_channel, begin, end):
        for i in range(end - begin):
            for c in range(channels):
                x0: T.let = (begin + i) * x_tile + c * x_channel
                y0: T.let = (begin + i) * y_tile + c * y_channel
                for v in T.unroll(vectors):
                    for e in T.vectorized(lanes):
                        if masked:
                            y[y0 + v * lanes + e] = T.Select(
                                mask[(begin + i) * tile + v * lanes + e] > T.float32(0), x[x0 + v * lanes + e], number(vector, 0)
                            )
                        else:
                            y[y0 + v * lanes + e] = x[x0 + v * lanes + e]

    units, channels = ("begin", "end"), (0, "channels")
    steps = (
        reads("x", over(*units, "x_tile"), over(*channels, "x_channel"), width=tile),
        writes("y", over(*units, "y_tile"), over(*channels, "y_channel"), width=tile),
        *([reads("mask", over(*units, tile), width=tile)] * masked),
    )
    return script.kernel(vector, f"retile_l{lanes}_v{vectors}{'_masked' * masked}", params, kernel, steps)
