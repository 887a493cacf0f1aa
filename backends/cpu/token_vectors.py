"""From tiled tokens to one vector of features: a token, or the mean of all."""

from __future__ import annotations

from operator import add

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.expr import cast
from sparsec.backends.cpu.registers import fold
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import Need, at, over, reads, writes
from sparsec.backends.vector import Vector

#: Features in a unit of work of ``select_token``.
RUN = 64


def select_token(vector: Vector) -> Source:
    """y[f] = x[at + f * x_channel] for ``features`` features. Units of work are runs of ``RUN`` features."""

    def kernel(x, y, at, x_channel, features, begin, end):
        for f in range(T.min(end * RUN, features) - begin * RUN):
            y[begin * RUN + f] = x[at + (begin * RUN + f) * x_channel]

    params = (*(Param(n, "act") for n in "xy"), *(Param(n, "i32") for n in ("at", "x_channel", "features")))
    features = (f"begin * {RUN}", f"least(end * {RUN}, features)")
    steps = (Need(f"is_small(end * {RUN})"), reads("x", at("at"), over(*features, "x_channel")), writes("y", over(*features)))
    return script.kernel(vector, "select_token", params, kernel, steps)


def mean_tokens(vector: Vector, vectors: int) -> Source:
    """y[f] = mean of x[t, f] over t < ``count`` in ``tiles`` tiles of ``lanes * vectors`` tokens. Units of work are features."""
    lanes = vector.lanes
    tile = lanes * vectors

    def kernel(x, y, count, tiles, features, begin, end):
        for i in range(end - begin):
            total = T.alloc_buffer((tile,), "float32", scope="global")
            for v in T.unroll(vectors):
                for e in T.vectorized(lanes):
                    total[v * lanes + e] = T.float32(0)
            for t in range(tiles):
                start: T.let = (t * features + begin + i) * tile
                for v in T.unroll(vectors):
                    for e in T.vectorized(lanes):
                        total[v * lanes + e] = total[v * lanes + e] + T.Select(
                            t * tile + v * lanes + e < count, cast(x[start + v * lanes + e], "float32"), T.float32(0)
                        )
            fold(vector, total, tile, add)
            y[begin + i] = cast(total[0] / T.Cast("float32", count), vector.dtype)

    params = (*(Param(n, "act") for n in "xy"), *(Param(n, "i32") for n in ("count", "tiles", "features")))
    steps = (
        reads("x", over(0, "tiles", f"features * {tile}"), over("begin", "end", tile), width=tile),
        writes("y", over("begin", "end")),
    )
    return script.kernel(vector, f"mean_tokens_l{lanes}_v{vectors}", params, kernel, steps)
