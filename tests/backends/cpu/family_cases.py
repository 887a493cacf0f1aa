"""Specs with random operands, run through families of kernels: spec → family → calls of a schedule → program → executor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsec.autotune.activations import read_by, storage_elements
from sparsec.autotune.expected import magnitude, reference
from sparsec.autotune.kernel_case import stored
from sparsec.backends.assemble import assemble
from sparsec.backends.cpu.access import layouts_of
from sparsec.backends.cpu.backend import Cpu
from sparsec.backends.plan import Buffer, Plan, Task
from sparsec.lower.layouts import Geometry, Storage
from sparsec.lower.spec import KernelSpec, Schedule
from sparsec.run.dtypes import dtype_of
from sparsec.run.program import Port, Program
from sparsec.run.runtime import Runner

BATCH = 2
_TILE = 16  # pixels: several tiles in small maps, and little to compile
ROOM = 1 << 14  # elements before the first and after the last image: kernels may read them, nobody may write them
_NAN = 0xFFFFFFFF  # in float32 and in float16
_NUMBERS = {"ids": "int64", "index": "int64", "plan": "int64"}
#: Operators whose vectors of one number per token, sources or results, live in rows.
_ROWS = {"token_scores", "keep_tokens", "gather_keys", "merge_plan", "merge_sizes", "log_sizes", "token_sizes", "key_bias"}
_INTEGERS = {"keep_tokens", "merge_plan"}


def pairwise(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Choices of one value per axis in which every two values of two axes meet."""
    names, random = list(axes), np.random.default_rng(0)
    left = {((a, i), (b, j)) for a, b in itertools.combinations(names, 2) for i in range(len(axes[a])) for j in range(len(axes[b]))}
    while left:
        rows = [{name: int(random.integers(len(axes[name]))) for name in names} | dict(min(left)) for _ in range(20)]
        best = max(rows, key=lambda row: len(_met(row) & left))
        left -= _met(best)
        yield {name: axes[name][i] for name, i in best.items()}


def _met(row: dict[str, int]) -> set[Any]:
    return set(itertools.combinations(row.items(), 2))


@dataclass(frozen=True)
class Case:
    """A spec, where its values live (maps: "halo" or "tiled") and what share of its weights is left; ``mask``: dtype of a padding mask.

    Numbers are of the spec's dtype.
    """

    spec: KernelSpec
    source: str = "halo"
    target: str = "halo"
    residual: str = "halo"
    density: float = 0.3
    pad: int = 4
    mask: str = "float32"

    def of(self, dtype: str) -> Case:
        """The same in another dtype."""
        mask = dtype if self.mask == self.spec.dtype else self.mask
        return replace(self, spec=replace(self.spec, dtype=dtype), mask=mask)


def task_of(case: Case, number: int) -> tuple[Task, list[np.ndarray]]:
    """The task of a case with weights, and its activations [BATCH, ...] in the order of sources and residual."""
    spec, random = case.spec, np.random.default_rng(number)
    names = [n for n in spec.operands() if n != "residual"][: len(spec.inputs)]
    weights = tuple(None if w is None else _weight(w, case.density, random).astype(spec.dtype) for w in spec.weights)
    shapes = [*zip(names, spec.inputs, strict=True), *([("residual", spec.residual)] if spec.residual else [])]
    values = [_activation(name, (BATCH, *shape), case, random) for name, shape in shapes]
    sources = tuple(Buffer(n, _source(case, n, shape)) for n, shape in shapes[: len(names)])
    residual = Buffer("residual", _storage(case, spec.output, case.residual)) if spec.residual else None
    target = Buffer("y", _storage(case, spec.output, case.target, "int64" if spec.op in _INTEGERS else spec.dtype))
    return Task(f"case{number}", spec, sources, residual, target, weights), values


def _weight(shape: tuple[int, ...], density: float, random: np.random.Generator) -> np.ndarray:
    weight = random.standard_normal(shape).astype(np.float32)
    return weight * (random.random(shape) < density) if len(shape) > 1 else weight


def _activation(name: str, shape: tuple[int, ...], case: Case, random: np.random.Generator) -> np.ndarray:
    if name == "plan":
        return np.broadcast_to(np.minimum(np.arange(shape[1]), case.spec["keep"] - 1), shape).astype(np.int64)
    if name in _NUMBERS:
        return np.sort(random.integers(0, 3, shape), axis=-1)
    if case.spec.op == "key_bias":
        return random.integers(0, 2, shape).astype(case.mask)
    values = random.standard_normal(shape).astype(np.float32).astype(case.spec.dtype)
    return np.abs(values) + 0.5 if name == "sizes" or case.spec.op == "log_sizes" else values


def _source(case: Case, name: str, shape: tuple[int, ...]) -> Storage:
    spec, layouts = case.spec, layouts_of(case.spec)
    if layouts.planes > 1:
        planes = shape[0] * (1 if layouts.first_plane else layouts.planes**2)
        return Storage("halo", planes, Geometry(*spec.output[1:], case.pad, _TILE), spec.dtype)
    dtype = case.mask if spec.op == "key_bias" else _NUMBERS.get(name, spec.dtype)
    rows = name in ("ids", "index", "plan", "sizes", "key_bias")
    return _storage(replace(case, spec=replace(spec, op="keep_tokens")) if rows else case, shape, case.source, dtype)


def _storage(case: Case, shape: tuple[int, ...], layout: str, dtype: str = "") -> Storage:
    dtype = dtype or case.spec.dtype
    if len(shape) == 2:
        return Storage("tiled", shape[1], Geometry(1, shape[0], 0, _TILE), dtype)
    if len(shape) == 1 and (case.spec.op in _ROWS or layout == "token_major"):
        return Storage("token_major", 0, Geometry(1, shape[0], 0, _TILE), dtype)
    if shape[1:] in ((), (1, 1)):
        return Storage("single", shape[0], dtype=dtype)
    return Storage(layout, shape[0], Geometry(*shape[1:], case.pad, _TILE), dtype)  # type: ignore[arg-type]


class Memory:
    """BATCH images of one value, side by side between NaN. ``words``: of 4 bytes, in an image. ``origin``: its first pixel, in bytes."""

    def __init__(self, storage: Storage, images: Sequence[np.ndarray]) -> None:
        rows = [np.ascontiguousarray(x).view(np.uint8).reshape(-1) for x in images]
        nbytes = dtype_of(storage.dtype).nbytes
        words = -(-max(nbytes * storage_elements(storage), len(rows[0])) // 64) * 16
        whole = np.full(BATCH * words + 2 * ROOM + 16, _NAN, np.uint32).view(np.float32)
        self.first = ROOM + -(whole.ctypes.data // 4) % 16
        self.whole, self.words, self.storage = whole, words, storage
        for row, data in zip(self.images, rows, strict=True):
            row.view(np.uint8)[: len(data)] = data
        self.origin = nbytes * storage.origin
        self.address = whole.ctypes.data + 4 * self.first + self.origin

    @property
    def images(self) -> np.ndarray:
        return self.whole[self.first : self.first + BATCH * self.words].reshape(BATCH, -1)

    @property
    def outside(self) -> np.ndarray:
        return np.concatenate([self.whole[: self.first], self.whole[self.first + BATCH * self.words :]])


#: Runs a program for a machine with its library on reads and writes.
Execute = Callable[[Program, Path, Sequence["Memory"], Sequence["Memory"]], None]


def run(
    cases: Sequence[tuple[Case, int]], backend: Cpu, cache: Path, threads: int = 1, execute: Execute | None = None
) -> list[tuple[Case, Schedule, float]]:
    """Run each case by the schedule of a number, modulo how many there are, all in one program: the largest error of each.

    Errors are shares of the largest magnitude of a result, in half precision of that of a sum.
    """
    groups, reads, writes, results = [], [], [], []
    for number, (case, choice) in enumerate(cases):
        task, values = task_of(case, number)
        first = len(reads)
        sources = tuple(replace(b, port=("input", first + i)) for i, b in enumerate(task.sources))
        residual = task.residual and replace(task.residual, port=("input", first + len(sources)))
        task = replace(task, sources=sources, residual=residual, target=replace(task.target, port=("output", number)))
        schedules = backend.schedules(task)
        schedule = schedules[choice % len(schedules)]
        groups += backend.share(backend.lower(task, schedule))
        buffers = [*sources, *([residual] if residual else [])]
        reads += [
            Memory(b.storage, [_stored(case, i, x, b.storage) for x in v]) for i, (b, v) in enumerate(zip(buffers, values, strict=True))
        ]
        wanted = [stored(y, task.target.storage)[: task.target.storage.elements] for y in reference(task, values)]
        writes.append(Memory(task.target.storage, [_blank(task.target.storage, w) for w in wanted]))
        results.append((case, schedule, wanted, magnitude(task, values) if case.spec.dtype == "float16" else 0.0))
    program, library = _program(groups, reads, writes, backend, cache, threads)
    (execute or _here)(program, library, reads, writes)
    return [
        (case, schedule, _error(memory, wanted, least)) for (case, schedule, wanted, least), memory in zip(results, writes, strict=True)
    ]


def _stored(case: Case, index: int, x: np.ndarray, storage: Storage) -> np.ndarray:
    return stored(read_by(layouts_of(case.spec), x) if index == 0 else x, storage)


def _blank(storage: Storage, wanted: np.ndarray) -> np.ndarray:
    """What a target holds before: zeros in a halo map, which kernels keep where no pixel is."""
    return np.zeros_like(wanted) if storage.layout == "halo" or wanted.dtype.kind != "f" else np.full_like(wanted, np.nan)


def _program(
    groups: Any, reads: Sequence[Memory], writes: Sequence[Memory], backend: Cpu, cache: Path, threads: int
) -> tuple[Program, Path]:
    kernels = list({c.source.symbol: c.source for g in groups for c in g.calls}.values())
    library = backend.build(kernels, cache)
    names = [f"x{i}" for i in range(len(reads))], [f"y{i}" for i in range(len(writes))]
    ends = [
        tuple(Buffer(name, m.storage, (side, i)) for i, (name, m) in enumerate(zip(named, memories, strict=True)))
        for side, named, memories in zip(("input", "output"), names, (reads, writes), strict=True)
    ]
    program = assemble(Plan(tuple(groups), *ends), kernels, names, threads)
    sizes = [tuple(Port(n, (m.words,)) for n, m in zip(ns, ms, strict=True)) for ns, ms in zip(names, (reads, writes), strict=True)]
    return replace(program, inputs=sizes[0], outputs=sizes[1], thread_slots=threads), library


def _here(program: Program, library: Path, reads: Sequence[Memory], writes: Sequence[Memory]) -> None:
    runner = Runner(program, library, program.thread_slots or 1, room=4 * ROOM)
    runner.run_addresses([m.address for m in reads], [m.address for m in writes], BATCH)


def _error(memory: Memory, wanted: Sequence[np.ndarray], least: float) -> float:
    """The largest difference over the largest magnitude, at least 1 or ``least``; infinite where NaN or memory of others was written."""
    if not np.isnan(memory.outside).all():
        return np.inf
    worst = 0.0
    for found, want in zip(memory.images, wanted, strict=True):
        got = np.ascontiguousarray(found).view(want.dtype)[: len(want)]
        told = ~np.isnan(want) if want.dtype.kind == "f" else np.ones(len(want), bool)
        scale = max(np.abs(want[told]).max(initial=0.0), 1.0, least)
        with np.errstate(invalid="ignore"):
            difference = np.abs(got[told].astype(np.float64) - want[told])
        worst = max(worst, float(np.where(np.isnan(difference), np.inf, difference).max(initial=0.0) / scale))
    return worst
