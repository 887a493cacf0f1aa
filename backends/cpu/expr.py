"""Scalar and vector expressions shared by the kernels: activation functions as TIR expressions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from sparsec.backends.cpu.tir import T, tirx
from sparsec.backends.vector import Vector

#: Activations that a kernel epilogue can apply. "clamp" covers none, relu, relu6 and any hardtanh through run-time bounds.
ACTIVATIONS = ("clamp", "silu", "hardswish", "hardsigmoid", "sigmoid", "gelu", "gelu_tanh", "tanh")

_LOG2E = 1.4426950408889634
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
_ROUND = 12582912.0  # 1.5 * 2**23: adding it leaves the nearest integer in the low bits
# Minimax polynomial of (exp(r) - 1 - r) / r^2 on |r| <= ln(2)/2 (Cephes expf; relative error below 2 ulp).
_EXP_POLY = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)

# The three below were fitted in float64 by Lawson's reweighted least squares on 4000 Chebyshev points; highest power first.
# 2**r on |r| <= 1/2, relative error 9.1e-8, 1 at r = 0.
_EXP2_POLY = (0.001326472614891827, 0.009671512991189957, 0.05550733581185341, 0.24022242426872253, 0.6931470036506653, 1.0)
# log2 of the normal tail Q(t) = P(Z > t) on 0 <= t <= 7, -1 at t = 0: Q is off by at most 1e-8 / max(t, 1) or 3.2e-5 of itself.
_TAIL_END = 7.0
_TAIL_POLY = (
    -1.9041126009256004e-08,
    6.264891112550686e-07,
    -8.695469659869559e-06,
    6.455655966419727e-05,
    -0.0002432474575471133,
    -6.660175858996809e-05,
    0.00701821269467473,
    -0.05248307064175606,
    -0.45920923352241516,
    -1.151105284690857,
    -1.0,
)
# (tanh(x) - x) / x^3 as a polynomial of x^2 on |x| <= 0.625, relative error of tanh 4.4e-09.
_TANH_END = 0.625
_TANH_POLY = (-0.005704986397176981, 0.02063908614218235, -0.05373971536755562, 0.13331441581249237, -0.3333328068256378)


def number(vector: Vector, value: float) -> Any:
    """A constant of the dtype that kernels compute in."""
    return tirx.const(value, vector.dtype)


def dtype_of(value: Any) -> str:
    """The dtype of an expression."""
    return str(value.ty)


def cast(value: Any, dtype: str) -> Any:
    """One number as another dtype: itself where it is of that."""
    return value if dtype_of(value) == dtype else T.Cast(dtype, value)


def let(value: Any, body: Callable[[Any], Any]) -> Any:
    """``body(v)`` with v bound to ``value`` once; without it every use would copy the expression tree."""
    v = tirx.Var("v", dtype_of(value))
    return tirx.Let(v, value, body(v))


def is_nan(x: Any) -> Any:
    """Exponent all ones and a mantissa: TVM simplifies x != x to false, and does not vectorise its own isnan."""
    if dtype_of(x) == "float16":
        return (T.reinterpret("int16", x) & T.int16(0x7FFF)) > T.int16(0x7C00)
    return (T.reinterpret("int32", x) & T.int32(0x7FFFFFFF)) > T.int32(0x7F800000)


def clamp(x: Any, lo: Any, hi: Any, keeping: bool = False) -> Any:
    """min(max(x, lo), hi); NaN stays NaN because a comparison with NaN selects x, or because instructions do so (``keeping``)."""
    if keeping:
        dtype = dtype_of(x)
        return T.call_llvm_pure_intrin(dtype, "llvm.minimum", T.call_llvm_pure_intrin(dtype, "llvm.maximum", x, lo), hi)
    return let(x, lambda v: let(T.Select(v < lo, lo, v), lambda u: T.Select(hi < u, hi, u)))


def exp(x: Any) -> Any:
    """e**x for float32, as 2**n * p(r) with x = n ln 2 + r; e**-87 below -87, infinite above 88.37."""
    f = T.float32

    def scaled(n: Any, r: Any) -> Any:
        p = polynomial(_EXP_POLY, r)
        return (p * r * r + r + f(1.0)) * T.reinterpret("float32", (T.Cast("int32", n) + 127) << 23)

    def reduced(v: Any) -> Any:
        return let(
            T.floor(v * f(_LOG2E) + f(0.5)),
            lambda n: let(v - n * f(_LN2_HIGH) - n * f(_LN2_LOW), lambda r: scaled(n, r)),
        )

    return let(clamp(x, f(-87.0), f(89.0)), reduced)


def exp_nonpositive(x: Any) -> Any:
    """e**x for float32 x <= 0 to 2 ulp; exactly 0 below -87, NaN for NaN."""
    f = T.float32

    def scaled(z: Any, r: Any) -> Any:
        power = T.reinterpret("float32", (T.reinterpret("int32", z) << 23) + T.int32(127 << 23))
        return (polynomial(_EXP_POLY, r) * (r * r) + (r + f(1.0))) * power

    def reduced(v: Any) -> Any:
        power = let(
            v * f(_LOG2E) + f(_ROUND),
            lambda z: let(z - f(_ROUND), lambda n: let(v - n * f(_LN2_HIGH) - n * f(_LN2_LOW), lambda r: scaled(z, r))),
        )
        return T.Select(v < f(-87.0), f(0.0), power)

    return let(x, reduced)


def polynomial(coefficients: Sequence[float], x: Any) -> Any:
    """Horner's rule, highest power first; ``x`` must be a variable."""
    p: Any = T.float32(coefficients[0])
    for c in coefficients[1:]:
        p = p * x + T.float32(c)
    return p


def _exp2(x: Any) -> Any:
    """2**x for -127 <= x <= 128, relative error 2e-7; 0 below -126.5, infinite above 127.5. NaN stays NaN."""

    def scaled(p: Any, n: Any) -> Any:
        power = T.reinterpret("float32", (T.Cast("int32", n) + 127) << 23)
        return let(p - n, lambda r: polynomial(_EXP2_POLY, r) * power)

    return let(x, lambda p: let(T.nearbyint(p), lambda n: scaled(p, n)))


def _gelu(x: Any) -> Any:
    """x P(Z < x), Z normal. P is Q(-x) left of 0 and 1 - Q(x) right of it, so that small values of the left tail keep their digits.

    Right to 1e-7 max(|x|, 1), and to 6e-5 of itself for x >= -7, below which it is 0.
    """
    f = T.float32

    def normal(v: Any, tail: Any) -> Any:
        return v * T.Select(v < f(0.0), tail, f(1.0) - tail)

    def of(v: Any, t: Any) -> Any:
        power = T.Select(t < f(_TAIL_END), polynomial(_TAIL_POLY, t), f(-127.0))
        return let(_exp2(power), lambda tail: normal(v, tail))

    return let(x, lambda v: let(T.abs(v), lambda t: of(v, t)))


def _gelu_tanh(x: Any) -> Any:
    """x (1 + tanh(u)) / 2 = x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    f, scale = T.float32, -2 * _LOG2E * math.sqrt(2 / math.pi)

    def exponent(v: Any) -> Any:
        return clamp(v * (f(scale) + f(0.044715 * scale) * v * v), f(-127.0), f(128.0))

    return let(x, lambda v: v / (f(1.0) + _exp2(exponent(v))))


def _tanh(x: Any) -> Any:
    """1 - 2 / (1 + e^2|x|) with the sign of x; near 0, where that loses digits, an odd polynomial."""
    f = T.float32

    def far(t: Any) -> Any:
        return f(1.0) - f(2.0) / (f(1.0) + _exp2(clamp(t * f(2 * _LOG2E), f(-127.0), f(128.0))))

    def near(v: Any) -> Any:
        return let(v * v, lambda z: v + v * (z * polynomial(_TANH_POLY, z)))

    def joined(v: Any, t: Any, size: Any) -> Any:
        return T.Select(t < f(_TANH_END), near(v), T.Select(v < f(0.0), f(0.0) - size, size))

    return let(x, lambda v: let(T.abs(v), lambda t: let(far(t), lambda size: joined(v, t, size))))


def activate(kind: str, x: Any, lo: Any, hi: Any, keeping: bool = False) -> Any:
    """The activation ``kind`` of x. "clamp" alone reads ``lo`` and ``hi`` (``keeping``: see there); others compute in float32."""
    if kind not in ACTIVATIONS:
        raise ValueError(f"unknown activation {kind!r}; known: {', '.join(ACTIVATIONS)}")
    f = T.float32
    if kind == "clamp":
        return clamp(x, cast(lo, dtype_of(x)), cast(hi, dtype_of(x)), keeping)
    if dtype_of(x) != "float32":
        return cast(activate(kind, cast(x, "float32"), lo, hi), dtype_of(x))
    if kind == "sigmoid":
        return f(1.0) / (f(1.0) + exp(f(0.0) - x))
    if kind == "silu":
        return let(x, lambda v: v / (f(1.0) + exp(f(0.0) - v)))
    if kind == "hardsigmoid":
        return clamp(x * f(1 / 6) + f(0.5), f(0.0), f(1.0), keeping)
    if kind == "hardswish":
        return let(x, lambda v: v * clamp(v * f(1 / 6) + f(0.5), f(0.0), f(1.0), keeping))
    if kind == "gelu":
        return _gelu(x)
    if kind == "gelu_tanh":
        return _gelu_tanh(x)
    return _tanh(x)
