"""Processors of ARM's 64-bit architecture, by LLVM's names of them: none need be here.

Features, caches and pipes are those of ARM's technical reference manuals and software optimisation guides; where licensees choose
(caches, clocks), what is common. apple-m1 as Linux runs it.
"""

from __future__ import annotations

import functools
import os
import platform
import re
from dataclasses import dataclass, replace
from pathlib import Path

from sparsec.backends.arm import panels
from sparsec.backends.base import Machine
from sparsec.backends.panels import Panels
from sparsec.backends.vector import Vector
from sparsec.errors import InvalidInput, MachineError
from sparsec.run.processor import LINUX_NAMES, flags

NEON = Vector("NEON", 16, 32, masks=False, by_element=True, ahead=True, keeps_nan=True)
#: LLVM's features of a level of the architecture, as far as code may need them.
_V8_0 = ("neon", "crc")
_V8_2 = (*_V8_0, "lse", "rdm", "fullfp16", "dotprod", "rcpc")
_V8_4 = (*_V8_2, "bf16", "i8mm")


@dataclass(frozen=True)
class Processor:
    """``features``: of LLVM's names. ``l1``, ``l2``, ``l3``: KiB for data. ``pipes``: multiply-adds of a register per cycle.

    ``ghz``: a usual clock, by which bounds are given in seconds; no time is measured here.
    """

    features: tuple[str, ...]
    l1: int
    l2: int
    l3: int
    pipes: int
    ghz: float
    panels: Panels


PROCESSORS = {
    "cortex-a53": Processor(_V8_0, 32, 512, 512, 1, 1.4, panels.IN_ORDER),
    "cortex-a72": Processor(_V8_0, 32, 1024, 1024, 2, 1.8, panels.NEON),
    "cortex-a76": Processor(_V8_2, 64, 512, 2048, 2, 2.4, panels.NEON),
    "cortex-x1": Processor(_V8_2, 64, 1024, 4096, 4, 2.8, panels.NEON),
    "neoverse-n1": Processor(_V8_2, 64, 1024, 32768, 2, 2.6, panels.NEON),
    "neoverse-v1": Processor(_V8_4, 64, 1024, 32768, 4, 2.6, panels.NEON),
    "neoverse-v2": Processor(_V8_4, 64, 2048, 65536, 4, 2.8, panels.NEON),
    "apple-m1": Processor(_V8_2, 128, 12288, 8192, 4, 3.2, panels.NEON),
}
#: What stands for an unknown processor, by what it can do.
_ANY = ("neoverse-v1", "neoverse-n1", "cortex-a72")
#: Part numbers of ARM's own designs (implementer 0x41).
_PARTS = {"d03": "cortex-a53", "d08": "cortex-a72", "d0b": "cortex-a76", "d44": "cortex-x1"}
_PARTS |= {"d0c": "neoverse-n1", "d40": "neoverse-v1", "d4f": "neoverse-v2"}
_IMPLEMENTER, _PART = re.compile(r"CPU implementer\s*:\s*0x(\w+)"), re.compile(r"CPU part\s*:\s*0x(\w+)")


def describe(name: str, cores: int = 4) -> Machine:
    """The machine of a processor of this name. InvalidInput for an unknown one."""
    if name not in PROCESSORS:
        raise InvalidInput(f"Unknown processor {name!r}.", hint=f"Known with target 'arm': {', '.join(PROCESSORS)}.")
    it = PROCESSORS[name]
    return Machine(
        arch="aarch64",
        mcpu=name,
        features=tuple(sorted(it.features)),
        vector=replace(NEON, computes=("float32", "float16")) if "fullfp16" in it.features else NEON,
        panels=it.panels,
        l1=it.l1 << 10,
        l2=it.l2 << 10,
        l3=it.l3 << 10,
        cores=cores,
        peak_gflops=8 * it.pipes * it.ghz,
        l2_gbs=16 * it.ghz,
        memory_gbs=4 * it.ghz,
    )


@functools.cache
def machine(cpu: str | None = None) -> Machine:
    """The processor of a name, or the one of this machine: as it says, or for an unknown one the first of ``_ANY`` whose features it has.

    Raises:
        InvalidInput: an unknown name, or none where this machine is another.
    """
    if cpu is not None:
        return describe(cpu)
    if platform.machine() not in ("aarch64", "arm64"):
        hint = f"Name one: cpu={next(reversed(PROCESSORS))!r} (--cpu), or another of {', '.join(PROCESSORS)}."
        raise InvalidInput(f"Which ARM processor to compile for is not said, and this machine is {platform.machine()}.", hint=hint)
    found = [name for name in (*named(_cpuinfo()), *_ANY) if {LINUX_NAMES.get(f, f) for f in PROCESSORS[name].features} <= flags()]
    if not found:
        raise MachineError("The processor of this machine says nothing of NEON.", hint="Run the model without sparsec.")
    return describe(found[0], len(os.sched_getaffinity(0)))


def named(cpuinfo: str) -> list[str]:
    """The processors of a /proc/cpuinfo that are known, the strongest first: a machine may have cores of several kinds."""
    pairs = zip(_IMPLEMENTER.findall(cpuinfo), _PART.findall(cpuinfo), strict=False)
    found = {_PARTS[part] for implementer, part in pairs if implementer == "41" and part in _PARTS}
    return sorted(found, key=lambda name: PROCESSORS[name].pipes, reverse=True)


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
