"""Scalar and vector expressions shared by the x86 kernels: activation functions as TIR expressions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

#: Activations that a kernel epilogue can apply. "clamp" covers none, relu, relu6 and any hardtanh through run-time bounds.
ACTIVATIONS = ("clamp", "silu", "hardswish", "hardsigmoid", "sigmoid")

_LOG2E = 1.4426950408889634
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
# Minimax polynomial of (exp(r) - 1 - r) / r^2 on |r| <= ln(2)/2 (Cephes expf; relative error below 2 ulp).
_EXP_POLY = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def let(value: Any, body: Callable[[Any], Any]) -> Any:
    """``body(v)`` with v bound to ``value`` once; without it every use would copy the expression tree."""
    v = tirx.Var("v", "float32")
    return tirx.Let(v, value, body(v))


def clamp(x: Any, lo: Any, hi: Any) -> Any:
    """min(max(x, lo), hi); NaN stays NaN because a comparison with NaN selects x."""
    return let(x, lambda v: let(T.Select(v < lo, lo, v), lambda u: T.Select(hi < u, hi, u)))


def exp(x: Any) -> Any:
    """e**x for float32, as 2**n * p(r) with x = n ln 2 + r; saturates outside [-87, 88]."""
    f = T.float32

    def scaled(n: Any, r: Any) -> Any:
        p: Any = f(_EXP_POLY[0])
        for c in _EXP_POLY[1:]:
            p = p * r + f(c)
        return (p * r * r + r + f(1.0)) * T.reinterpret("float32", (T.Cast("int32", n) + 127) << 23)

    def reduced(v: Any) -> Any:
        return let(
            T.floor(v * f(_LOG2E) + f(0.5)),
            lambda n: let(v - n * f(_LN2_HIGH) - n * f(_LN2_LOW), lambda r: scaled(n, r)),
        )

    return let(clamp(x, f(-87.0), f(88.0)), reduced)


def activate(kind: str, x: Any, lo: Any, hi: Any) -> Any:
    """The activation ``kind`` of x. ``lo`` and ``hi`` are read by "clamp" only."""
    f = T.float32
    if kind == "clamp":
        return clamp(x, lo, hi)
    if kind == "sigmoid":
        return f(1.0) / (f(1.0) + exp(f(0.0) - x))
    if kind == "silu":
        return let(x, lambda v: v / (f(1.0) + exp(f(0.0) - v)))
    if kind == "hardsigmoid":
        return clamp(x * f(1 / 6) + f(0.5), f(0.0), f(1.0))
    if kind == "hardswish":
        return let(x, lambda v: v * clamp(v * f(1 / 6) + f(0.5), f(0.0), f(1.0)))
    raise ValueError(f"unknown activation {kind!r}; known: {', '.join(ACTIVATIONS)}")
