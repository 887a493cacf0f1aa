"""Instructions that kernels for ARM run, counted by an emulator: a second opinion on `arm.py`'s. `python benchmarks/arm_counts.py`.

A layer is what a chain of two takes more than one of them, and two samples more than one sample: what starts a program, and what changes
layouts at its ends, goes out. The emulator runs one instruction at a time and says each; what it says is counted and not kept.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from arm import instructions, ours, task_of, tiles_of
from kernels import LAYERS, Layer, layer_of
from rich.console import Console
from rich.table import Table
from torch import nn

import sparsec
from sparsec.backends.arm.backend import Arm
from sparsec.backends.arm.machine import describe
from sparsec.backends.plan import Buffer
from sparsec.lower.layouts import Storage
from sparsec.run.inspection import inspect

_EMULATOR = ("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu", "-singlestep", "-d", "exec,nochain")


def executed(artifact: Path, cpu: str, batch: int) -> int:
    """How many instructions a process takes that loads an artifact and runs ``batch`` samples."""
    program = artifact / "run"
    sources = [artifact / "example.c", artifact / "sparsec.c"]
    subprocess.run(["aarch64-linux-gnu-gcc", "-O2", "-I", artifact, *sources, "-ldl", "-lpthread", "-o", program], check=True)
    line = [*_EMULATOR, "-cpu", cpu, str(program), str(artifact), "1", str(batch)]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        count = sum(part.count(b"Trace ") for part in iter(lambda: process.stderr.read(1 << 20), b""))  # type: ignore[union-attr]
    if process.returncode:
        raise RuntimeError(f"{program} ended with {process.returncode}")
    return count


def chain(layer: Layer, length: int) -> nn.Module:
    """``length`` times the layer, with an activation each."""
    outputs, inputs = layer.weight.shape
    found: list[nn.Module] = []
    for _ in range(length):
        convolution = nn.Conv2d(inputs, outputs, 1)
        with torch.no_grad():
            convolution.weight.copy_(torch.from_numpy(layer.weight)[:, :, None, None])
        found += [convolution, nn.ReLU()]
    return nn.Sequential(*found).eval()


def counted(layer: Layer, cpu: str, folder: Path) -> tuple[float, list[str]]:
    """Instructions of one layer for one sample, and the kernels of a chain of it."""
    x, counts, kernels = torch.randn(1, layer.weight.shape[1], layer.height, layer.width), [], []
    for length in (1, 2):
        compiled = sparsec.compile(chain(layer, length), (x,), threads=1, target="arm", cpu=cpu, cache_dir=folder / "cache")
        path = compiled.save(folder / f"{layer.name.replace('->', '-').replace(' ', '')}-{length}.sparsec")
        counts.append(executed(path, cpu, 2) - executed(path, cpu, 1))
        kernels = [each for found in inspect(path).variants for each in found.kernels]
    return counts[1] - counts[0], kernels


def predicted(layers: Sequence[Layer], backend: Arm) -> list[tuple[float, str]]:
    """Instructions of layers between tiled maps by the loops of their kernels, and these kernels."""
    found, tiles = [], tiles_of(layers, False, backend.machine)
    for layer in layers:
        task = task_of(layer, False, tiles[layer.height, layer.width])
        target = Storage("tiled", layer.weight.shape[0], task.target.storage.index_space)
        task = replace(task, target=Buffer("y", target))
        call = backend.lower(task, backend.schedules(task)[0])[0].calls[0]
        found.append((ours(call, backend.machine, instructions), call.source.symbol))
    return found


def main(
    model: Annotated[str, typer.Option(help=f"One of {', '.join(LAYERS)}; its layers of as many outputs as inputs.")] = "mobilenet_v1",
    density: Annotated[float, typer.Option(help="Part of nonzero weights.")] = 0.1,
    rows: Annotated[str, typer.Option(help="Comma-separated outputs per pruned block; 1 is unstructured.")] = "1,4",
    cpu: Annotated[str, typer.Option(help="A processor that the emulator knows.")] = "cortex-a76",
) -> None:
    """Count, and compare with what loops predict."""
    backend = Arm(describe(cpu))
    with tempfile.TemporaryDirectory() as folder:
        for block in map(int, rows.split(",")):
            rng = np.random.default_rng(0)
            layers = [layer_of(shape, False, density, block, rng) for shape in LAYERS[model]]
            table = Table("layer", "kernel", "counted", "predicted", "ratio", title=f"{cpu}: density {density:g}, blocks of {block}")
            for layer, (loops, kernel) in zip(layers, predicted(layers, backend), strict=True):
                if layer.weight.shape[0] == layer.weight.shape[1]:
                    found, kernels = counted(layer, cpu, Path(folder) / str(block))
                    same = kernel if kernel in kernels else f"{kernel}, runs {', '.join(kernels)}"
                    table.add_row(layer.name, same, f"{found:,.0f}", f"{loops:,.0f}", f"{found / loops:.3f}")
            Console(width=160).print(table)


if __name__ == "__main__":
    typer.run(main)
