"""Elementwise operators on maps (halo or tiled, in any mix) and on vectors.

y[c, p] = act(f(x[c, p], ...))     f by ``op``:
    copy    x                        add   x + z[c, p]        mul   x * z[c, p]
    scale   x * z[c] (z a vector)    affine   x * scale[c] + shift[c]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.expr import activate, number
from sparsec.backends.cpu.registers import load, load_below, store, store_below
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import Need, over, reads, writes
from sparsec.backends.vector import Vector

MAP_OPS = ("copy", "add", "mul", "scale", "affine")
VECTOR_OPS = ("copy", "add", "mul", "affine")


def _combine(op: str, x: Any, z: Any, scale: Any, shift: Any) -> Any:
    """f of the module's table."""
    if op == "add":
        return x + z
    if op in ("mul", "scale"):
        return x * z
    return x * scale + shift if op == "affine" else x


def map_op(vector: Vector, vectors: int, op: str, activation: str, masked: bool) -> Source:
    """``op``, then ``activation``, on C channels of tiles of ``lanes * vectors`` pixels.

    A map is described by the distance of its tiles and of its channels (``*_tile``, ``*_channel``); the vector z of "scale" is read
    at ``c * z_channel``. ``masked`` writes zero where mask is 0, as a halo y needs unless f and the activation keep zeros.
    Operands that ``op`` does not name are not read. Tiles follow one another within a channel where channels are farther apart
    than tiles (halo), channels within a tile otherwise (tiled): memory is walked in order either way. Units of work are tiles.
    """
    lanes = vector.lanes
    if op not in MAP_OPS:
        raise ValueError(f"unknown operator {op!r} on maps; known: {', '.join(MAP_OPS)}")
    tile = lanes * vectors
    names = ("channels", "x_tile", "x_channel", "z_tile", "z_channel", "y_tile", "y_channel")
    params = (
        *(Param(n, "act") for n in ("x", "z", "y")),
        *(Param(n, "ptr") for n in ("scale", "shift")),
        Param("mask", "ptr", "float32"),
        *(Param(n, "i32") for n in names),
        *(Param(n, "f32") for n in ("lo", "hi")),
    )

    def kernel(x, z, y, scale, shift, mask, channels, x_tile, x_channel, z_tile, z_channel, y_tile, y_channel, lo, hi, begin, end):
        rows_apart: T.let = T.Cast("int32", y_channel > y_tile)
        inner: T.let = T.Select(rows_apart == 1, end - begin, channels)
        for o in range(T.Select(rows_apart == 1, channels, end - begin)):
            for i in range(inner):
                c: T.let = T.Select(rows_apart == 1, o, i)
                t: T.let = begin + T.Select(rows_apart == 1, i, o)
                x0: T.let = t * x_tile + c * x_channel
                y0: T.let = t * y_tile + c * y_channel
                z0: T.let = t * z_tile + c * z_channel
                value = T.alloc_buffer((lanes,), vector.dtype, scope="global")
                for v in T.unroll(vectors):
                    for e in T.vectorized(lanes):
                        value[e] = _combine(
                            op,
                            x[x0 + v * lanes + e],
                            z[c * z_channel] if op == "scale" else z[z0 + v * lanes + e],
                            scale[c],
                            shift[c],
                        )
                        value[e] = activate(activation, value[e], lo, hi)
                        if masked:
                            value[e] = T.Select(mask[t * tile + v * lanes + e] > T.float32(0), value[e], number(vector, 0))
                        y[y0 + v * lanes + e] = value[e]

    units, rows = ("begin", "end"), (0, "channels")
    read = ["x", *["z"] * (op in ("add", "mul"))]
    steps = (
        *(reads(n, over(*units, f"{n}_tile"), over(*rows, f"{n}_channel"), width=tile) for n in read),
        *([reads("z", over(*rows, "z_channel"))] * (op == "scale")),
        *(reads(n, over(*rows)) for n in ("scale", "shift") if op == "affine"),
        *([reads("mask", over(*units, tile), width=tile)] * masked),
        writes("y", over(*units, "y_tile"), over(*rows, "y_channel"), width=tile),
    )
    return script.kernel(vector, f"map_{op}_l{lanes}_v{vectors}_{activation}{'_masked' * masked}", params, kernel, steps)


def vector_op(vector: Vector, op: str, activation: str) -> Source:
    """``op``, then ``activation``, on vectors of ``length`` elements; exactly those are read and written.

    Every operand is contiguous, "affine" has one scale and shift per element. Units of work are chunks of ``lanes`` elements.
    """
    lanes = vector.lanes
    if op not in VECTOR_OPS:
        raise ValueError(f"unknown operator {op!r} on vectors; known: {', '.join(VECTOR_OPS)}")
    params = (
        *(Param(n, "act") for n in ("x", "z", "y")),
        *(Param(n, "ptr") for n in ("scale", "shift")),
        Param("length", "i32"),
        *(Param(n, "f32") for n in ("lo", "hi")),
    )
    read = ["x", *["z"] * (op in ("add", "mul")), *["scale", "shift"] * (op == "affine")]

    def loaded(operands: Sequence[Any], buffers: Sequence[Any], start: Any, length: Any) -> None:
        """Emit the loads of what ``op`` reads: a vector of each, zeros past ``length``."""
        for name, operand, buffer in zip(("x", "z", "scale", "shift"), operands, buffers, strict=True):
            if name in read:
                store(vector, operand, 0, load_below(vector, buffer, start, length - start))

    def kernel(x, z, y, scale, shift, length, lo, hi, begin, end):
        for i in range(end - begin):
            at: T.let = (begin + i) * lanes
            operands = [T.alloc_buffer((lanes,), vector.dtype, scope="global") for _ in range(4)]
            loaded(operands, (x, z, scale, shift), at, length)
            value = operands[0]
            for e in T.vectorized(lanes):
                value[e] = activate(activation, _combine(op, *[operand[e] for operand in operands]), lo, hi)
            store_below(vector, y, at, load(vector, value, 0), length - at)

    elements = over(f"begin * {lanes}", f"least(end * {lanes}, length)")
    steps = (Need(f"is_small(end * {lanes})"), *(reads(n, elements) for n in read), writes("y", elements))
    return script.kernel(vector, f"vector_{op}_l{lanes}_{activation}", params, kernel, steps)
