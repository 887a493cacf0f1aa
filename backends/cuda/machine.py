"""GPUs by name, as data: none need be here.

Numbers are of NVIDIA's architecture white papers and data sheets (dense rates, SXM modules), limits of the CUDA C++ Programming Guide,
"Compute Capabilities"; how registers and shared memory are given out is as in NVIDIA's occupancy calculator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparsec.errors import InvalidInput

WARP = 32
#: Registers are given out in so many at once, and to so many warps at once; shared memory in so many bytes, of which a block needs some.
_REGISTER_UNIT, _WARP_UNIT, _SHARED_UNIT, _SHARED_RESERVED = 256, 4, 128, 1024


@dataclass(frozen=True)
class Gpu:
    """A GPU. ``capability``: 80 is compute capability 8.0. ``processors``: streaming multiprocessors, each with ``registers`` of 32 bits,
    ``shared`` bytes, ``warps`` and ``blocks`` at most at once; ``block_shared``: bytes that a block may have.

    ``l2``: bytes. ``memory_gbs``: GB/s. ``tflops``: of dense products with sums in float32, by dtype of their operands; "tf32" are
    float32 numbers rounded to 10 bits.
    """

    name: str
    capability: int
    processors: int
    shared: int
    block_shared: int
    l2: int
    memory_gbs: float
    tflops: Mapping[str, float]
    registers: int = 65536
    warps: int = 64
    blocks: int = 32

    def resident(self, registers: int, shared: int, warps: int) -> int:
        """How many blocks one processor holds at once, of ``warps`` warps with so many registers a thread and ``shared`` bytes a block."""
        per_warp = -(-registers * WARP // _REGISTER_UNIT) * _REGISTER_UNIT
        by_registers = self.registers // per_warp // _WARP_UNIT * _WARP_UNIT // warps if registers else self.blocks
        taken = -(-(shared + _SHARED_RESERVED) // _SHARED_UNIT) * _SHARED_UNIT
        by_shared = self.shared // taken if shared <= self.block_shared else 0
        return min(self.blocks, self.warps // warps, by_registers, by_shared)


_AMPERE = {"bfloat16": 312.0, "float16": 312.0, "tf32": 156.0, "float32": 19.5}
_HOPPER = {"bfloat16": 989.4, "float16": 989.4, "tf32": 494.7, "float32": 66.9}
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 80, 108, 164 << 10, 163 << 10, 40 << 20, 1555.0, _AMPERE),
        Gpu("a100-80gb", 80, 108, 164 << 10, 163 << 10, 40 << 20, 2039.0, _AMPERE),
        Gpu("h100", 90, 132, 228 << 10, 227 << 10, 50 << 20, 3350.0, _HOPPER),
        Gpu("h200", 90, 132, 228 << 10, 227 << 10, 50 << 20, 4800.0, _HOPPER),
    )
}


def gpu(name: str) -> Gpu:
    """The GPU of this name. InvalidInput for an unknown one."""
    if name not in GPUS:
        raise InvalidInput(f"Unknown GPU {name!r}.", hint=f"Known: {', '.join(GPUS)}.")
    return GPUS[name]
