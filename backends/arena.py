"""Arena planning: a fixed offset for every buffer, memory shared by buffers that are not alive at once.

Flat maps keep zeros in margins that no kernel writes. So maps of one geometry share a pool of channel rows (a margin is then a
margin for every tenant), and pools of different geometries never overlap; everything else shares one pool.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from sparsec.backends.plan import Buffer, Plan
from sparsec.lower.layouts import LINE_BYTES, ceil_to
from sparsec.run.dtypes import dtype_of


@dataclass(frozen=True)
class _Tenant:
    buffer: Buffer
    size: int
    first: int
    last: int


def lifetimes(plan: Plan) -> dict[Buffer, tuple[int, int]]:
    """First and last group that touches the memory of each arena buffer."""
    spans: dict[Buffer, tuple[int, int]] = {}
    for number, group in enumerate(plan.groups):
        for call in group.calls:
            for buffer in call.buffers.values():
                if buffer.port is None:
                    owner = buffer.memory
                    spans[owner] = (spans.get(owner, (number, number))[0], number)
    return spans


def _pool(buffer: Buffer) -> Hashable:
    """Flat maps of one geometry and one size of number have rows of the same bytes."""
    shared = buffer.storage.layout == "halo" and not buffer.slot
    return (buffer.storage.index_space, dtype_of(buffer.storage.dtype).nbytes) if shared else None


def pack(tenants: Sequence[_Tenant]) -> tuple[dict[Buffer, int], int]:
    """Offsets by first fit, largest first; returns them and the total size."""
    placed: list[tuple[_Tenant, int]] = []
    for tenant in sorted(tenants, key=lambda t: (-t.size, t.first)):
        offset = 0
        for other, at in sorted(placed, key=lambda p: p[1]):
            alive_together = other.first <= tenant.last and tenant.first <= other.last
            if alive_together and offset < at + other.size and at < offset + tenant.size:
                offset = at + other.size
        placed.append((tenant, offset))
    offsets = {tenant.buffer: offset for tenant, offset in placed}
    return offsets, max((offset + tenant.size for tenant, offset in placed), default=0)


def slot_bytes(buffer: Buffer) -> int:
    """Bytes from one thread's slot of a buffer to the next, whole lines."""
    return ceil_to(buffer.slot * dtype_of(buffer.storage.dtype).nbytes, LINE_BYTES)


def bytes_of(buffer: Buffer, threads: int) -> int:
    """Bytes that a buffer takes in the arena; whole lines, whole channel rows for halo maps."""
    return slot_bytes(buffer) * threads if buffer.slot else ceil_to(buffer.storage.nbytes, LINE_BYTES)


def place(plan: Plan, threads: int) -> tuple[dict[Buffer, int], int]:
    """Offset in bytes of every arena buffer that owns memory, and the arena's bytes; one pool after the other.

    A line comes first where a map has no pads of its own: windows read those before its first pixel.
    """
    pools: dict[Any, list[_Tenant]] = defaultdict(list)
    for buffer, (first, last) in lifetimes(plan).items():
        pools[_pool(buffer)].append(_Tenant(buffer, bytes_of(buffer, threads), first, last))
    offsets: dict[Buffer, int] = {}
    total = LINE_BYTES if any(pool is not None and not pool[0].pad for pool in pools) else 0
    for tenants in pools.values():
        found, size = pack(tenants)
        offsets |= {buffer: total + offset for buffer, offset in found.items()}
        total = ceil_to(total + size, LINE_BYTES)
    return offsets, total
