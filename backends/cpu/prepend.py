"""Constant tokens in front of others: a class token, registers.

y[t] = prefix[t] for t < P, x[t - P] from there on

Both are cut in vectors of tokens, those of the prefix counted backwards from -1, so that a vector of y is made of two neighbours at a
distance known when the code is made.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.registers import load, store
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import Let, Need, over, reads, tiled, writes
from sparsec.backends.vector import Vector


def prepend(vector: Vector, vectors: int, tokens: int) -> Source:
    """The kernel for ``tokens`` (only their number modulo ``lanes`` is compiled in) before tiled tokens.

    y's tiles are of ``lanes * vectors`` tokens and the units of work; x's of ``x_channel`` tokens, ``x_chunks`` vectors in all.
    ``chunks`` vectors of the prefix from ``pack_prefix``.
    """
    lanes = vector.lanes
    tile, shift = lanes * vectors, -tokens % lanes

    def copied(y: Any, y0: Any, features: Any, first: tuple[Any, Any, Any], second: tuple[Any, Any, Any]) -> None:
        """Emit the copy of one vector of tokens, all features, from two neighbours: (buffer, start, distance of features)."""
        with T.serial(0, features) as f:
            parts = [load(vector, x, x0 + f * step) for x, x0, step in ([first, second] if shift else [first])]
            store(vector, y, y0 + f * tile, T.Shuffle(parts, [shift + e for e in range(lanes)]) if shift else parts[0])

    def place(chunk: Any, x_chunks: Any, x_channel: Any, features: Any) -> Any:
        """Where a vector of x starts; the nearest existing one's place for others."""
        token = T.max(T.min(chunk, x_chunks - 1), 0) * lanes
        return token // x_channel * (features * x_channel) + token % x_channel

    def kernel(x, y, prefix, chunks, x_chunks, x_channel, features, begin, end):
        for i in range(end - begin):
            for v in range(vectors):
                chunk: T.let = (begin + i) * vectors + v - chunks
                y0: T.let = (begin + i) * features * tile + v * lanes
                low: T.let = place(chunk, x_chunks, x_channel, features)
                high: T.let = place(chunk + 1, x_chunks, x_channel, features)
                before: T.let = (chunk + chunks) * lanes * features
                if chunk >= 0:
                    copied(y, y0, features, (x, low, x_channel), (x, high, x_channel))
                elif chunk == -1:
                    copied(y, y0, features, (prefix, before, lanes), (x, high, x_channel))
                else:
                    copied(y, y0, features, (prefix, before, lanes), (prefix, before + lanes * features, lanes))

    params = (
        *(Param(n, "act") for n in "xy"),
        Param("prefix", "ptr"),
        *(Param(n, "i32") for n in ("chunks", "x_chunks", "x_channel", "features")),
    )
    steps = (
        Need("x_channel > 0"),
        Let("last", f"most(least(end * {vectors} - chunks, x_chunks - 1), 0) * {lanes}"),
        reads(
            "x",
            over(0, "last / x_channel + 1", "features * x_channel"),
            over(0, "least(x_channel - 1, last) + 1"),
            over(0, "features", "x_channel"),
            width=lanes,
        ),
        reads(
            "prefix",
            over(f"begin * {vectors}", f"least(end * {vectors} + {int(shift > 0)}, chunks)", f"{lanes} * features"),
            over(0, "features", lanes),
            width=lanes,
        ),
        writes("y", *tiled("features", tile), width=tile),
    )
    return script.kernel(vector, f"prepend_l{lanes}_v{vectors}_s{shift}", params, kernel, steps)


def pack_prefix(prefix: np.ndarray, lanes: int) -> np.ndarray:
    """[P, F] -> [ceil(P / lanes), F, lanes], the last token last, zeros before the first."""
    tokens, features = prefix.shape
    chunks = -(-tokens // lanes)
    whole = np.zeros((chunks * lanes, features), np.float32)
    whole[len(whole) - tokens :] = prefix
    return np.ascontiguousarray(whole.reshape(chunks, lanes, features).swapaxes(1, 2))
