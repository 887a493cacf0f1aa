"""The tables of a program as one flat file of 64-bit words, for readers without a JSON parser (``compiler/run/c/sparsec.c``).

    word 0-6   magic, version, bytes of the file, digest of all words from word 7 on
    word 7     number of sections; then four words each: tag, first word, rows, words per row
    ...        the sections

Words are little-endian and signed. A later version may add sections and words at the end of a row: a reader takes what it knows,
and refuses unknown sections whose tag begins with a capital letter. A name is the offset of a string in section
STRINGS that ends with a zero. A digest is SHA-256 (FIPS 180-4), its bytes in four words.

| section | a row |
|---|---|
| PROGRAM | arena bytes, thread slots (0: not stated), kernels, least and largest batch size (-1: any) |
| INPUTS, OUTPUTS | name, dtype, rank, limit (-1: none), row of the size that axis 0 follows (-1: none), plus, 8 axes |
| SIZES | name, least, most |
| PATCHES | table (0 records, 1 groups), index, row of its size, plus, over, scale |
| RECORDS, GROUPS | as in ``sparsec.run.program`` |
| MOVES | relocations in the order of their fields: field, segment, offset, port |
| FILES | name, bytes, digest; the kernel library and the weights come first, in this order |
| WEIGHTS | offset and bytes of the weights in their file |
| MACHINE | name: the architecture, then the processor flags that the kernels need, as Linux spells them |
| RUNNER | name: the program's executor; without this section "cpu" |

Of an artifact for several processors, which has a folder for each:

| section | a row |
|---|---|
| VARIANTS | name of a folder, digest of the program.bin in it; the best first |
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from sparsec.errors import ArtifactError
from sparsec.run.program import DTYPES, Port, Program, Segment

MAGIC, VERSION = b"SPARSEC\0", 5
MOST_AXES = 8
_TABLES = ("records", "groups")
_HEADER_WORDS = 7


def digest(content: bytes) -> tuple[int, ...]:
    """SHA-256 of ``content`` as four words."""
    return tuple(np.frombuffer(hashlib.sha256(content).digest(), "<i8").tolist())


class _Strings:
    def __init__(self) -> None:
        self._text = bytearray()

    def add(self, text: str) -> int:
        """Where ``text`` begins."""
        offset = len(self._text)
        self._text += text.encode().replace(b"\0", b" ") + b"\0"
        return offset

    def words(self) -> np.ndarray:
        return np.frombuffer(bytes(self._text) + bytes(-len(self._text) % 8), "<i8")[:, None]


def flat_program(program: Program, files: Mapping[str, bytes], weights_offset: int, machine: Sequence[str]) -> bytes:
    """The file. ``files``: names and contents of kernel library and weights, in this order.

    ``weights_offset``: first byte of the weights in their file; ``machine``: architecture and processor flags.
    ArtifactError for a tensor of more than ``MOST_AXES`` axes.
    """
    strings = _Strings()
    least, most = program.batches
    numbers = {size.name: row for row, size in enumerate(program.sizes)}
    sections = {
        b"PROGRAM": _rows([[program.arena_bytes, program.thread_slots or 0, len(program.kernels), least, -1 if most is None else most]], 5),
        b"INPUTS": _ports(program.inputs, strings, numbers),
        b"OUTPUTS": _ports(program.outputs, strings, numbers),
        b"SIZES": _rows([[strings.add(size.name), size.least, size.most] for size in program.sizes], 3),
        b"PATCHES": _rows([[_TABLES.index(t), at, numbers[size], *rest] for t, at, size, *rest in (p.plain() for p in program.patches)], 6),
        b"RECORDS": program.records,
        b"GROUPS": program.groups,
        b"MOVES": _rows([[r.field, get_args(Segment).index(r.segment), r.offset, r.port] for r in program.relocations], 4),
        b"FILES": _rows([[strings.add(name), len(content), *digest(content)] for name, content in files.items()], 6),
        b"WEIGHTS": _rows([[weights_offset, program.weights.nbytes]], 2),
        b"MACHINE": _rows([[strings.add(name)] for name in machine], 1),
    }
    if program.executor != "cpu":
        sections[b"RUNNER"] = _rows([[strings.add(program.executor)]], 1)
    return _sealed({**sections, b"STRINGS": strings.words()})


def flat_variants(programs: Mapping[str, bytes]) -> bytes:
    """The file of an artifact for several processors. ``programs``: by the names of their folders, what their own files hold."""
    strings = _Strings()
    rows = [[strings.add(name), *digest(content)] for name, content in programs.items()]
    return _sealed({b"VARIANTS": _rows(rows, 5), b"STRINGS": strings.words()})


def _rows(rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
    return np.array(rows, np.int64).reshape(-1, width)


def _ports(ports: Sequence[Port], strings: _Strings, sizes: Mapping[str, int]) -> np.ndarray:
    rows = []
    for port in ports:
        if len(port.shape) > MOST_AXES:
            raise ArtifactError(
                f"{port.name!r} has {len(port.shape)} axes besides the batch axis.", hint=f"At most {MOST_AXES} can be saved."
            )
        limit = -1 if port.limit is None else port.limit
        axes = [*port.shape, *[0] * (MOST_AXES - len(port.shape))]
        number, plus = (sizes.get(port.follows.symbol, -1), port.follows.plus) if port.follows else (-1, 0)
        rows.append([strings.add(port.name), DTYPES.index(port.dtype), len(port.shape), limit, number, plus, *axes])
    return _rows(rows, 6 + MOST_AXES)


def _sealed(sections: Mapping[bytes, np.ndarray]) -> bytes:
    """Header, directory and sections in one."""
    directory, bodies = [len(sections)], []
    first = _HEADER_WORDS + 1 + 4 * len(sections)
    for tag, table in sections.items():
        directory += [int.from_bytes(tag.ljust(8, b"\0"), "little"), first, *table.shape]
        bodies.append(np.ascontiguousarray(table, "<i8").tobytes())
        first += table.size
    content = np.array(directory, "<i8").tobytes() + b"".join(bodies)
    size = 8 * _HEADER_WORDS + len(content)
    return MAGIC + np.array([VERSION, size, *digest(content)], "<i8").tobytes() + content
