"""What a task's kernels are to compute, in float64, and how far off they may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sparsec.backends.plan import Task

#: Largest error of a right result. float32: a share of the largest magnitude of the reference. float16: of the largest ``magnitude``, as
#: each of many terms is rounded to 2^-11 of the sum so far; kernels that sum in 32 bits stay far below.
TOLERANCE = {"float32": 1e-5, "float16": 4 * 2.0**-11}


def reference(task: Task, values: Sequence[np.ndarray]) -> np.ndarray:
    """The spec's own result in float64 of activations [N, ...], in the order of sources and residual."""
    tensors: list[Any] = [torch.from_numpy(x) for x in values]
    tensors = [x.double() if x.is_floating_point() else x for x in tensors]
    weights = [None if w is None else torch.from_numpy(w).double() for w in task.weights]
    count = len(task.sources)
    with torch.no_grad():
        found: np.ndarray = task.spec.reference(*task.spec.arguments(tensors[:count], weights, *tensors[count:])).numpy()
    return found


def magnitude(task: Task, values: Sequence[np.ndarray]) -> float:
    """The largest sum of the magnitudes of what is summed for a result, without activations: rounding errors are shares of it."""
    plain = tuple((name, "none" if name.endswith("activation") else value) for name, value in task.spec.attributes)
    weights = tuple(None if w is None else np.abs(w) for w in task.weights)
    bare = replace(task, spec=replace(task.spec, attributes=plain), weights=weights)
    return float(reference(bare, [np.abs(x) for x in values]).max(initial=0.0))
