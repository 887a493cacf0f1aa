"""The 1x1 and linear layers of a network, one kernel at a time: `python benchmarks/kernels.py --model mobilenet_v1 [--core 1]`.

For every layer and density, microseconds and GFLOP/s on the nonzeros (pads and tails of tiles not counted) of the schedules that the
backend would measure, predicted fastest first. One thread. Input and output were just written, as they are in a network, and the weights
are cold: layers and schedules take turns. Fastest of several passes. Every result is compared with float64 once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from sparsec.backends.base import Machine, Source
from sparsec.backends.cpu import library, panel_costs
from sparsec.backends.cpu.block import block, pack_block
from sparsec.backends.cpu.panel_costs import Work
from sparsec.backends.cpu.partition import one_run, units_of
from sparsec.backends.cpu.spmm import pack_rows, spmm
from sparsec.backends.x86.machine import machine as this_machine
from sparsec.lower.layouts import Geometry
from sparsec.lower.spec import Schedule
from sparsec.run.program import RECORD_WIDTH, Port, Program, Relocation
from sparsec.run.runtime import Runner

#: (outputs, inputs, side of a square map or number of tokens, how many); ResNet-50 without its three strided shortcuts.
LAYERS = {
    "mobilenet_v1": (
        *((64, 32, 112, 1), (128, 64, 56, 1), (128, 128, 56, 1), (256, 128, 28, 1), (256, 256, 28, 1), (512, 256, 14, 1)),
        *((512, 512, 14, 5), (1024, 512, 7, 1), (1024, 1024, 7, 1)),
    ),
    "mobilenet_v2": (
        *((16, 32, 112, 1), (96, 16, 112, 1), (24, 96, 56, 1), (144, 24, 56, 2), (24, 144, 56, 1), (32, 144, 28, 1), (192, 32, 28, 3)),
        *((32, 192, 28, 2), (64, 192, 14, 1), (384, 64, 14, 4), (64, 384, 14, 3), (96, 384, 14, 1), (576, 96, 14, 3), (96, 576, 14, 2)),
        *((160, 576, 7, 1), (960, 160, 7, 3), (160, 960, 7, 2), (320, 960, 7, 1), (1280, 320, 7, 1)),
    ),
    "resnet50": (
        *((64, 64, 56, 1), (256, 64, 56, 4), (64, 256, 56, 2), (128, 256, 56, 1), (512, 128, 28, 4), (128, 512, 28, 3)),
        *((256, 512, 28, 1), (1024, 256, 14, 6), (256, 1024, 14, 5), (512, 1024, 14, 1), (2048, 512, 7, 3), (512, 2048, 7, 2)),
    ),
    "bert_base": ((768, 768, 128, 48), (3072, 768, 128, 12), (768, 3072, 128, 12)),
    "vit_s16": ((1152, 384, 197, 12), (384, 384, 197, 12), (1536, 384, 197, 12), (384, 1536, 197, 12)),
}
#: Their maps are one row of tokens.
ON_TOKENS = ("bert_base", "vit_s16")
_CLAMP = (0.0, 6.0)


@dataclass(frozen=True)
class Layer:
    """A pruned 1x1 layer: weight [N, K], zeros in groups of ``block`` outputs, on a map (one row: tokens)."""

    weight: np.ndarray
    height: int
    width: int
    count: int

    @property
    def name(self) -> str:
        return f"{self.weight.shape[1]}->{self.weight.shape[0]} @{self.width}"

    @property
    def flops(self) -> int:
        return 2 * int(np.count_nonzero(self.weight)) * self.height * self.width

    def work(self) -> Work:
        outputs, inputs = self.weight.shape
        blocks = {r: len(pack_block(self.weight, np.zeros(inputs), r, "int32")["offset"]) for r in (4, 6, 8)}
        return Work(outputs, inputs, self.geometry(64).pixels, int(np.count_nonzero(self.weight)), blocks)

    def geometry(self, tile: int) -> Geometry:
        return Geometry(self.height, self.width, int(self.height > 1), tile)


def layer_of(shape: tuple[int, int, int, int], tokens: bool, density: float, rows: int, rng: np.random.Generator) -> Layer:
    """A random layer of ``shape`` that keeps ``density`` of the blocks of ``rows`` outputs x 1 input."""
    outputs, inputs, size, count = shape
    keep = np.repeat(rng.random((-(-outputs // rows), inputs)) < density, rows, axis=0)[:outputs]
    return Layer((rng.standard_normal((outputs, inputs)) * keep).astype(np.float32), 1 if tokens else size, size, count)


def kernel_of(schedule: Schedule, layer: Layer, machine: Machine) -> tuple[Source, dict[str, Any]]:
    """The kernel of a schedule and its constants."""
    choices: dict[str, Any] = dict(schedule)
    offsets = np.arange(layer.weight.shape[1]) * choices["tile"]
    index = "uint16" if offsets[-1] < 1 << 16 else "int32"
    if choices["kernel"] == "block":
        source = block(machine.vector, choices["rows"], choices["vectors"], choices["tile"], index, "clamp", False, True)
        return source, dict(pack_block(layer.weight, offsets, choices["rows"], index))
    unroll, parts = choices["unroll"], choices["parts"]
    source = spmm(machine.vector, choices["vectors"], index, "clamp", False, True, unroll=unroll, split=parts > 1, tile=choices["tile"])
    constants: dict[str, Any] = dict(pack_rows(layer.weight, offsets, index, unroll=unroll, parts=parts))
    return source, constants | ({"parts": parts} if parts > 1 else {})


class Candidate:
    """One schedule of one layer, with its own memory."""

    def __init__(self, layer: Layer, schedule: Schedule, machine: Machine, rng: np.random.Generator) -> None:
        self.layer, self.schedule = layer, schedule
        self.source, constants = kernel_of(schedule, layer, machine)
        self.geometry = g = layer.geometry(int(dict(schedule)["tile"]))
        outputs, inputs = layer.weight.shape
        self.x = rng.standard_normal((g.tiles, inputs, g.tile), np.float32)
        self.mask = np.zeros(g.tiles * g.tile, np.float32)
        self.mask[: g.pixels].reshape(g.height, g.pitch)[:, : g.width] = 1
        scalars = {"rows": outputs, "x_tile": inputs * g.tile, "y_tile": g.tile, "y_channel": g.stride, "r_tile": 0, "r_channel": 0}
        runs = one_run((len(constants["row"]) - 1) // constants.get("parts", 1))
        scalars |= {"runs": runs} | units_of(g.tiles, runs, by_rows=False)[1]
        self.arguments = constants | scalars | {"mask": self.mask, "lo": _CLAMP[0], "hi": _CLAMP[1]}
        self.seconds = np.inf

    def load(self, path: Path, number: int) -> None:
        """Bind to entry ``number`` of the kernel library at ``path``."""
        g = self.geometry
        self._x, self._y = aligned(self.x.shape), aligned((len(self.layer.weight), g.stride))
        start = self._y.ctypes.data + 4 * g.front
        program, places = one_call(self.source, self.arguments, number, g.tiles)
        addresses = [self._x.ctypes.data if name == "x" else start for name in places]
        self._run: Callable[[], None] = partial(Runner(program, path).run_addresses, addresses, [], 1)

    def measure(self) -> None:
        """One timed run."""
        self._y[...] = 0
        self._x[...] = self.x
        begin = perf_counter()
        self._run()
        self.seconds = min(self.seconds, perf_counter() - begin)

    def error(self) -> float:
        """Largest difference to float64 of the last run."""
        g = self.geometry
        flat = self.x.astype(np.float64).swapaxes(0, 1).reshape(self.x.shape[1], -1)
        want = np.clip(self.layer.weight.astype(np.float64) @ flat, *_CLAMP) * self.mask
        return float(abs(self._y[:, g.front : g.front + g.tiles * g.tile] - want).max())


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """A zeroed float32 array on a 64-byte boundary."""
    room = np.zeros(int(np.prod(shape)) + 16, np.float32)
    first = -room.ctypes.data % 64 // 4
    return room[first : first + int(np.prod(shape))].reshape(shape)


def one_call(source: Source, arguments: Mapping[str, Any], number: int, units: int) -> tuple[Program, list[str]]:
    """A program of one call of kernel ``number``; its inputs are the addresses of the activations named in the list."""
    record, weights = np.zeros(RECORD_WIDTH, np.int64), bytearray()
    relocations: list[Relocation] = []
    places: list[str] = []
    record[0], field = number, 1
    for p in source.params:
        if p.kind == "act":
            relocations.append(Relocation(field, "input", 0, len(places)))
            places.append(p.name)
        elif p.kind == "ptr":
            relocations.append(Relocation(field, "weights", len(weights)))
            raw = np.ascontiguousarray(arguments[p.name], p.dtype).tobytes()
            weights += raw + bytes(-len(raw) % 64)
        else:
            record[field] = np.float32(arguments[p.name]).view(np.int32) if p.kind == "f32" else arguments[p.name]
        field += 3 if p.kind == "act" else 1
    program = Program(
        inputs=tuple(Port(name, (0,)) for name in places),
        outputs=(),
        kernels=(),
        records=record[None],
        groups=np.array([[0, 1, units, 0, 0]], np.int64),
        relocations=tuple(relocations),
        arena_bytes=64,
        weights=np.frombuffer(bytes(weights), np.uint8),
        steps=(),
    )
    return program, places


def measure_all(layers: Sequence[Layer], machine: Machine, passes: int) -> list[list[Candidate]]:
    """The candidates of every layer, measured in turns."""
    rng = np.random.default_rng(1)
    rows = [[Candidate(layer, schedule, machine, rng) for _, schedule in panel_costs.candidates(layer.work(), machine)] for layer in layers]
    sources = {c.source.symbol: c.source for row in rows for c in row}
    path = library.build(list(sources.values()), machine, None)
    for row in rows:
        for c in row:
            c.load(path, list(sources).index(c.source.symbol))
    for _ in range(passes):
        for candidates in zip(*(row + [None] * (max(map(len, rows)) - len(row)) for row in rows), strict=True):
            for c in filter(None, candidates):
                c.measure()
    return rows


def describe(schedule: Schedule) -> str:
    """One word: s/b for sparse/block, then vectors, unroll x parts or rows, tile."""
    c = dict(schedule)
    return (
        f"s{c['vectors']}u{c['unroll']}p{c['parts']}t{c['tile']}" if c["kernel"] == "spmm" else f"b{c['rows']}x{c['vectors']}t{c['tile']}"
    )


def table_of(title: str, rows: Sequence[Sequence[Candidate]], shown: int) -> Table:
    """One row per layer; the best time and the first, predicted fastest, candidates."""
    table = Table(title=title)
    for heading in ("layer", "best us", "GFLOP/s", "best", *("predicted" if i == 0 else f"#{i + 1}" for i in range(shown))):
        table.add_column(heading, justify="left" if heading in ("layer", "best") else "right")
    for row in rows:
        best, layer = min(row, key=lambda c: c.seconds), row[0].layer
        cells = [f"{describe(c.schedule)} {c.seconds * 1e6:.0f}" for c in row[:shown]]
        name = f"{layer.name}{f' x{layer.count}' * (layer.count > 1)}"
        table.add_row(name, f"{best.seconds * 1e6:.0f}", f"{layer.flops / best.seconds / 1e9:.0f}", describe(best.schedule), *cells)
    totals = [sum(1e6 * s * row[0].layer.count for row, s in zip(rows, times, strict=True)) for times in _best_and_predicted(rows)]
    table.caption = (
        f"network: best {totals[0]:.0f} us, predicted {totals[1]:.0f} us; largest error {max(c.error() for r in rows for c in r):.1e}"
    )
    return table


def _best_and_predicted(rows: Sequence[Sequence[Candidate]]) -> tuple[list[float], list[float]]:
    return [min(c.seconds for c in row) for row in rows], [row[0].seconds for row in rows]


def main(
    model: Annotated[str, typer.Option(help=f"One of {', '.join(LAYERS)}.")] = "mobilenet_v1",
    density: Annotated[str, typer.Option(help="Comma-separated parts of nonzero weights.")] = "0.2,0.1,0.05",
    rows: Annotated[int, typer.Option(help="Outputs per pruned block: 1 is unstructured.")] = 1,
    passes: int = 12,
    shown: Annotated[int, typer.Option(help="Candidates to show.")] = 4,
    core: Annotated[int | None, typer.Option(help="Core to pin to.")] = None,
) -> None:
    """Measure the 1x1 or linear layers of a network."""
    if core is not None:
        os.sched_setaffinity(0, (core,))
    for d in map(float, density.split(",")):
        rng = np.random.default_rng(0)
        layers = [layer_of(shape, model in ON_TOKENS, d, rows, rng) for shape in LAYERS[model]]
        Console(width=160).print(table_of(f"{model}, density {d:g}, blocks of {rows}", measure_all(layers, this_machine(), passes), shown))


if __name__ == "__main__":
    typer.run(main)
