"""What is compiled and what is launched, as data: no GPU, no Triton and no weights are needed to say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: What Triton calls dtypes.
DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int32": "i32"}
#: Bytes that pointers, and numbers called aligned, are multiples of: what one load of a thread takes.
ALIGNED = 16


@dataclass(frozen=True)
class Kernel:
    """A function of ``kernels`` with its constants.

    ``pointers``: by name the dtype of what they show. ``numbers``: by name "i32" or "fp32". ``aligned``: numbers that are multiples of
    ``ALIGNED``; pointers all are. ``warps``: of a block. ``stages``: loads that are under way in a loop, as Triton counts them (a load
    whose address is loaded counts for two).
    """

    function: str
    pointers: tuple[tuple[str, str], ...]
    numbers: tuple[tuple[str, str], ...]
    aligned: tuple[str, ...]
    constants: tuple[tuple[str, int | str | bool], ...]
    warps: int
    stages: int

    @property
    def symbol(self) -> str:
        """Differs where the code does."""
        pointers = "_".join(DTYPES[dtype] for _, dtype in self.pointers)
        constants = "_".join(f"{name.lower()}{value}" for name, value in self.constants)
        return f"{self.function}_{pointers}_{constants}_w{self.warps}_s{self.stages}" + "".join(f"_{name}" for name in self.aligned)


@dataclass(frozen=True)
class Launch:
    """One kernel on a grid of blocks; ``numbers``: the values of its numbers by name."""

    kernel: Kernel
    grid: tuple[int, int]
    numbers: Mapping[str, int | float]
