"""Tokens between the caller's rows [T, F] and tiles [T / tile][F][tile], through transposes in registers.

Token t, feature f of tiled tokens lies at t // tile * F * tile + f * tile + t % tile. No element of the caller's rows but those of
tokens below ``count`` is touched; what tiles hold past them is anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.registers import load, load_below, square, store, store_below, transpose
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import Need, over, reads, tiled, writes
from sparsec.backends.vector import Vector


def pack_block(vector: Vector, x: Any, start: Callable[[int], Any], y: Any, y0: Any, tile: int, features: Any) -> None:
    """Emit the packing of ``lanes`` tokens: feature f of token r moves from x[start(r) + f] to y[y0 + f * tile + r].

    Of the ``features`` that are left, at most ``lanes`` are moved.
    """
    lanes = vector.lanes
    block = square(vector)
    with T.If(features >= lanes):
        with T.Then():
            for r, row in enumerate(block):
                store(vector, row, 0, load(vector, x, start(r)))
        with T.Else():
            for r, row in enumerate(block):
                store(vector, row, 0, load_below(vector, x, start(r), features))
    for f, column in enumerate(transpose(vector, block)):
        with T.If(features > f), T.Then():
            store(vector, y, y0 + f * tile, column)


def rows_to_tiled(vector: Vector, vectors: int) -> Source:
    """y = x for ``count`` >= 1 tokens of ``features`` features; y's tiles are of ``lanes * vectors`` tokens and the units of work."""
    lanes = vector.lanes
    tile = lanes * vectors

    def kernel(x, y, count, features, begin, end):
        for i in range(end - begin):
            for v in range(vectors):
                for g in range((features + lanes - 1) // lanes):
                    token: T.let = (begin + i) * tile + v * lanes
                    pack_block(
                        vector,
                        x,
                        lambda r: T.min(token + r, count - 1) * features + g * lanes,
                        y,
                        (begin + i) * features * tile + g * lanes * tile + v * lanes,
                        tile,
                        features - g * lanes,
                    )

    params = (Param("x", "act"), Param("y", "act"), Param("count", "i32"), Param("features", "i32"))
    steps = (
        Need("count > 0"),
        reads("x", over(f"least(begin * {tile}, count - 1)", f"least(end * {tile}, count)", "features"), width="features"),
        writes("y", *tiled("features", tile), width=tile),
    )
    return script.kernel(vector, f"rows_to_tiled_l{lanes}_v{vectors}", params, kernel, steps)


def _unpack_block(vector: Vector, x: Any, x0: Any, tile: int, y: Any, y0: Any, tokens: Any, features: Any, left: Any) -> None:
    """Emit the unpacking of ``lanes`` tokens: feature f of token r moves from x[x0 + f * tile + r] to y[y0 + r * features + f].

    Of the ``tokens`` and features that are ``left``, at most ``lanes`` each are moved.
    """
    lanes = vector.lanes
    block = square(vector)
    for f, row in enumerate(block):
        store(vector, row, 0, load(vector, x, x0 + T.min(f, left - 1) * tile))
    columns = transpose(vector, block)
    with T.If(left >= lanes):
        with T.Then():
            for r, column in enumerate(columns):
                with T.If(tokens > r), T.Then():
                    store(vector, y, y0 + r * features, column)
        with T.Else():
            for r, column in enumerate(columns):
                with T.If(tokens > r), T.Then():
                    store_below(vector, y, y0 + r * features, column, left)


def tiled_to_rows(vector: Vector, vectors: int) -> Source:
    """y = x for ``count`` tokens of ``features`` features; x's tiles are of ``lanes * vectors`` tokens and the units of work."""
    lanes = vector.lanes
    tile = lanes * vectors

    def kernel(x, y, count, features, begin, end):
        for i in range(end - begin):
            for v in range(vectors):
                for g in range((features + lanes - 1) // lanes):
                    token: T.let = (begin + i) * tile + v * lanes
                    _unpack_block(
                        vector,
                        x,
                        (begin + i) * features * tile + g * lanes * tile + v * lanes,
                        tile,
                        y,
                        token * features + g * lanes,
                        count - token,
                        features,
                        features - g * lanes,
                    )

    params = (Param("x", "act"), Param("y", "act"), Param("count", "i32"), Param("features", "i32"))
    steps = (
        reads("x", *tiled("features", tile), width=tile),
        writes("y", over(f"begin * {tile}", f"least(end * {tile}, count)", "features"), width="features"),
    )
    return script.kernel(vector, f"tiled_to_rows_l{lanes}_v{vectors}", params, kernel, steps)
