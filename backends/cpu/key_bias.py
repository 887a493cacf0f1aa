"""Additive bias per key from a padding mask: one number per token in, one out."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.spmm import FAR
from sparsec.backends.extents import Need, over, reads, writes

#: How a mask's dtype is read.
DTYPES = {"int64": "int64", "int32": "int32", "bool": "uint8", "float32": "float32"}


def key_bias(mask: str, affine: bool) -> Source:
    """y[t] = ``on`` where x[t] != 0 else ``off``; with ``affine`` base + factor * (shift + slope * x[t]). One unit of
    work for all t < ``count``.

    ``mask`` is the dtype of x. A NaN is not zero. Nothing past ``count`` is touched.
    """
    if mask not in DTYPES:
        raise ValueError(f"a mask of dtype {mask!r}; known: {', '.join(DTYPES)}")
    dtype = DTYPES[mask]

    def make() -> Any:
        @script.prim_func(private=True)
        def kernel(
            x_: T.handle(dtype),
            y_: T.handle("float32"),
            count: T.int32,
            on: T.float32,
            off: T.float32,
            base: T.float32,
            factor: T.float32,
            shift: T.float32,
            slope: T.float32,
            begin: T.int32,
            end: T.int32,
        ) -> T.int32:
            x = T.decl_buffer((FAR,), dtype, data=x_, align=1)
            y = T.decl_buffer((FAR,), "float32", data=y_, align=4)
            for _i in range(end - begin):
                for t in range(count):
                    if affine:
                        y[t] = base + factor * (shift + slope * T.Cast("float32", x[t]))
                    else:
                        y[t] = T.Select(x[t] == T.Cast(dtype, T.int32(0)), off, on)
            return T.int32(0)

        return kernel

    steps = (Need("end == 1"), reads("x", over(0, "count")), writes("y", over(0, "count")))
    names = ("on", "off", "base", "factor", "shift", "slope")
    params = (Param("x", "act", dtype), Param("y", "act"), Param("count", "i32"), *(Param(n, "f32") for n in names))
    return Source(f"key_bias_{mask}{'_affine' * affine}", params, make, steps)
