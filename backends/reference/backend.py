"""The backend whose kernels are the references of their specs: what a program means, on a machine without its target."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from sparsec.backends.base import Backend, Executor, Machine, Source
from sparsec.backends.interpreter import Interpreter
from sparsec.backends.plain import Plain
from sparsec.backends.plan import Call, Group, Move, Task
from sparsec.backends.reference.calls import computed, moved, run_record
from sparsec.backends.reference.machine import machine as this_machine
from sparsec.ir.miss import Miss
from sparsec.lower.costs import Costs
from sparsec.lower.layouts import Layouts, Storage
from sparsec.lower.regions import Region
from sparsec.lower.spec import KernelSpec, Schedule
from sparsec.run.dtypes import DTYPES
from sparsec.run.program import Program


class Reference(Plain):
    """Every spec that has a reference, in any storage. There is nothing to build: what a record does is among the program's constants.

    ``like``: a backend whose layouts, index spaces and refusals to take over, so that its programs can be checked where it cannot run.
    """

    name = executor = "reference"

    def __init__(self, machine: Machine | None = None, like: Backend | None = None) -> None:
        self.machine, self._like = machine or this_machine(), like
        self.tile = self.tile if like is None else like.tile

    def offers(self, spec: KernelSpec) -> Miss | None:
        """None if the reference takes what the spec says and gives a result of its shape."""
        refused = self._like and self._like.offers(spec)
        return refused or _refusal(spec)

    def kernels(self, task: Task, schedule: Schedule) -> tuple[Source, ...]:
        """What names the calls of a task."""
        return (computed(task).source,)

    def lower(self, task: Task, schedule: Schedule) -> list[Group]:
        """One call."""
        return [Group((computed(task),))]

    def covers(self, have: Storage, want: Storage, shape: tuple[int, ...]) -> bool:
        """Any storage that holds the value is copied to any other."""
        return have.dtype == want.dtype and have.holds(shape) and want.holds(shape)

    def move(self, move: Move) -> Call:
        """The call that writes a value from one buffer to another."""
        return moved(move)

    def layouts(self, spec: KernelSpec) -> Layouts:
        """All of them."""
        return super().layouts(spec) if self._like is None else self._like.layouts(spec)

    def costs(self) -> Costs:
        """Nothing here is fast: every region is worth what the others are."""
        return super().costs() if self._like is None else self._like.costs()

    def arrange(self, region: Region) -> Region:
        """``region`` with tiles; references need no pads."""
        return super().arrange(region) if self._like is None else self._like.arrange(region)

    def build(self, kernels: Sequence[Source], cache: Path | None) -> Path:
        """The path of nothing."""
        return Path(os.devnull)

    def runner(self, program: Program, library: Path, threads: int, room: int = 0) -> Executor:
        """What runs ``program``."""
        return Interpreter(self.executor, program, library, [run_record] * len(program.kernels), threads, room)

    def digest(self, kernels: Sequence[Source] = ()) -> str:
        """Identity of the operators by name."""
        return hashlib.sha256(" ".join(kernel.symbol for kernel in kernels).encode()).hexdigest()[:24]


BACKEND = Reference


@lru_cache(maxsize=4096)
def _refusal(spec: KernelSpec) -> Miss | None:
    """Why the reference of ``spec`` cannot be called, found by calling it without data."""
    dtypes = dict(spec.dtypes)
    unknown = [name for name in (spec.dtype, *dtypes.values()) if name not in DTYPES]
    if unknown:
        return Miss(f"{unknown[0]} is no dtype; known: {', '.join(DTYPES)}")

    def blank(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        dtype = getattr(torch, dtypes.get(name, spec.dtype))
        return torch.empty(shape, dtype=torch.float64 if dtype.is_floating_point else dtype, device="meta")

    try:
        values = [blank(name, (2, *shape)) for name, shape in zip(spec.operands(), spec.inputs, strict=False)]
        constants = [None if shape is None else blank("", shape) for shape in spec.weights]
        residual = None if spec.residual is None else blank("residual", (2, *spec.residual))
        result = spec.reference(*spec.arguments(values, constants, residual))
    except Exception as error:
        return Miss(f"its reference does not compute {spec.op}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
    made = tuple(result.shape[1:])
    return None if made == spec.output else Miss(f"the reference of {spec.op} gives {made}, not {spec.output}")
