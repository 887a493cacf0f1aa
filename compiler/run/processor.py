"""What the processor of this machine can do, as Linux says it."""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Iterable
from pathlib import Path

#: LLVM feature names that Linux spells otherwise.
LINUX_NAMES = {"bmi": "bmi1"}
LINUX_NAMES |= {
    "neon": "asimd",
    "crc": "crc32",
    "lse": "atomics",
    "rdm": "asimdrdm",
    "fullfp16": "asimdhp",
    "dotprod": "asimddp",
    "rcpc": "lrcpc",
}
#: Bits of the two words of hardware capabilities of AArch64 (arch/arm64/include/uapi/asm/hwcap.h). An emulator answers with those of what
#: it emulates; its /proc/cpuinfo may be the host's.
_HWCAP = {"asimd": 1, "crc32": 7, "atomics": 8, "fphp": 9, "asimdhp": 10, "asimdrdm": 12, "lrcpc": 15, "asimddp": 20, "sve": 22}
_HWCAP2 = {"sve2": 1, "i8mm": 13, "bf16": 14}
AT_HWCAP, AT_HWCAP2 = 16, 26


@functools.cache
def flags() -> frozenset[str]:
    """Instruction sets, by Linux's names."""
    if platform.machine() == "aarch64":
        ask = ctypes.CDLL(None).getauxval
        ask.argtypes, ask.restype = [ctypes.c_ulong], ctypes.c_ulong
        return capabilities(ask(AT_HWCAP), ask(AT_HWCAP2))
    try:
        return listed(Path("/proc/cpuinfo").read_text())
    except OSError:
        return frozenset()


def capabilities(hwcap: int, hwcap2: int) -> frozenset[str]:
    """The instruction sets in AArch64's words of hardware capabilities."""
    words = (_HWCAP, hwcap), (_HWCAP2, hwcap2)
    return frozenset(name for names, word in words for name, bit in names.items() if word >> bit & 1)


def listed(cpuinfo: str) -> frozenset[str]:
    """The instruction sets in an x86's /proc/cpuinfo."""
    return frozenset(next((x for x in cpuinfo.splitlines() if x.startswith("flags")), "").partition(":")[2].split())


def missing(features: Iterable[str], there: frozenset[str]) -> list[str]:
    """Those of ``features`` (LLVM's names) that a processor with these instruction sets (Linux's names) lacks."""
    return [name for name in features if LINUX_NAMES.get(name, name) not in there]


def lacking(arch: str, features: Iterable[str]) -> str:
    """Why code for this architecture that needs these features (LLVM's names) cannot run here; empty if it can."""
    if arch != platform.machine():
        return f"It is for {arch} processors, this one is {platform.machine()}."
    absent = missing(features, flags())
    return f"This processor lacks {', '.join(absent)}." if absent else ""
