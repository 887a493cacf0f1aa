"""What makes two tasks the same: spec, storages and where the weights are zero."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from sparsec.backends.plan import Task
from sparsec.lower.spec import Schedule, tuples


def storages(task: Task) -> dict[str, Any]:
    """Where the activations of ``task`` live, as plain data."""
    return {
        "sources": [b.storage.described() for b in task.sources],
        "residual": None if task.residual is None else task.residual.storage.described(),
        "target": task.target.storage.described(),
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


def restored_schedule(data: Any) -> Schedule:
    """A schedule from JSON values. ValueError if it is not a list of (name, text or integer)."""
    pairs = tuples(data)
    named = isinstance(pairs, tuple) and all(isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) for p in pairs)
    if not named or not all(type(value) in (str, int) for _, value in pairs):
        raise ValueError(f"{str(data)[:80]} is not a schedule")
    return pairs
