"""Between tiled tokens of two tile widths, and between maps and tokens: pixel h, w is token h * W + w.

- ``repack``: both sides have their pixels in the same order without gaps; whole vectors are copied.
- ``gather``: any order, through a table of positions.
"""

from __future__ import annotations

import numpy as np

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.expr import number
from sparsec.backends.cpu.registers import load, store
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import Let, Need, Scan, over, reads, tiled, writes
from sparsec.backends.vector import Vector
from sparsec.lower.layouts import Geometry, Storage


def repack(vector: Vector, vectors: int) -> Source:
    """y[c, p] = x[c, p] for ``channels`` channels; y's tiles are of ``lanes * vectors`` pixels and the units of work.

    Pixel p of x lies at p // x_width * x_tile + c * x_channel + p % x_width; past its ``x_chunks`` vectors y becomes anything.
    """
    lanes = vector.lanes
    tile = lanes * vectors

    def kernel(x, y, channels, x_chunks, x_width, x_tile, x_channel, begin, end):
        for i in range(end - begin):
            for v in range(vectors):
                pixel: T.let = T.min((begin + i) * vectors + v, x_chunks - 1) * lanes
                x0: T.let = pixel // x_width * x_tile + pixel % x_width
                y0: T.let = (begin + i) * channels * tile + v * lanes
                for c in range(channels):
                    store(vector, y, y0 + c * tile, load(vector, x, x0 + c * x_channel))

    params = (*(Param(n, "act") for n in "xy"), *(Param(n, "i32") for n in ("channels", "x_chunks", "x_width", "x_tile", "x_channel")))
    steps = (
        Need("x_chunks > 0 && x_width > 0"),
        Let("last", f"(least(end * {vectors}, x_chunks) - 1) * {lanes}"),
        reads(
            "x",
            over(0, "last / x_width + 1", "x_tile"),
            over(0, "least(x_width - 1, last) + 1"),
            over(0, "channels", "x_channel"),
            width=lanes,
        ),
        writes("y", *tiled("channels", tile), width=tile),
    )
    return script.kernel(vector, f"repack_l{lanes}_v{vectors}", params, kernel, steps)


def gather(vector: Vector, vectors: int) -> Source:
    """y[c, p] = x[c * x_channel + place[p]], 0 where place[p] < 0; tiles of y are of ``lanes * vectors`` pixels and the units of work."""
    lanes = vector.lanes
    tile = lanes * vectors

    def kernel(x, y, place, channels, x_channel, y_tile, y_channel, begin, end):
        for i in range(end - begin):
            for v in range(vectors):
                p0: T.let = (begin + i) * tile + v * lanes
                y0: T.let = (begin + i) * y_tile + v * lanes
                # In memory: TVM would take the maximum away where the place is not negative, and read both sides all the same.
                inside = T.alloc_buffer((lanes,), "int32", scope="global")
                for e in T.vectorized(lanes):
                    inside[e] = T.max(place[p0 + e], 0)
                for c in range(channels):
                    for e in T.vectorized(lanes):
                        y[y0 + c * y_channel + e] = T.Select(place[p0 + e] < 0, number(vector, 0), x[c * x_channel + inside[e]])

    params = (
        *(Param(n, "act") for n in "xy"),
        Param("place", "ptr", "int32"),
        *(Param(n, "i32") for n in ("channels", "x_channel", "y_tile", "y_channel")),
    )
    steps = (
        Scan("place", f"begin * {tile}", f"end * {tile}"),
        reads("x", over(0, "channels", "x_channel"), over("most(place_low, 0)", "most(place_high, 0) + 1")),
        writes("y", over("begin", "end", "y_tile"), over(0, "channels", "y_channel"), width=tile),
    )
    return script.kernel(vector, f"gather_l{lanes}_v{vectors}", params, kernel, steps)


def without_gaps(space: Geometry) -> bool:
    """Whether pixel h, w lies at position h * W + w."""
    return space.height == 1 or space.pitch == space.width


def places(source: Storage, target: Geometry) -> np.ndarray:
    """``place`` of ``gather``, int32 [tiles * tile] of ``target``: pixels of both sides correspond in row-major order."""
    have = source.index_space
    pixel = np.arange(source.index_space.height * source.index_space.width)
    position = pixel // have.width * have.pitch + pixel % have.width
    out = np.full(target.tiles * target.tile, -1, np.int32)
    out[pixel // target.width * target.pitch + pixel % target.width] = position // have.tile * source.tile_step + position % have.tile
    return out
