"""Matrix times vector, with bias, residual and activation: the classifier and the squeeze-and-excite layers at batch 1.

y[n] = act(bias[n] + sum_k w[n, k] * x[k] (+ residual[n]))

- ``gemv_blocks``: blocks of ``lanes * vectors`` outputs times the inputs that any of them uses; lanes run over outputs. With all
  inputs kept it is the dense kernel, and what it does is stream the weights.
- ``gemv_rows``: the nonzeros of one output after the other, gathered from x, with several partial sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.expr import activate, cast
from sparsec.backends.cpu.registers import load, load_below, store_below
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import Scan, Step, over, reads, writes
from sparsec.backends.vector import Vector

#: Partial sums of one row in ``gemv_rows``: enough to cover the latency of an addition twice over.
SUMS = 8


def _params(index: str) -> tuple[Param, ...]:
    return (
        *(Param(n, "act") for n in ("x", "y", "residual")),
        Param("value", "ptr"),
        Param("index", "ptr", index),
        Param("row_start", "ptr", "int32"),
        Param("bias", "ptr"),
        Param("outputs", "i32"),
        Param("lo", "f32"),
        Param("hi", "f32"),
    )


def index_dtype(inputs: int) -> str:
    """Dtype of input numbers."""
    return "uint16" if inputs <= 1 << 16 else "int32"


def pack_blocks(weight: np.ndarray, bias: np.ndarray | None, block: int, dense: bool = False) -> dict[str, np.ndarray]:
    """Constants of ``gemv_blocks`` for weight [N, K], ``block`` = lanes * vectors.

    Block b keeps the inputs of ``index[row_start[b]:row_start[b + 1]]`` (those with a nonzero among its outputs; all where ``dense``), each
    with ``block`` consecutive values; outputs past N have zero weights.
    """
    n, k = weight.shape
    blocks = -(-n // block)
    padded = np.zeros((blocks * block, k), np.float32)
    padded[:n] = weight
    columns = padded.reshape(blocks, block, k).swapaxes(1, 2)
    b, j = np.nonzero(np.ones((blocks, k), bool) if dense else (columns != 0).any(axis=2))
    row_start = np.searchsorted(b, np.arange(blocks + 1)).astype(np.int32)
    return {"value": columns[b, j], "index": j.astype(index_dtype(k)), "row_start": row_start, "bias": pad_bias(bias, n, blocks * block)}


def pack_rows(weight: np.ndarray, bias: np.ndarray | None, lanes: int) -> dict[str, np.ndarray]:
    """Constants of ``gemv_rows`` for weight [N, K]: compressed rows; rows past N up to a whole unit are empty."""
    n, k = weight.shape
    rows = -(-n // lanes) * lanes
    i, j = np.nonzero(weight)
    row_start = np.searchsorted(i, np.arange(rows + 1)).astype(np.int32)
    value = weight[i, j].astype(np.float32)
    return {"value": value, "index": j.astype(index_dtype(k)), "row_start": row_start, "bias": pad_bias(bias, n, rows)}


def pad_bias(bias: np.ndarray | None, outputs: int, padded: int) -> np.ndarray:
    out = np.zeros(padded, np.float32)
    if bias is not None:
        out[:outputs] = bias
    return out


def outputs_touched(block: int, residual: bool) -> tuple[Step, ...]:
    """What units of ``block`` outputs touch of bias, residual and y: of the latter only outputs that exist."""
    outputs = over(f"begin * {block}", f"least(end * {block}, outputs)")
    return (
        reads("bias", over("begin", "end", block), width=block),
        *([reads("residual", outputs)] * residual),
        writes("y", outputs),
    )


def add_residual(vector: Vector, vectors: int, total: Any, residual: Any, first: Any, outputs: Any) -> None:
    """Emit the addition of the residual of the outputs from ``first`` on that exist."""
    lanes = vector.lanes
    for v in range(vectors):
        here, start = T.Ramp(v * lanes, 1, lanes), first + v * lanes
        added = cast(load_below(vector, residual, start, outputs - start), f"float32x{lanes}")
        T.buffer_store(total, total[here] + added, [here])


def gemv_blocks(vector: Vector, vectors: int, index: str, activation: str, residual: bool) -> Source:
    """The blocked kernel; constants from ``pack_blocks``. Units of work are blocks of ``lanes * vectors`` outputs."""
    lanes = vector.lanes
    block, added = lanes * vectors, residual

    def store(y: Any, n0: Any, acc: Any, outputs: Any) -> None:
        """Emit the stores of the outputs that exist."""
        for v in range(vectors):
            store_below(vector, y, n0 + v * lanes, load(vector, acc, v * lanes), outputs - n0 - v * lanes)

    def kernel(x, y, residual, value, index, row_start, bias, outputs, lo, hi, begin, end):
        for i in range(end - begin):
            n0: T.let = (begin + i) * block
            first: T.let = row_start[begin + i]
            acc = T.alloc_buffer((block,), "float32", scope="global")
            done = T.alloc_buffer((block,), vector.dtype, scope="global")
            for v in T.unroll(vectors):
                for e in T.vectorized(lanes):
                    acc[v * lanes + e] = cast(bias[n0 + v * lanes + e], "float32")
            for j in range(row_start[begin + i + 1] - first):
                factor: T.let = cast(x[T.Cast("int32", index[first + j])], "float32")
                for v in T.unroll(vectors):
                    for e in T.vectorized(lanes):
                        acc[v * lanes + e] = acc[v * lanes + e] + factor * cast(value[(first + j) * block + v * lanes + e], "float32")
            if added:
                add_residual(vector, vectors, acc, residual, n0, outputs)
            for v in T.unroll(vectors):
                for e in T.vectorized(lanes):
                    done[v * lanes + e] = cast(activate(activation, acc[v * lanes + e], lo, hi, vector.keeps_nan), vector.dtype)
            store(y, n0, done, outputs)

    steps = (
        Scan("row_start", "begin", "end + 1", ordered=True),
        reads("value", over("row_start_low", "row_start_high", block), width=block),
        Scan("index", "row_start_low", "row_start_high"),
        reads("x", over("index_low", "index_high + 1")),
        *outputs_touched(block, residual),
    )
    symbol = f"gemv_blocks_l{lanes}_v{vectors}_{index}_{activation}{'_residual' * residual}"
    return script.kernel(vector, symbol, _params(index), kernel, steps)


def gemv_rows(vector: Vector, index: str, activation: str, residual: bool) -> Source:
    """The kernel for scattered nonzeros; constants from ``pack_rows``. Units of work are groups of ``lanes`` outputs."""
    lanes, added = vector.lanes, residual

    def kernel(x, y, residual, value, index, row_start, bias, outputs, lo, hi, begin, end):
        for i in range(end - begin):
            n0: T.let = (begin + i) * lanes
            out = T.alloc_buffer((lanes,), "float32", scope="global")
            done = T.alloc_buffer((lanes,), vector.dtype, scope="global")
            for k in range(lanes):
                first: T.let = row_start[n0 + k]
                rounds: T.let = (row_start[n0 + k + 1] - first) // SUMS
                sums = T.alloc_buffer((SUMS,), "float32", scope="global")
                for u in T.unroll(SUMS):
                    sums[u] = T.float32(0)
                for j in range(rounds):
                    for u in T.unroll(SUMS):
                        at: T.let = first + j * SUMS + u
                        sums[u] = sums[u] + cast(value[at], "float32") * cast(x[T.Cast("int32", index[at])], "float32")
                for j in range(row_start[n0 + k + 1] - first - rounds * SUMS):
                    rest: T.let = first + rounds * SUMS + j
                    sums[0] = sums[0] + cast(value[rest], "float32") * cast(x[T.Cast("int32", index[rest])], "float32")
                out[k] = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))
            for e in T.vectorized(lanes):
                out[e] = out[e] + cast(bias[n0 + e], "float32")
            if added:
                add_residual(vector, 1, out, residual, n0, outputs)
            for e in T.vectorized(lanes):
                done[e] = cast(activate(activation, out[e], lo, hi, vector.keeps_nan), vector.dtype)
            store_below(vector, y, n0, load(vector, done, 0), outputs - n0)

    steps = (
        Scan("row_start", f"begin * {lanes}", f"end * {lanes} + 1", ordered=True),
        reads("value", over("row_start_low", "row_start_high")),
        Scan("index", "row_start_low", "row_start_high"),
        reads("x", over("index_low", "index_high + 1")),
        *outputs_touched(lanes, residual),
    )
    return script.kernel(vector, f"gemv_rows_l{lanes}_{index}_{activation}{'_residual' * residual}", _params(index), kernel, steps)
