"""What CPU backends share: which specs they have kernels for, candidate schedules, and the calls that compute a task."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sparsec.backends.base import Executor, Machine, Source
from sparsec.backends.cpu import library, moves, partition
from sparsec.backends.cpu.access import layouts_of, pads_of
from sparsec.backends.cpu.families import FAMILIES, JOINED, PRODUCT
from sparsec.backends.cpu.matvec_calls import vector_matrix, vector_verdict
from sparsec.backends.cpu.panel_costs import Work, best_tile
from sparsec.backends.cpu.products import nominal_work, work_of
from sparsec.backends.cpu.verdict import Verdict, compare
from sparsec.backends.elsewhere import Elsewhere
from sparsec.backends.family import Family, choose
from sparsec.backends.plan import Call, Group, Move, Task
from sparsec.ir.miss import Miss
from sparsec.lower.costs import Costs
from sparsec.lower.layouts import Layouts, Storage
from sparsec.lower.regions import Region
from sparsec.lower.spec import KernelSpec, Schedule
from sparsec.run.program import Program
from sparsec.run.runtime import Runner

_SKIPPING = ("spmm", "gemv_rows", "gemv_windows")
#: Tokens per tile, and pixels where no product has chosen.
TILES = (64, 32)
#: Tokens per tile where their number follows a run-time size: work is saved by whole tiles.
FREE_TILE = 16


class Cpu:
    """Kernels in TensorIR for a CPU with vector registers. A backend is a subclass that names its target.

    ``tile`` is the pixels of a tile in the layouts where ``arrange`` has not chosen another.
    """

    name: str
    executor = Runner.executor

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.tile = TILES[0]

    def offers(self, spec: KernelSpec) -> Miss | None:
        """None if a kernel exists for ``spec``, else why not."""
        if spec.dtype not in self.machine.vector.computes:
            return Miss(f"{spec.op} is torch.{spec.dtype}, kernels compute in {', '.join(self.machine.vector.computes)}")
        found = choose(FAMILIES, spec)
        return found if isinstance(found, Miss) else None

    def _for(self, spec: KernelSpec) -> Machine:
        """The machine whose kernels compute in the dtype of ``spec``."""
        return self.machine.computing(spec.dtype)

    def _family(self, spec: KernelSpec) -> Family:
        """ValueError where there is none for this machine."""
        if refused := self.offers(spec):
            raise ValueError(f"no kernel computes {spec.op}: {refused.reason}")
        found = choose(FAMILIES, spec)
        assert isinstance(found, Family)
        return found

    def schedules(self, task: Task) -> list[Schedule]:
        """Candidates, the default first. Ops with one way to compute them have one, weights that are not finite dense ones only."""
        found = self._family(task.spec).schedules(task, self._for(task.spec))
        finite = json.loads(task.spec.weight_fact).get("reason") != "non-finite"
        return found if finite else [s for s in found if dict(s)["kernel"] not in _SKIPPING]

    def verdict(self, task: Task, call: Call) -> Verdict | None:
        """Why ``call``, whose task is a product, runs the kernel it runs; None for other tasks."""
        if call.kind not in ("dense", "sparse"):
            return None
        stays_dense, machine = call.kind == "dense", self._for(task.spec)
        if not task.target.storage.is_map:
            return vector_verdict(vector_matrix(task), machine, stays_dense)
        return compare(work_of(task, machine), machine, task.target.storage.index_space.tile, stays_dense)

    def layouts(self, spec: KernelSpec) -> Layouts:
        """How the kernels of ``spec`` read and write maps."""
        return layouts_of(spec)

    def costs(self) -> Costs:
        """What passes may know of the kernels' speed without a measurement."""
        # Joining a depthwise to its 1x1 convolution gained from four times L2 on (MobileNetV1 and V2, 224 and 448 pixels, 1 MiB of L2):
        # strips break the long streams of the depthwise, which costs more than a map that the next cache level holds.
        return Costs(joined_bytes=4 * self.machine.l2)

    def arrange(self, region: Region) -> Region:
        """``region`` with the pads that its stencils need, and the tile of each resolution on which its products together are fastest."""
        region = replace(region, pads=pads_of(region.specs.values()), tile=self.tile)
        works: dict[tuple[int, int], list[Work]] = defaultdict(list)
        for spec in region.specs.values():
            if choose(FAMILIES, spec) in (PRODUCT, JOINED):
                size = (1, spec.output[0]) if len(spec.output) == 2 else (spec.output[1], spec.output[2])
                works[size].append(nominal_work(spec, region.index_space(*size), self._for(spec)))
        machine = max(map(self._for, region.specs.values()), key=lambda each: each.vector.lanes, default=self.machine)
        whole = tuple(tile for tile in machine.panels.tiles if tile % machine.vector.lanes == 0)
        tiles = {size: best_tile(found, machine, whole) for size, found in works.items()}
        return replace(region, tiles=tiles | self._token_tiles(region, works, machine))

    def _token_tiles(self, region: Region, works: Mapping[tuple[int, int], list[Work]], machine: Machine) -> dict[tuple[int, int], int]:
        """One tile for all numbers of tokens: what chooses among tokens moves them between values of one tile."""
        sizes = {(1, spec.output[0]) for spec in region.specs.values() if len(spec.output) == 2}
        sizes |= {(1, shape[0]) for spec in region.specs.values() for shape in spec.inputs if len(shape) == 2}
        if region.follows:
            return dict.fromkeys(sizes, FREE_TILE)
        found = [work for size in sizes for work in works.get(size, [])]
        return dict.fromkeys(sizes, best_tile(found, machine, TILES)) if found else {}

    def lower(self, task: Task, schedule: Schedule) -> list[Group]:
        """The groups of calls that compute ``task``. ValueError where no family of kernels computes its spec."""
        groups = self._family(task.spec).groups(task, schedule, self._for(task.spec))
        return groups if task.spec.dtype == "float32" else [replace(g, calls=tuple(map(_packed, g.calls))) for g in groups]

    def kernels(self, task: Task, schedule: Schedule) -> tuple[Source, ...]:
        """The kernels that compute ``task``: they depend on shapes, storages and attributes, not on weights."""
        return self._family(task.spec).sources(task, schedule, self._for(task.spec))

    def share(self, groups: Sequence[Group]) -> list[Group]:
        """``groups``, in their order, with what threads take of each decided."""
        return partition.settle(groups)

    def covers(self, have: Storage, want: Storage, shape: tuple[int, ...]) -> bool:
        """Whether one kernel copies a value of ``shape`` from one storage to the other."""
        return moves.covers(have, want, shape, self.machine.vector.computes)

    def move(self, move: Move) -> Call:
        """The call that writes a value from one buffer to another."""
        return moves.call(move, self.machine.computing(move.source.storage.dtype))

    def build(self, kernels: Sequence[Source], cache: Path | None) -> Path:
        """The path of a library with these kernels."""
        return library.build(kernels, self.machine, cache)

    def build_alone(self, kernel: Source, path: Path) -> str:
        """Write a library of one C function to ``path``; the digest of its code."""
        return library.build_alone(kernel, self.machine, path)

    def runner(self, program: Program, library: Path, threads: int, room: int = 0) -> Executor:
        """What runs ``program`` with the kernels of ``library``, or refuses to where this is another machine."""
        return Elsewhere(program, threads, self.machine) if self.machine.not_here else Runner(program, library, threads, room=room)

    def processors(self, cpuinfo: str) -> list[str]:
        """None: what the machine of a backend is called is no name that Linux knows."""
        return []

    def digest(self, kernels: Sequence[Source] = ()) -> str:
        """Identity of the code of ``kernels``, or of all that kernels are made from."""
        return library.key(kernels, self.machine)


def _packed(call: Call) -> Call:
    """With constants in the dtypes that its kernel reads: they are packed in float32."""
    wanted = {param.name: np.dtype(param.dtype) for param in call.source.params if param.kind == "ptr"}
    return replace(call, constants={name: x.astype(wanted[name], copy=False) for name, x in call.constants.items()})
