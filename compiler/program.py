"""The executable form of a region: plain tables that a kernel library runs. Needs numpy only.

Record (one kernel call): ``RECORD_WIDTH`` int64 fields: kernel id, then the kernel's parameters in order. An activation pointer takes
three fields (address, bytes per thread slot, bytes per unit of work: the last two are zero unless it lives in a strip buffer); a
constant pointer, an int32 or a float32 (its bits) takes one.

Group: ``GROUP_WIDTH`` int64 fields: first record, end record, units of work, units per strip, strips per thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

RECORD_WIDTH = 48
GROUP_WIDTH = 5

Segment = Literal["arena", "weights", "input", "output"]


@dataclass(frozen=True)
class Relocation:
    """A record field that holds an address: ``segment`` base (of input/output ``port``) plus ``offset`` bytes."""

    field: int
    segment: Segment
    offset: int
    port: int = 0


@dataclass(frozen=True)
class Port:
    """One tensor at the edge of a program; ``shape`` is per sample, without the batch axis. float32 only."""

    name: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of one sample."""
        return 4 * int(np.prod(self.shape, dtype=np.int64))


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
    """A region laid out for one kernel library. ``kernels`` are the library's symbols in the order of kernel ids."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    kernels: tuple[str, ...]
    records: np.ndarray
    groups: np.ndarray
    relocations: tuple[Relocation, ...]
    arena_bytes: int
    weights: np.ndarray
    steps: tuple[Step, ...]
