"""Sparse layers on ARM processors that are not here, by LLVM's machine-code analyser: `python benchmarks/arm.py [--cpu cortex-a76]`.

For the 1x1 and linear layers of a network, predicted cycles of our kernels (the loops of the code that the backend makes for its default
schedule) and of the shapes of others' (`arm_rivals.py`), by the same model of the same processor. A layer is the turns of its inner loop
and what each row or block of outputs takes around them, as if each ran alone and all data were in the first cache; pads of maps and of
packed rows count. **Predicted, and no time**: the models know no caches and no prefetchers, and that of cortex-a76 is cortex-a57's.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated

import numpy as np
import typer
from arm_rivals import SHAPES, Cycles
from kernels import LAYERS, ON_TOKENS, Layer, layer_of
from rich.console import Console
from rich.table import Table

from sparsec.backends.arm.backend import Arm
from sparsec.backends.arm.machine import describe
from sparsec.backends.base import Machine, Source
from sparsec.backends.cpu.backend import TILES
from sparsec.backends.cpu.machine_code import Loop, Turn, around, assembly, busiest
from sparsec.backends.cpu.panel_costs import best_tile
from sparsec.backends.cpu.products import nominal_work
from sparsec.backends.plan import Buffer, Call, Task
from sparsec.errors import MachineError
from sparsec.lower.layouts import Storage
from sparsec.lower.spec import KernelSpec

NETWORKS = ("mobilenet_v1", "resnet50", "bert_base")
_TURNS = 200
#: Newer models first.
_ANALYSERS = (*(f"llvm-mca-{version}" for version in range(22, 15, -1)), "llvm-mca")


@cache
def analyser() -> str:
    """The newest analyser on PATH. MachineError where there is none."""
    for name in _ANALYSERS:
        if shutil.which(name):
            return name
    raise MachineError(
        "LLVM's machine-code analyser is not there.",
        why="No llvm-mca is on PATH.",
        hint="Install llvm-19 (Debian's name), or another from 16 on.",
    )


@cache
def cycles(lines: tuple[str, ...], cpu: str) -> float:
    """Predicted cycles of one turn of a loop of these instructions."""
    command = [analyser(), "-mtriple=aarch64", f"-mcpu={cpu}", f"-iterations={_TURNS}"]
    text = "\n".join(line for line in lines if not line.endswith(":"))
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    if found is None:
        raise MachineError(f"{analyser()} does not read a loop for {cpu}.", why=done.stderr.strip().splitlines()[0])
    return int(found[1]) / _TURNS


def instructions(lines: tuple[str, ...], _: str = "") -> float:
    """How many instructions one turn of a loop has."""
    return float(sum(not line.endswith(":") for line in lines))


@cache
def loops(kernel: Source, machine: Machine) -> tuple[Loop, list[Turn]]:
    """The inner loop of a kernel and the loops around it."""
    lines = assembly(kernel, machine)
    return busiest(lines), around(lines)


def task_of(layer: Layer, tokens: bool, tile: int) -> Task:
    """A layer between two maps in the layouts that networks have there, or between tokens."""
    outputs, inputs = layer.weight.shape
    space = layer.geometry(tile)
    if tokens:
        spec = KernelSpec("linear", ((layer.width, inputs),), (layer.width, outputs), ((outputs, inputs), None))
        weight = layer.weight
    else:
        sizes, plain = (layer.height, layer.width), {"stride": (1, 1), "dilation": (1, 1), "padding": (0, 0), "groups": 1}
        weight = layer.weight[:, :, None, None]
        spec = KernelSpec("conv2d", ((inputs, *sizes),), (outputs, *sizes), (weight.shape, None), attributes=tuple(sorted(plain.items())))
    storages = Storage("tiled", inputs, space), Storage("tiled" if tokens else "halo", outputs, space)
    source, target = (Buffer(name, storage) for name, storage in zip("xy", storages, strict=True))
    return Task(layer.name, spec, (source,), None, target, (weight, None))


def tiles_of(layers: Sequence[Layer], tokens: bool, machine: Machine) -> dict[tuple[int, int], int]:
    """The tile of each size of map, on which its layers together are predicted fastest."""
    works = defaultdict(list)
    for layer in layers:
        task = task_of(layer, tokens, TILES[0])
        works[layer.height, layer.width].append(nominal_work(task.spec, task.target.storage.index_space, machine))
    return {size: best_tile(found, machine, TILES if tokens else machine.panels.tiles) for size, found in works.items()}


def ours(call: Call, machine: Machine, cost: Cycles) -> float:
    """What the call of a product costs: turns of each loop of its kernel times what one of them costs.

    The inner loop has as many turns as multiply-adds are to be made; those around are over rows or blocks of them in every panel, where a
    block goes through several panels of a tile over blocks, and over tiles.
    """
    choices, row_start = call.detail["schedule"], call.constants["row_start"]
    space, vectors = call.buffers["y"].storage.index_space, choices["vectors"]
    panels = space.tiles * space.tile // (vectors * machine.vector.lanes)
    rows = len(row_start) - 1
    inner, outer = loops(call.source, machine)
    multiplies = int(row_start[-1]) * choices.get("rows", 1) * vectors * panels
    turns = [rows * panels, *[rows * space.tiles] * (choices["kernel"] == "block" and panels > space.tiles), space.tiles]
    around_it = sum(count / turn.inner * cost(turn.lines) for count, turn in zip(turns, outer, strict=False))
    return multiplies / len(inner.multiplies) * cost(inner.lines) + around_it


@dataclass(frozen=True)
class Row:
    """A layer ``count`` times: predicted cycles and instructions of ours and of each rival."""

    name: str
    count: int
    kernel: str
    cycles: tuple[float, ...]
    instructions: tuple[float, ...]


def rows_of(network: str, density: float, rows: int, machine: Machine) -> list[Row]:
    """The layers of a network that keep ``density`` of their blocks of ``rows`` outputs x 1 input."""
    rng, tokens, backend = np.random.default_rng(0), network in ON_TOKENS, Arm(machine)
    layers = [layer_of(shape, tokens, density, rows, rng) for shape in LAYERS[network]]
    tiles = tiles_of(layers, tokens, machine)
    return [row_of(layer, task_of(layer, tokens, tiles[layer.height, layer.width]), rows, backend) for layer in layers]


def row_of(layer: Layer, task: Task, rows: int, backend: Arm) -> Row:
    """One layer by its default schedule."""
    call = backend.lower(task, backend.schedules(task)[0])[0].calls[0]
    blocks = -(-len(layer.weight) // rows)
    nonzeros = int((layer.weight.reshape(blocks, rows, -1) != 0).any(axis=1).sum())

    def costs(cost: Cycles) -> tuple[float, ...]:
        rivals = (shape.layer(layer.height * layer.width, nonzeros, blocks, cost) for shape in SHAPES[rows])
        return (ours(call, backend.machine, cost), *rivals)

    kernel = call.source.symbol.partition("_uint")[0].partition("_int")[0]
    return Row(layer.name, layer.count, kernel, costs(lambda lines: cycles(lines, backend.machine.mcpu)), costs(instructions))


def table_of(title: str, rows: Sequence[Row], names: Sequence[str]) -> Table:
    """One line per layer, and their sum."""
    table = Table(title=title)
    table.add_column("layer")
    table.add_column("kernel")
    for heading in ("ours", *(text for name in names for text in (name, "ratio"))):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(f"{row.name}{f' x{row.count}' * (row.count > 1)}", row.kernel, *_cells(row.cycles))
    for what, end in (("cycles", True), ("instructions", False)):
        total = np.sum([np.multiply(row.count, getattr(row, what)) for row in rows], axis=0)
        table.add_row(f"all: {what}", "", *_cells(total), end_section=end)
    table.caption = f"predicted by {analyser()}, thousands; a ratio is the rival's to ours"
    return table


def _cells(costs: Sequence[float]) -> list[str]:
    first, *others = costs
    return [f"{first / 1e3:.0f}", *(text for other in others for text in (f"{other / 1e3:.0f}", f"{other / first:.2f}"))]


def main(
    model: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(LAYERS)}.")] = ",".join(NETWORKS),
    density: Annotated[str, typer.Option(help="Comma-separated parts of nonzero weights.")] = "0.2,0.1",
    rows: Annotated[str, typer.Option(help="Comma-separated outputs per pruned block, of 1, 2, 4; 1 is unstructured.")] = "1,4",
    cpu: Annotated[str, typer.Option(help="Comma-separated processors.")] = "cortex-a76,neoverse-n1",
) -> None:
    """Predict the 1x1 or linear layers of networks."""
    for name in cpu.split(","):
        for network in model.split(","):
            for part in map(float, density.split(",")):
                for block in map(int, rows.split(",")):
                    title = f"{name}: {network}, density {part:g}, blocks of {block}"
                    found = rows_of(network, part, block, describe(name))
                    Console(width=140).print(table_of(title, found, [shape.name for shape in SHAPES[block]]))


if __name__ == "__main__":
    typer.run(main)
