"""From a plan to a program: addresses, the constants, records and relocations."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from sparsec.backends import arena
from sparsec.backends.base import Source
from sparsec.backends.plan import Buffer, Call, Plan
from sparsec.run.affine import Count
from sparsec.run.constants import Gathering
from sparsec.run.dtypes import DTYPES, dtype_of
from sparsec.run.program import GROUP_WIDTH, RECORD_WIDTH, Patch, Port, Program, Relocation, Size, Step


def float_bits(value: float) -> int:
    """The bits of a float32 as a signed integer, which is how a record holds it."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def assemble(
    plan: Plan,
    kernels: Sequence[Source],
    names: tuple[Sequence[str], Sequence[str]],
    threads: int,
    least: Mapping[str, int] | None = None,
    executor: str = "cpu",
) -> Program:
    """The program of ``plan`` for a library of ``kernels`` (kernel ids are positions), with names for inputs and outputs.

    ``least``: the smallest value of run-time sizes, 1 where it is not given. ``executor``: the backend's. The constants of the plan's calls
    are afterwards those of the program, so that they are in memory once.
    """
    ids = {source.symbol: number for number, source in enumerate(kernels)}
    offsets, nbytes = arena.place(plan, threads)
    calls = [call for group in plan.groups for call in group.calls]
    records = np.zeros((len(calls), RECORD_WIDTH), np.int64)
    constants, relocations = Gathering(c.nbytes for call in calls for c in call.constants.values()), []
    for number, call in enumerate(calls):
        relocations += _record(records, number, call, ids, offsets, constants)
    return Program(
        inputs=_ports(plan.inputs, names[0], _limits(plan)),
        outputs=_ports(plan.outputs, names[1], {}),
        kernels=tuple(source.symbol for source in kernels),
        records=records,
        groups=_groups(plan),
        relocations=tuple(relocations),
        arena_bytes=nbytes,
        weights=constants.constants(),
        steps=tuple(Step(c.node, c.source.symbol, c.kind, c.flops, c.bytes, dict(c.detail)) for c in calls),
        thread_slots=threads,
        sizes=_sizes(plan, least or {}),
        patches=tuple(_patches(plan)),
        executor=executor,
    )


def _record(
    records: np.ndarray, number: int, call: Call, ids: dict[str, int], offsets: dict[Buffer, int], constants: Gathering
) -> list[Relocation]:
    row, field, relocations = records[number], 1, []
    row[0] = ids[call.source.symbol]
    for param in call.source.params:
        at = number * RECORD_WIDTH + field
        if param.kind == "act":
            buffer = call.buffers[param.name]
            if buffer.slot:
                row[field + 1 : field + 3] = arena.slot_bytes(buffer), buffer.unit * dtype_of(buffer.storage.dtype).nbytes
            relocations.append(_address(at, buffer, offsets))
            field += 3
            continue
        if param.kind == "ptr":
            constant = call.constants[param.name]
            if constant.dtype != (DTYPES[param.dtype].numpy if param.dtype in DTYPES else np.dtype(param.dtype)):
                raise TypeError(f"{call.source.symbol}: constant {param.name!r} is {constant.dtype}, the kernel reads {param.dtype}")
            start, call.constants[param.name] = constants.add(constant)
            relocations.append(Relocation(at, "weights", start))
        else:
            value = call.scalars[param.name]
            row[field] = float_bits(value) if param.kind == "f32" else int(value)
        field += 1
    return relocations


def _address(field: int, buffer: Buffer, offsets: dict[Buffer, int]) -> Relocation:
    if buffer.port is None:
        origin = 0 if buffer.slot else buffer.storage.origin * dtype_of(buffer.storage.dtype).nbytes
        return Relocation(field, "arena", offsets[buffer.memory] + origin)
    side, index = buffer.port
    return Relocation(field, "input" if side == "input" else "output", 0, index)


def _groups(plan: Plan) -> np.ndarray:
    rows, first = [], 0
    for group in plan.groups:
        units = {call.units for call in group.calls}
        if len(units) != 1:
            raise ValueError(f"calls of one group differ in units of work: {[(c.source.symbol, c.units) for c in group.calls]}")
        rows.append([first, first + len(group.calls), units.pop(), group.strip, 0])
        first += len(group.calls)
    return np.array(rows, np.int64).reshape(-1, GROUP_WIDTH)


def _patches(plan: Plan) -> Iterator[Patch]:
    """The table entries that follow a run-time size."""
    record = 0
    for number, group in enumerate(plan.groups):
        if isinstance(units := group.calls[0].units, Count):
            yield _patch("groups", number * GROUP_WIDTH + 2, units)
        for call in group.calls:
            field = record * RECORD_WIDTH + 1
            for param in call.source.params:
                if param.kind == "i32" and isinstance(value := call.scalars[param.name], Count):
                    yield _patch("records", field, value)
                field += 3 if param.kind == "act" else 1
            record += 1


def _patch(table: Literal["records", "groups"], index: int, count: Count) -> Patch:
    return Patch(table, index, count.follows)


def _sizes(plan: Plan, least: Mapping[str, int]) -> tuple[Size, ...]:
    """The run-time sizes that inputs decide."""
    counts = [b.storage.index_space.count for b in plan.inputs if b.storage.follows]
    found = {count.follows.symbol: count.most for count in counts if isinstance(count, Count)}
    return tuple(Size(name, least.get(name, 1), most) for name, most in sorted(found.items()))


def _limits(plan: Plan) -> dict[tuple[str, int], int]:
    """How many indices an input may name: the rows of the smallest table that it is looked up in."""
    found: dict[tuple[str, int], int] = {}
    for call in (call for group in plan.groups for call in group.calls):
        for name, limit in call.limits.items():
            if port := call.buffers[name].port:
                found[port] = min(found.get(port, limit), limit)
    return found


def _ports(buffers: Sequence[Buffer], names: Sequence[str], limits: Mapping[tuple[str, int], int]) -> tuple[Port, ...]:
    return tuple(_port(name, buffer, limits) for name, buffer in zip(names, buffers, strict=True))


def _port(name: str, buffer: Buffer, limits: Mapping[tuple[str, int], int]) -> Port:
    storage = buffer.storage
    if storage.layout != "token_major":
        space = () if storage.geometry is None else (storage.geometry.height, storage.geometry.width)
        return Port(name, (storage.channels, *space), storage.dtype)
    tokens, limit = storage.index_space, limits.get(buffer.port) if buffer.port else None
    shape = (tokens.width, storage.channels) if storage.channels else (tokens.width,)
    return Port(name, shape, storage.dtype, tokens.follows, limit)
