"""The machine code of a kernel as text, for this machine and for others, and its inner loops."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import tvm

from sparsec.backends.base import Machine, Source
from sparsec.backends.cpu import library, parsing

_JUMP = re.compile(r"(?:j\w+|b|b\.\w+|cbn?z\s+\w+,|tbn?z\s+\w+,\s*#\d+,)\s+(\.?\w+)$")
_VECTOR = re.compile(r"%([xyz])mm(\d+)|\b([vqds])(\d+)\b")


def assembly(kernel: Source, machine: Machine) -> list[str]:
    """Instructions and labels of one kernel, alone in its module."""
    function = parsing.plain(kernel.make(), kernel.symbol)
    text = library.compiled(tvm.IRModule({kernel.symbol: function}), library.target(machine)).mod.inspect_source("asm")
    lines = (re.split(r"\s#\s|//", line)[0].strip() for line in text.splitlines())
    return [line for line in lines if line and (line.endswith(":") or not line.startswith((".", "#")))]


@dataclass(frozen=True)
class Loop:
    """The instructions from a label to the jump back to it, without a loop among them."""

    lines: tuple[str, ...]

    @property
    def multiplies(self) -> list[str]:
        """Fused multiply-adds of vectors."""
        return [line for line in self.lines if re.match(r"vfn?m(add|sub)\d+ps\s|fml[as]\s.*v\d+\.4s", line)]

    @property
    def widths(self) -> set[str]:
        """The registers that they write, by their letter: x, y or z, v on ARM."""
        return {_written(line)[0] for line in self.multiplies}

    @property
    def accumulators(self) -> set[str]:
        """Registers that multiply-adds of the loop sum up in, from one iteration to the next or within one."""
        return {"".join(_written(line)) for line in self.multiplies if re.match(r"vfn?m\w+231|fml", line)}

    @property
    def spills(self) -> list[str]:
        """Vectors that go to the stack, or come from there; x29 is the frame pointer, or a register as any other."""
        return [line for line in self.lines if re.search(r"\(%rsp|\[(sp\b|x29, #-)", line) and _VECTOR.search(line)]


def inner_loops(lines: list[str]) -> Iterator[Loop]:
    """All loops that hold no other."""
    labels = {line[:-1]: number for number, line in enumerate(lines) if line.endswith(":")}
    jumps = ((labels[found[1]], number) for number, line in enumerate(lines) if (found := _JUMP.search(line)) and found[1] in labels)
    bounds = [(first, last) for first, last in jumps if first < last]
    for first, last in bounds:
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in bounds):
            yield Loop(tuple(lines[first : last + 1]))


def busiest(lines: list[str]) -> Loop:
    """The inner loop that sums up in most registers; of those, the one with most multiply-adds."""
    return max(inner_loops(lines), key=lambda loop: (len(loop.accumulators), len(loop.multiplies)))


def _written(line: str) -> tuple[str, str]:
    """The letter and the number of the register that an instruction writes: the last one in AT&T's order, the first on ARM."""
    found = _VECTOR.findall(line)
    x86 = [(letter, number) for letter, number, _, _ in found if letter]
    return x86[-1] if x86 else (found[0][2], found[0][3])
