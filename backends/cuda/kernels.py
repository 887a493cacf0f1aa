"""Kernels in Triton. Pointers may be to 2 GiB and more; strides are in elements, the last axis is contiguous.

A *point* is a row of a matrix of activations: a token, or a pixel of a map in channels-last order.
"""

import triton
import triton.language as tl


@triton.jit
def _activated(value, lo, hi, ACTIVATION: tl.constexpr):
    """value float32; NaN stays NaN."""
    if ACTIVATION == "clamp":
        value = tl.minimum(tl.maximum(value, lo, propagate_nan=tl.PropagateNan.ALL), hi, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "gelu":
        value = value * 0.5 * (1.0 + tl.math.erf(value * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # 0.5 (1 + tanh z) = 1 / (1 + exp(-2 z))
        value = value / (1.0 + tl.exp(-1.5957691216057308 * (value + 0.044715 * value * value * value)))
    elif ACTIVATION == "silu":
        value = value / (1.0 + tl.exp(-value))
    return value


@triton.jit
def _finished(
    total, y, bias, residual, points, columns, m, n, y_row, r_row, lo, hi,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """y[points, columns] = act(total + bias[columns] + residual[points, columns]) where points < m and columns < n."""
    there = (points[:, None] < m) & (columns[None, :] < n)
    if BIAS:
        total += tl.load(bias + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        total += tl.load(residual + points[:, None].to(tl.int64) * r_row + columns[None, :], mask=there, other=0.0).to(tl.float32)
    total = _activated(total, lo, hi, ACTIVATION)
    tl.store(y + points[:, None].to(tl.int64) * y_row + columns[None, :], total.to(y.dtype.element_ty), mask=there)


@triton.jit
def block_sparse(
    x, weight, y, partial, bias, residual, items, columns, m, n, k, x_row, y_row, r_row, lo, hi,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """y[m, n] = act(x[m, k] @ W[n, k].T + bias + residual), W in blocks of BN x BK of which those that are not zero are there.

    Program (i, t) makes points t * BM to (t + 1) * BM of item i: items[i] = (row of blocks, first block, end, slot). Block j is
    weight[j], [BN, BK], at columns[j] * BK. An item with a slot, where there are any (SPLIT), is part of a row: its sums go to
    partial[slot, m, BN]. EVEN: k is a multiple of BK.
    """
    item, tile = tl.program_id(0), tl.program_id(1)
    row = tl.load(items + 4 * item)
    first = tl.load(items + 4 * item + 1)
    end = tl.load(items + 4 * item + 2)
    points, outputs, inputs = tile * BM + tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    # Points that are not there read what the first one does.
    x_at = x + tl.where(points < m, points, 0)[:, None].to(tl.int64) * x_row + inputs[None, :]
    w_at = weight + first.to(tl.int64) * (BN * BK) + outputs[None, :] * BK + inputs[:, None]
    total = tl.zeros((BM, BN), tl.float32)
    for j in range(first, end):
        column = tl.load(columns + j) * BK
        if EVEN:
            a = tl.load(x_at + column)
        else:
            a = tl.load(x_at + column, mask=column + inputs[None, :] < k, other=0.0)
        total = tl.dot(a, tl.load(w_at), total, input_precision=PRECISION)
        w_at += BN * BK
    if SPLIT:
        slot = tl.load(items + 4 * item + 3)
        if slot >= 0:
            at = (slot.to(tl.int64) * m + points[:, None]) * BN + outputs[None, :]
            tl.store(partial + at, total, mask=points[:, None] < m)
            return
    _finished(total, y, bias, residual, points, row * BN + outputs, m, n, y_row, r_row, lo, hi, BIAS, RESIDUAL, ACTIVATION)


@triton.jit
def combine(
    y, partial, bias, residual, split, m, n, y_row, r_row, lo, hi,
    BM: tl.constexpr, BN: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """The rows of blocks that ``block_sparse`` made in parts: split[i] = (row, first slot, end), summed in this order."""
    number, tile = tl.program_id(0), tl.program_id(1)
    row = tl.load(split + 3 * number)
    first = tl.load(split + 3 * number + 1)
    end = tl.load(split + 3 * number + 2)
    points, outputs = tile * BM + tl.arange(0, BM), tl.arange(0, BN)
    total = tl.zeros((BM, BN), tl.float32)
    at = partial + (first.to(tl.int64) * m + points[:, None]) * BN + outputs[None, :]
    for _ in range(first, end):
        total += tl.load(at, mask=points[:, None] < m, other=0.0)
        at += m.to(tl.int64) * BN
    _finished(total, y, bias, residual, points, row * BN + outputs, m, n, y_row, r_row, lo, hi, BIAS, RESIDUAL, ACTIVATION)
