"""Layer normalisation of tiled tokens over their features.

y[t, f] = (x[t, f] - mean[t]) / sqrt(variance[t] + eps) * gamma[f] + beta[f],   mean and (biased) variance of x[t] over f

Lanes are tokens, so no sum crosses lanes and what lies past the last token stays there. The variance is summed in a second walk over the
tile, which the first one left in cache, about the mean that the first walk rounded; what that mean is off by is summed too and taken
back: variance = sum((x - m)^2) / F - off^2 with off = sum(x - m) / F. x^2 - mean^2 would cancel where the mean is large.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.expr import cast
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import over, reads, tiled, writes
from sparsec.backends.panels import line_of
from sparsec.backends.vector import Vector


def layer_norm(vector: Vector, vectors: int, unrolled: int = 16) -> Source:
    """The kernel for tiles of ``lanes * vectors`` tokens, its units of work. x and y may be one buffer.

    ``unrolled``: see ``Panels``; a norm has three sums per register of tokens and no constants, and takes four times as many at once.
    """
    tile, lanes = vector.lanes * vectors, vector.of("float32").lanes
    line = line_of(tile // lanes, 4 * unrolled)
    lines, width = tile // lanes // line, line * lanes

    def read(values: Any, place: Any) -> Any:
        return cast(values[place], "float32")

    def kernel(x, y, gamma, beta, features, eps, begin, end):
        share: T.let = T.float32(1) / T.Cast("float32", features)
        for i in range((end - begin) * lines):
            start: T.let = (begin + T.truncdiv(i, lines)) * features * tile + T.truncmod(i, lines) * width
            mean = T.alloc_buffer((width,), "float32", scope="global")
            off = T.alloc_buffer((width,), "float32", scope="global")
            scale = T.alloc_buffer((width,), "float32", scope="global")
            for v in T.unroll(line):
                for e in T.vectorized(lanes):
                    mean[v * lanes + e] = T.float32(0)
                    off[v * lanes + e] = T.float32(0)
                    scale[v * lanes + e] = T.float32(0)
            for f in range(features):
                for v in T.unroll(line):
                    for e in T.vectorized(lanes):
                        mean[v * lanes + e] = mean[v * lanes + e] + read(x, start + f * tile + v * lanes + e)
            for v in T.unroll(line):
                for e in T.vectorized(lanes):
                    mean[v * lanes + e] = mean[v * lanes + e] * share
            for f in range(features):
                for v in T.unroll(line):
                    for e in T.vectorized(lanes):
                        off[v * lanes + e] = off[v * lanes + e] + (read(x, start + f * tile + v * lanes + e) - mean[v * lanes + e])
                        scale[v * lanes + e] = scale[v * lanes + e] + (read(x, start + f * tile + v * lanes + e) - mean[v * lanes + e]) * (
                            read(x, start + f * tile + v * lanes + e) - mean[v * lanes + e]
                        )
            for v in T.unroll(line):
                for e in T.vectorized(lanes):
                    off[v * lanes + e] = off[v * lanes + e] * share
                    mean[v * lanes + e] = mean[v * lanes + e] + off[v * lanes + e]
                    scale[v * lanes + e] = T.float32(1) / T.sqrt(
                        scale[v * lanes + e] * share - off[v * lanes + e] * off[v * lanes + e] + eps
                    )
            for f in range(features):
                for v in T.unroll(line):
                    for e in T.vectorized(lanes):
                        y[start + f * tile + v * lanes + e] = cast(
                            (read(x, start + f * tile + v * lanes + e) - mean[v * lanes + e]) * (scale[v * lanes + e] * gamma[f]) + beta[f],
                            vector.dtype,
                        )

    tables = (Param(n, "ptr", "float32") for n in ("gamma", "beta"))
    params = (*(Param(n, "act") for n in "xy"), *tables, Param("features", "i32"), Param("eps", "f32"))
    whole, features = tiled("features", tile), over(0, "features")
    steps = (reads("x", *whole, width=tile), writes("y", *whole, width=tile), reads("gamma", features), reads("beta", features))
    return script.kernel(vector, f"layer_norm_l{vector.lanes}_v{vectors}" + f"_u{line}" * (lines > 1), params, kernel, steps)


def pack_scales(gamma: np.ndarray | None, beta: np.ndarray | None, features: int) -> dict[str, np.ndarray]:
    """Constants of ``layer_norm``: absent ones scale by 1 and shift by 0."""
    return {
        "gamma": np.ones(features, np.float32) if gamma is None else np.ascontiguousarray(gamma, np.float32),
        "beta": np.zeros(features, np.float32) if beta is None else np.ascontiguousarray(beta, np.float32),
    }
