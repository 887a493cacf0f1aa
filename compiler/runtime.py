"""Runs a program with a kernel library. Imports numpy and tvm-ffi only: neither torch nor TVM's compiler."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

import numpy as np

from sparsec.errors import ArtifactError, InvalidInput, MachineError
from sparsec.inputs import NUMPY, check_indices, check_inputs, valid_tokens
from sparsec.program import GROUP_WIDTH, Program, Step

_ALIGN = 64
#: Stencils read up to a row past a channel, and the last tile up to a tile: slack after the arena keeps such reads inside it.
_SLACK = 1 << 16
_WORD = 8
#: Samples of unequal length that run side by side, each with memory of its own.
_TOGETHER = 4

_loading = threading.Lock()


def find_tvm_runtime() -> Path | None:
    """TVM's small runtime library (threads, workspace): SPARSEC_TVM_RUNTIME, else of the installed wheel, which is not imported."""
    override = os.environ.get("SPARSEC_TVM_RUNTIME")
    if override:
        return Path(override)
    try:
        spec = importlib.util.find_spec("tvm")
    except ImportError:
        return None
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    return next((path for root in roots if (path := root / "lib" / "libtvm_runtime.so").exists()), None)


def load_tvm_runtime(bundled: Path | None = None) -> None:
    """Load TVM's runtime library for everybody in the process: kernels with parallel loops call into it through a hook.

    An installed TVM goes before the ``bundled`` library: one process holds only one of them, and ``import tvm`` brings its own.

    Raises:
        MachineError: there is neither, or it cannot be loaded.
    """
    import tvm_ffi

    with _loading:
        if tvm_ffi.get_global_func("runtime.config_threadpool", allow_missing=True) is not None:
            return
        path = find_tvm_runtime() or bundled
        if path is None:
            raise MachineError(
                "libtvm_runtime.so was not found.", hint="Install apache-tvm, or set SPARSEC_TVM_RUNTIME to the library's path."
            )
        os.environ.setdefault("TVM_BIND_THREADS", "0")  # default binding pins the caller's thread
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise MachineError("TVM's runtime library cannot be loaded.", where=str(path), why=str(error)) from error


@lru_cache(maxsize=64)
def load_kernels(library: Path, bundled_runtime: Path | None = None) -> Any:
    """The entry function ``sparsec_run`` of a kernel library. The file's name must change with its content."""
    import tvm_ffi

    load_tvm_runtime(bundled_runtime)
    try:
        return tvm_ffi.load_module(str(library)).get_function("sparsec_run")
    except Exception as error:
        raise ArtifactError(f"{library} is not a kernel library this process can load: {error}") from error


def _aligned(nbytes: int) -> np.ndarray:
    raw = np.zeros(nbytes + _ALIGN, np.uint8)
    shift = -raw.ctypes.data % _ALIGN
    return raw[shift : shift + nbytes]


def _address(array: np.ndarray) -> int:
    """Where an array's data is; three times as fast as ``array.ctypes.data`` where that is possible."""
    if array.size and array.flags.writeable:
        buffer: Any = array
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    return array.ctypes.data


class _Instance:
    """Private memory of one running call: the arena and a record table with absolute addresses."""

    def __init__(self, program: Program, weights: np.ndarray, threads: int) -> None:
        self.arena = _aligned(program.arena_bytes + _SLACK)
        self.program, self.threads = program, threads
        self.records = program.records.copy()
        self.groups = split(program.groups, threads)
        flat = self.records.reshape(-1)
        base = {"arena": self.arena.ctypes.data, "weights": weights.ctypes.data}
        ports = []
        for r in program.relocations:
            if r.segment in base:
                flat[r.field] = base[r.segment] + r.offset
            else:
                ports.append((r.field, r.segment == "output", r.port, r.offset))
        self.moves = np.zeros((max(len(ports), 1), 2), np.int64)
        self.ports = ports
        self.flat = flat
        self.addresses = (self.records.ctypes.data, self.groups.ctypes.data, self.moves.ctypes.data)
        self.counts = (len(self.groups), len(ports))
        self.patches = _patch_arrays(program)
        self.sizes: Mapping[str, int] | None = None
        self.fit({})

    def fit(self, sizes: Mapping[str, int]) -> None:
        """Let tables follow the sizes of a call; the largest where they are not given."""
        if sizes == self.sizes:
            return
        program, self.sizes = self.program, dict(sizes)
        known = {size.name: size.most for size in program.sizes} | self.sizes
        groups = program.groups.copy() if program.patches else program.groups
        tables = {"records": self.flat, "groups": groups.reshape(-1)}
        for (table, size), (index, plus, over, times) in self.patches.items():
            tables[table][index] = times * _quotient_up(known[size] + plus, over)
        self.groups[:] = split(groups, self.threads)
        for row, (field, is_output, port, _) in enumerate(self.ports):
            side = program.outputs if is_output else program.inputs
            self.moves[row] = field, side[port].bytes_of(sizes)

    def bind(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Point the records at the caller's tensors."""
        flat = self.flat
        for field, is_output, port, offset in self.ports:
            flat[field] = (outputs[port] if is_output else inputs[port]) + offset


def _patch_arrays(program: Program) -> dict[tuple[str, str], np.ndarray]:
    """Index, plus, over and times [4, patches] of the patches of a table that follow one size."""
    found: dict[tuple[str, str], list[tuple[int, ...]]] = {}
    for p in program.patches:
        found.setdefault((p.table, p.size), []).append((p.index, p.plus, p.over, p.times))
    return {key: np.array(rows, np.int64).T for key, rows in found.items()}


def split(groups: np.ndarray, threads: int) -> np.ndarray:
    """Groups with strip lengths and shares settled for a number of threads."""
    out = groups.reshape(-1, GROUP_WIDTH).copy()
    units, strip = out[:, 2], out[:, 3]
    share = _quotient_up(units, threads)
    out[:, 3] = np.where(strip > 0, np.minimum(strip, share), np.maximum(share, 1))
    out[:, 4] = _quotient_up(_quotient_up(units, np.maximum(out[:, 3], 1)), threads)
    return out


def _quotient_up(amount: np.ndarray, part: np.ndarray | int) -> np.ndarray:
    return (amount + part - 1) // part


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

    Args:
        program: tables, from the compiler or from an artifact.
        library: path of the kernel library.
        threads: threads of one call.
        bundled_runtime: TVM's runtime library to use where TVM is not installed.

    Raises:
        InvalidInput: fewer than one thread, or more than the program has room for.
    """

    def __init__(self, program: Program, library: Path, threads: int = 1, bundled_runtime: Path | None = None) -> None:
        _check_threads(program, threads)
        self.program, self.library, self.threads = program, library, threads
        self._run = load_kernels(library, bundled_runtime)
        self._weights = _aligned(max(program.weights.nbytes, 1))
        self._weights[: program.weights.nbytes] = program.weights.view(np.uint8).reshape(-1)
        self._idle: deque[_Instance] = deque()

    def _instance(self) -> _Instance:
        try:
            return self._idle.pop()
        except IndexError:
            pass
        try:
            return _Instance(self.program, self._weights, self.threads)
        except MemoryError as error:
            raise MachineError("There is not enough memory to run the network.", why=str(error)) from error

    def run_addresses(
        self, inputs: Sequence[int], outputs: Sequence[int], batch: int, sizes: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        """Run on raw addresses of contiguous tensors with a leading batch axis, whose run-time sizes are ``sizes``."""
        instance = self._instance()
        instance.fit(sizes)
        instance.bind(inputs, outputs)
        self._run(*instance.addresses, *instance.counts, batch, self.threads)
        self._idle.append(instance)

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
        symbol = self.program.inputs[self.program.padding].size
        valid = valid_tokens(inputs[self.program.padding])
        for first in range(0, len(valid), _TOGETHER):
            batch = range(first, min(first + _TOGETHER, len(valid)))
            self._run_together([({**sizes, symbol: int(valid[n])}, n) for n in batch], inputs, outputs)

    def _run_together(
        self, samples: Sequence[tuple[Mapping[str, int], int]], inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]
    ) -> None:
        """Samples with sizes of their own, layer by layer: what a layer reads of the weights is in cache from the second sample on."""
        instances = [self._instance() for _ in samples]
        for instance, (sizes, n) in zip(instances, samples, strict=True):
            instance.fit(sizes)
            instance.bind(*([x[n].ctypes.data for x in side] for side in (inputs, outputs)))
        for g in range(len(self.program.groups)):
            for instance in instances:
                records, groups, moves = instance.addresses
                self._run(records, groups + g * GROUP_WIDTH * _WORD, moves, 1, 0, 1, self.threads)
        self._idle.extend(instances)

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
        instance.fit(sizes)
        instance.bind(*addresses)
        records, groups, moves = instance.addresses
        count, move_count = instance.counts
        times = [0.0] * (count + 1)
        for _ in range(batch):
            for g in range(count):
                begin = clock()
                self._run(records, groups + g * GROUP_WIDTH * _WORD, moves, 1, 0, 1, self.threads)
                times[g] += clock() - begin
            self._run(records, groups, moves, 0, move_count, 1, self.threads)
        begin = clock()
        self._run(records, groups, moves, 0, 0, 1, self.threads)
        times[count] = clock() - begin
        self._idle.append(instance)
        return times


def _summed(program: Program, group: int) -> Step:
    first, end = program.groups[group, :2]
    steps = program.steps[first:end]
    if len(steps) == 1:
        return steps[0]
    kinds = " + ".join(dict.fromkeys(s.kind for s in steps))
    node, kernel = (" + ".join(getattr(s, name) for s in steps) for name in ("node", "kernel"))
    return Step(node, kernel, kinds, sum(s.flops for s in steps), sum(s.bytes for s in steps))


def _check_threads(program: Program, threads: int) -> None:
    if threads < 1:
        raise InvalidInput(f"threads must be at least 1, got {threads}.")
    if program.thread_slots is not None and threads > program.thread_slots:
        raise InvalidInput(
            f"The program was compiled for at most {program.thread_slots} thread(s), {threads} were asked for.",
            hint=f"Compile with threads={threads}.",
        )
