"""Rows of a table, one per token, straight into tiles.

y[t, f] = table[id[t], f]      the table [V, F] as it is, read a line at a time and transposed in registers
"""

from __future__ import annotations

from typing import Any

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.tir import T
from sparsec.backends.cpu.token_moves import pack_block
from sparsec.backends.extents import Need, over, reads, tiled, writes
from sparsec.backends.vector import Vector

#: Dtypes of ids.
DTYPES = ("int64", "int32")


def embedding(vector: Vector, vectors: int, index: str) -> Source:
    """The kernel for ids of dtype ``index`` and tiles of ``lanes * vectors`` tokens, its units of work.

    ``count`` >= 1 tokens have ids, a table of ``rows`` rows. An id outside [0, rows) is read as the nearest one inside.
    """
    lanes = vector.lanes
    if index not in DTYPES:
        raise ValueError(f"ids of dtype {index!r}; known: {', '.join(DTYPES)}")
    tile = lanes * vectors

    def row_of(ids: Any, token: Any, count: Any, rows: Any) -> Any:
        return T.Cast("int32", T.max(T.min(ids[T.min(token, count - 1)], T.Cast(index, rows - 1)), T.Cast(index, T.int32(0))))

    def kernel(x, y, table, count, features, rows, begin, end):
        for i in range(end - begin):
            for v in range(vectors):
                starts = T.alloc_buffer((lanes,), "int32", scope="global")
                for r in range(lanes):
                    starts[r] = row_of(x, (begin + i) * tile + v * lanes + r, count, rows) * features
                for g in range((features + lanes - 1) // lanes):
                    pack_block(
                        vector,
                        table,
                        lambda r: starts[r] + g * lanes,
                        y,
                        (begin + i) * features * tile + g * lanes * tile + v * lanes,
                        tile,
                        features - g * lanes,
                    )

    params = (
        Param("x", "act", index),
        Param("y", "act"),
        Param("table", "ptr"),
        *(Param(n, "i32") for n in ("count", "features", "rows")),
    )
    steps = (
        Need(f"count > 0 && rows > 0 && is_small(end * {tile})"),
        reads("x", over(f"least(begin * {tile}, count - 1)", f"least(end * {tile}, count)")),
        reads("table", over(0, "rows", "features"), width="features"),
        writes("y", *tiled("features", tile), width=tile),
    )
    return script.kernel(vector, f"embedding_l{lanes}_v{vectors}_{index}", params, kernel, steps)
