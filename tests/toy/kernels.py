"""Scalar kernels in TensorIR that go by tables of addresses, sizes compiled in. Units are elements, tokens or queries of a head."""

import math
from functools import partial
from typing import Any

from tvm.script import tirx as T

fp, ip = partial(T.handle, "float32"), partial(T.handle, "int32")
f32, i32 = (lambda handle, kind=kind: T.decl_buffer((1 << 30,), kind, data=handle) for kind in ("float32", "int32"))
held = partial(T.alloc_buffer, dtype="float32", scope="global")


def scalar(x: Any, activation: str, lo: float, hi: float) -> Any:
    if activation == "gelu":
        return T.float32(0.5) * x * (T.float32(1) + T.call_extern("float32", "erff", x * T.float32(math.sqrt(0.5))))
    x = T.max(x, T.float32(lo)) if lo > -math.inf else x
    return T.min(x, T.float32(hi)) if hi < math.inf else x


def affine(activation: str, lo: float, hi: float) -> Any:
    """y[place[i]] = act(base[i] + the sum of value[j] * x[column[j]] over start[i] <= j < start[i + 1])."""

    @T.prim_func(private=True)
    def kernel(
        x_: fp(), y_: fp(), start_: ip(), column_: ip(), place_: ip(), value_: fp(), base_: fp(), begin: T.int32, end: T.int32
    ) -> T.int32:
        x, y, value, base, start, column, place = f32(x_), f32(y_), f32(value_), f32(base_), i32(start_), i32(column_), i32(place_)
        total = held((1,))
        for i in range(end - begin):
            total[0] = base[begin + i]
            for j in range(start[begin + i + 1] - start[begin + i]):
                total[0] = total[0] + value[start[begin + i] + j] * x[column[start[begin + i] + j]]
            y[place[begin + i]] = scalar(total[0], activation, lo, hi)
        return T.int32(0)

    return kernel


def add() -> Any:
    @T.prim_func(private=True)
    def kernel(a_: fp(), b_: fp(), y_: fp(), from_a_: ip(), from_b_: ip(), place_: ip(), begin: T.int32, end: T.int32) -> T.int32:
        a, b, y, from_a, from_b, place = f32(a_), f32(b_), f32(y_), i32(from_a_), i32(from_b_), i32(place_)
        for i in range(end - begin):
            y[place[begin + i]] = a[from_a[begin + i]] + b[from_b[begin + i]]
        return T.int32(0)

    return kernel


def norm(features: int, eps: float) -> Any:
    @T.prim_func(private=True)
    def kernel(x_: fp(), y_: fp(), column_: ip(), place_: ip(), scale_: fp(), shift_: fp(), begin: T.int32, end: T.int32) -> T.int32:
        x, y, scale, shift, column, place = f32(x_), f32(y_), f32(scale_), f32(shift_), i32(column_), i32(place_)
        sums = held((2,))
        for i in range(end - begin):
            sums[0] = T.float32(0)
            sums[1] = T.float32(0)
            for f in range(features):
                sums[0] = sums[0] + x[column[(begin + i) * features + f]] / T.float32(features)
            for f in range(features):
                part: T.let = x[column[(begin + i) * features + f]] - sums[0]
                sums[1] = sums[1] + part * part / T.float32(features)
            for f in range(features):
                at: T.let = (begin + i) * features + f
                y[place[at]] = (x[column[at]] - sums[0]) / T.sqrt(sums[1] + T.float32(eps)) * scale[f] + shift[f]
        return T.int32(0)

    return kernel


def attention(keys: int, heads: int, dim: int, scale: float) -> Any:
    width = heads * dim

    @T.prim_func(private=True)
    def kernel(
        q_: fp(), k_: fp(), v_: fp(), y_: fp(), at_q_: ip(), at_k_: ip(), at_v_: ip(), place_: ip(), begin: T.int32, end: T.int32
    ) -> T.int32:
        q, k, v, y, at_q, at_k, at_v, place = f32(q_), f32(k_), f32(v_), f32(y_), i32(at_q_), i32(at_k_), i32(at_v_), i32(place_)
        scores = held((keys,))
        most = held((2,))
        for i in range(end - begin):
            first: T.let = (begin + i) % heads * dim
            row: T.let = (begin + i) // heads * width + first
            most[0] = T.float32(-3e38)
            most[1] = T.float32(0)
            for s in range(keys):
                scores[s] = T.float32(0)
                for d in range(dim):
                    scores[s] = scores[s] + q[at_q[row + d]] * k[at_k[s * width + first + d]] * T.float32(scale)
                most[0] = T.max(most[0], scores[s])
            for s in range(keys):
                scores[s] = T.call_extern("float32", "expf", scores[s] - most[0])
                most[1] = most[1] + scores[s]
            for d in range(dim):
                y[place[row + d]] = T.float32(0)
                for s in range(keys):
                    y[place[row + d]] = y[place[row + d]] + scores[s] / most[1] * v[at_v[s * width + first + d]]
        return T.int32(0)

    return kernel
