"""A region as calls of kernels on buffers, before addresses are settled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sparsec.backends.base import Source
from sparsec.lower.layouts import Storage
from sparsec.lower.spec import KernelSpec


@dataclass(frozen=True, eq=False)
class Buffer:
    """Storage for one value. ``port`` names a caller's tensor: ("input" | "output", index); else it lives in the arena.

    ``slot`` > 0: that many elements exist once per thread instead; ``unit`` is then how far one unit of work moves in them, so that
    a strip of units starts at the slot's beginning (tiled values between two calls of one group; 0 for plain scratch).
    ``of``: the buffer whose memory this one is, read in another storage.
    """

    name: str
    storage: Storage
    port: tuple[str, int] | None = None
    slot: int = 0
    unit: int = 0
    of: Buffer | None = None

    @property
    def memory(self) -> Buffer:
        """The buffer that owns the memory."""
        return self if self.of is None else self.of.memory

    def read_as(self, storage: Storage) -> Buffer:
        """The same memory in another storage."""
        return self if storage == self.storage else replace(self, storage=storage, of=self)


@dataclass(frozen=True, eq=False)
class Call:
    """One kernel call: ``buffers`` for its activations, ``constants`` for its constant pointers, ``scalars`` for its numbers.

    ``writes`` are the activations it writes. ``flops`` counts the work done (multiply and add separately), ``bytes`` the
    memory touched once, per sample. ``limits``: of a buffer of indices, how many rows they may name.
    """

    source: Source
    node: str
    kind: str
    buffers: Mapping[str, Buffer]
    writes: tuple[str, ...]
    constants: dict[str, np.ndarray]
    scalars: Mapping[str, int | float]
    units: int
    flops: int
    bytes: int
    detail: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)


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


@dataclass(frozen=True, eq=False)
class Move:
    """A value to write from one buffer to another.

    ``places``: element i goes from the first's address i to the second's, what else is written is 0. ``step``: space-to-depth of a
    contiguous or halo map into halo parity planes, all or the first of each channel. Neither: a copy that the backend ``covers``, of a
    value of ``shape``.
    """

    source: Buffer
    target: Buffer
    places: tuple[np.ndarray, np.ndarray] | None = None
    step: int = 0
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Task:
    """One node to lower: its spec, where its activations live and its constant operands.

    ``sources``: activations in argument order without the residual. A strided dense convolution reads its first source as parity
    planes: s*s*C channels on the map of its output.
    """

    node: str
    spec: KernelSpec
    sources: tuple[Buffer, ...]
    residual: Buffer | None
    target: Buffer
    weights: tuple[np.ndarray | None, ...]
