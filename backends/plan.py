"""A region as calls of kernels on buffers, before addresses are settled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsec.backends.base import Source
from sparsec.layouts import Storage


@dataclass(frozen=True, eq=False)
class Buffer:
    """Storage for one value. ``port`` names a caller's tensor: ("input" | "output", index); else it lives in the arena.

    ``strip`` > 0: only a strip of that many tiles exists, once per thread (packed values between two calls of one group).
    """

    name: str
    storage: Storage
    port: tuple[str, int] | None = None
    strip: int = 0


@dataclass(frozen=True, eq=False)
class Call:
    """One kernel call: ``buffers`` for its activations, ``constants`` for its constant pointers, ``scalars`` for its numbers.

    ``writes`` are the activations it writes. ``flops`` counts the work done (multiply and add separately), ``bytes`` the
    memory touched once, per sample.
    """

    source: Source
    node: str
    kind: str
    buffers: Mapping[str, Buffer]
    writes: tuple[str, ...]
    constants: Mapping[str, np.ndarray]
    scalars: Mapping[str, int | float]
    units: int
    flops: int
    bytes: int
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Group:
    """Calls that run strip by strip; ``strip`` units at a time (0: one strip per thread). All share the number of units."""

    calls: tuple[Call, ...]
    strip: int = 0


@dataclass(frozen=True, eq=False)
class Plan:
    """All groups of a region in order, with the buffers of its inputs and outputs in port order."""

    groups: tuple[Group, ...]
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
