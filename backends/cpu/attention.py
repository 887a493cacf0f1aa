"""Scaled dot-product attention on tiled tokens: "dense" mode, one pass per head and block of queries.

    s[j, i] = scale * sum_d k[d, j] * q[d, i] (+ key_bias[j]) (+ pair_bias[j, i]), -inf for j > i where causal
    p[j, i] = exp(s[j, i] - max_j s[j, i]),    y[d, i] = sum_j v[d, j] * p[j, i] / sum_j p[j, i]

Queries i run along vectors, so that the softmax over keys j is vertical, and both products are the register panel of ``panel``: R keys,
then R features, x V vectors of queries. Scores of one block of queries and all keys lie in a scratch of the thread, which stays in L2 up
to a few thousand keys. Only keys below ``keys`` are ever used; columns of queries past the last hold anything. NaN and infinities go
where torch sends them, except that values are not read, not even to be multiplied by 0, which a causal mask hides from the whole block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.expr import cast, exp_nonpositive
from sparsec.backends.cpu.panel import Panel
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import Let, Need, over, reads, writes
from sparsec.backends.panels import line_of
from sparsec.backends.vector import Vector

_INF = float("inf")


@dataclass(frozen=True)
class Masks:
    """What is added to scores: compile-time choices."""

    key_bias: bool = False
    pair_bias: bool = False
    causal: bool = False

    @property
    def any(self) -> bool:
        """Whether scores change."""
        return self.key_bias or self.pair_bias or self.causal

    @property
    def suffix(self) -> str:
        """Part of a kernel's symbol."""
        return "_keybias" * self.key_bias + "_pairbias" * self.pair_bias + "_causal" * self.causal

    def __call__(self, score: Any, key_bias: Callable[[], Any], pair_bias: Callable[[], Any], is_past: Callable[[], Any]) -> Any:
        """The masked score."""
        score = score + key_bias() if self.key_bias else score
        score = score + pair_bias() if self.pair_bias else score
        return T.Select(is_past(), score, T.float32(-_INF)) if self.causal else score

    def limit(self, keys: Any, queries: Any) -> Any:
        """Keys that the queries [.., queries) see."""
        return T.min(keys, queries) if self.causal else keys


PARAMS = (
    *(Param(n, "act") for n in ("q", "k", "v", "y")),
    Param("scores", "act", "float32"),
    Param("key_bias", "act"),
    Param("pair_bias", "ptr", "float32"),
    *(Param(n, "i32") for n in ("tiles", "queries", "keys", "dim", "value_dim")),
    *(
        Param(n, "i32")
        for n in ("q_width", "q_tile", "q_channel", "y_width", "y_tile", "y_channel", "k_tile", "v_tile", "pair_head", "pair_row")
    ),
    Param("scale", "f32"),
)


def attention(vector: Vector, rows: int, vectors: int, tile: int, masks: Masks, unrolled: int = 16) -> Source:
    """The kernel for panels of ``rows`` x ``vectors * lanes`` queries, in float32; keys and values lie in tiles of ``tile`` tokens.

    Queries and outputs are in ``tiles`` tiles of ``q_width`` and ``y_width`` tokens, multiples of the panel's width. ``scores`` is a
    scratch of (panel's width x keys in whole tiles) elements per thread. ``key_bias`` [keys] and ``pair_bias`` [1 or heads, keys,
    pair_row] (queries contiguous, padded to whole panels) are read only with their mask. Units of work are heads x tiles x panels per
    tile; those past the last query do nothing. ``unrolled``: see ``Panels``.
    """
    lanes = vector.of("float32").lanes
    panel = Panel(lanes, rows, vectors)
    width = panel.width
    if tile < rows:
        raise ValueError(f"tile {tile} is narrower than a panel of {rows} keys")
    part = Panel(lanes, 1, line_of(vectors, unrolled))
    shape = f"l{lanes}_r{rows}_v{vectors}" + (f"_u{part.vectors}" if part.vectors < vectors else "")
    symbol = f"attention_{shape}_t{tile}{masks.suffix}"

    def first_key(b: Any) -> Any:
        """Where panel b starts in a tile; the last may overlap the one before."""
        return b * rows if tile % rows == 0 else T.min(b * rows, tile - rows)

    def kernel(
        q, k, v, y, scores, key_bias, pair_bias, tiles, queries, keys, dim, value_dim, q_width, q_tile, q_channel, y_width, y_tile,
        y_channel, k_tile, v_tile, pair_head, pair_row, scale, begin, end,
    ):  # fmt: skip
        for u in range(end - begin):
            blocks: T.let = T.truncdiv(q_width, width) * tiles
            head: T.let = T.truncdiv(begin + u, blocks)
            i0: T.let = (begin + u - head * blocks) * width
            if i0 < queries:
                q0: T.let = T.truncdiv(i0, q_width) * q_tile + T.truncmod(i0, q_width) + head * dim * q_channel
                y0: T.let = T.truncdiv(i0, y_width) * y_tile + T.truncmod(i0, y_width) + head * value_dim * y_channel
                # Through memory: as an expression it is simplified in every index below, which doubles the compile time.
                seen = T.alloc_buffer((1,), "int32", scope="global")
                seen[0] = masks.limit(keys, i0 + width)
                limit: T.let = seen[0]
                peak = T.alloc_buffer((width,), "float32", scope="global")
                row = T.alloc_buffer((width,), "float32", scope="global")
                total = T.alloc_buffer((width,), "float32", scope="global")
                panel.row(peak, 0, lambda e: T.float32(-_INF))
                panel.row(total, 0, lambda e: T.float32(0))
                for t in range(T.truncdiv(limit + tile - 1, tile)):
                    for b in range(T.truncdiv(T.min(limit - t * tile, tile) + rows - 1, rows)):
                        j0: T.let = t * tile + first_key(b)
                        k0: T.let = t * k_tile + head * dim * tile + first_key(b)
                        acc = panel.allocate()
                        panel.fill(acc, lambda r: T.float32(0))
                        for d in range(dim):
                            panel.multiply_add(acc, lambda r: k[k0 + d * tile + r], q, q0 + d * q_channel)
                        panel.store(scores, lambda r: (j0 + r) * width, lambda r, e: acc[r][e] * scale, lambda r: T.bool(True))
                for j in range(limit):
                    panel.row(
                        row,
                        0,
                        lambda e: masks(
                            scores[j * width + e],
                            lambda: cast(key_bias[j], "float32"),
                            lambda: pair_bias[head * pair_head + j * pair_row + i0 + e],
                            lambda: j <= i0 + e,
                        ),
                    )
                    if masks.any:
                        panel.row(scores, j * width, lambda e: row[e])
                    panel.row(peak, 0, lambda e: T.Select(row[e] > peak[e], row[e], peak[e]))
                # Scores that are all -inf: exp(-inf - 0) = 0, where -inf - -inf would be NaN.
                panel.row(peak, 0, lambda e: T.Select(peak[e] > T.float32(-_INF), peak[e], T.float32(0)))
                for g in T.unroll(width // part.width):
                    for j in range(limit):
                        part.row(
                            scores,
                            j * width + g * part.width,
                            lambda e: exp_nonpositive(scores[j * width + g * part.width + e] - peak[g * part.width + e]),
                        )
                        part.row(
                            total,
                            g * part.width,
                            lambda e: total[g * part.width + e] + scores[j * width + g * part.width + e],
                        )
                panel.row(total, 0, lambda e: T.Select(total[e] == T.float32(0), T.float32(0), T.float32(1) / total[e]))
                for b in range(T.truncdiv(value_dim + rows - 1, rows)):
                    out = panel.allocate()
                    panel.fill(out, lambda r: T.float32(0))
                    for t in range(T.truncdiv(limit + tile - 1, tile)):
                        v0: T.let = t * v_tile + (head * value_dim + b * rows) * tile
                        for j in range(T.min(limit - t * tile, tile)):
                            panel.multiply_add(out, lambda r: v[v0 + r * tile + j], scores, (t * tile + j) * width)
                    panel.store(
                        y,
                        lambda r: y0 + (b * rows + r) * y_channel,
                        lambda r, e: cast(out[r][e] * total[e], vector.dtype),
                        lambda r: b * rows + r < value_dim,
                    )

    # Blocks of queries of the heads [heads_first, heads_end) begin at 0 to last; keys from limit on are not looked at.
    heads, tokens = ("heads_first", "heads_end"), (0, f"up(limit, {tile})")
    steps = (
        Need(f"queries > 0 && tiles > 0 && q_width > 0 && y_width > 0 && q_width % {width} == 0 && y_width % {width} == 0"),
        Need(f"is_small(q_width / {width} * tiles * {width})"),
        Let("blocks", f"q_width / {width} * tiles"),
        Let("heads_first", "begin / blocks"),
        Let("heads_end", "(end - 1) / blocks + 1"),
        Let("last", f"(least(blocks * {width}, queries) - 1) / {width} * {width}"),
        Let("limit", f"least(keys, last + {width})" if masks.causal else "keys"),
        reads(
            "q",
            over(0, "last / q_width + 1", "q_tile"),
            over(0, f"least(q_width, last + {width})"),
            over("heads_first * dim", "heads_end * dim", "q_channel"),
        ),
        reads("k", over(*tokens, "k_tile"), over("heads_first * dim", "heads_end * dim", tile), width=tile),
        writes("scores", over(0, f"up(limit, {tile}) * {tile}", width), width=width),
        *([reads("key_bias", over(0, "limit"))] * masks.key_bias),
        *([reads("pair_bias", over(*heads, "pair_head"), over(0, "limit", "pair_row"), width=f"last + {width}")] * masks.pair_bias),
        reads(
            "v",
            over(*tokens, "v_tile"),
            over("heads_first * value_dim", f"(heads_end - 1) * value_dim + up(value_dim, {rows}) * {rows}", tile),
            width=f"least(limit, {tile})",
        ),
        writes(
            "y",
            over(0, "last / y_width + 1", "y_tile"),
            over(0, f"least(y_width, last + {width})"),
            over("heads_first * value_dim", "heads_end * value_dim", "y_channel"),
        ),
    )
    return script.kernel(vector, symbol, PARAMS, kernel, steps)
