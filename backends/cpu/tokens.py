"""Calls for operators on tokens; attention and linear layers have their own.

Inside a region tokens are tiled; ids, masks and biases are one number per token, contiguous. All counts of tokens are taken from
the geometry, where they follow a size known at run time only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sparsec.backends.base import Machine, Source
from sparsec.backends.cpu import embedding, key_bias, layer_norm, prepend, repack, token_table, token_vectors
from sparsec.backends.cpu.pointwise_ops import map_op
from sparsec.backends.plan import Call, Group, Task
from sparsec.lower.layouts import Storage
from sparsec.lower.spec import KernelSpec, Schedule
from sparsec.run.affine import scaled


def token_groups(task: Task, schedule: Schedule, machine: Machine) -> list[Group]:
    """The groups of calls that compute a task whose operator is in ``_CALLS``."""
    return [Group((_CALLS[task.spec.op](task, machine),))]


def _vectors(storage: Storage, machine: Machine) -> int:
    return storage.index_space.tile // machine.vector.lanes


def _repack_scalars(have: Storage, want: Storage, machine: Machine) -> dict[str, int]:
    return {
        "channels": want.channels,
        "x_chunks": scaled(have.index_space.tiles, _vectors(have, machine)),
        "x_width": have.index_space.tile,
        "x_tile": have.tile_step,
        "x_channel": have.channel_step,
    }


def _token_scalars(have: Storage, index: int) -> dict[str, int]:
    tile = have.index_space.tile
    return {"at": index // tile * have.tile_step + index % tile, "x_channel": have.channel_step, "features": have.channels}


def _call(
    task: Task,
    source: Source,
    scalars: Mapping[str, int | float],
    units: int,
    constants: dict[str, np.ndarray] | None = None,
    flops: int = 0,
    **other: Any,
) -> Call:
    """One call from the task's source x to its target y."""
    x, y, constants = task.sources[0], task.target, constants or {}
    moved = x.storage.nbytes + y.storage.nbytes + sum(c.nbytes for c in constants.values())
    return Call(source, task.node, "tokens", {"x": x, "y": y}, ("y",), constants, scalars, units, flops, moved, **other)


def _layer_norm(task: Task, machine: Machine) -> Call:
    y = task.target.storage
    gamma, beta = (*task.weights, None, None)[:2]
    return _call(
        task,
        layer_norm.layer_norm(machine.vector, _vectors(y, machine), machine.panels.unrolled),
        {"features": y.channels, "eps": float(task.spec["eps"])},
        y.index_space.tiles,
        layer_norm.pack_scales(gamma, beta, y.channels),
        flops=9 * y.elements,
    )


def _embedding(task: Task, machine: Machine) -> Call:
    (table,), ids, y = task.weights, task.sources[0].storage, task.target.storage
    assert table is not None
    return _call(
        task,
        embedding.embedding(machine.vector, _vectors(y, machine), ids.dtype),
        {"count": y.index_space.count, "features": y.channels, "rows": len(table)},
        y.index_space.tiles,
        {"table": table},
        limits={"x": len(table)},
    )


def _add_table(task: Task, machine: Machine) -> Call:
    (table,), y = task.weights, task.target.storage
    assert table is not None
    vectors = _vectors(y, machine)
    if table.ndim == 1:
        return _add_row(task, table, map_op(machine.vector, vectors, "affine", "clamp", masked=False))
    return _call(
        task,
        token_table.add_table(machine.vector, vectors),
        {"features": y.channels},
        y.index_space.tiles,
        {"table": token_table.pack_table(table, y.index_space.tile)},
        flops=y.elements,
    )


def _add_row(task: Task, row: np.ndarray, source: Source) -> Call:
    """One constant per feature for all tokens."""
    x, y = task.sources[0].storage, task.target.storage
    steps = {
        "x_tile": x.tile_step,
        "x_channel": x.channel_step,
        "z_tile": 0,
        "z_channel": 0,
        "y_tile": y.tile_step,
        "y_channel": y.channel_step,
    }
    return Call(
        source,
        task.node,
        "tokens",
        {"x": task.sources[0], "z": task.sources[0], "y": task.target},
        ("y",),
        {"scale": np.ones(y.channels, np.float32), "shift": np.ascontiguousarray(row, np.float32), "mask": np.zeros(16, np.float32)},
        {"channels": y.channels, "lo": -np.inf, "hi": np.inf, **steps},
        y.index_space.tiles,
        y.elements,
        x.nbytes + y.nbytes,
    )


def _prepend(task: Task, machine: Machine) -> Call:
    (prefix,), lanes, x, y = task.weights, machine.vector.lanes, task.sources[0].storage, task.target.storage
    assert prefix is not None
    scalars = {"chunks": -(-len(prefix) // lanes), "x_channel": x.index_space.tile, "features": y.channels}
    return _call(
        task,
        prepend.prepend(machine.vector, _vectors(y, machine), len(prefix)),
        scalars | {"x_chunks": scaled(x.index_space.tiles, _vectors(x, machine))},
        y.index_space.tiles,
        {"prefix": prepend.pack_prefix(prefix, lanes)},
    )


def _select_token(task: Task, machine: Machine) -> Call:
    x = task.sources[0].storage
    source, scalars = token_vectors.select_token(machine.vector), _token_scalars(x, int(task.spec["index"]))
    return _call(task, source, scalars, -(-x.channels // token_vectors.RUN))


def _mean_tokens(task: Task, machine: Machine) -> Call:
    x = task.sources[0].storage
    source = token_vectors.mean_tokens(machine.vector, _vectors(x, machine))
    scalars = {"count": x.index_space.count, "tiles": x.index_space.tiles, "features": x.channels}
    return _call(task, source, scalars, x.channels, flops=x.elements)


def _key_bias(task: Task, machine: Machine) -> Call:
    mask, spec = task.sources[0].storage, task.spec
    on, off = float(spec["on"]), float(spec["off"])
    affine = bool(dict(spec.attributes).get("affine", False))
    # off·(1 - m) where on is 0, on·m where off is 0: their difference may be more than float32 holds.
    base, factor, shift, slope = (0.0, off, 1.0, -1.0) if on == 0 else (0.0, on, 0.0, 1.0) if off == 0 else (off, on - off, 0.0, 1.0)
    scalars = {"count": mask.index_space.count, "on": on, "off": off, "base": base, "factor": factor, "shift": shift, "slope": slope}
    return _call(task, key_bias.key_bias(machine.vector, mask.dtype, affine), scalars, 1, flops=mask.elements)


def _map_to_tokens(task: Task, machine: Machine) -> Call:
    x, y = task.sources[0].storage, task.target.storage
    if repack.without_gaps(x.index_space):
        return _call(task, repack.repack(machine.vector, _vectors(y, machine)), _repack_scalars(x, y, machine), y.index_space.tiles)
    return _gathered(task, machine)


def _tokens_to_map(task: Task, machine: Machine) -> Call:
    x, y = task.sources[0].storage, task.target.storage
    if repack.without_gaps(y.index_space) and y.layout == "tiled":
        return _call(task, repack.repack(machine.vector, _vectors(y, machine)), _repack_scalars(x, y, machine), y.index_space.tiles)
    return _gathered(task, machine)


def _gathered(task: Task, machine: Machine) -> Call:
    x, y = task.sources[0].storage, task.target.storage
    scalars = {"channels": y.channels, "x_channel": x.channel_step, "y_tile": y.tile_step, "y_channel": y.channel_step}
    return _call(
        task, repack.gather(machine.vector, _vectors(y, machine)), scalars, y.index_space.tiles, {"place": repack.places(x, y.index_space)}
    )


#: By operator: whether shapes of input and output, of the operands by name, and attributes fit the kernel.
_FITS: dict[str, Callable[[Any, Any, Mapping[str, Any], Mapping[str, Any]], bool]] = {
    "layer_norm": lambda x, y, read, given: x == y and len(y) == 2,
    "embedding": lambda x, y, read, given: y == (*x, read["table"][1]) and len(y) == 2,
    "add_table": lambda x, y, read, given: x == y and len(y) == 2 and read["table"] in (y, y[1:]),
    "prepend": lambda x, y, read, given: len(y) == 2 and read["prefix"] == (y[0] - x[0], x[1]),
    "select_token": lambda x, y, read, given: len(x) == 2 and 0 <= given["index"] < x[0],
    "mean_tokens": lambda x, y, read, given: len(x) == 2 and x[1:] == y,
    "key_bias": lambda x, y, read, given: x == y and len(y) == 1,
    "map_to_tokens": lambda x, y, read, given: len(x) == 3 and y == (x[1] * x[2], x[0]),
    "tokens_to_map": lambda x, y, read, given: x == (y[1] * y[2], y[0]) and (given["height"], given["width"]) == y[1:],
}


def token_breach(spec: KernelSpec) -> str:
    """What the shapes of an operator on tokens lack for its kernel: an index out of range, or a broadcast."""
    read = spec.operands()
    fitting = _FITS[spec.op](spec.inputs[0], spec.output, read, dict(spec.attributes))
    return "" if fitting else f"{spec.op} of {list(read.values())} to {spec.output}"


_CALLS: dict[str, Callable[[Task, Machine], Call]] = {
    "layer_norm": _layer_norm,
    "embedding": _embedding,
    "add_table": _add_table,
    "prepend": _prepend,
    "select_token": _select_token,
    "mean_tokens": _mean_tokens,
    "key_bias": _key_bias,
    "map_to_tokens": _map_to_tokens,
    "tokens_to_map": _tokens_to_map,
}
