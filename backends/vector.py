"""The vector registers of a processor and what its instructions do with them, as data: kernels name no processor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sparsec.run.dtypes import dtype_of


@dataclass(frozen=True)
class Permute:
    """An instruction by which every lane takes the element of a number out of one register, or of two side by side.

    ``intrinsic``: LLVM's name of it, with operands (first register, numbers as int32, second register if there are two).
    """

    intrinsic: str
    registers: Literal[1, 2]


@dataclass(frozen=True)
class Vector:
    """The vector registers of a processor.

    ``name``: what its vector instructions are called. ``nbytes``: of a register. ``masks``: whether lanes of a load or store can be left
    out. ``permute``: None where there is no such instruction. ``dots``: dtypes whose products are summed in float32 or int32 by
    instructions of the machine's features. ``by_element``: whether a multiply-add takes one element of a register for all lanes.
    ``ahead``: whether tables of offsets are best loaded several at once and ahead, as where loads are the limit.
    ``keeps_nan``: whether its minimum and maximum of a number and NaN are NaN.
    ``computes``: the dtypes that there is arithmetic for. ``dtype``: the one among them that kernels compute in.
    """

    name: str
    nbytes: int
    registers: int
    masks: bool
    permute: Permute | None = None
    dots: tuple[str, ...] = ()
    by_element: bool = False
    ahead: bool = False
    keeps_nan: bool = False
    computes: tuple[str, ...] = ("float32",)
    dtype: str = "float32"

    @property
    def lanes(self) -> int:
        """Numbers in a register."""
        return self.nbytes // dtype_of(self.dtype).nbytes

    def of(self, dtype: str) -> Vector:
        """The same registers for kernels that compute in ``dtype``. ValueError where there is no arithmetic for it."""
        if dtype not in self.computes:
            raise ValueError(f"{self.name} computes in {', '.join(self.computes)}, not in {dtype}")
        return replace(self, dtype=dtype)
