"""What makes two tasks the same: spec, storages and where the weights are zero."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from sparsec.backends.plan import Task
from sparsec.layouts import Geometry, Storage
from sparsec.spec import KernelSpec, Schedule


def described_storage(storage: Storage) -> dict[str, Any]:
    """Plain-data form of a storage."""
    return {
        "layout": storage.layout,
        "channels": storage.channels,
        "geometry": None if storage.geometry is None else storage.geometry.key(),
    }


def restored_storage(data: dict[str, Any]) -> Storage:
    """The inverse of ``described_storage``."""
    return Storage(data["layout"], data["channels"], None if data["geometry"] is None else Geometry(**data["geometry"]))


def storages(task: Task) -> dict[str, Any]:
    """Where the activations of ``task`` live, as plain data."""
    return {
        "sources": [described_storage(b.storage) for b in task.sources],
        "residual": None if task.residual is None else described_storage(task.residual.storage),
        "target": described_storage(task.target.storage),
    }


def shape_key(task: Task) -> str:
    """Digest of all but the weights."""
    text = task.spec.json() + json.dumps(storages(task), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def pattern_key(task: Task) -> str:
    """Digest of where the weights are zero; values do not change what a kernel costs."""
    digest = hashlib.sha256()
    for weight in task.weights:
        if weight is not None:
            digest.update(np.packbits(weight != 0).data)
    return digest.hexdigest()[:20]


def task_key(task: Task) -> str:
    """Tasks of one key have the same candidates at the same cost."""
    return f"{shape_key(task)}-{pattern_key(task)}"


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def restored_spec(text: str) -> KernelSpec:
    """The inverse of ``KernelSpec.json``. ValueError or TypeError if the text is not a spec."""
    data = json.loads(text)
    if not isinstance(data, dict):
        raise TypeError(f"a spec is a JSON object, not {type(data).__name__}")
    return KernelSpec(**{name: _tuples(value) for name, value in data.items()})


def restored_schedule(data: Any) -> Schedule:
    """A schedule from JSON values. ValueError if it is not a list of (name, text or integer)."""
    pairs = _tuples(data)
    named = isinstance(pairs, tuple) and all(isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) for p in pairs)
    if not named or not all(type(value) in (str, int) for _, value in pairs):
        raise ValueError(f"{str(data)[:80]} is not a schedule")
    return pairs
