"""A backend without choices: one kernel for each task, in the layouts that a region has, its calls one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from sparsec.backends.base import Machine, Source
from sparsec.backends.plan import Call, Group, Task
from sparsec.errors import MachineError
from sparsec.lower.costs import Costs
from sparsec.lower.layouts import Layouts, Storage
from sparsec.lower.regions import Region
from sparsec.lower.spec import KernelSpec, Schedule

_ONLY: Schedule = (("kernel", "only"),)


class Plain:
    """What ``Backend`` asks for, where there is nothing to choose; the rest is a subclass's."""

    name: str
    machine: Machine
    tile = 8

    def schedules(self, task: Task) -> list[Schedule]:
        """There is one way."""
        return [_ONLY]

    def share(self, groups: Sequence[Group]) -> list[Group]:
        """Threads take units as they come."""
        return list(groups)

    def covers(self, have: Storage, want: Storage, shape: tuple[int, ...]) -> bool:
        """No copies: values move element by element."""
        return False

    def layouts(self, spec: KernelSpec) -> Layouts:
        """All of them."""
        return Layouts()

    def costs(self) -> Costs:
        """Every region is worth its edges: nothing here is fast."""
        return Costs(edges=0.0)

    def arrange(self, region: Region) -> Region:
        """``region`` with tiles and without pads."""
        return replace(region, tile=self.tile)

    def verdict(self, task: Task, call: Call) -> None:
        """There was no choice."""

    def processors(self, cpuinfo: str) -> list[str]:
        """None: it is for any."""
        return []

    def build_alone(self, kernel: Source, path: Path) -> NoReturn:
        """MachineError: these kernels are not for others."""
        why = f"It is of target {self.name!r}."
        raise MachineError(f"{kernel.symbol} cannot stand alone.", why=why, hint="Compile for another target.")
