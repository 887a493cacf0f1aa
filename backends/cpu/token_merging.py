"""Joining similar tokens (Bolya et al. 2023): the plan, the means, the sizes.

a even, b odd:   partner[a] = argmax_b cos(key[a], key[b]);   the a with the strongest partners go to their partners' slots
y[s, f] = sum over t with plan[t] = s of share[t] * x[t, f],   share[t] = size[t] / sum of the sizes in its slot

All sums are in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.expr import cast, exp_nonpositive, is_nan, let, number, polynomial
from sparsec.backends.cpu.tir import T
from sparsec.backends.cpu.token_choice import below, tokens_of
from sparsec.backends.extents import Need, over, reads, writes
from sparsec.backends.vector import Vector

_INF = float("inf")
# log(1 + m) = m - m^2 / 2 + m^3 p(m) on sqrt(1/2) - 1 <= m <= sqrt(2) - 1 (Cephes logf).
_LOG_POLY = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)


def log(x: Any) -> Any:
    """The natural logarithm of float32 x >= 0 to 2 ulp; numbers below the least normal one are 0, whose logarithm is -inf."""
    f = T.float32

    def series(m: Any, n: Any) -> Any:
        return m + (m * m * m * polynomial(_LOG_POLY, m) - f(2.12194440e-4) * n - f(0.5) * m * m) + f(0.693359375) * n

    def reduced(h: Any, n: Any) -> Any:
        """log(h * 2**n) for 1/2 <= h < 1."""
        small = h < f(0.70710678)
        return let(T.Select(small, h + h, h) - f(1), lambda m: let(n - T.Select(small, f(1), f(0)), lambda k: series(m, k)))

    def split(v: Any) -> Any:
        bits = T.reinterpret("int32", v)
        half = T.reinterpret("float32", (bits & T.int32(0x007FFFFF)) | T.int32(0x3F000000))
        power = T.Cast("float32", (bits >> 23) - 126)
        none = v < f(1.17549435e-38)
        return T.Select(
            T.Or(T.Or(none, v == f(_INF)), is_nan(v)),
            T.Select(none, f(-_INF), v),
            let(half, lambda h: let(power, lambda n: reduced(h, n))),
        )

    return let(x, split)


def merge_plan(vector: Vector, tile: int) -> Source:
    """y[t] = the slot of each of ``count`` tokens, of which ``gone`` go to others; the first ``first`` take no part. One unit of work.

    Keys lie in tiles of ``tile`` tokens, ``dim`` features of each of ``heads``. ``room`` holds dim + 2 rows of whole tiles,
    ``partner`` one.
    """
    lanes = vector.of("float32").lanes
    params = (
        Param("x", "act"),
        Param("y", "act", "int64"),
        Param("room", "act", "float32"),
        Param("partner", "act", "int32"),
        *(Param(n, "i32") for n in ("count", "tiles", "heads", "dim", "gone", "first")),
    )
    vectors = tile // lanes

    def kernel(x, y, room, partner, count, tiles, heads, dim, gone, first, begin, end):
        for u in range(end - begin):
            width: T.let = tiles * tile
            like: T.let = dim * width
            best: T.let = (dim + 1) * width
            even: T.let = T.truncdiv(first + 1, 2) * 2
            odd: T.let = T.truncdiv(first, 2) * 2 + 1
            evens: T.let = T.max(T.truncdiv(count - even + 1, 2), 0)
            odds: T.let = T.max(T.truncdiv(count - odd + 1, 2), 0)
            acc = T.alloc_buffer((lanes,), "float32", scope="global")
            norm = T.alloc_buffer((lanes,), "float32", scope="global")
            at = T.alloc_buffer((1,), "int32", scope="global")
            for c in range(tiles * vectors):
                x0: T.let = T.truncdiv(c, vectors) * heads * dim * tile + T.truncmod(c, vectors) * lanes
                for e in T.vectorized(lanes):
                    norm[e] = T.float32(0)
                for d in range(dim):
                    for e in T.vectorized(lanes):
                        acc[e] = T.float32(0)
                    for h in range(heads):
                        for e in T.vectorized(lanes):
                            acc[e] = acc[e] + cast(x[x0 + (h * dim + d) * tile + e], "float32")
                    for e in T.vectorized(lanes):
                        acc[e] = acc[e] / T.Cast("float32", heads)
                        norm[e] = norm[e] + acc[e] * acc[e]
                        room[d * width + c * lanes + e] = acc[e]
                for e in T.vectorized(lanes):
                    norm[e] = T.float32(1) / T.max(T.sqrt(norm[e]), T.float32(1e-12))
                for d in range(dim):
                    for e in T.vectorized(lanes):
                        room[d * width + c * lanes + e] = room[d * width + c * lanes + e] * norm[e]
            for t in range(count):
                partner[t] = -1
            for n in range(evens):
                a: T.let = even + 2 * n
                for c in range(tiles * vectors):
                    for e in T.vectorized(lanes):
                        acc[e] = T.float32(0)
                    for d in range(dim):
                        for e in T.vectorized(lanes):
                            acc[e] = acc[e] + room[d * width + a] * room[d * width + c * lanes + e]
                    for e in T.vectorized(lanes):
                        room[like + c * lanes + e] = acc[e]
                room[best + a] = T.float32(-_INF)
                partner[a] = odd
                for b in range(odds):
                    if room[like + odd + 2 * b] > room[best + a]:
                        room[best + a] = room[like + odd + 2 * b]
                        partner[a] = odd + 2 * b
            for m in range(evens):
                this: T.let = even + 2 * m
                at[0] = 0
                for o in range(evens):
                    if T.Or(
                        room[best + even + 2 * o] > room[best + this],
                        T.And(room[best + even + 2 * o] == room[best + this], o < m),
                    ):
                        at[0] = at[0] + 1
                if at[0] >= gone:
                    partner[this] = -1
            at[0] = 0
            for t in range(count):
                if partner[t] < 0:
                    y[t] = T.Cast("int64", at[0])
                    at[0] = at[0] + 1
            for t in range(count):
                if partner[t] >= 0:
                    y[t] = y[T.max(T.min(partner[t], count - 1), 0)]

    width = f"tiles * {tile}"
    steps = (
        Need("end == 1 && count >= 0 && tiles >= 0 && dim >= 0 && first >= 0"),
        reads("x", over(0, "tiles", f"heads * dim * {tile}"), over(0, "heads * dim", tile), width=tile),
        writes("room", over(0, f"(dim + 1) * {width} + most({width}, count)")),
        writes("partner", over(0, "count")),
        writes("y", over(0, "count")),
    )
    return script.kernel(vector, f"merge_plan_l{lanes}_t{tile}", params, kernel, steps)


def merge_tokens(vector: Vector, tile: int, sized: bool) -> Source:
    """y[s] = the mean of the tokens of slot s, by ``sizes`` if ``sized``; a slot of size 0 is a plain mean. Units of work are features.

    ``count`` tokens, ``keep`` slots in ``y_tiles`` tiles of ``tile``. ``room`` holds count + 2 keep numbers, ``at`` 2 count. What is
    narrower than float32 is summed in ``room``, which holds ``keep`` numbers more.
    """
    lanes, narrow = vector.lanes, vector.dtype != "float32"
    params = (
        Param("x", "act"),
        Param("plan", "act", "int64"),
        Param("sizes", "act"),
        Param("y", "act"),
        Param("room", "act", "float32"),
        Param("at", "act", "int32"),
        *(Param(n, "i32") for n in ("count", "keep", "features", "y_tiles")),
    )

    def within(place: Any, tokens: Any, features: Any) -> Any:
        """A place in tiled ``tokens``, whatever was read: the first feature of one of them, or before it."""
        return T.max(T.min(place, T.truncdiv(tokens - 1, tile) * features * tile + (tile - 1)), 0)

    size = _sizes(sized)

    def kernel(x, plan, sizes, y, room, at, count, keep, features, y_tiles, begin, end):
        for s in range(2 * keep):
            room[count + s] = T.float32(0)
        for t in range(count):
            slot: T.let = below(keep, plan[t])
            at[t] = t // tile * features * tile + t % tile
            at[count + t] = slot // tile * features * tile + slot % tile
            room[count + slot] = room[count + slot] + size(sizes, t)
            room[count + keep + slot] = room[count + keep + slot] + T.float32(1)
        for t in range(count):
            home: T.let = below(keep, plan[t])
            if room[count + home] == T.float32(0):
                room[t] = T.float32(1) / room[count + keep + home]
            else:
                room[t] = size(sizes, t) / room[count + home]
        for i in range(end - begin):
            for c in range(y_tiles * (tile // lanes)):
                for e in T.vectorized(lanes):
                    y[c // (tile // lanes) * features * tile + (begin + i) * tile + c % (tile // lanes) * lanes + e] = number(vector, 0)
            if narrow:
                sums: T.let = count + 2 * keep
                for s in range(keep):
                    room[sums + s] = T.float32(0)
                for t in range(count):
                    into: T.let = sums + below(keep, plan[t])
                    room[into] = room[into] + room[t] * cast(x[within(at[t], count, features) + (begin + i) * tile], "float32")
                for s in range(keep):
                    y[s // tile * features * tile + s % tile + (begin + i) * tile] = cast(room[sums + s], vector.dtype)
            else:
                for t in range(count):
                    y0: T.let = within(at[count + t], keep, features) + (begin + i) * tile
                    y[y0] = y[y0] + room[t] * x[within(at[t], count, features) + (begin + i) * tile]

    units = over("begin", "end", tile)
    steps = (
        Need("count > 0 && keep > 0 && features > 0"),
        reads("plan", over(0, "count")),
        *([reads("sizes", over(0, "count"))] * sized),
        writes("room", over(0, f"count + {3 if narrow else 2} * keep")),
        writes("at", over(0, "2 * count")),
        reads("x", units, width=f"(count - 1) / {tile} * features * {tile} + {tile}"),
        writes("y", units, width=f"(keep - 1) / {tile} * features * {tile} + {tile}"),
        writes("y", units, over(0, "y_tiles", f"features * {tile}"), width=tile),
    )
    return script.kernel(vector, f"merge_tokens_l{lanes}_t{tile}{'_sized' * sized}", params, kernel, steps)


def _sizes(sized: bool) -> Callable[[Any, Any], Any]:
    """What reads the size of a token: 1 where there are none."""
    return lambda sizes, t: cast(sizes[t], "float32") if sized else T.float32(1)


def merge_sizes(vector: Vector, sized: bool) -> Source:
    """y[s] = how many of ``count`` tokens, or how much of their ``sizes`` if ``sized``, go to each of ``keep`` slots. One unit of work.

    Sums that are not float32 have ``room`` for ``keep`` that are.
    """
    narrow, size = vector.dtype != "float32", _sizes(sized)
    params = (
        Param("plan", "act", "int64"),
        Param("sizes", "act"),
        Param("y", "act"),
        *((Param("room", "act", "float32"),) if narrow else ()),
        *(Param(n, "i32") for n in ("count", "keep")),
    )

    def kernel(plan, sizes, y, count, keep, begin, end, room=None):
        sums = T.meta_var(room if narrow else y)
        for s in range((end - begin) * keep):
            sums[s] = T.float32(0)
        for t in range((end - begin) * count):
            slot: T.let = below(keep, plan[t])
            sums[slot] = sums[slot] + size(sizes, t)
        if narrow:
            for s in range((end - begin) * keep):
                y[s] = cast(room[s], vector.dtype)

    count = over(0, "count")
    steps = (
        Need("end == 1 && keep > 0"),
        reads("plan", count),
        *([reads("sizes", count)] * sized),
        *([writes("room", over(0, "keep"))] * narrow),
        writes("y", over(0, "keep")),
    )
    return script.kernel(vector, f"merge_sizes{'_sized' * sized}", params, kernel, steps)


def size_op(vector: Vector, op: str) -> Source:
    """y[t] = log(x[t]) for "log_sizes", exp(min(x[t], 0)) for "token_sizes", of ``count`` numbers. One unit of work."""

    def value(x: Any) -> Any:
        return log(x) if op == "log_sizes" else exp_nonpositive(T.min(x, T.float32(0)))

    def kernel(x, y, count, begin, end):
        for i in range((end - begin) * count):
            y[i] = cast(value(cast(x[i], "float32")), vector.dtype)

    steps = (Need("end == 1"), reads("x", over(0, "count")), writes("y", over(0, "count")))
    return script.kernel(vector, op, (Param("x", "act"), Param("y", "act"), Param("count", "i32")), kernel, steps)


def mean_merged(vector: Vector, tile: int) -> Source:
    """y[f] = sum_t size[t] * x[t, f] / sum_t size[t] over ``count`` tiled tokens. Units of work are features."""
    params = (*(Param(n, "act") for n in ("x", "sizes", "y")), *(Param(n, "i32") for n in ("count", "features")))

    def kernel(x, sizes, y, count, features, begin, end):
        total = T.alloc_buffer((2,), "float32", scope="global")
        total[1] = T.float32(0)
        for t in range(count):
            total[1] = total[1] + cast(sizes[t], "float32")
        for i in range(end - begin):
            total[0] = T.float32(0)
            for t in range(count):
                total[0] = total[0] + cast(sizes[t], "float32") * cast(
                    x[t // tile * features * tile + (begin + i) * tile + t % tile], "float32"
                )
            y[begin + i] = cast(total[0] / total[1], vector.dtype)

    steps = (
        reads("sizes", over(0, "count")),
        reads("x", *tokens_of("count", tile), over("begin", "end", tile)),
        writes("y", over("begin", "end")),
    )
    return script.kernel(vector, f"mean_merged_t{tile}", params, kernel, steps)
