"""Which tokens stay, and the values of those: importance by attention received, ranks, gathers.

    score[j] = sum over heads h and judges i of voice[i] * softmax_j(scale * q[i] . k[j] + masks)[j] / (heads * sum_i voice[i])

The judges are the first ``queries`` tokens, all or the CLS token alone. Keys run along vectors. Tokens past the last are never used.
Scores are summed and compared in float32.
"""

from __future__ import annotations

from operator import add
from typing import Any

import numpy as np

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.attention import Masks
from sparsec.backends.cpu.expr import cast, exp_nonpositive, is_nan
from sparsec.backends.cpu.registers import fold, widen_below
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import Need, Span, over, reads, tiled, writes
from sparsec.backends.vector import Vector

_INF = float("inf")
_TINY = float(np.finfo(np.float32).tiny)


def below(count: Any, index: Any) -> Any:
    """An int64 ``index`` as int32, the nearest one in [0, ``count``) for others: what is in memory is trusted with no address."""
    return T.Cast("int32", T.max(T.min(index, T.Cast("int64", count) - T.int64(1)), T.int64(0)))


def tokens_of(count: str, tile: int) -> tuple[Span, Span]:
    """Where ``count`` >= 1 tiled tokens of ``features`` features have their first one."""
    return over(0, f"({count} - 1) / {tile} + 1", f"features * {tile}"), over(0, f"least({count}, {tile})")


def token_scores(vector: Vector, tile: int, masks: Masks, voiced: bool) -> Source:
    """Scores of ``keys`` tokens; q and k lie in tiles of ``tile`` tokens, y is one number per token, in ``room`` two whole rows fit.

    ``key_bias`` [keys] and ``pair_bias`` [1 or heads, queries, pair_row] (keys contiguous, padded to whole tiles) are read only with
    their mask; ``voiced`` takes voice[i] = exp(min(key_bias[i], 0)), else it is 1. One unit of work.
    """
    lanes = vector.of("float32").lanes
    vectors = tile // lanes
    params = (
        *(Param(n, "act") for n in ("q", "k", "key_bias", "y")),
        Param("room", "act", "float32"),
        Param("pair_bias", "ptr", "float32"),
        *(Param(n, "i32") for n in ("queries", "keys", "tiles", "heads", "dim", "q_tile", "k_tile", "pair_head", "pair_row")),
        Param("scale", "f32"),
    )

    def kernel(
        q, k, key_bias, y, room, pair_bias, queries, keys, tiles, heads, dim, q_tile, k_tile, pair_head, pair_row, scale, begin, end
    ):
        for u in range(end - begin):
            width: T.let = tiles * tile
            voices = T.alloc_buffer((2,), "float32", scope="global")
            acc = T.alloc_buffer((tile,), "float32", scope="global")
            peak = T.alloc_buffer((lanes,), "float32", scope="global")
            total = T.alloc_buffer((lanes,), "float32", scope="global")
            bias = T.alloc_buffer((lanes,), "float32", scope="global")
            voices[1] = T.float32(0)
            for c in range(tiles * vectors):
                for e in T.vectorized(lanes):
                    room[width + c * lanes + e] = T.float32(0)
            for i in range(queries):
                voices[0] = exp_nonpositive(T.min(cast(key_bias[i], "float32"), T.float32(0))) if voiced else T.float32(1)
                if voices[0] > T.float32(0):
                    voices[1] = voices[1] + voices[0]
                    for h in range(heads):
                        q0: T.let = T.truncdiv(i, tile) * q_tile + h * dim * tile + T.truncmod(i, tile)
                        for e in T.vectorized(lanes):
                            peak[e] = T.float32(-_INF)
                        for t in range(tiles):
                            k0: T.let = t * k_tile + h * dim * tile
                            for v in T.unroll(vectors):
                                for e in T.vectorized(lanes):
                                    acc[v * lanes + e] = T.float32(0)
                            for d in range(dim):
                                for v in T.unroll(vectors):
                                    for e in T.vectorized(lanes):
                                        acc[v * lanes + e] = acc[v * lanes + e] + cast(q[q0 + d * tile], "float32") * cast(
                                            k[k0 + d * tile + v * lanes + e], "float32"
                                        )
                            for v in T.unroll(vectors):
                                if masks.key_bias:
                                    start: T.let = t * tile + v * lanes
                                    widen_below(vector, bias, key_bias, start, keys - start)
                                for e in T.vectorized(lanes):
                                    acc[v * lanes + e] = T.Select(
                                        t * tile + v * lanes + e < keys,
                                        masks(
                                            acc[v * lanes + e] * scale,
                                            lambda: bias[e],
                                            lambda: pair_bias[h * pair_head + i * pair_row + t * tile + v * lanes + e],
                                            lambda: t * tile + v * lanes + e <= i,
                                        ),
                                        T.float32(-_INF),
                                    )
                                for e in T.vectorized(lanes):
                                    room[t * tile + v * lanes + e] = acc[v * lanes + e]
                                    peak[e] = T.Select(acc[v * lanes + e] > peak[e], acc[v * lanes + e], peak[e])
                        fold(vector, peak, lanes, lambda a, b: T.Select(b > a, b, a))
                        peak[0] = T.Select(peak[0] > T.float32(-_INF), peak[0], T.float32(0))
                        for e in T.vectorized(lanes):
                            total[e] = T.float32(0)
                        for c in range(tiles * vectors):
                            for e in T.vectorized(lanes):
                                room[c * lanes + e] = exp_nonpositive(room[c * lanes + e] - peak[0])
                            for e in T.vectorized(lanes):
                                total[e] = total[e] + room[c * lanes + e]
                        fold(vector, total, lanes, add)
                        total[0] = T.Select(total[0] == T.float32(0), T.float32(0), voices[0] / total[0])
                        for c in range(tiles * vectors):
                            for e in T.vectorized(lanes):
                                room[width + c * lanes + e] = room[width + c * lanes + e] + room[c * lanes + e] * total[0]
            voices[0] = T.float32(1) / (T.Cast("float32", heads) * T.max(voices[1], T.float32(_TINY)))
            for j in range(keys):
                y[j] = cast(room[width + j] * voices[0], vector.dtype)

    width = f"tiles * {tile}"
    steps = (
        Need("end == 1 && tiles >= 0"),
        reads("q", over(0, f"(queries - 1) / {tile} + 1", "q_tile"), over(0, "heads * dim", tile), over(0, f"least(queries, {tile})")),
        reads("k", over(0, "tiles", "k_tile"), over(0, "heads * dim", tile), width=tile),
        *([reads("key_bias", over(0, "queries"))] * voiced),
        *([reads("key_bias", over(0, "keys"))] * masks.key_bias),
        *([reads("pair_bias", over(0, "heads", "pair_head"), over(0, "queries", "pair_row"), width=width)] * masks.pair_bias),
        writes("room", over(0, f"2 * {width}")),
        reads("room", over(0, f"{width} + keys")),
        writes("y", over(0, "keys")),
    )
    return script.kernel(vector, f"token_scores_l{lanes}_t{tile}{masks.suffix}{'_voiced' * voiced}", params, kernel, steps)


def keep_tokens(vector: Vector) -> Source:
    """y = the ``keep`` positions of highest x among ``count``, ascending: token i stays if fewer than ``keep`` are before it in rank.

    Equal numbers rank by position, the first ``first`` before all, NaN last (as -inf). ``room`` holds ``count`` in whole vectors. One unit.
    """
    lanes = vector.of("float32").lanes
    params = (
        Param("x", "act"),
        Param("y", "act", "int64"),
        Param("room", "act", "float32"),
        *(Param(n, "i32") for n in ("count", "keep", "first")),
    )

    def kernel(x, y, room, count, keep, first, begin, end):
        for u in range(end - begin):
            chunks: T.let = (count + lanes - 1) // lanes
            before = T.alloc_buffer((lanes,), "int32", scope="global")
            at = T.alloc_buffer((1,), "int32", scope="global")
            for c in range(chunks):
                part = T.alloc_buffer((lanes,), "float32", scope="global")
                widen_below(vector, part, x, c * lanes, count - c * lanes)
                for e in T.vectorized(lanes):
                    room[c * lanes + e] = T.Select(
                        c * lanes + e < first,
                        T.float32(_INF),
                        T.Select(T.And(c * lanes + e < count, T.Not(is_nan(part[e]))), part[e], T.float32(-_INF)),
                    )
            at[0] = 0
            for i in range(count):
                for e in T.vectorized(lanes):
                    before[e] = 0
                for c in range(chunks):
                    for e in T.vectorized(lanes):
                        before[e] = before[e] + T.Select(
                            T.Or(room[c * lanes + e] > room[i], T.And(room[c * lanes + e] == room[i], c * lanes + e < i)), 1, 0
                        )
                fold(vector, before, lanes, add)
                if T.And(before[0] < keep, at[0] < keep):
                    y[at[0]] = T.Cast("int64", i)
                    at[0] = at[0] + 1

    whole = over(0, f"up(count, {lanes})", lanes)
    steps = (
        Need("end == 1"),
        reads("x", over(0, "count")),
        writes("room", whole, width=lanes),
        writes("y", over(0, "least(keep, count)")),
    )
    return script.kernel(vector, f"keep_tokens_l{lanes}", params, kernel, steps)


def gather_tokens(vector: Vector, tile: int) -> Source:
    """y[t, f] = x[index[t], f] for ``count`` >= 1 tokens; both lie in tiles of ``tile`` tokens. Units of work are tiles of y.

    An index outside of x's ``tokens`` is read as the nearest one inside.
    """
    lanes = vector.lanes
    params = (
        Param("x", "act"),
        Param("index", "act", "int64"),
        Param("y", "act"),
        *(Param(n, "i32") for n in ("count", "features", "tokens")),
    )

    def kernel(x, index, y, count, features, tokens, begin, end):
        for i in range(end - begin):
            at = T.alloc_buffer((tile,), "int32", scope="global")
            for e in range(tile):
                token: T.let = below(tokens, index[T.min((begin + i) * tile + e, count - 1)])
                at[e] = token // tile * features * tile + token % tile
            for f in range(features):
                for v in T.unroll(tile // lanes):
                    for e in T.vectorized(lanes):
                        y[((begin + i) * features + f) * tile + v * lanes + e] = x[at[v * lanes + e] + f * tile]

    steps = (
        Need(f"count > 0 && tokens > 0 && is_small(end * {tile})"),
        reads("index", over(f"least(begin * {tile}, count - 1)", f"least(end * {tile}, count)")),
        reads("x", *tokens_of("tokens", tile), over(0, "features", tile)),
        writes("y", *tiled("features", tile), width=tile),
    )
    return script.kernel(vector, f"gather_tokens_l{lanes}_t{tile}", params, kernel, steps)


def gather_keys(vector: Vector) -> Source:
    """y[t] = x[index[t]] for ``count`` numbers; an index outside of x's ``tokens`` is read as the nearest one inside. One unit of work."""
    params = (Param("x", "act"), Param("index", "act", "int64"), Param("y", "act"), Param("count", "i32"), Param("tokens", "i32"))

    def kernel(x, index, y, count, tokens, begin, end):
        for i in range((end - begin) * count):
            y[i] = x[below(tokens, index[i])]

    count = over(0, "count")
    steps = (Need("end == 1 && tokens > 0"), reads("x", over(0, "tokens")), reads("index", count), writes("y", count))
    return script.kernel(vector, "gather_keys", params, kernel, steps)
