"""What this processor can do, read from its own flags (LLVM names CPUs by model and gets virtual ones wrong)."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

from sparsec.backends.base import Machine
from sparsec.backends.vector import Permute, Vector
from sparsec.backends.x86 import panels
from sparsec.errors import InvalidInput, MachineError
from sparsec.run import processor

#: Processor flags that a level needs (Linux names) -> LLVM target features.
_AVX2 = {"avx2": "avx2", "fma": "fma", "bmi1": "bmi", "bmi2": "bmi2", "f16c": "f16c", "movbe": "movbe", "popcnt": "popcnt"}
_AVX512 = {"avx512f": "avx512f", "avx512bw": "avx512bw", "avx512dq": "avx512dq", "avx512vl": "avx512vl", "avx512cd": "avx512cd"}

AVX512 = Vector("AVX512", 64, 32, masks=True, permute=Permute("llvm.x86.avx512.vpermi2var.ps.512", 2))
AVX2 = Vector("AVX2", 32, 16, masks=True, permute=Permute("llvm.x86.avx2.permps", 1))


#: A usual clock, by which bounds for a processor that is not here are given in seconds; no time is measured by it.
_GHZ = 3.0


def _cache_bytes(level: int, kind: str, default: int) -> int:
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if int((index / "level").read_text()) == level and (index / "type").read_text().strip() in (kind, "Unified"):
                return int((index / "size").read_text().strip().removesuffix("K")) << 10
        except (OSError, ValueError):
            continue
    return default


#: Levels of the psABI for x86-64, and the flags that they have of those above.
LEVELS = {"x86-64-v3": frozenset(_AVX2), "x86-64-v4": frozenset((*_AVX2, *_AVX512))}


def describe(flags: frozenset[str], cores: int) -> Machine:
    """The machine of a processor with these Linux ``flags``. MachineError where it lacks AVX2 and FMA, which every kernel needs."""
    if missing := sorted(set(_AVX2) - flags):
        raise MachineError(
            f"the x86 backend needs an x86-64 processor with AVX2 and FMA; this is {platform.machine()} without {', '.join(missing)}"
            ". Run the model without sparsec, or compile on another machine."
        )
    wide = set(_AVX512) <= flags
    features = dict(_AVX2) | (_AVX512 if wide else {})
    vector = AVX512 if wide else AVX2
    return Machine(
        arch="x86_64",
        mcpu="x86-64-v4" if wide else "x86-64-v3",
        features=tuple(sorted(features.values())),
        vector=vector,
        panels=panels.AVX512 if wide else panels.AVX2,
        l1=_cache_bytes(1, "Data", 32 << 10),
        l2=_cache_bytes(2, "Unified", 1 << 20),
        l3=_cache_bytes(3, "Unified", 8 << 20),
        cores=cores,
        # Two multiply-adds of a register per cycle, one register from L2, 4 bytes from memory.
        peak_gflops=4 * vector.lanes * _GHZ,
        l2_gbs=vector.nbytes * _GHZ,
        memory_gbs=4 * _GHZ,
        # Registers of 512 bits, which LLVM leaves aside on processors that once ran slower with them.
        tuning=("-prefer-256-bit",) if wide else (),
    )


@functools.cache
def machine(cpu: str | None = None) -> Machine:
    """A level of x86-64 (``LEVELS``), or the machine this process runs on; ``SPARSEC_ISA=avx2`` restricts it to AVX2 (for testing).

    Raises:
        InvalidInput: an unknown level.
        MachineError: none is named, and this machine is no x86-64 with AVX2 and FMA.
    """
    if cpu is not None and cpu not in LEVELS:
        raise InvalidInput(f"Unknown processor {cpu!r}.", hint=f"Known with target 'x86': {', '.join(LEVELS)}.")
    flags = processor.flags() if cpu is None else LEVELS[cpu]
    if cpu is None and os.environ.get("SPARSEC_ISA") == "avx2":
        flags = flags - set(_AVX512)
    return describe(flags, len(os.sched_getaffinity(0)))
