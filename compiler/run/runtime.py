"""Runs a program with a kernel library. Imports numpy only: neither torch nor TVM."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

import numpy as np

from sparsec.errors import InvalidInput, MachineError
from sparsec.run.extents import Extents
from sparsec.run.inputs import NUMPY, check_indices, check_inputs, valid_tokens
from sparsec.run.instance import Idle, Instance
from sparsec.run.kernels import Entries, load_kernels
from sparsec.run.program import Program, Step

#: Samples of unequal length that run side by side, each with memory of its own.
_TOGETHER = 4


def _address(array: np.ndarray) -> int:
    """Where an array's data is; three times as fast as ``array.ctypes.data`` where that is possible."""
    if array.size and array.flags.writeable:
        buffer: Any = array
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    return array.ctypes.data


@dataclass(frozen=True)
class StepTime:
    """Seconds that one group of a program took; ``step`` sums up the group's records.

    Unpacks as name, kind, seconds, floating-point operations, bytes.
    """

    step: Step
    seconds: float

    def __iter__(self) -> Iterator[Any]:
        yield from (f"{self.step.node}: {self.step.kernel}", self.step.kind, self.seconds, self.step.flops, self.step.bytes)


class Runner:
    """A program bound to its weights and kernel library. Safe to call from several threads: each call has its own memory.

    ``executor`` is that of the programs it runs, "cpu" where kernels are a library for the host. What finds them elsewhere names its own.

    Args:
        program: tables, from the compiler or from an artifact.
        library: path of the kernel library.
        threads: threads of one call.
        room: bytes before and after every input and output that kernels may touch: inner layers that are measured have margins there.

    Raises:
        MachineError: the program is for another executor.
        InvalidInput: fewer than one thread, or more than the program has room for.
        ArtifactError: a kernel of the program would leave the program's memory.
    """

    executor = "cpu"

    def __init__(self, program: Program, library: Path, threads: int = 1, room: int = 0) -> None:
        _check_executor(program, self.executor)
        _check_threads(program, threads)
        self.program, self.library, self.threads = program, library, threads
        self._run, check = self._entries()
        self._extents = Extents(program, check, threads, room)
        self._idle = Idle(program, threads)

    def _entries(self) -> Entries:
        """What runs tables, and what checks them."""
        return load_kernels(self.library)

    def _instance(self) -> Instance:
        try:
            return self._idle.take()
        except MemoryError as error:
            raise MachineError("There is not enough memory to run the network.", why=str(error)) from error

    def _fit(self, instance: Instance, sizes: Mapping[str, int]) -> None:
        instance.fit(sizes)
        if sizes:
            self._extents.require(instance.records, instance.groups, sizes)

    def run_addresses(
        self, inputs: Sequence[int], outputs: Sequence[int], batch: int, sizes: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        """Run on raw addresses of contiguous tensors with a leading batch axis, whose run-time sizes are ``sizes``."""
        instance = self._instance()
        self._fit(instance, sizes)
        instance.bind(inputs, outputs)
        self._run(instance.words(batch))
        self._idle.give_back((instance,))

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Run on numpy arrays ``[batch, *port.shape]`` of the ports' dtypes.

        Raises:
            InvalidInput: wrong number, shape or dtype of inputs, an index out of range.
        """
        batch, sizes = check_inputs(self.program, inputs)
        arrays, outputs = self._prepared(inputs, batch, sizes)
        self.run_arrays(arrays, outputs, sizes)
        return outputs

    def run_arrays(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], sizes: Mapping[str, int]) -> None:
        """Run on contiguous arrays that were checked. Where padding is removed, ``outputs`` are zeroed first."""
        if self.program.padding is None:
            self.run_addresses([_address(a) for a in inputs], [_address(o) for o in outputs], len(outputs[0]), sizes)
            return
        for output in outputs:
            output.fill(0)
        follows = self.program.inputs[self.program.padding].follows
        assert follows is not None
        valid = valid_tokens(inputs[self.program.padding])
        for first in range(0, len(valid), _TOGETHER):
            batch = range(first, min(first + _TOGETHER, len(valid)))
            self._run_together([({**sizes, follows.symbol: int(valid[n])}, n) for n in batch], inputs, outputs)

    def _run_together(
        self, samples: Sequence[tuple[Mapping[str, int], int]], inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]
    ) -> None:
        """Samples with sizes of their own, layer by layer: what a layer reads of the weights is in cache from the second sample on."""
        instances = [self._instance() for _ in samples]
        for instance, (sizes, n) in zip(instances, samples, strict=True):
            self._fit(instance, sizes)
            instance.bind(*([x[n].ctypes.data for x in side] for side in (inputs, outputs)))
        for g in range(len(self.program.groups)):
            for instance in instances:
                self._run(instance.words_of(range(g, g + 1)))
        self._idle.give_back(instances)

    def _prepared(self, inputs: Sequence[np.ndarray], batch: int, sizes: Mapping[str, int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        ports = self.program.inputs
        arrays = [np.ascontiguousarray(x, NUMPY[port.dtype]) for port, x in zip(ports, inputs, strict=True)]
        check_indices(self.program, arrays)
        return arrays, [np.empty((batch, *port.shape_for(sizes)), NUMPY[port.dtype]) for port in self.program.outputs]

    def profile(self, inputs: Sequence[np.ndarray], repeats: int = 20) -> list[StepTime]:
        """Median seconds of each group over ``repeats`` runs on ``inputs``, group after group as in a real run.

        The host's cost of starting a group is measured too and taken off. InvalidInput as for a call.
        """
        batch, sizes = check_inputs(self.program, inputs)
        arrays, outputs = self._prepared(inputs, batch, sizes)
        addresses = [_address(a) for a in arrays], [_address(o) for o in outputs]
        runs = [self._timed(addresses, batch, sizes) for _ in range(max(repeats, 1) + 1)][1:]
        start_cost = median(times[-1] for times in runs)
        seconds = [max(median(column) - batch * start_cost, 0.0) for column in zip(*runs, strict=True)]
        return [StepTime(_summed(self.program, g), seconds[g]) for g in range(len(self.program.groups))]

    def _timed(self, addresses: tuple[list[int], list[int]], batch: int, sizes: Mapping[str, int]) -> list[float]:
        """Seconds of each group over the batch; last, of one start of nothing."""
        instance, clock = self._instance(), time.perf_counter
        self._fit(instance, sizes)
        instance.bind(*addresses)
        count = len(instance.groups)
        times = [0.0] * (count + 1)
        for _ in range(batch):
            for g in range(count):
                begin = clock()
                self._run(instance.words_of(range(g, g + 1)))
                times[g] += clock() - begin
            self._run(instance.words_of(range(0), moving=True))
        begin = clock()
        self._run(instance.words_of(range(0)))
        times[count] = clock() - begin
        self._idle.give_back((instance,))
        return times


def _summed(program: Program, group: int) -> Step:
    first, end = program.groups[group, :2]
    steps = program.steps[first:end]
    if len(steps) == 1:
        return steps[0]
    kinds = " + ".join(dict.fromkeys(s.kind for s in steps))
    node, kernel = (" + ".join(getattr(s, name) for s in steps) for name in ("node", "kernel"))
    return Step(node, kernel, kinds, sum(s.flops for s in steps), sum(s.bytes for s in steps))


def _check_executor(program: Program, executor: str) -> None:
    if program.executor != executor:
        raise MachineError(
            f"The program needs the executor {program.executor!r}, this one is {executor!r}.",
            why="It was compiled for another target.",
            hint="Compile the model again with target='native' (--target native).",
        )


def _check_threads(program: Program, threads: int) -> None:
    if threads < 1:
        raise InvalidInput(f"threads must be at least 1, got {threads}.")
    if program.thread_slots is not None and threads > program.thread_slots:
        raise InvalidInput(
            f"The program was compiled for at most {program.thread_slots} thread(s), {threads} were asked for.",
            hint=f"Compile with threads={threads}.",
        )
