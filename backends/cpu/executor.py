"""What a kernel library does of a program table: the share of one thread in one group.

A program is plain data (see ``sparsec.run.program``): records (kernel id and argument fields of one kernel call) and groups of records. A
group's units of work are cut in strips; the strips are shared out over threads, and within a strip the group's records run one after
the other. A group of one record is an ordinary layer; a group of two keeps the value between them in a strip buffer in cache.

    for image in batch: for group: parallel for thread: for strip of thread: for record: kernel(args, begin, end)

Images, groups and threads are ``pool.c``'s, which is linked into every library and has its entry ``sparsec_run_program``. A library has C
functions and needs nothing of TVM's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm.script import tirx as T

from sparsec.backends.base import Source
from sparsec.backends.cpu import parsing
from sparsec.run.program import GROUP_WIDTH, RECORD_WIDTH


def _call(function: tvm.ir.GlobalVar, arguments: Sequence[Any]) -> Any:
    """A call of a private function, typed int32."""
    return tvm.ir.Call(function, [T.int32(a) if isinstance(a, int) else a for a in arguments], ret_ty="int32")


def _argument(kind: str, dtype: str, record: Any, field: int, begin: Any, slot: Any) -> tuple[Any, int]:
    """Decode one parameter from the record; returns the expression and the number of fields it takes."""
    if kind == "act":
        address = record[field] + slot * record[field + 1] - T.Cast("int64", begin) * record[field + 2]
        return T.reinterpret("handle", address), 3
    if kind == "ptr":
        return T.reinterpret("handle", record[field]), 1
    if kind == "i32":
        return T.Cast("int32", record[field]), 1
    return T.reinterpret("float32", T.Cast("int32", record[field])), 1


def _dispatch(calls: Sequence[tuple[tvm.ir.GlobalVar, Source]], record: Any, begin: Any, end: Any, slot: Any) -> Any:
    """A chain of conditionals on the record's kernel id."""
    chain: Any = T.int32(-1)
    for number, (symbol, source) in reversed(list(enumerate(calls))):
        arguments, field = [], 1
        for p in source.params:
            value, width = _argument(p.kind, p.dtype, record, field, begin, slot)
            arguments.append(value)
            field += width
        call = _call(symbol, [*arguments, begin, end])
        chain = T.if_then_else(record[0] == T.int64(number), call, chain)
    return chain


def _step(calls: Sequence[tuple[tvm.ir.GlobalVar, Source]]) -> Any:
    """One record over one range of units."""

    @parsing.prim_func(private=True)
    def step(record_: T.handle("int64"), begin: T.int32, end: T.int32, slot: T.int64) -> T.int32:
        record = T.decl_buffer((parsing.FAR,), "int64", data=record_, align=8)
        T.evaluate(_dispatch(calls, record, begin, end, slot))
        return T.int32(0)

    return step


def _strip(step: tvm.ir.GlobalVar) -> Any:
    """One strip of a group through all its records."""

    @parsing.prim_func(private=True)
    def strip(records_: T.handle("int64"), first: T.int64, count: T.int32, begin: T.int32, end: T.int32, slot: T.int64) -> T.int32:
        records = T.decl_buffer((parsing.FAR,), "int64", data=records_, align=8)
        for k in range(count):
            T.evaluate(_call(step, [T.address_of(records[(first + T.Cast("int64", k)) * T.int64(RECORD_WIDTH)]), begin, end, slot]))
        return T.int32(0)

    return strip


def _strips(strip: tvm.ir.GlobalVar) -> Any:
    """The share of one thread in one group."""

    @parsing.prim_func(private=True)
    def strips(records_: T.handle("int64"), group_: T.handle("int64"), thread: T.int32) -> T.int32:
        group = T.decl_buffer((GROUP_WIDTH,), "int64", data=group_, align=8)
        for s in range(T.Cast("int32", group[4])):
            if (thread * T.Cast("int32", group[4]) + s) * T.Cast("int32", group[3]) < T.Cast("int32", group[2]):
                T.evaluate(
                    _call(
                        strip,
                        [
                            records_,
                            group[0],
                            T.Cast("int32", group[1] - group[0]),
                            (thread * T.Cast("int32", group[4]) + s) * T.Cast("int32", group[3]),
                            T.min((thread * T.Cast("int32", group[4]) + s + 1) * T.Cast("int32", group[3]), T.Cast("int32", group[2])),
                            T.Cast("int64", thread),
                        ],
                    )
                )
        return T.int32(0)

    return strips


def module(kernels: Sequence[Source]) -> tvm.IRModule:
    """The TIR module of a kernel library; record kernel ids are positions in ``kernels``.

    Exports the C function ``int sparsec_share(int64_t records, int64_t group, int32_t thread)``: what one thread does of a group.
    """
    var = tvm.ir.GlobalVar
    calls = [(var(f"k{i}_{k.symbol}"), k) for i, k in enumerate(kernels)]
    functions: dict[Any, Any] = {symbol: source.make() for symbol, source in calls}
    step, strip, strips = (var(name) for name in ("step", "strip", "strips"))
    functions[step] = _step(calls)
    functions[strip] = _strip(step)
    functions[strips] = _strips(strip)

    @parsing.prim_func
    def share(records: T.int64, group: T.int64, thread: T.int32) -> T.int32:
        T.evaluate(_call(strips, [T.reinterpret("handle", records), T.reinterpret("handle", group), thread]))
        return T.int32(0)

    functions[var("sparsec_share")] = parsing.plain(share, "sparsec_share")
    return tvm.IRModule(functions)
