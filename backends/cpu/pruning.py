"""Calls for the operators that leave tokens out or join them (``sparsec.tokens.pruning_ops``).

Tokens are tiled; scores, sizes and biases are rows of one number per token, positions and slots int64 rows. All sources of a
task are activations in the order of the operator's arguments. Counts are taken from the geometry, where they may follow a run-time size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sparsec.backends.base import Machine, Source
from sparsec.backends.cpu import token_choice, token_merging
from sparsec.backends.cpu.attention import Masks
from sparsec.backends.cpu.attention_calls import attention_breach
from sparsec.backends.plan import Buffer, Call, Group, Task
from sparsec.lower.layouts import Storage
from sparsec.lower.spec import KernelSpec, Schedule

_NOTHING = np.zeros((1, 1, 16), np.float32)


def pruning_groups(task: Task, schedule: Schedule, machine: Machine) -> list[Group]:
    """The groups of calls that compute a task whose operator is in ``_CALLS``. ValueError where tiles differ or hold no whole vectors."""
    lanes = machine.vector.lanes
    tiles = {b.storage.index_space.tile for b in (*task.sources, task.target) if b.storage.layout == "tiled"}
    if len(tiles) > 1 or any(tile % lanes for tile in tiles):
        raise ValueError(f"{task.node}: tiles of {sorted(tiles)} tokens; one size in whole vectors of {lanes} is needed")
    return [Group((_CALLS[task.spec.op](task, machine),))]


def _call(
    task: Task,
    source: Source,
    buffers: Mapping[str, Buffer],
    scalars: Mapping[str, int | float],
    units: int = 1,
    flops: int = 0,
    constants: dict[str, np.ndarray] | None = None,
) -> Call:
    moved = sum(b.storage.nbytes for b in (*task.sources, task.target))
    return Call(source, task.node, "tokens", {**buffers, "y": task.target}, ("y",), constants or {}, scalars, units, flops, moved)


def _room(task: Task, name: str, elements: int, dtype: str = "float32") -> Buffer:
    """Memory of ``elements`` words for each thread."""
    return Buffer(f"{task.node}.{name}", Storage("single", elements, dtype=dtype), slot=elements)


def _padded(storage: Storage) -> int:
    """Tokens in whole tiles, at most."""
    return int(storage.index_space.tiles) * storage.index_space.tile


def _token_scores(task: Task, machine: Machine) -> Call:
    (q, k), spec = task.sources[:2], task.spec
    heads, tile, keys = int(spec["heads"]), k.storage.index_space.tile, k.storage.index_space.count
    pairs = task.weights[0] if task.weights else None
    masks = Masks(len(task.sources) > 2, pairs is not None, bool(spec["causal"]))
    bias = _NOTHING if pairs is None else _whole_rows(pairs, _padded(k.storage))
    queries = 1 if spec["cls"] else keys
    return _call(
        task,
        token_choice.token_scores(machine.vector, tile, masks, voiced=masks.key_bias and not spec["cls"]),
        {"q": q, "k": k, "key_bias": task.sources[-1], "room": _room(task, "room", 2 * _padded(k.storage))},
        {
            "queries": queries,
            "keys": keys,
            "tiles": k.storage.index_space.tiles,
            "heads": heads,
            "dim": k.storage.channels // heads,
            "q_tile": q.storage.tile_step,
            "k_tile": k.storage.tile_step,
            "pair_head": bias[0].size if len(bias) > 1 else 0,
            "pair_row": bias.shape[2],
            "scale": float(spec["scale"]),
        },
        flops=2 * int(queries) * int(keys) * k.storage.channels,
        constants={"pair_bias": bias},
    )


def _whole_rows(pairs: np.ndarray, width: int) -> np.ndarray:
    """A bias [1 or heads, queries, keys] with rows of ``width`` keys, zeros past the last."""
    whole = np.zeros((*pairs.shape[:2], width), np.float32)
    whole[:, :, : pairs.shape[2]] = pairs
    return whole


def _keep_tokens(task: Task, machine: Machine) -> Call:
    x = task.sources[0]
    count, lanes = x.storage.index_space.count, machine.vector.lanes
    scalars = {"count": count, "keep": int(task.spec["keep"]), "first": int(task.spec["first"])}
    room = _room(task, "room", -(-int(count) // lanes) * lanes)
    return _call(task, token_choice.keep_tokens(machine.vector), {"x": x, "room": room}, scalars)


def _gather_tokens(task: Task, machine: Machine) -> Call:
    (x, index), y = task.sources, task.target.storage
    source = token_choice.gather_tokens(machine.vector, y.index_space.tile)
    scalars = {"count": y.index_space.count, "features": y.channels, "tokens": x.storage.index_space.count}
    return _call(task, source, {"x": x, "index": index}, scalars, y.index_space.tiles)


def _gather_keys(task: Task, machine: Machine) -> Call:
    x, index = task.sources
    scalars = {"count": task.target.storage.index_space.count, "tokens": x.storage.index_space.count}
    return _call(task, token_choice.gather_keys(machine.vector), {"x": x, "index": index}, scalars)


def _merge_plan(task: Task, machine: Machine) -> Call:
    (x,), spec = task.sources, task.spec
    heads, tokens, space = int(spec["heads"]), x.storage.index_space.count, x.storage.index_space
    dim = x.storage.channels // heads
    return _call(
        task,
        token_merging.merge_plan(machine.vector, space.tile),
        {
            "x": x,
            "room": _room(task, "room", (dim + 2) * _padded(x.storage)),
            "partner": _room(task, "partner", _padded(x.storage), "int32"),
        },
        {
            "count": tokens,
            "tiles": space.tiles,
            "heads": heads,
            "dim": dim,
            "gone": int(tokens) - int(spec["keep"]),
            "first": int(spec["first"]),
        },
        flops=int(tokens) * int(tokens) * dim,
    )


def _merge_tokens(task: Task, machine: Machine) -> Call:
    x, plan, y = task.sources[0], task.sources[1], task.target.storage
    count, keep = x.storage.index_space.count, int(task.spec["keep"])
    return _call(
        task,
        token_merging.merge_tokens(machine.vector, y.index_space.tile, sized=len(task.sources) > 2),
        {
            "x": x,
            "plan": plan,
            "sizes": task.sources[-1],
            "room": _room(task, "room", int(count) + (2 if task.spec.dtype == "float32" else 3) * keep),
            "at": _room(task, "at", 2 * int(count), "int32"),
        },
        {"count": count, "keep": keep, "features": y.channels, "y_tiles": y.index_space.tiles},
        y.channels,
        2 * int(count) * y.channels,
    )


def _merge_sizes(task: Task, machine: Machine) -> Call:
    plan = task.sources[0]
    source = token_merging.merge_sizes(machine.vector, sized=len(task.sources) > 1)
    scalars = {"count": plan.storage.index_space.count, "keep": int(task.spec["keep"])}
    buffers = {"plan": plan, "sizes": task.sources[-1]}
    if task.spec.dtype != "float32":
        buffers["room"] = _room(task, "room", int(task.spec["keep"]))
    return _call(task, source, buffers, scalars)


def _size_op(task: Task, machine: Machine) -> Call:
    (x,), source = task.sources, token_merging.size_op(machine.vector, task.spec.op)
    return _call(task, source, {"x": x}, {"count": task.target.storage.index_space.count})


def _mean_merged(task: Task, machine: Machine) -> Call:
    x, sizes = task.sources
    scalars = {"count": x.storage.index_space.count, "features": x.storage.channels}
    source = token_merging.mean_merged(machine.vector, x.storage.index_space.tile)
    return _call(task, source, {"x": x, "sizes": sizes}, scalars, x.storage.channels)


def pruning_breach(spec: KernelSpec) -> str:
    """What the shapes of an operator that leaves tokens out or joins them lack for its kernel."""
    if spec.op == "token_scores":
        return attention_breach(spec)
    return "" if spec.inputs and len(spec.inputs[0]) in (1, 2) else f"{spec.op} of {list(spec.inputs)}"


_CALLS: Mapping[str, Callable[[Task, Machine], Any]] = {
    "token_scores": _token_scores,
    "keep_tokens": _keep_tokens,
    "gather_tokens": _gather_tokens,
    "gather_keys": _gather_keys,
    "merge_plan": _merge_plan,
    "merge_tokens": _merge_tokens,
    "merge_sizes": _merge_sizes,
    "log_sizes": _size_op,
    "token_sizes": _size_op,
    "mean_merged": _mean_merged,
}
