"""A case for a kernel: the calls that compute one layer of a network, what they read, and what must come out, in float64.

layer's task ─ random activations ─┬─ spec.reference in float64 ─ in the target's storage ─ wanted
                                   └─ in the sources' storages ─ blocks ─ calls ─ target
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sparsec.autotune.activations import parity_planes, read_by, storage_elements, to_storage
from sparsec.backends.base import Backend
from sparsec.backends.lowering import Lowered
from sparsec.backends.plan import Buffer, Call, Group, Task
from sparsec.lower.layouts import LINE, Storage, ceil_to

_SEED = 7


class NoReference(Exception):
    """It is not known what kernels of this layer must give; the text says why."""


@dataclass(frozen=True, eq=False)
class Case:
    """``groups`` in order compute ``target`` from ``filled`` buffers (their stored values); a NaN in ``wanted`` stands for any value.

    ``scratch``: other buffers, with their elements. ``task`` is None for a change of layout, which leaves values as they are.
    """

    node: str
    groups: tuple[Group, ...]
    task: Task | None
    filled: Mapping[Buffer, np.ndarray]
    scratch: Mapping[Buffer, int]
    target: Buffer
    wanted: np.ndarray

    @property
    def symbols(self) -> frozenset[str]:
        """The kernels that it calls."""
        return frozenset(call.source.symbol for call in _calls(self.groups))


def smallest(lowered: Lowered) -> dict[str, tuple[Task | None, tuple[Group, ...]]]:
    """For each kernel that a network calls: a layer of least work that calls it, with its task (None for a change of layout)."""
    tasks = {task.node: task for task in lowered.tasks}
    layers: dict[str, list[Group]] = defaultdict(list)
    for group in lowered.plan.groups:
        layers[group.calls[0].node].append(group)
    found: dict[str, tuple[Task | None, tuple[Group, ...]]] = {}
    for node, groups in sorted(layers.items(), key=lambda layer: sum(call.bytes for call in _calls(layer[1]))):
        for call in _calls(groups):
            found.setdefault(call.source.symbol, (tasks.get(node), tuple(groups)))
    return found


def with_weights_of_smallest(lowered: Lowered) -> Lowered:
    """The same with those tasks alone that `smallest` finds, and these with weights that nobody else has."""
    kept = {task.node: (task, groups) for task, groups in smallest(lowered).values() if task is not None}
    return replace(
        lowered, tasks=tuple(replace(task, weights=tuple(_own(w, groups) for w in task.weights)) for task, groups in kept.values())
    )


def _own(weight: np.ndarray | None, groups: Sequence[Group]) -> np.ndarray | None:
    """The constant of a call where one is the weight as it is (tables of embeddings, biases), else a copy."""
    if weight is None:
        return None
    packed, own = (c.reshape(-1) for call in _calls(groups) for c in call.constants.values()), torch.from_numpy(weight.reshape(-1))
    # Unlike numpy torch compares without an array of answers.
    same = next((c for c in packed if c.dtype == weight.dtype and torch.equal(torch.from_numpy(c), own)), None)
    return weight.copy() if same is None else same.reshape(weight.shape)


def case_of(task: Task | None, groups: Sequence[Group], backend: Backend) -> Case:
    """The case of a layer. NoReference where it is not known how its values are stored."""
    node = groups[0].calls[0].node
    if task is None:
        (call,) = _calls(groups)
        if "place" in call.constants:
            raise NoReference("its elements go by a table of positions")
        source, target = call.buffers["x"], call.buffers["y"]
        x = np.random.default_rng(_SEED).standard_normal(_shape(source.storage)).astype(np.float32)
        return _case(node, groups, None, {source: stored(x, source.storage)}, target, _moved(x, source, target))
    reads = (*task.sources, *([task.residual] if task.residual else []))
    values = _drawn(task, reads)
    layouts = backend.layouts(task.spec)
    filled = {b: stored(x if i else read_by(layouts, x), b.storage) for i, (b, x) in enumerate(zip(reads, values, strict=True))}
    return _case(node, groups, task, filled, task.target, _reference(task, values))


def _case(node: str, groups: Sequence[Group], task: Task | None, filled: Mapping[Buffer, np.ndarray], target: Buffer, wanted: Any) -> Case:
    used = dict.fromkeys(buffer for call in _calls(groups) for buffer in call.buffers.values())
    scratch = {b: ceil_to(b.slot, LINE) or storage_elements(b.storage) for b in used if b not in filled}
    return Case(node, tuple(groups), task, {b: x for b, x in filled.items() if b in used}, scratch, target, stored(wanted, target.storage))


def _calls(groups: Sequence[Group]) -> Iterator[Call]:
    return (call for group in groups for call in group.calls)


def stored(x: np.ndarray, storage: Storage) -> np.ndarray:
    """A value as its storage holds it: [C, H, W], [C], or [T, F] and [T] for tokens. NaN where anything may be."""
    if storage.layout == "token_major":
        return np.ascontiguousarray(x, storage.dtype).reshape(-1)
    if storage.layout == "tiled" and x.ndim == 2:
        x = x.T[:, None]
    if x.size != math.prod(_shape(storage)):
        raise NoReference(f"a value of shape {list(x.shape)} is not what {storage} holds")
    return to_storage(x, storage)


def _shape(storage: Storage) -> tuple[int, ...]:
    """Shape of a stored value in the order of its axes in memory."""
    space = storage.geometry
    if storage.layout == "token_major":
        return (storage.index_space.width, max(storage.channels, 1))
    return (storage.channels,) if space is None else (storage.channels, space.height, space.width)


def _moved(x: np.ndarray, source: Buffer, target: Buffer) -> np.ndarray:
    """The value that a change of layout leaves: the same, but for parity planes and the order of the axes of tokens."""
    have, want = _shape(source.storage), _shape(target.storage)
    if source.storage.is_dense and target.storage.is_dense:
        return x.reshape(want)
    if "token_major" in (source.storage.layout, target.storage.layout) and x.ndim != len(want):
        return x.reshape(have).T.reshape(want) if x.ndim == 2 else x.reshape(have[0], -1).T
    if want[0] == have[0] and want != have:
        step = next(s for s in itertools.count(2) if all(-(-a // s) == b for a, b in zip(have[1:], want[1:], strict=True)))
        return x[:, ::step, ::step]
    step = math.isqrt(want[0] // have[0]) if want[0] > have[0] else 1
    return parity_planes(x, step) if step > 1 else x


def _drawn(task: Task, reads: Sequence[Buffer]) -> list[np.ndarray]:
    """Random activations in the spec's own shapes, equal where they are one buffer; indices name rows of the first weight."""
    random = np.random.default_rng(_SEED)
    shapes = [*task.spec.inputs[: len(task.sources)], *([task.spec.output] if task.residual else [])]
    rows = task.weights[0].shape[0] if task.spec.op == "embedding" and task.weights[0] is not None else 2
    found: dict[Buffer, np.ndarray] = {}
    for buffer, shape in zip(reads, shapes, strict=True):
        if buffer not in found:
            dtype = buffer.storage.dtype
            numbers = random.standard_normal(shape) if dtype == "float32" else random.integers(0, rows, shape)
            found[buffer] = numbers.astype(dtype)
    return [found[buffer] for buffer in reads]


def _reference(task: Task, values: Sequence[np.ndarray]) -> np.ndarray:
    tensors: list[Any] = [torch.from_numpy(x)[None] for x in values]
    tensors = [x.double() if x.is_floating_point() else x for x in tensors]
    weights = [None if w is None else torch.from_numpy(w).double() for w in task.weights]
    count = len(task.sources)
    with torch.no_grad():
        return task.spec.reference(*task.spec.arguments(tensors[:count], weights, *tensors[count:]))[0].numpy()
