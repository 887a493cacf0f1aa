"""Kinds of numbers, one row each: how many bytes one takes, what it is in torch, in numpy and in TensorIR. Needs numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DType:
    """``name`` is torch's. ``carrier``: the numpy dtype that holds its bits, where numpy does not know it. ``tir``: TensorIR's name."""

    name: str
    nbytes: int
    carrier: str
    tir: str

    @property
    def numpy(self) -> np.dtype:
        """Of arrays that hold such numbers, or their bits."""
        return np.dtype(self.carrier)


DTYPES = {
    each.name: each
    for each in (
        DType("float32", 4, "float32", "float32"),
        DType("float16", 2, "float16", "float16"),
        DType("bfloat16", 2, "uint16", "bfloat16"),
        DType("int64", 8, "int64", "int64"),
        DType("int32", 4, "int32", "int32"),
        DType("int8", 1, "int8", "int8"),
        DType("bool", 1, "bool", "bool"),
    )
}


def dtype_of(name: str) -> DType:
    """The row of a dtype. ValueError where there is none."""
    if name not in DTYPES:
        raise ValueError(f"no dtype {name!r}; known: {', '.join(DTYPES)}")
    return DTYPES[name]
