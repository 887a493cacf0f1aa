"""The executable form of a region: plain tables that a kernel library runs. Needs numpy only.

Record (one kernel call): ``RECORD_WIDTH`` int64 fields: kernel id, then the kernel's parameters in order. An activation pointer takes
three fields (address, bytes per thread slot, bytes per unit of work: the last two are zero unless it lives in a strip buffer); a
constant pointer, an int32 or a float32 (its bits) takes one.

Group: ``GROUP_WIDTH`` int64 fields: first record, end record, units of work, units per strip, strips per thread. Each begins where the
last one ends.

Sizes: numbers of tokens that are known at run time only. Tables hold what belongs to the largest; ``patches`` say which entries follow.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from sparsec.errors import ArtifactError
from sparsec.run.affine import Affine
from sparsec.run.constants import Constants
from sparsec.run.dtypes import dtype_of

RECORD_WIDTH = 48
GROUP_WIDTH = 5
#: Bytes of an arena or of a sample stay below: sums and products of two indices do not overflow.
MOST_BYTES = 1 << 46

Segment = Literal["arena", "weights", "input", "output"]


@dataclass(frozen=True)
class Relocation:
    """A record field that holds an address: ``segment`` base (of input/output ``port``) plus ``offset`` bytes."""

    field: int
    segment: Segment
    offset: int
    port: int = 0


@dataclass(frozen=True)
class Size:
    """A number that a caller's tensors decide, from ``least`` to ``most``."""

    name: str
    least: int
    most: int

    @classmethod
    def restored(cls, data: Mapping[str, Any]) -> Size:
        """The inverse of ``dataclasses.asdict``. KeyError, TypeError or ValueError for what is none."""
        return cls(str(data["name"]), _int(data["least"]), _int(data["most"]))


@dataclass(frozen=True)
class Patch:
    """An entry of a table (index into it, flat) that follows a size: ``scale * ceil((size + plus) / over)``."""

    table: Literal["records", "groups"]
    index: int
    follows: Affine

    def value(self, sizes: Mapping[str, int]) -> int:
        """The entry for the sizes of a call."""
        return self.follows.at(sizes[self.follows.symbol])

    def plain(self) -> list[Any]:
        """Table, index, name of the size, plus, over, scale."""
        return [self.table, self.index, self.follows.symbol, self.follows.plus, self.follows.over, self.follows.scale]


#: Of tensors at the edge, in the order of their numbers in flat programs.
DTYPES = ("float32", "int64", "int32", "bool", "bfloat16", "int8", "float16")


@dataclass(frozen=True)
class Port:
    """One tensor at the edge of a program; ``shape`` is per sample, without the batch axis.

    ``follows``: the run-time size, plus so many, that axis 0 of ``shape`` follows; the shape holds the largest.
    ``limit``: elements are indices, from 0 to below it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    follows: Affine | None = None
    limit: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of one sample."""
        return self.bytes_of({})

    def shape_for(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of a sample where sizes are these; the largest for a size that is not given."""
        if self.follows is None or self.follows.symbol not in sizes:
            return self.shape
        return (self.follows.at(sizes[self.follows.symbol]), *self.shape[1:])

    def bytes_of(self, sizes: Mapping[str, int]) -> int:
        """Bytes of one sample where sizes are these."""
        return dtype_of(self.dtype).nbytes * int(np.prod(self.shape_for(sizes), dtype=np.int64))

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        size, plus = (self.follows.symbol, self.follows.plus) if self.follows else ("", 0)
        return {"name": self.name, "shape": self.shape, "dtype": self.dtype, "size": size, "plus": plus, "limit": self.limit}

    @classmethod
    def restored(cls, data: Mapping[str, Any]) -> Port:
        """The inverse of ``plain``. KeyError, TypeError or ValueError for what is none."""
        limit = None if data["limit"] is None else _int(data["limit"])
        follows = Affine(str(data["size"]), _int(data["plus"])) if data["size"] else None
        return cls(str(data["name"]), tuple(map(_int, data["shape"])), str(data["dtype"]), follows, limit)


@dataclass(frozen=True)
class Step:
    """What ``explain`` and ``profile`` say of one record."""

    node: str
    kernel: str
    kind: str
    flops: int
    bytes: int
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """A region laid out for one kernel library. ``kernels`` are the library's symbols in the order of kernel ids.

    ``thread_slots``: how many threads the strip buffers have room for; None: not stated, which is enough without strip buffers.
    ``padding``: the input that says which tokens are valid, where each sample is to run with its own number of tokens.
    ``batches``: the least and the largest batch size that the program serves, None: any.
    ``executor``: what runs it; "cpu" is a kernel library for the host (``sparsec.run.runtime.Runner``).
    An address in the arena is always that of an activation, so that its slot size follows it in the record.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    kernels: tuple[str, ...]
    records: np.ndarray
    groups: np.ndarray
    relocations: tuple[Relocation, ...]
    arena_bytes: int
    weights: Constants
    steps: tuple[Step, ...]
    thread_slots: int | None = None
    sizes: tuple[Size, ...] = ()
    patches: tuple[Patch, ...] = ()
    padding: int | None = None
    batches: tuple[int, int | None] = (0, None)
    executor: str = "cpu"

    @property
    def has_strips(self) -> bool:
        """Whether a value lives in strip buffers, one slot per thread."""
        return any(_slot_bytes(self, r) for r in self.relocations)

    def described(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON values."""
        return {
            "inputs": [port.plain() for port in self.inputs],
            "outputs": [port.plain() for port in self.outputs],
            "kernels": list(self.kernels),
            "relocations": [list(astuple(r)) for r in self.relocations],
            "arena_bytes": int(self.arena_bytes),
            "steps": [asdict(step) for step in self.steps],
            "thread_slots": self.thread_slots,
            "sizes": [asdict(size) for size in self.sizes],
            "patches": [patch.plain() for patch in self.patches],
            "padding": self.padding,
            "batches": list(self.batches),
            "executor": self.executor,
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name; weights as one blob of bytes."""
        tables = {"records": np.ascontiguousarray(self.records), "groups": np.ascontiguousarray(self.groups)}
        return {**tables, "weights": self.weights.blob()}

    @classmethod
    def restored(cls, data: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Program:
        """The inverse of ``described`` and ``arrays``, checked. ArtifactError for anything malformed or out of range."""
        try:
            program = cls(
                inputs=tuple(map(Port.restored, data["inputs"])),
                outputs=tuple(map(Port.restored, data["outputs"])),
                kernels=tuple(map(str, data["kernels"])),
                relocations=tuple(Relocation(_int(f), s, _int(o), _int(p)) for f, s, o, p in data["relocations"]),
                arena_bytes=_int(data["arena_bytes"]),
                steps=tuple(Step(**step) for step in data["steps"]),
                thread_slots=None if data["thread_slots"] is None else _int(data["thread_slots"]),
                sizes=tuple(map(Size.restored, data["sizes"])),
                padding=None if data["padding"] is None else _int(data["padding"]),
                batches=_batches(*data["batches"]),
                executor=str(data.get("executor", "cpu")),  # Artifacts from before there was a choice do not say.
                patches=tuple(Patch(t, _int(i), Affine(str(s), _int(p), 1, _int(o), _int(x))) for t, i, s, p, o, x in data["patches"]),
                weights=Constants.of(arrays["weights"]),
                **{name: arrays[name] for name in ("records", "groups")},
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ArtifactError("The program's description is malformed.", why=f"{type(error).__name__}: {error}") from error
        check_tables(program)
        return program


def _int(value: Any) -> int:
    return operator.index(value)


def _batches(least: Any, most: Any) -> tuple[int, int | None]:
    return _int(least), None if most is None else _int(most)


def check_tables(program: Program) -> None:
    """ArtifactError where a table points outside another. What kernels touch from an address on is ``sparsec.run.extents``' affair."""
    _check_shapes(program)
    records, groups = program.records, program.groups
    bad = np.flatnonzero((records[:, 0] < 0) | (records[:, 0] >= len(program.kernels)))
    _require(not len(bad), f"record {bad[:1]} names a kernel that the library of {len(program.kernels)} does not have")
    first, end, units, strip = groups[:, :4].T
    next_in_order = (first == np.concatenate([[0], end[:-1]])) & (first <= end) & (end <= len(records))
    bad = np.flatnonzero(~(next_in_order & (units >= 0) & (units < 2**31) & (strip >= 0) & (strip < 2**31)))
    _require(not len(bad), f"group {bad[:1]} is not the next range of the {len(records)} records with a count of work")
    _require(len(records) == (end[-1] if len(end) else 0), "a record is in no group")
    fields = [r.field for r in program.relocations]
    _require(all(a < b for a, b in itertools.pairwise(fields)), "the relocations are not in the order of their fields")
    for number, relocation in enumerate(program.relocations):
        _check_relocation(program, number, relocation)
    _check_sizes(program)


def _check_sizes(program: Program) -> None:
    """Patched entries stay below those of the largest sizes, which the tables hold; no address is patched."""
    known, least = ({size.name: getattr(size, end) for size in program.sizes} for end in ("most", "least"))
    masks = range(len(program.inputs))
    _require(
        program.padding is None or (program.padding in masks and program.inputs[program.padding].follows is not None),
        "there is no padding mask",
    )
    _require(all(0 < size.least <= size.most for size in program.sizes), "a run-time size has no range")
    addresses = {r.field for r in program.relocations}
    for number, patch in enumerate(program.patches):
        where = f"patch {number}"
        table = {"records": program.records, "groups": program.groups}.get(patch.table)
        follows = patch.follows
        _require(table is not None and follows.symbol in known, f"{where} is of unknown table {patch.table!r} or size {follows.symbol!r}")
        column = patch.index % (RECORD_WIDTH if patch.table == "records" else GROUP_WIDTH)
        inside = 0 <= patch.index < table.size and (column == 2 if patch.table == "groups" else column > 0)  # type: ignore[union-attr]
        _require(inside and patch.index not in (addresses if patch.table == "records" else ()), f"{where} is of entry {patch.index}")
        fits = follows.over > 0 and follows.scale >= 0 and follows.times == 1
        _require(fits, f"{where} divides by {follows.over} or counts {follows.scale} times")
        _require(patch.value(known) == table.flat[patch.index], f"{where} differs from its table")  # type: ignore[union-attr]
        _require(patch.value(least) >= 0, f"{where} counts less than nothing")
    for port in (*program.inputs, *program.outputs):
        _require(_follows_some(port, known, least), f"tensor {port.name!r} follows a size {port.follows} that it does not have")
        _require(port.limit is None or port.limit > 0, f"tensor {port.name!r} has indices below {port.limit}")


def _follows_some(port: Port, known: Mapping[str, int], least: Mapping[str, int]) -> bool:
    """Whether a tensor that follows a size has the largest in its shape, and never fewer than no elements."""
    if port.follows is None:
        return True
    symbol = port.follows.symbol
    return symbol in known and port.shape[:1] == (port.follows.at(known[symbol]),) and port.follows.at(least[symbol]) >= 0


def _slot_bytes(program: Program, relocation: Relocation) -> int:
    """Bytes per thread of the strip buffer that an address lies in, 0 outside of one."""
    after = relocation.field + 1
    return int(program.records.flat[after]) if relocation.segment == "arena" and after < program.records.size else 0


def _check_shapes(program: Program) -> None:
    for name, width in (("records", RECORD_WIDTH), ("groups", GROUP_WIDTH)):
        table = getattr(program, name)
        fits = table.ndim == 2 and table.shape[1] == width and table.dtype == np.int64
        _require(fits, f"the table of {name} is {table.dtype} {list(table.shape)}, not int64 [n, {width}]")
    steps, records = len(program.steps), len(program.records)
    _require(steps == records, f"there are {steps} steps for {records} records")
    _require(0 <= program.arena_bytes < MOST_BYTES, f"the arena has {program.arena_bytes} bytes")
    _require(program.thread_slots is None or 0 < program.thread_slots < 2**31, "there is no room for any thread")
    least, most = program.batches
    _require(least >= 0 and (most is None or most >= max(least, 1)), "it serves no batch size")
    ports = (*program.inputs, *program.outputs)
    for port in ports:
        _require(port.dtype in DTYPES, f"tensor {port.name!r} is of {port.dtype}")
    _require(all(size >= 0 for port in ports for size in port.shape), "a tensor has a negative size")
    # Also without the axes of size zero: a further size is a product of the others.
    _require(all(8 * math.prod(filter(None, port.shape)) < MOST_BYTES for port in ports), "the size of a tensor makes no sense")


def _check_relocation(program: Program, number: int, relocation: Relocation) -> None:
    where = f"relocation {number}"
    place = 0 <= relocation.field < program.records.size and relocation.field % RECORD_WIDTH != 0
    _require(place, f"{where} patches field {relocation.field}, which is not a parameter of one of the {len(program.records)} records")
    _require(relocation.segment in get_args(Segment), f"{where} is in an unknown segment {relocation.segment!r}")
    size = {"arena": program.arena_bytes, "weights": program.weights.nbytes}.get(relocation.segment)
    if size is None:
        ports = program.inputs if relocation.segment == "input" else program.outputs
        _require(0 <= relocation.port < len(ports), f"{where} names {relocation.segment} {relocation.port} of {len(ports)}")
        size = ports[relocation.port].nbytes
    _require(0 <= relocation.offset <= size, f"{where} is at byte {relocation.offset} of {relocation.segment}, which has {size}")
    slot = _slot_bytes(program, relocation)
    end = relocation.offset + slot * (program.thread_slots or 1)
    _require(slot >= 0 and end <= max(size, relocation.offset), f"{where} has a strip buffer up to byte {end} of an arena of {size}")


def _require(condition: bool, why: str) -> None:
    if not condition:
        raise ArtifactError("The program's tables do not fit each other.", why=why, hint="Compile the model again.")
