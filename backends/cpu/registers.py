"""What kernels emit on whole vector registers: masks of lanes, transposes of square blocks."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T


def lanes_below(lanes: int, limit: Any) -> Any:
    """Mask of the lanes whose number is below ``limit`` (which may be negative)."""
    return T.get_active_lane_mask(f"boolx{lanes}", T.int32(0), T.max(limit, T.int32(0)))


def load(lanes: int, x: Any, start: Any) -> Any:
    """x[start : start + lanes]"""
    return x[T.Ramp(start, 1, lanes)]


def load_below(lanes: int, x: Any, start: Any, limit: Any) -> Any:
    """The first ``limit`` elements of x[start : start + lanes], zeros after them; no other element is touched."""
    return T.masked_load(f"float32x{lanes}", x, T.Ramp(start, 1, lanes), lanes_below(lanes, limit))


def store(lanes: int, y: Any, start: Any, value: Any) -> None:
    """Emit y[start : start + lanes] = value."""
    T.buffer_store(y, value, [T.Ramp(start, 1, lanes)])


def store_below(lanes: int, y: Any, start: Any, value: Any, limit: Any) -> None:
    """Emit the store of the first ``limit`` elements of ``value`` to y[start:]; no other element is touched."""
    T.evaluate(T.masked_store(y, value, T.Ramp(start, 1, lanes), lanes_below(lanes, limit)))


def square(lanes: int) -> list[Any]:
    """A block of ``lanes`` rows, one register each: in one buffer 16 x 16 numbers would be a heap call."""
    return [T.alloc_buffer((lanes,), "float32", scope="global") for _ in range(lanes)]


def transpose(lanes: int, rows: list[Any]) -> list[Any]:
    """Emit the transpose of a ``square``; its columns as vectors.

    Stage s swaps the off-diagonal s x s blocks of every 2s x 2s block.
    """
    step = 1
    while step < lanes:
        rows = [_kept(lanes, _swapped(lanes, rows, r, step)) for r in range(lanes)]
        step *= 2
    return [load(lanes, r, 0) for r in rows]


def _kept(lanes: int, value: Any) -> Any:
    buffer = T.alloc_buffer((lanes,), "float32", scope="global")
    store(lanes, buffer, 0, value)
    return buffer


def _swapped(lanes: int, rows: list[Any], r: int, step: int) -> Any:
    """Row r after a stage: where bit ``step`` of lane and row differ, they are exchanged with those of the partner row."""
    first, second = load(lanes, rows[r & ~step], 0), load(lanes, rows[r | step], 0)
    own = step if r & step else 0
    return T.Shuffle([first, second], [e + own if not e & step else lanes + e - step + own for e in range(lanes)])
