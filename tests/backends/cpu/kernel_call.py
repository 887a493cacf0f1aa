"""Runs kernels of the x86 backend through the real executor on numpy arrays, with guards around every array.

    kernels = Kernels([source_a, source_b], machine)
    x, y = to_halo(values, geometry), np.full(..., np.nan, np.float32)
    out = kernels.run([Call(source_a, {"x": At("x", geometry.front), "y": At("y"), "bias": bias, "rows": 8, "lo": 0.0, ...})],
                      {"x": x, "y": y}, units=geometry.tiles)
    out["y"]                                    # the array as the kernels left it; the arrays passed in are not changed

Argument values by parameter kind: ``act`` takes an ``At`` (or the name of a block), ``ptr`` an array, ``i32``/``f32`` a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparsec.backends.base import Machine, Source
from sparsec.backends.cpu import library
from sparsec.lower.layouts import Geometry
from sparsec.run.constants import Constants
from sparsec.run.program import RECORD_WIDTH, Port, Program, Relocation
from sparsec.run.runtime import Runner

GUARD = 1 << 14  # float32 elements on either side of a block: the 64 KiB that a kernel may read, not write


@dataclass(frozen=True)
class At:
    """A place in a memory block: ``offset`` elements from its start; ``per_slot``/``per_unit`` are elements (strip buffers only)."""

    block: str
    offset: int = 0
    per_slot: int = 0
    per_unit: int = 0


@dataclass(frozen=True)
class Call:
    """One record: a kernel and its arguments by parameter name."""

    source: Source
    arguments: Mapping[str, Any]


@dataclass
class _Table:
    """Records of one run, with where their addresses come from."""

    kernels: Mapping[str, int]
    records: np.ndarray
    constants: list[np.ndarray] = field(default_factory=list)
    relocations: list[Relocation] = field(default_factory=list)
    places: list[At] = field(default_factory=list)

    def add(self, row: int, call: Call) -> None:
        names = {p.name for p in call.source.params}
        if names != set(call.arguments):
            raise ValueError(f"{call.source.symbol}: arguments {sorted(names ^ set(call.arguments))} are missing or unknown")
        fields = [self.kernels[call.source.symbol]]
        for p in call.source.params:
            fields += self._fields(p.kind, p.dtype, call.arguments[p.name], row * RECORD_WIDTH + len(fields))
        self.records[row, : len(fields)] = fields

    def _fields(self, kind: str, dtype: str, value: Any, at: int) -> list[int]:
        if kind == "act":
            place = At(value) if isinstance(value, str) else value
            self.relocations.append(Relocation(at, "output", 4 * (GUARD + place.offset), len(self.places)))
            self.places.append(place)
            return [0, 4 * place.per_slot, 4 * place.per_unit]
        if kind == "ptr":
            self.relocations.append(Relocation(at, "weights", sum(map(len, self.constants))))
            self.constants.append(_padded_bytes(np.ascontiguousarray(value, dtype)))
            return [0]
        return [int(np.float32(value).view(np.int32)) if kind == "f32" else int(value)]


def _padded_bytes(array: np.ndarray) -> np.ndarray:
    raw = array.reshape(-1).view(np.uint8)
    return np.concatenate([raw, np.zeros(-len(raw) % 64 + 64, np.uint8)])


class _Block:
    """A copy of an array on a 64-byte boundary between two guards of NaN."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.length = name, array.size
        room = np.full(array.size + 2 * GUARD + 16, np.nan, np.float32)
        shift = -room.ctypes.data // 4 % 16
        self.whole = room[shift : shift + array.size + 2 * GUARD]
        self.inner = self.whole[GUARD : GUARD + array.size].reshape(array.shape)
        self.inner[...] = array

    def check(self) -> None:
        for side, guard in (("before", self.whole[:GUARD]), ("after", self.whole[GUARD + self.length :])):
            written = np.flatnonzero(~np.isnan(guard))
            if len(written):
                raise AssertionError(f"{len(written)} elements were written {side} block {self.name!r}, the first at {written[0]}")


class Kernels:
    """A library of kernels for one machine, built once and run many times."""

    def __init__(self, sources: Sequence[Source], machine: Machine, cache: Path | None = None) -> None:
        self.symbols = tuple(dict.fromkeys(s.symbol for s in sources))
        distinct = {s.symbol: s for s in sources}
        self.library = library.build([distinct[s] for s in self.symbols], machine, cache)

    def run(
        self, calls: Sequence[Call], memory: Mapping[str, np.ndarray], units: int, strip: int = 0, threads: int = 1
    ) -> dict[str, np.ndarray]:
        """Run ``calls`` as one group and return the memory blocks afterwards; a write outside a block is an AssertionError."""
        blocks = {name: _Block(name, array) for name, array in memory.items()}
        self.runner(calls, {n: b.inner for n, b in blocks.items()}, units, strip, threads)()
        for block in blocks.values():
            block.check()
        return {name: block.inner for name, block in blocks.items()}

    def runner(self, calls: Sequence[Call], memory: Mapping[str, np.ndarray], units: int, strip: int = 0, threads: int = 1) -> Any:
        """A function of no arguments that runs ``calls`` in place on ``memory`` (for timing; the caller keeps the arrays alive)."""
        table = _Table({s: i for i, s in enumerate(self.symbols)}, np.zeros((len(calls), RECORD_WIDTH), np.int64))
        for row, call in enumerate(calls):
            table.add(row, call)
        program = Program(
            inputs=(),
            outputs=tuple(Port(place.block, (memory[place.block].nbytes // 4 + 2 * GUARD,)) for place in table.places),
            kernels=self.symbols,
            records=table.records,
            groups=np.array([[0, len(calls), units, strip, 0]], np.int64),
            relocations=tuple(table.relocations),
            arena_bytes=64,
            weights=Constants.of(np.concatenate([*table.constants, np.zeros(64, np.uint8)])),
            steps=(),
        )
        runner = Runner(program, self.library, threads)
        addresses = [memory[place.block].ctypes.data - 4 * GUARD for place in table.places]
        return lambda: runner.run_addresses([], addresses, 1)


def to_halo(x: np.ndarray, g: Geometry) -> np.ndarray:
    """[C, H, W] -> [C, g.stride] with zero pads; pixel (c, 0, 0) is at [c, g.front]."""
    out = np.zeros((len(x), g.stride), np.float32)
    out[:, g.front : g.front + g.pixels].reshape(len(x), g.height, g.pitch)[:, :, : g.width] = x
    return out


def from_halo(storage: np.ndarray, g: Geometry) -> np.ndarray:
    """[C, g.stride] -> [C, H, W]"""
    return storage[:, g.front : g.front + g.pixels].reshape(len(storage), g.height, g.pitch)[:, :, : g.width]


def to_tiled(x: np.ndarray, g: Geometry) -> np.ndarray:
    """[C, H, W] -> [tiles, C, tile]; pads are NaN, because nobody may use them."""
    out = np.full((len(x), g.tiles * g.tile), np.nan, np.float32)
    out[:, : g.pixels].reshape(len(x), g.height, g.pitch)[:, :, : g.width] = x
    return np.ascontiguousarray(out.reshape(len(x), g.tiles, g.tile).swapaxes(0, 1))


def from_tiled(storage: np.ndarray, g: Geometry) -> np.ndarray:
    """[tiles, C, tile] -> [C, H, W]"""
    channels = storage.shape[1]
    rows = storage.swapaxes(0, 1).reshape(channels, -1)[:, : g.pixels]
    return rows.reshape(channels, g.height, g.pitch)[:, :, : g.width]


def pixel_mask(g: Geometry) -> np.ndarray:
    """[tiles * tile]: 1 on pixels, 0 on pads and on the tail of the last tile."""
    out = np.zeros(g.tiles * g.tile, np.float32)
    out[: g.pixels].reshape(g.height, g.pitch)[:, : g.width] = 1
    return out
