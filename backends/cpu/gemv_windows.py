"""Matrix times vector for scattered nonzeros: every lane is an output, and lanes pick their inputs out of a common window of x.

y[n] = act(bias[n] + sum_k w[n, k] * x[k] (+ residual[n]))

A step loads x[base : base + 2 * lanes] into two registers, lets every lane permute one element of them to itself and multiplies it with
the lane's next nonzero. Lanes walk their own rows; the window holds the least input that any of them still needs, and a lane whose
next input lies beyond it waits: its value is 0, and it multiplies some other element of x. At 10% density two lanes of three work.

    lane 0:  3 . . 17 . . . . 60      step 0: base 0    -> inputs  3  5  9
    lane 1:  . 5 . .  . . 33 . .      step 1: base 16   -> inputs 17 33 18
    lane 2:  . . 9 .  18 . . . .      step 2: base 32   -> inputs 60  -  -

Bases are multiples of ``lanes`` (a load that crosses a cache line costs two), except where the window would pass the end of x.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.expr import activate
from sparsec.backends.cpu.gemv import add_residual, index_dtype, outputs_touched, pad_bias
from sparsec.backends.cpu.registers import load, pick, store_below
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import Scan, over, reads
from sparsec.backends.vector import Vector

#: Steps are taken in pairs on two partial sums, to hide the latency of the chain of additions.
PAIR = 2


def pack_windows(weight: np.ndarray, bias: np.ndarray | None, lanes: int) -> dict[str, np.ndarray]:
    """Constants of ``gemv_windows`` for weight [N, K] with K >= 2 * lanes.

    Steps ``row_start[u]`` to ``row_start[u + 1]`` make the outputs of unit u; a step has a ``base`` and per lane a ``pick`` and a
    ``value``.
    """
    n, k = weight.shape
    if k < 2 * lanes:
        raise ValueError(f"a window of {2 * lanes} inputs does not fit a weight of {k} inputs; use gemv_rows")
    units = -(-n // lanes)
    padded = np.zeros((units * lanes, k), np.float32)
    padded[:n] = weight
    base, column, busy = _walk(padded, units, lanes)
    steps = -(-(busy.any(axis=2).sum(axis=1)) // PAIR) * PAIR
    keep = np.arange(base.shape[1]) < steps[:, None]
    value = np.where(busy, np.take_along_axis(padded.reshape(units, lanes, k), column.swapaxes(1, 2), 2).swapaxes(1, 2), np.float32(0))
    return {
        "value": value[keep],
        "pick": np.where(busy, column - base[:, :, None], 0)[keep].astype(np.uint8),
        "base": base[keep].astype(index_dtype(k)),
        "row_start": np.concatenate([[0], np.cumsum(steps)]).astype(np.int32),
        "bias": pad_bias(bias, n, units * lanes),
    }


def _walk(weight: np.ndarray, units: int, lanes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All units step by step: base [units, steps], input of each lane and whether it works [units, steps, lanes]."""
    rows, k = weight.shape
    i, j = np.nonzero(weight)
    start = np.searchsorted(i, np.arange(rows + 1))
    column, at, end = np.append(j, k), start[:-1].copy(), start[1:]
    bases, columns, works = [], [], []
    while (at < end).any():
        wanted = np.where(at < end, column[at], k).reshape(units, lanes)
        base = np.minimum(wanted.min(axis=1) // lanes * lanes, k - 2 * lanes)
        busy = (wanted < base[:, None] + 2 * lanes) & (wanted < k)
        at += busy.ravel()
        bases.append(base)
        columns.append(np.where(busy, wanted, 0))
        works.append(busy)
    idle = np.zeros((units, lanes), np.int64)
    for _ in range(PAIR):
        bases.append(idle[:, 0])
        columns.append(idle)
        works.append(idle != 0)
    return np.stack(bases, 1), np.stack(columns, 1), np.stack(works, 1)


def gemv_windows(vector: Vector, index: str, activation: str, residual: bool) -> Source:
    """The kernel; constants from ``pack_windows``. Units of work are groups of ``lanes`` outputs.

    ValueError for registers without a permute.
    """
    lanes, permute, added = vector.lanes, vector.permute, residual
    if permute is None:
        raise ValueError(f"{vector.name} registers have no permute by number; use gemv_rows")
    params = (
        *(Param(n, "act") for n in ("x", "y", "residual")),
        Param("value", "ptr"),
        Param("pick", "ptr", "uint8"),
        Param("base", "ptr", index),
        Param("row_start", "ptr", "int32"),
        Param("bias", "ptr"),
        Param("outputs", "i32"),
        Param("lo", "f32"),
        Param("hi", "f32"),
    )

    def advance(acc: Any, x: Any, value: Any, picks: Any, base: Any, step: Any) -> None:
        """Emit one pair of steps."""
        for p in range(PAIR):
            x0, here = T.Cast("int32", base[step + p]), T.Ramp((step + p) * lanes, 1, lanes)
            number = T.Cast(f"int32x{lanes}", picks[here])
            chosen = pick(lanes, permute, load(vector, x, x0), load(vector, x, x0 + lanes), number)
            total = T.Ramp(p * lanes, 1, lanes)
            T.buffer_store(acc, acc[total] + chosen * value[here], [total])

    def kernel(x, y, residual, value, pick, base, row_start, bias, outputs, lo, hi, begin, end):
        for i in range(end - begin):
            n0: T.let = (begin + i) * lanes
            first: T.let = row_start[begin + i]
            acc = T.alloc_buffer((PAIR * lanes,), "float32", scope="global")
            for e in T.vectorized(lanes):
                acc[e] = bias[n0 + e]
            for e in T.vectorized(lanes):
                acc[lanes + e] = T.float32(0)
            for s in range((row_start[begin + i + 1] - first) // PAIR):
                advance(acc, x, value, pick, base, first + s * PAIR)
            for e in T.vectorized(lanes):
                acc[e] = acc[e] + acc[lanes + e]
            if added:
                add_residual(vector, 1, acc, residual, n0, outputs)
            for e in T.vectorized(lanes):
                acc[e] = activate(activation, acc[e], lo, hi)
            store_below(vector, y, n0, load(vector, acc, 0), outputs - n0)

    steps = (
        Scan("row_start", "begin", "end + 1", ordered=True),
        reads("value", over("row_start_low", "row_start_high", lanes), width=lanes),
        reads("pick", over("row_start_low", "row_start_high", lanes), width=lanes),
        Scan("base", "row_start_low", "row_start_high"),
        reads("x", over("base_low", "base_high + 1"), width=2 * lanes),
        *outputs_touched(lanes, residual),
    )
    return script.kernel(vector, f"gemv_windows_l{lanes}_{index}_{activation}{'_residual' * residual}", params, kernel, steps)
