"""What kernels emit on whole vector registers: loads and stores of some lanes only, permutes, transposes of square blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsec.backends.cpu.expr import cast, number
from sparsec.backends.cpu.tir import T
from sparsec.backends.vector import Permute, Vector

Merge = Callable[[Any, Any], Any]


def load(vector: Vector, x: Any, start: Any) -> Any:
    """x[start : start + lanes]"""
    return x[T.Ramp(start, 1, vector.lanes)]


def store(vector: Vector, y: Any, start: Any, value: Any) -> None:
    """Emit y[start : start + lanes] = value."""
    T.buffer_store(y, value, [T.Ramp(start, 1, vector.lanes)])


def load_below(vector: Vector, x: Any, start: Any, limit: Any) -> Any:
    """The first ``limit`` elements of x[start : start + lanes], zeros after them; no other element is touched.

    Without masks it emits what fills a register from x, at once.
    """
    lanes = vector.lanes
    if vector.masks:
        return T.masked_load(f"{vector.dtype}x{lanes}", x, T.Ramp(start, 1, lanes), _lanes_below(lanes, limit))
    held = _register(vector)
    with T.If(limit >= lanes):
        with T.Then():
            store(vector, held, 0, load(vector, x, start))
        with T.Else():
            store(vector, held, 0, T.Broadcast(number(vector, 0), lanes))
            with T.serial(0, T.max(limit, 0)) as e:
                T.buffer_store(held, x[start + e], [e])
    return load(vector, held, 0)


def widen_below(vector: Vector, held: Any, x: Any, start: Any, limit: Any) -> None:
    """Emit held[:lanes] = the first ``limit`` elements of x[start:] in float32, zeros after them; no other element is touched."""
    if vector.dtype == "float32":
        store(vector, held, 0, load_below(vector, x, start, limit))
        return
    with T.serial(0, vector.of("float32").lanes) as e:
        T.buffer_store(held, T.if_then_else(e < limit, cast(x[start + e], "float32"), T.float32(0)), [e])


def store_below(vector: Vector, y: Any, start: Any, value: Any, limit: Any) -> None:
    """Emit the store of the first ``limit`` elements of ``value`` to y[start:]; no other element is touched."""
    lanes = vector.lanes
    if vector.masks:
        T.evaluate(T.masked_store(y, value, T.Ramp(start, 1, lanes), _lanes_below(lanes, limit)))
        return
    with T.If(limit >= lanes):
        with T.Then():
            store(vector, y, start, value)
        with T.Else():
            held = _kept(vector, value)
            with T.serial(0, T.max(limit, 0)) as e:
                T.buffer_store(y, held[e], [start + e])


def _lanes_below(lanes: int, limit: Any) -> Any:
    """Mask of the lanes whose number is below ``limit`` (which may be negative)."""
    return T.get_active_lane_mask(f"boolx{lanes}", T.int32(0), T.max(limit, T.int32(0)))


def pick(lanes: int, permute: Permute, low: Any, high: Any, number: Any) -> Any:
    """Per lane, element ``number`` (int32) of the two registers low and high."""
    if permute.registers == 2:
        return T.call_llvm_pure_intrin(f"float32x{lanes}", permute.intrinsic, low, number, high)
    parts = [T.call_llvm_pure_intrin(f"float32x{lanes}", permute.intrinsic, register, number) for register in (high, low)]
    return T.Select(number > T.Broadcast(T.int32(lanes - 1), lanes), *parts)


def merge_from(values: Any, count: int, start: int, merge: Merge) -> None:
    """Emit values[:count] = merge(values[:count], values[start : start + count]), lane by lane."""
    with T.vectorized(count) as e:
        T.buffer_store(values, merge(values[e], values[start + e]), [e])


def fold(vector: Vector, values: Any, count: int, merge: Merge) -> None:
    """Emit values[0] = ``count`` elements merged, a power of two of them: halves onto one another."""
    half, lanes = count // 2, vector.lanes
    while half:
        part = min(half, lanes)
        for v in range(0, half, part):
            with T.vectorized(part) as e:
                T.buffer_store(values, merge(values[v + e], values[half + v + e]), [v + e])
        half //= 2


def square(vector: Vector) -> list[Any]:
    """A block of ``lanes`` rows, one register each: in one buffer 16 x 16 numbers would be a heap call."""
    return [_register(vector) for _ in range(vector.lanes)]


def transpose(vector: Vector, rows: list[Any]) -> list[Any]:
    """Emit the transpose of a ``square``; its columns as vectors.

    Stage s swaps the off-diagonal s x s blocks of every 2s x 2s block.
    """
    step, lanes = 1, vector.lanes
    while step < lanes:
        rows = [_kept(vector, _swapped(vector, rows, r, step)) for r in range(lanes)]
        step *= 2
    return [load(vector, r, 0) for r in rows]


def _register(vector: Vector) -> Any:
    return T.alloc_buffer((vector.lanes,), vector.dtype, scope="global")


def _kept(vector: Vector, value: Any) -> Any:
    held = _register(vector)
    store(vector, held, 0, value)
    return held


def _swapped(vector: Vector, rows: list[Any], r: int, step: int) -> Any:
    """Row r after a stage: where bit ``step`` of lane and row differ, they are exchanged with those of the partner row."""
    lanes = vector.lanes
    first, second = load(vector, rows[r & ~step], 0), load(vector, rows[r | step], 0)
    own = step if r & step else 0
    return T.Shuffle([first, second], [e + own if not e & step else lanes + e - step + own for e in range(lanes)])
