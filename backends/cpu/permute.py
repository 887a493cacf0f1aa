"""Any rearrangement of a value's elements, through a table of positions."""

from __future__ import annotations

import numpy as np

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.expr import number
from sparsec.backends.cpu.registers import load, store_below
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import Let, Need, Scan, over, reads, writes
from sparsec.backends.vector import Vector
from sparsec.lower.layouts import Storage, ceil_to

#: Elements in a unit of work where the target is one run of elements.
RUN = 256


def permute(vector: Vector) -> Source:
    """y[u * y_channel + k] = x[place[u * length + k]], 0 where place is negative, for k < length and u * length + k < total.

    ``length`` is a multiple of ``lanes``. Nothing else is written or read, so that either side may be the caller's tensor. Units of work
    are u.
    """
    lanes = vector.lanes

    def kernel(x, y, place, length, total, y_channel, begin, end):
        for i in range(end - begin):
            for v in range(length // lanes):
                at: T.let = (begin + i) * length + v * lanes
                y0: T.let = (begin + i) * y_channel + v * lanes
                part = T.alloc_buffer((lanes,), vector.dtype, scope="global")
                # In memory: TVM would take the maximum away where the place is not negative, and read both sides all the same.
                inside = T.alloc_buffer((lanes,), "int32", scope="global")
                for e in T.vectorized(lanes):
                    inside[e] = T.max(place[at + e], 0)
                for e in T.vectorized(lanes):
                    part[e] = T.Select(place[at + e] < 0, number(vector, 0), x[inside[e]])
                store_below(vector, y, y0, load(vector, part, 0), total - at)

    params = (
        *(Param(n, "act") for n in "xy"),
        Param("place", "ptr", "int32"),
        *(Param(n, "i32") for n in ("length", "total", "y_channel")),
    )
    steps = (
        Need(f"length > 0 && length % {lanes} == 0"),
        Scan("place", "begin * length", "end * length"),
        reads("x", over("most(place_low, 0)", "most(place_high, 0) + 1")),
        # Units that are written whole, and the one in which the elements end.
        Let("whole", "total / length"),
        writes("y", over("begin", "least(end, whole)", "y_channel"), width="length"),
        writes("y", over("most(begin, whole)", "least(end, whole + 1)", "y_channel"), width="total - whole * length"),
    )
    return script.kernel(vector, f"permute_l{lanes}", params, kernel, steps)


def table_of(source: Storage, target: Storage, have: np.ndarray, want: np.ndarray) -> tuple[np.ndarray, dict[str, int], int]:
    """``place``, the scalars and the units of ``permute`` that move each element from address ``have[i]`` to ``want[i]``.

    Pads of halo rows become zero, as do elements of tiles that hold nothing.
    """
    if target.layout == "halo":
        space = target.index_space
        length, row, total = space.tiles * space.tile, space.stride, target.channels * space.tiles * space.tile
        want = want // row * length + want % row - space.front
    else:
        length, row, total = RUN, RUN, target.elements
    place = np.full(ceil_to(total, length), -1, np.int32)
    place[want] = have - source.origin
    return place, {"length": length, "total": total, "y_channel": row}, len(place) // length
