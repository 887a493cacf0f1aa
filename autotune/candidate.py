"""One candidate in the child process: built, checked against the reference in float64, timed.

A sample is one image through a program of the task alone. As in a network, its weights have left the second-level cache (a sweep over
another array), and its inputs have just been written (they are touched before the clock starts); image after image uses other buffers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from sparsec.autotune.activations import from_storage, read_by, rows, storage_elements, to_storage
from sparsec.autotune.expected import TOLERANCE, magnitude, reference
from sparsec.autotune.job import Job
from sparsec.backends.assemble import assemble
from sparsec.backends.base import Executor, Source
from sparsec.backends.plan import Buffer, Group, Plan, Task
from sparsec.lower.layouts import LINE_BYTES, Storage
from sparsec.run.program import Port, Program

IMAGES = 3
#: Bytes around the activations: kernels may read so many past the last channel.
SLACK = 1 << 16
EMPTY_CALLS = 31


class Wrong(Exception):
    """A candidate's result is not that of the reference; the text says by how much."""


class Bench:
    """A job's activations, their reference and the candidates built so far."""

    def __init__(self, job: Job) -> None:
        self.job = job = replace(job, task=_with_ports(job.task))
        values = _random_inputs(job)
        batch, dtype = [x[None] for x in values], job.task.spec.dtype
        self._reference, self._tolerance = reference(job.task, batch)[0], TOLERANCE[dtype]
        self._least = magnitude(job.task, batch) if dtype == "float16" else 0.0
        stored = [_stored(job, i, x) for i, x in enumerate(values)]
        self._inputs = [Images(s, fill) for s, fill in zip(_input_storages(job), stored, strict=True)]
        target = job.task.target.storage
        self._output = Images(target, np.full(storage_elements(target), np.nan, target.dtype))
        self._sweep = np.zeros(job.backend.machine.l2 // 2, np.float32)
        self._ready: dict[int, Any] = {}

    def prepare(self, candidate: int) -> dict[str, Any]:
        """Build and check a candidate: its error, digest of its lowered source, symbols and work. Wrong if it is wrong."""
        groups = self.job.backend.share(self.job.backend.lower(self.job.task, self.job.schedules[candidate]))
        kernels = _sources(groups)
        path = self.job.backend.build(kernels, self.job.cache)
        self._output.refill()
        self._ready[candidate] = self._loaded(self._program(groups, kernels), path)
        error = self._error()
        return {
            "error": error,
            "source": self.job.backend.digest(kernels),
            "kernels": [k.symbol for k in kernels],
            "flops": sum(call.flops for group in groups for call in group.calls),
        }

    def time(self, candidate: int, samples: int) -> list[int]:
        """Nanoseconds of ``samples`` runs of a prepared candidate, without what it costs the host to start one; one more warms up."""
        runner, start = self._ready[candidate]
        return above(start, [self._sample(runner, i % IMAGES) for i in range(samples + 1)])

    def _loaded(self, program: Program, path: Path) -> Any:
        """What ``time`` needs of a candidate, after one run of it."""
        runner = self.job.backend.runner(program, path, self.job.threads, room=SLACK)
        self._run(runner, 0)
        return runner, self._start_ns(program, path)

    def _sample(self, runner: Executor, image: int) -> int:
        self._sweep.sum()
        for images in self._inputs:
            images.one(image).sum()
        begin = time.perf_counter_ns()
        self._run(runner, image)
        return time.perf_counter_ns() - begin

    def _run(self, runner: Executor, image: int) -> None:
        runner.run_addresses([i.address(image) for i in self._inputs], [self._output.address(image)], 1)

    def _program(self, groups: Sequence[Group], kernels: Sequence[Source]) -> Program:
        task = self.job.task
        read = _read(task)
        plan = Plan(tuple(groups), read, (task.target,))
        names = [b.name for b in read], [task.target.name]
        program = assemble(plan, kernels, names, self.job.threads, executor=self.job.backend.executor)
        ports = [Port(b.name, (storage_elements(b.storage),)) for b in (*read, task.target)]
        return replace(program, inputs=tuple(ports[:-1]), outputs=(ports[-1],), thread_slots=self.job.threads)

    def _start_ns(self, program: Program, path: Path) -> float:
        """What a call costs the host that runs nothing."""
        empty = replace(program, records=program.records[:0], groups=program.groups[:0], relocations=(), patches=())
        nothing = self.job.backend.runner(empty, path, self.job.threads)
        addresses = [0] * len(program.inputs), [0]
        times = []
        for _ in range(EMPTY_CALLS):
            begin = time.perf_counter_ns()
            nothing.run_addresses(*addresses, 1)
            times.append(time.perf_counter_ns() - begin)
        return median(times)

    def _error(self) -> float:
        """Largest difference to the reference, as a share of what ``TOLERANCE`` says."""
        storage, stored = self.job.task.target.storage, self._output.one(0)
        if storage.layout == "halo":
            body = stored[: storage.elements]
            if np.any(rows(body, storage)[:, :, storage.index_space.width :] != 0):
                raise Wrong("wrong result: pad columns are not zero")
            if not np.isnan(body.reshape(storage.channels, -1)[:, : storage.index_space.front]).all():
                raise Wrong("wrong result: it wrote into the margin")
        return deviation(from_storage(stored, storage), self._reference, self._tolerance, self._least)


def deviation(found: np.ndarray, wanted: np.ndarray, tolerance: float, least: float = 0.0) -> float:
    """max |found - wanted| / max(|wanted|, least) over finite places. Wrong beyond ``tolerance``, or where only one of them is finite."""
    found, wanted = found.reshape(-1).astype(np.float64), wanted.reshape(-1)
    finite = np.isfinite(wanted)
    if not np.array_equal(found[~finite], wanted[~finite], equal_nan=True) or not np.isfinite(found[finite]).all():
        raise Wrong("wrong result: it is not finite where the reference is, or the reverse")
    scale = np.abs(wanted[finite]).max(initial=least)
    worst = np.abs(found[finite] - wanted[finite]).max(initial=0.0)
    error = float(worst / scale if scale else worst)
    if error > tolerance:
        raise Wrong(f"wrong result: max error {error:.1e} of the largest output, {tolerance:.0e} allowed")
    return error


class Images:
    """Several images of one value in its storage, one after the other, with room to read past the last. ``whole``: all, from a line on."""

    def __init__(self, storage: Storage, fill: np.ndarray) -> None:
        self._fill, self._origin = fill, storage.origin
        self._slack, line = SLACK // fill.itemsize, LINE_BYTES // fill.itemsize
        elements = IMAGES * len(fill) + 2 * self._slack
        raw = np.zeros(elements + line, fill.dtype)
        begin = -(raw.ctypes.data // fill.itemsize) % line
        self.whole = raw[begin : begin + elements]
        self.refill()

    def refill(self) -> None:
        """Every image as it was at first."""
        for image in range(IMAGES):
            self.one(image)[:] = self._fill

    def one(self, image: int) -> np.ndarray:
        """The elements of one image."""
        return self.whole[self._first(image) : self._first(image + 1)]

    def address(self, image: int, base: int | None = None) -> int:
        """Where pixel (0, 0) of channel 0 of an image is, where ``whole`` is at ``base``."""
        return self.begin(image, self.whole.ctypes.data if base is None else base) + self.whole.itemsize * self._origin

    def begin(self, image: int, base: int) -> int:
        """Where the first element of an image is, where ``whole`` is at ``base``."""
        return base + self.whole.itemsize * self._first(image)

    def _first(self, image: int) -> int:
        return self._slack + image * len(self._fill)


def above(start: float, samples: Sequence[int]) -> list[int]:
    """Samples without the first, which warms up, and without what it costs to start one; in nanoseconds."""
    return [max(round(sample - start), 1) for sample in samples[1:]]


def _sources(groups: Sequence[Group]) -> list[Source]:
    found = {call.source.symbol: call.source for group in groups for call in group.calls}
    return [found[symbol] for symbol in sorted(found)]


def _with_ports(task: Task) -> Task:
    """The task as a program of its own: what it reads and writes belongs to the caller, in the storages it has in the network."""
    sources = tuple(Buffer(f"x{i}", b.storage, ("input", i)) for i, b in enumerate(task.sources))
    residual = task.residual and Buffer("residual", task.residual.storage, ("input", len(sources)))
    return replace(task, sources=sources, residual=residual, target=Buffer("y", task.target.storage, ("output", 0)))


def _read(task: Task) -> tuple[Buffer, ...]:
    return (*task.sources, *([task.residual] if task.residual else []))


def _input_storages(job: Job) -> list[Storage]:
    return [b.storage for b in _read(job.task)]


def _random_inputs(job: Job) -> list[np.ndarray]:
    """Activations in the spec's own shapes and dtype; a residual has the output's shape."""
    random, task = np.random.default_rng(job.seed), job.task
    shapes = [*task.spec.inputs[: len(task.sources)], *([task.spec.output] if task.residual else [])]
    return [random.standard_normal(shape, np.float32).astype(task.spec.dtype) for shape in shapes]


def _stored(job: Job, index: int, x: np.ndarray) -> np.ndarray:
    return to_storage(read_by(job.backend.layouts(job.task.spec), x) if index == 0 else x, _input_storages(job)[index])
