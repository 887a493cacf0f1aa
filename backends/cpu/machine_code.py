"""The machine code of a kernel as text, for this machine and for others, and its inner loops."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx
import tvm

from sparsec.backends.base import Machine, Source
from sparsec.backends.cpu import library, parsing

_JUMP = re.compile(r"(?:j\w+|b|b\.\w+|cbn?z\s+\w+,|tbn?z\s+\w+,\s*#\d+,)\s+(\.?\w+)$")
#: Directives, and labels that nothing jumps to: of the lines that code came from.
_NOTE = re.compile(r"#|\.(?!L?\w+:$)|\.Ltmp")
_VECTOR = re.compile(r"%([xyz])mm(\d+)|\b([vqds])(\d+)\b")


def assembly(kernel: Source, machine: Machine) -> list[str]:
    """Instructions and labels of one kernel, alone in its module."""
    function = parsing.plain(kernel.make(), kernel.symbol)
    return instructions(library.compiled(tvm.IRModule({kernel.symbol: function}), library.target(machine)).mod.inspect_source("asm"))


def instructions(text: str) -> list[str]:
    """Instructions and labels of what a compiler wrote."""
    lines = (re.split(r"\s#\s|//", line)[0].strip() for line in text.splitlines())
    return [line for line in lines if line and not _NOTE.match(line)]


@dataclass(frozen=True)
class Loop:
    """The instructions from a label to the jump back to it, without a loop among them."""

    lines: tuple[str, ...]

    @property
    def multiplies(self) -> list[str]:
        """Fused multiply-adds of vectors."""
        return [line for line in self.lines if re.match(r"vfn?m(add|sub)\d+ps\s|fml[as]\s.*v\d+\.(4s|8h)", line)]

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


@dataclass(frozen=True)
class Turn:
    """What one turn of a loop takes, without what loops in it take. ``inner``: how many loops like the busiest one it passes."""

    lines: tuple[str, ...]
    inner: int


def around(lines: list[str]) -> list[Turn]:
    """The loops around the busiest one, from the innermost outwards. Of ways that part and meet again the longest through it is meant."""
    inner, blocks = busiest(lines).lines[0], _blocks(lines)
    flow, found = _flow(blocks), list[Turn]()
    (first,) = (number for number, block in enumerate(blocks) if block[0] == inner)
    left = flow
    while loop := _loop_of(first, left):
        (header,) = {b for a, b in flow.edges if b in loop and a not in loop}
        left = flow.subgraph(loop - {header})
        if header != first:
            found.append(_turn(header, left, first, blocks))
    return found[::-1]


def _blocks(lines: list[str]) -> list[list[str]]:
    """Lines from a label or from behind a jump to the next."""
    starts = {0, len(lines), *(n for n, line in enumerate(lines) if line.endswith(":"))}
    starts |= {number + 1 for number, line in enumerate(lines) if _JUMP.search(line) or line.startswith("ret")}
    return [lines[a:b] for a, b in pairwise(sorted(starts))]


def _flow(blocks: list[list[str]]) -> nx.DiGraph:
    """From the number of each block to those of the blocks that may follow."""
    labels = {block[0][:-1]: number for number, block in enumerate(blocks)}
    flow = nx.DiGraph()
    flow.add_nodes_from(range(len(blocks)))
    for number, block in enumerate(blocks):
        jump = _JUMP.search(block[-1])
        if jump and jump[1] in labels:
            flow.add_edge(number, labels[jump[1]])
        if number + 1 < len(blocks) and not re.match(r"(?:b|jmp)\s|ret", block[-1]):
            flow.add_edge(number, number + 1)
    return flow


def _loop_of(block: int, flow: nx.DiGraph) -> set[int]:
    """The blocks of the outermost loop that a block is in."""
    found: set[int] = next((c for c in nx.strongly_connected_components(flow) if block in c), set())
    return found if len(found) > 1 or flow.has_edge(block, block) else set()


def _turn(header: int, rest: nx.DiGraph, inner: int, blocks: list[list[str]]) -> Turn:
    """A turn of the loop of a header and the ``rest`` of its blocks, which has the block ``inner``."""
    way = nx.condensation(rest)
    inside, members = way.graph["mapping"][inner], nx.get_node_attributes(way, "members")
    loops = {node for node in way if node != inside and _loop_of(min(members[node]), rest)}
    for before, node in way.edges:
        way[before][node]["weight"] = 1e6 if node == inside else sum(len(blocks[number]) for number in members[node])
    longest = nx.dag_longest_path(way)
    straight = [number for node in longest if node != inside and node not in loops for number in sorted(members[node])]
    alike = [node for node in longest if node in loops and _multiplies(members[node], blocks) == _multiplies({inner}, blocks)]
    return Turn(tuple(line for number in [header, *straight] for line in blocks[number]), 1 + len(alike))


def _multiplies(numbers: set[int], blocks: list[list[str]]) -> int:
    return len(Loop(tuple(line for number in numbers for line in blocks[number])).multiplies)


def _written(line: str) -> tuple[str, str]:
    """The letter and the number of the register that an instruction writes: the last one in AT&T's order, the first on ARM."""
    found = _VECTOR.findall(line)
    x86 = [(letter, number) for letter, number, _, _ in found if letter]
    return x86[-1] if x86 else (found[0][2], found[0][3])
