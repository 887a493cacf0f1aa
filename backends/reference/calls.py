"""Calls of references: tasks and moves as actions whose text is one of a call's constants."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np

from sparsec.backends.base import Param, Source
from sparsec.backends.interpreter import memory
from sparsec.backends.plan import Buffer, Call, Move, Task
from sparsec.backends.reference.action import Action, Place
from sparsec.lower.layouts import Storage
from sparsec.lower.spec import KernelSpec
from sparsec.run.dtypes import DTYPES, dtype_of

_BYTE = np.dtype(np.uint8)


def computed(task: Task) -> Call:
    """The one call of a task."""
    spec, beside = task.spec, [] if task.residual is None else [task.residual]
    read = [*zip(task.sources, spec.inputs, strict=True), *((b, spec.output) for b in beside)]
    arrays = [None if w is None else w if _name(w) in DTYPES else w.astype(np.float32) for w in task.weights]
    constants = tuple(None if w is None else (_name(w), w.shape) for w in arrays)
    action = Action(tuple(_place(b.storage, shape, spec) for b, shape in read), Place(task.target.storage, spec.output), constants, spec)
    return _call(task.node, spec.op, action, [*(b for b, _ in read), task.target], [w for w in arrays if w is not None])


def moved(move: Move) -> Call:
    """The one call of a move."""
    have, want, buffers = move.source.storage, move.target.storage, [move.source, move.target]
    name = f"{move.source.name}->{want.layout}"
    if move.places is not None:
        arrays = [(at - s.origin) * dtype_of(s.dtype).nbytes for at, s in zip(move.places, (have, want), strict=True)]
        length = (len(arrays[0]),)
        action = Action((Place(have, length),), Place(want, length), tuple(("int64", a.shape) for a in arrays), scattered=True)
        return _call(name, "convert", action, buffers, arrays)
    if move.step:
        shape = have.channels, have.index_space.height, have.index_space.width
        planes = Place(want, shape, move.step, want.channels == have.channels)
        return _call(name, "convert", Action((Place(have, shape),), planes), buffers, [])
    return _call(name, "convert", Action((Place(have, move.shape),), Place(want, move.shape)), buffers, [])


def run_record(record: np.ndarray, begin: int, end: int) -> None:
    """What a record of such a call does for its units [begin, end), rows of its result."""
    _restored(memory(record[1], _BYTE, int(record[2])).tobytes()).run(record[3:], begin, end)


@lru_cache(maxsize=4096)
def _restored(text: bytes) -> Action:
    return Action.of(text.decode())


def _place(storage: Storage, shape: tuple[int, ...], spec: KernelSpec) -> Place:
    """A value, or where its storage does not hold it, its parity planes for a strided convolution."""
    if storage.holds(shape):
        return Place(storage, shape)
    return Place(storage, shape, spec["stride"][0], storage.channels == shape[0])


def _name(array: np.ndarray) -> str:
    return "bfloat16" if array.dtype == np.uint16 else array.dtype.name


def _call(node: str, op: str, action: Action, buffers: Sequence[Buffer], arrays: Sequence[np.ndarray]) -> Call:
    text = np.frombuffer(action.text().encode(), np.uint8)
    constants = {"text": text, **{f"c{i}": array for i, array in enumerate(arrays)}}
    named = {f"v{i}": buffer for i, buffer in enumerate(buffers)}
    rows = {f"rows{i}": place.rows if action.scattered else _rows(place) for i, place in enumerate((*action.reads, action.writes))}
    return Call(
        source=_source(op, named, constants, rows),
        node=node,
        kind=op,
        buffers=named,
        writes=(f"v{len(buffers) - 1}",),
        constants=constants,
        scalars={"bytes": len(text), **rows},
        units=rows[f"rows{len(buffers) - 1}"],
        flops=0,
        bytes=sum(buffer.storage.nbytes for buffer in buffers),
    )


def _source(op: str, values: Any, constants: Any, rows: Any) -> Source:
    def make() -> NoReturn:
        raise NotImplementedError(f"the reference of {op} is no code")

    pointers = [Param(name, "ptr", _name(array) if name != "text" else "uint8") for name, array in constants.items()]
    params = (pointers[0], Param("bytes", "i32"), *(Param(n, "act") for n in values), *pointers[1:], *(Param(n, "i32") for n in rows))
    return Source(f"reference_{op}", params, make)


def _rows(place: Place) -> int:
    """How many rows are stored: a Count where they follow a run-time size."""
    return place.storage.index_space.count if place.storage.follows else place.rows
