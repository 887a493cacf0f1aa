"""From a region of the graph to a plan: buffers for values, conversions at the edges, one task per node.

caller's NCHW ─ load ─ flat ─ [kernels on flat / packed / vector values] ─ flat ─ unload ─ caller's NCHW
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from torch import fx

from sparsec.backends.base import Machine
from sparsec.backends.plan import Buffer, Call, Group, Plan, Task
from sparsec.forms import constant
from sparsec.layouts import Geometry, Storage
from sparsec.operands import operands, residual, shape_of, sources, weights
from sparsec.regions import Region, parity_step, reads_one_plane
from sparsec.spec import KernelSpec, Schedule


class Lowerer(Protocol):
    """What lowering asks of a backend."""

    machine: Machine
    tile: int

    def schedules(self, task: Task) -> list[Schedule]:
        """Candidate schedules of a task, the default first."""

    def lower(self, task: Task, schedule: Schedule) -> list[Group]:
        """The groups of calls that compute a task."""

    def share(self, groups: Sequence[Group]) -> list[Group]:
        """``groups``, in their order, with what threads take of each decided."""

    def copy(self, source: Buffer, target: Buffer) -> Call:
        """Move a value from one storage to another: nchw, flat, packed, vector, rows."""

    def planes(self, source: Buffer, target: Buffer, step: int) -> Call:
        """Space-to-depth of a contiguous or flat map into flat parity planes, all or the first of each channel."""


@dataclass
class _State:
    region: Region
    backend: Lowerer
    chosen: Mapping[str, Schedule]
    buffers: dict[fx.Node, Buffer] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    derived: dict[tuple[Buffer, str], Buffer] = field(default_factory=dict)
    tasks: list[Task] = field(default_factory=list)
    schedules: dict[str, Schedule] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Lowered:
    """A plan, the tasks it was made from and the schedule chosen for each, by node name."""

    plan: Plan
    tasks: tuple[Task, ...]
    schedules: Mapping[str, Schedule]


def lower_region(region: Region, backend: Lowerer, chosen: Mapping[str, Schedule] | None = None) -> Lowered:
    """Lower every node of ``region``; ``chosen`` names schedules by node, the backend's default serves the others."""
    state = _State(region, backend, chosen or {})
    inputs = tuple(_port(region, "input", i, node) for i, node in enumerate(region.inputs))
    outputs = tuple(_port(region, "output", i, node) for i, node in enumerate(region.outputs))
    state.buffers.update(zip(region.inputs, inputs, strict=True))
    ports = dict(zip(region.outputs, outputs, strict=True))
    for node, spec in region.specs.items():
        _lower_node(state, node, spec, ports.get(node))
    for node, port in ports.items():
        _deliver(state, state.buffers[node], port)
    return Lowered(Plan(tuple(backend.share(state.groups)), inputs, outputs), tuple(state.tasks), state.schedules)


def _port(region: Region, side: str, index: int, node: fx.Node) -> Buffer:
    shape = shape_of(node)
    if len(shape) == 3:
        storage = Storage("nchw", shape[0], Geometry(*shape[1:], pad=0))
    elif len(shape) == 2:
        storage = Storage("rows", shape[1], region.geometry(node))
    else:
        inside = region.storage(node)
        storage = inside if inside.layout == "rows" else Storage("nchw", shape[0])
    return Buffer(node.name, storage, (side, index))


def _lower_node(state: _State, node: fx.Node, spec: KernelSpec, port: Buffer | None) -> None:
    storage = state.region.storage(node)
    if spec.op in ("alias", "convert"):
        state.buffers[node] = _as(state, state.buffers[operands(node)[0]], storage)
        return
    # A vector or row is contiguous wherever it lives: written straight to the caller's tensor.
    target = port if port is not None and storage.layout in ("vector", "rows") else None
    task = Task(
        node=node.name,
        spec=spec,
        sources=_sources(state, node, spec),
        residual=_residual(state, node),
        target=Buffer(node.name, storage) if target is None else replace(target, storage=storage),
        weights=tuple(_array(w, shape) for w, shape in zip(weights(node), spec.weights, strict=True)),
    )
    schedule = state.chosen.get(node.name) or state.backend.schedules(task)[0]
    state.tasks.append(task)
    state.schedules[node.name] = schedule
    state.groups += state.backend.lower(task, schedule)
    state.buffers[node] = task.target


def _array(node: fx.Node | None, shape: tuple[int, ...] | None) -> np.ndarray | None:
    """The constant of a node; what it holds once per sample is taken once."""
    tensor = constant(node)
    return None if tensor is None or shape is None else tensor.numpy().reshape(-1)[: math.prod(shape)].reshape(shape)


def _residual(state: _State, node: fx.Node) -> Buffer | None:
    other = residual(node)
    return None if other is None else _as(state, state.buffers[other], state.region.storage(other))


def _sources(state: _State, node: fx.Node, spec: KernelSpec) -> tuple[Buffer, ...]:
    step = parity_step(spec)
    read = sources(node)
    if step > 1:
        return (_planes(state, state.buffers[read[0]], spec, step),)
    return tuple(_as(state, state.buffers[a], state.region.storage(a)) for a in read)


def _as(state: _State, buffer: Buffer, storage: Storage) -> Buffer:
    """The value of ``buffer`` in another storage, converted at most once."""
    have = buffer.storage
    if (have.layout, have.geometry) == (storage.layout, storage.geometry):
        return buffer
    if _contiguous(have) and _contiguous(storage):
        return replace(buffer, storage=storage)
    if have.layout == "nchw" and storage.layout == "packed":
        buffer = _as(state, buffer, replace(storage, layout="flat"))
    if have.layout == "packed" and storage.layout == "vector":
        buffer = _as(state, buffer, replace(have, layout="flat"))
    key = (buffer, storage.layout)
    if key not in state.derived:
        made = Buffer(f"{buffer.name}.{storage.layout}", storage)
        state.groups.append(Group((state.backend.copy(buffer, made),)))
        state.derived[key] = made
    return state.derived[key]


def _contiguous(storage: Storage) -> bool:
    """Whether the value is one run of ``channels`` elements."""
    return storage.layout in ("vector", "nchw") and (storage.geometry is None or storage.geometry.height * storage.geometry.width == 1)


def _planes(state: _State, source: Buffer, spec: KernelSpec, step: int) -> Buffer:
    kept = 1 if reads_one_plane(spec) else step * step
    key = (source, f"planes{step}x{kept}")
    if key not in state.derived:
        channels, height, width = spec.inputs[0]
        if source.storage.layout == "packed":
            source = _as(state, source, Storage("flat", channels, state.region.space(height, width)))
        made = Buffer(f"{source.name}.planes{step}", Storage("flat", channels * kept, state.region.space(*spec.output[1:])))
        state.groups.append(Group((state.backend.planes(source, made, step),)))
        state.derived[key] = made
    return state.derived[key]


def _deliver(state: _State, buffer: Buffer, port: Buffer) -> None:
    if buffer.port == port.port:
        return
    if buffer.storage.layout == "packed" and port.storage.layout != "rows":
        buffer = _as(state, buffer, replace(buffer.storage, layout="flat"))
    state.groups.append(Group((state.backend.copy(buffer, port),)))
