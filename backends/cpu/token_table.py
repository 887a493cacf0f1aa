"""A constant for every token and feature: position embeddings.

y[t, f] = x[t, f] + table[t, f]
"""

from __future__ import annotations

import numpy as np

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import Need, reads, tiled, writes
from sparsec.backends.vector import Vector


def add_table(vector: Vector, vectors: int) -> Source:
    """The kernel for tiles of ``lanes * vectors`` tokens, its units of work, and a table from ``pack_table``. x and y may be one buffer."""
    lanes = vector.lanes
    tile = lanes * vectors

    def kernel(x, y, table, features, begin, end):
        for i in range((end - begin) * features):
            start: T.let = (begin * features + i) * tile
            for v in T.unroll(vectors):
                for e in T.vectorized(lanes):
                    y[start + v * lanes + e] = x[start + v * lanes + e] + table[start + v * lanes + e]

    params = (*(Param(n, "act") for n in "xy"), Param("table", "ptr"), Param("features", "i32"))
    whole = tiled("features", tile)
    steps = (Need("features >= 0"), *(reads(n, *whole, width=tile) for n in ("x", "table")), writes("y", *whole, width=tile))
    return script.kernel(vector, f"add_table_l{lanes}_v{vectors}", params, kernel, steps)


def pack_table(table: np.ndarray, tile: int) -> np.ndarray:
    """[T, F] -> [ceil(T / tile), F, tile], zeros past the last token."""
    tokens, features = table.shape
    tiles = -(-tokens // tile)
    whole = np.zeros((tiles * tile, features), np.float32)
    whole[:tokens] = table
    return np.ascontiguousarray(whole.reshape(tiles, tile, features).swapaxes(1, 2))
