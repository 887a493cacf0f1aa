"""What processor a board has, by what its Linux says."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sparsec.backends.base import Backend
from sparsec.run.processor import AT_HWCAP, AT_HWCAP2, capabilities, listed, missing

#: Files of /proc that say it.
PLACES = ("cpuinfo", "self/auxv", "thread-self/maps")

_MODEL = re.compile(r"^model name\s*:\s*(.+?)\s*$", re.MULTILINE)
_PART = re.compile(r"CPU implementer\s*:\s*(\w+).*?CPU part\s*:\s*(\w+)", re.DOTALL)
_EMULATOR = re.compile(rb"/qemu-\S+$", re.MULTILINE)


@dataclass(frozen=True)
class BoardCpu:
    """A board's processor: its name, ``names`` of it that the backend knows, the instruction sets that it has (Linux's names)."""

    name: str
    names: tuple[str, ...]
    flags: frozenset[str]
    emulated: bool

    @classmethod
    def of(cls, backend: Backend, said: bytes, auxv: bytes, maps: bytes) -> BoardCpu:
        """From the content of ``PLACES``, read by a process of the board.

        An emulator may show its host's /proc/cpuinfo, and is in the map of its process.
        """
        cpuinfo = said.decode(errors="replace")
        model, part = _MODEL.search(cpuinfo), _PART.search(cpuinfo)
        emulated = bool(_EMULATOR.search(maps)) or "QEMU" in cpuinfo
        words = dict(_pairs(auxv))
        flags = capabilities(words.get(AT_HWCAP, 0), words.get(AT_HWCAP2, 0)) if backend.machine.arch == "aarch64" else listed(cpuinfo)
        names = () if emulated else tuple(backend.processors(cpuinfo))
        name = model.group(1) if model else ", ".join(names) or (f"implementer {part.group(1)} part {part.group(2)}" if part else "unknown")
        return cls(f"emulated on {name}" if emulated else name, names, flags, emulated)

    @classmethod
    def here(cls, backend: Backend) -> BoardCpu:
        """The processor of this machine. OSError where it is no Linux."""
        return cls.of(backend, *(Path(f"/proc/{name}").read_bytes() for name in PLACES))

    def other_than(self, backend: Backend) -> str:
        """Why kernels for the machine of ``backend`` are not to be measured on this processor; empty if they are."""
        machine = backend.machine
        if absent := missing(machine.features, self.flags):
            return f"{self.name} lacks {', '.join(absent)}, which {machine.mcpu} has."
        return "" if not self.names or machine.mcpu in self.names else f"It is {', '.join(self.names)}, not {machine.mcpu}."


def _pairs(auxv: bytes) -> Iterator[tuple[int, int]]:
    """Keys and values of 64 bits."""
    return struct.iter_unpack("<QQ", auxv[: len(auxv) // 16 * 16])  # type: ignore[return-value]
