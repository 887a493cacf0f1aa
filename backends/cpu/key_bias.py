"""Additive bias per key from a padding mask: one number per token in, one out."""

from __future__ import annotations

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.expr import cast
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import Need, over, reads, writes
from sparsec.backends.vector import Vector

#: How a mask's dtype is read.
DTYPES = {"int64": "int64", "int32": "int32", "bool": "uint8", "float32": "float32", "float16": "float16"}


def key_bias(vector: Vector, mask: str, affine: bool) -> Source:
    """y[t] = ``on`` where x[t] != 0 else ``off``; with ``affine`` base + factor * (shift + slope * x[t]). One unit of
    work for all t < ``count``.

    ``mask`` is the dtype of x. A NaN is not zero. Nothing past ``count`` is touched.
    """
    if mask not in DTYPES:
        raise ValueError(f"a mask of dtype {mask!r}; known: {', '.join(DTYPES)}")
    dtype = DTYPES[mask]

    def kernel(x, y, count, on, off, base, factor, shift, slope, begin, end):
        for _i in range(end - begin):
            for t in range(count):
                if affine:
                    y[t] = cast(base + factor * (shift + slope * T.Cast("float32", x[t])), vector.dtype)
                else:
                    y[t] = cast(T.Select(x[t] == T.Cast(dtype, T.int32(0)), off, on), vector.dtype)

    steps = (Need("end == 1"), reads("x", over(0, "count")), writes("y", over(0, "count")))
    names = ("on", "off", "base", "factor", "shift", "slope")
    params = (Param("x", "act", dtype), Param("y", "act"), Param("count", "i32"), *(Param(n, "f32") for n in names))
    return script.kernel(vector, f"key_bias_{mask}{'_affine' * affine}", params, kernel, steps)
