"""From a region of the graph to a plan: buffers for values, conversions at the edges, one task per node.

caller's NCHW ─ load ─ halo ─ [kernels on halo / tiled / single values] ─ halo ─ unload ─ caller's NCHW
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import fx

from sparsec.backends.base import Backend
from sparsec.backends.plan import Buffer, Group, Move, Plan, Task
from sparsec.backends.values import Value, copies, lies_as
from sparsec.ir.arguments import operands, shape_of
from sparsec.ir.arrays import array_of
from sparsec.ir.forms import constant
from sparsec.ir.operands import makes_rows, residual, sources, weights
from sparsec.lower.layouts import Layouts, Storage, dense
from sparsec.lower.regions import Region
from sparsec.lower.spec import KernelSpec, Schedule


@dataclass(frozen=True, eq=False)
class Draft:
    """What a region has to do, in order, before kernels are chosen for it."""

    steps: tuple[Task | Move, ...]
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]

    @property
    def tasks(self) -> list[Task]:
        """The steps that compute."""
        return [step for step in self.steps if isinstance(step, Task)]


@dataclass(frozen=True, eq=False)
class Lowered:
    """A plan, the tasks it was made from and the schedule chosen for each, by node name."""

    plan: Plan
    tasks: tuple[Task, ...]
    schedules: Mapping[str, Schedule]


@dataclass
class _State:
    region: Region
    backend: Backend
    values: dict[fx.Node, Value] = field(default_factory=dict)
    steps: list[Task | Move] = field(default_factory=list)
    derived: dict[tuple[Buffer | Value, Storage | str], Buffer] = field(default_factory=dict)


def draft(region: Region, backend: Backend) -> Draft:
    """One task for every node of ``region`` that computes, and the moves between storages that they need. No weights are packed."""
    state = _State(region, backend)
    inputs = tuple(_port(region, "input", i, node) for i, node in enumerate(region.inputs))
    outputs = tuple(_port(region, "output", i, node) for i, node in enumerate(region.outputs))
    state.values.update((node, Value.whole(port, shape_of(node))) for node, port in zip(region.inputs, inputs, strict=True))
    ports = dict(zip(region.outputs, outputs, strict=True))
    for node, spec in region.specs.items():
        _add_node(state, node, spec, ports.get(node))
    for node, port in ports.items():
        _deliver(state, state.values[node], port)
    return Draft(tuple(state.steps), inputs, outputs)


def lower(work: Draft, backend: Backend, chosen: Mapping[str, Schedule] | None = None) -> Lowered:
    """The calls of kernels that do ``work``; ``chosen`` names schedules by node, the backend's default serves the others."""
    schedules = {task.node: (chosen or {}).get(task.node) or backend.schedules(task)[0] for task in work.tasks}
    groups: list[Group] = []
    for step in work.steps:
        groups += [Group((backend.move(step),))] if isinstance(step, Move) else backend.lower(step, schedules[step.node])
    return Lowered(Plan(tuple(backend.share(groups)), work.inputs, work.outputs), tuple(work.tasks), schedules)


def _port(region: Region, side: str, index: int, node: fx.Node) -> Buffer:
    shape, inside = shape_of(node), region.storage(node)
    if inside.layout == "token_major":
        storage = inside
    elif len(shape) == 2:
        storage = Storage("token_major", shape[1], region.geometry(node), inside.dtype)
    else:
        storage = dense(shape, inside.dtype)
    return Buffer(node.name, storage, (side, index))


def _add_node(state: _State, node: fx.Node, spec: KernelSpec, port: Buffer | None) -> None:
    if spec.operator.is_view:
        state.values[node] = state.values[operands(node)[0]].viewed(spec.output, dict(spec.attributes).get("dims"))
        return
    storage = _written(state.region.storage(node), node)
    # A value in row-major order is so wherever it lives: written straight to the caller's tensor.
    target = Buffer(node.name, storage) if port is None or storage.is_map else port.read_as(storage)
    task = Task(
        node=node.name,
        spec=spec,
        sources=_sources(state, node, spec),
        residual=_residual(state, node),
        target=target,
        weights=tuple(_array(w, shape) for w, shape in zip(weights(node), spec.weights, strict=True)),
    )
    _check_layouts(task, state.backend)
    state.steps.append(task)
    state.values[node] = Value.whole(task.target, spec.output)


def _check_layouts(task: Task, backend: Backend) -> None:
    """ValueError where a map is stored as the kernels that the backend offers neither read nor write it."""
    layouts = backend.layouts(task.spec)
    for verb, known, buffer in (("read", layouts.reads, task.sources[0]), ("write", layouts.writes, task.target)):
        layout, space = buffer.storage.layout, buffer.storage.geometry
        if buffer.storage.is_map and space is not None and space.height * space.width > 1 and layout not in known:
            raise ValueError(
                f"{task.node}: the backend {backend.name!r} offers {task.spec.op}, but its kernels do not {verb} maps that are {layout}:"
                f" they {verb} {', '.join(known) or 'none'}, and regions have halo or tiled ones"
            )


def _written(storage: Storage, node: fx.Node) -> Storage:
    """The storage that a kernel writes: numbers per token that come from an operator on vectors are one."""
    return (
        Storage("single", storage.index_space.count, dtype=storage.dtype)
        if storage.layout == "token_major" and not makes_rows(node)
        else storage
    )


def _array(node: fx.Node | None, shape: tuple[int, ...] | None) -> np.ndarray | None:
    """The constant of a node, or its bits where numpy has no such numbers; what it holds once per sample is taken once."""
    tensor = constant(node)
    if tensor is None or shape is None:
        return None
    return array_of(tensor).reshape(-1)[: math.prod(shape)].reshape(shape)


def _residual(state: _State, node: fx.Node) -> Buffer | None:
    other = residual(node)
    return None if other is None else _read(state, other)


def _sources(state: _State, node: fx.Node, spec: KernelSpec) -> tuple[Buffer, ...]:
    read, layouts = sources(node), state.backend.layouts(spec)
    if layouts.planes > 1:
        return (_planes(state, state.values[read[0]], spec, layouts),)
    return tuple(_read(state, a) for a in read)


def _read(state: _State, node: fx.Node) -> Buffer:
    """A value in the storage that its readers expect."""
    return _as(state, state.values[node], state.region.storage(node))


def _as(state: _State, value: Value, storage: Storage) -> Buffer:
    """A value in another storage, moved at most once."""
    if value.is_whole and value.buffer.storage == storage:
        return value.buffer
    key = (value.buffer if value.is_whole else value, storage)
    if key not in state.derived:
        if lies_as(value, storage):
            state.derived[key] = value.buffer.read_as(storage)
        else:
            made = Buffer(f"{value.buffer.name}.{storage.layout}", storage)
            _move(state, value, made)
            state.derived[key] = made
    return state.derived[key]


def _move(state: _State, value: Value, target: Buffer) -> None:
    """Add what writes a value to a buffer: copies of rows where they serve, else every element goes by its address."""
    source, steps = value.buffer, copies(value, target.storage, state.backend.covers)
    if not steps:
        state.steps.append(Move(source, target, places=(value.places, target.storage.addresses(value.shape))))
        return
    for step in steps[:-1]:
        source = _as(state, Value.whole(source.read_as(step.have), step.shape), step.want)
    state.steps.append(Move(source.read_as(steps[-1].have), target.read_as(steps[-1].want), shape=steps[-1].shape))


def _planes(state: _State, value: Value, spec: KernelSpec, layouts: Layouts) -> Buffer:
    step = layouts.planes
    kept = 1 if layouts.first_plane else step * step
    key = (value, f"planes{step}x{kept}")
    if key not in state.derived:
        channels, height, width = spec.inputs[0]
        dtype = value.buffer.storage.dtype
        rows, halo = dense(spec.inputs[0], dtype), Storage("halo", channels, state.region.index_space(height, width), dtype)
        source = _as(state, value, rows if lies_as(value, rows) else halo)
        made = Buffer(f"{source.name}.planes{step}", Storage("halo", channels * kept, state.region.index_space(*spec.output[1:]), dtype))
        state.steps.append(Move(source, made, step=step))
        state.derived[key] = made
    return state.derived[key]


def _deliver(state: _State, value: Value, port: Buffer) -> None:
    """Write a value to the caller's tensor, unless its kernel did."""
    if not (value.is_whole and value.buffer.port == port.port):
        _move(state, value, port)
