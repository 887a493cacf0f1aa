"""A kernel library of one kernel and programs that use it: the smallest thing that runs, saves and loads.

``affine``: y[i] = x[i] * weight[i] + shift, units of work are elements.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sparsec.run.affine import Affine
from sparsec.run.artifact import Variant
from sparsec.run.constants import Constants
from sparsec.run.program import GROUP_WIDTH, RECORD_WIDTH, Patch, Port, Program, Relocation, Size, Step

SIZE = 96
ANY_MACHINE = {"arch": "x86_64", "features": ["avx2", "bmi", "fma"], "mcpu": "plain"}
#: One with an instruction set that no processor has.
LARGER = {"arch": "x86_64", "features": [*ANY_MACHINE["features"], "amx-tile-9"], "mcpu": "larger"}
_FIELDS = {"x": 1, "y": 4, "weight": 7, "shift": 8}


@cache
def library() -> Path:
    """The library, built once per process."""
    from sparsec.backends.base import Param, Source
    from sparsec.backends.cpu import library as libraries
    from sparsec.backends.extents import over, reads, writes
    from sparsec.backends.x86.machine import machine

    params = (Param("x", "act", "float32"), Param("y", "act", "float32"), Param("weight", "ptr", "float32"), Param("shift", "f32"))
    units = over("begin", "end")
    touches = (reads("x", units), reads("weight", units), writes("y", units))
    return libraries.build(
        [Source("affine", params, _affine, touches)], machine(), Path(tempfile.gettempdir()) / f"sparsec-tiny-{os.getuid()}"
    )


def _affine() -> Any:
    from tvm.script import tirx as T

    far = 1 << 30

    @T.prim_func(private=True)
    def affine(
        x_: T.handle("float32"),
        y_: T.handle("float32"),
        weight_: T.handle("float32"),
        shift: T.float32,
        begin: T.int32,
        end: T.int32,
    ) -> T.int32:
        x = T.decl_buffer((far,), "float32", data=x_, align=4)
        y = T.decl_buffer((far,), "float32", data=y_, align=4)
        weight = T.decl_buffer((far,), "float32", data=weight_, align=4)
        for i in range(end - begin):
            y[begin + i] = x[begin + i] * weight[begin + i] + shift
        return T.int32(0)

    return affine


class Table:
    """Collects records of ``affine``; each is a group of its own unless told otherwise."""

    def __init__(self) -> None:
        self.records: list[np.ndarray] = []
        self.relocations: list[Relocation] = []
        self.weights: list[np.ndarray] = []

    def affine(self, x: tuple[Any, ...], y: tuple[Any, ...], weight: np.ndarray, shift: float) -> None:
        """Add y = x * weight + shift; a place is (segment, offset in bytes, port)."""
        row, base = np.zeros(RECORD_WIDTH, np.int64), len(self.records) * RECORD_WIDTH
        row[_FIELDS["shift"]] = int(np.float32(shift).view(np.int32))
        self.relocations += [Relocation(base + _FIELDS["x"], *x), Relocation(base + _FIELDS["y"], *y)]
        self.relocations.append(Relocation(base + _FIELDS["weight"], "weights", sum(w.nbytes for w in self.weights)))
        self.records.append(row)
        self.weights.append(weight.astype(np.float32))

    def program(
        self, inputs: tuple[Port, ...], outputs: tuple[Port, ...], sizes: list[int], groups: list[list[int]] | None = None
    ) -> Program:
        """The program of these records; ``sizes`` are elements per record."""
        count = len(self.records)
        groups = groups or [[i, i + 1, sizes[i], 0, 0] for i in range(count)]
        return Program(
            inputs=inputs,
            outputs=outputs,
            kernels=("affine",),
            records=np.array(self.records),
            groups=np.array(groups, np.int64),
            relocations=tuple(self.relocations),
            arena_bytes=4 * SIZE,
            weights=Constants.of(np.concatenate(self.weights)),
            steps=tuple(Step(f"layer{i}", "affine", "scale", 2 * sizes[i], 12 * sizes[i]) for i in range(count)),
        )


def chain(weight: float = 3.0, joined: bool = False) -> Program:
    """y = (x * weight + 1) * 2 + 0.5 through the arena; x and y are [batch, 4, 24]. ``joined``: both in one group."""
    table, full = Table(), np.ones(SIZE)
    table.affine(("input", 0, 0), ("arena", 0, 0), weight * full, 1.0)
    table.affine(("arena", 0, 0), ("output", 0, 0), 2 * full, 0.5)
    groups = [[0, 2, SIZE, 16, 0]] if joined else None
    return table.program((Port("x", (4, 24)),), (Port("y", (4, 24)),), [SIZE, SIZE], groups)


def variant(machine: dict[str, Any], weight: float = 3.0) -> Variant:
    """``chain()`` for a machine."""
    return Variant(chain(weight), library(), None, machine)


def strips(slots: int | None) -> Program:
    """``chain()`` in one group whose middle value lives in strip buffers of 16 elements, with room for ``slots`` threads (1 if None)."""
    program, strip = chain(joined=True), 16
    records = program.records.copy()
    for row, argument in ((0, "y"), (1, "x")):
        records[row, _FIELDS[argument] + 1 : _FIELDS[argument] + 3] = 4 * strip, 4
    return replace(program, records=records, arena_bytes=4 * strip * (slots or 1), thread_slots=slots)


def pair() -> Program:
    """Inputs a [batch, 8] and b [batch, 4]; outputs twice [batch, 8] = 2 a and more [batch, 4] = b + 1."""
    table = Table()
    table.affine(("input", 0, 0), ("output", 0, 0), 2 * np.ones(8), 0.0)
    table.affine(("input", 0, 1), ("output", 0, 1), np.ones(4), 1.0)
    return table.program((Port("a", (8,)), Port("b", (4,))), (Port("twice", (8,)), Port("more", (4,))), [8, 4])


TOKENS, FEATURES = 12, 8


def sized(masked: bool = False) -> Program:
    """y = (x * 3 + 1) * 2 + 0.5 through the arena; x and y are [batch, tokens, 8] with 1 to 12 tokens.

    ``masked``: a second input [batch, tokens], bool, says which are padding.
    """
    whole = chain()
    groups = whole.groups.copy()
    groups[:, 2] = TOKENS * FEATURES
    patches = tuple(Patch("groups", row * GROUP_WIDTH + 2, Affine("tokens", scale=FEATURES)) for row in range(2))
    x, y = (Port(name, (TOKENS, FEATURES), follows=Affine("tokens")) for name in "xy")
    inputs = (x, Port("mask", (TOKENS,), "bool", Affine("tokens"))) if masked else (x,)
    sizes = (Size("tokens", 1, TOKENS),)
    return replace(whole, groups=groups, inputs=inputs, outputs=(y,), sizes=sizes, patches=patches, padding=1 if masked else None)


def looked_up() -> Program:
    """``pair()`` whose second input is float32 and whose first is an index into 5 rows, moved as it is."""
    program = pair()
    return replace(program, inputs=(replace(program.inputs[0], dtype="int32", limit=5), program.inputs[1]))


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def expected(x: np.ndarray) -> np.ndarray:
    """What ``chain()`` computes."""
    return (x * 3 + 1) * 2 + np.float32(0.5)
