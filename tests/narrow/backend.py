"""Copies of int8 and bfloat16 from one storage to another, and sums of two such values, beside what the toy has."""

from typing import Any

from tvm.script import tirx as T

from sparsec.backends.base import Param, Source
from sparsec.backends.plan import Call, Group, Move, Task
from sparsec.ir.miss import Miss
from sparsec.lower.spec import KernelSpec, Schedule
from sparsec.run.dtypes import dtype_of
from tests.toy.backend import Toy, called

DTYPES = ("int8", "bfloat16")


class Narrow(Toy):
    name = "narrow"

    def offers(self, spec: KernelSpec) -> Miss | None:
        if not _is_narrow(spec):
            return super().offers(spec)
        kinds = {dtype for _, dtype in spec.dtypes} or {spec.dtype}
        alike = len(spec.dtypes) in (0, len(spec.inputs) + 1) and len(kinds) == 1 and kinds <= {*DTYPES}
        return (
            None
            if alike and (spec.operator.is_view or spec.op in ("add", "map_to_tokens"))
            else Miss(f"no kernel computes {spec.op} in {', '.join(sorted(kinds))}")
        )

    def kernels(self, task: Task, schedule: Schedule) -> tuple[Source, ...]:
        made = add if task.spec.op == "add" else copy
        return (made(task.target.storage.dtype),) if _is_narrow(task.spec) else super().kernels(task, schedule)

    def lower(self, task: Task, schedule: Schedule) -> list[Group]:
        if not _is_narrow(task.spec):
            return super().lower(task, schedule)
        buffers = [*task.sources, task.target]
        shapes = (*task.spec.inputs, task.spec.output)
        tables = [b.storage.addresses(shape) - b.storage.origin for b, shape in zip(buffers, shapes, strict=True)]
        if task.spec.op == "map_to_tokens":
            tables[0] = tables[0].reshape(shapes[0][0], -1).T.reshape(-1)
        return [Group((called(*self.kernels(task, schedule), task.node, task.spec.op, buffers, tables, len(tables[0])),))]

    def move(self, move: Move) -> Call:
        dtype = move.source.storage.dtype
        if dtype not in DTYPES:
            return super().move(move)
        assert move.places is not None and move.target.storage.dtype == dtype
        tables = [at - b.storage.origin for at, b in zip(move.places, (move.source, move.target), strict=True)]
        return called(copy(dtype), f"{move.source.name}->", "convert", [move.source, move.target], tables, len(tables[0]))


BACKEND = Narrow


def _is_narrow(spec: KernelSpec) -> bool:
    return bool(spec.dtypes) or spec.dtype != "float32"


def copy(dtype: str) -> Source:
    """y[to[i]] = x[from[i]]."""
    kind = dtype_of(dtype).tir

    def make() -> Any:
        @T.prim_func(private=True)
        def kernel(
            x_: T.handle(kind), y_: T.handle(kind), at_x_: T.handle("int32"), at_y_: T.handle("int32"), begin: T.int32, end: T.int32
        ) -> T.int32:
            x, y = T.decl_buffer((1 << 30,), kind, data=x_), T.decl_buffer((1 << 30,), kind, data=y_)
            at_x, at_y = T.decl_buffer((1 << 30,), "int32", data=at_x_), T.decl_buffer((1 << 30,), "int32", data=at_y_)
            for i in range(end - begin):
                y[at_y[begin + i]] = x[at_x[begin + i]]
            return T.int32(0)

        return kernel

    return _source(f"copy_{dtype}", "xy", dtype, make)


def add(dtype: str) -> Source:
    """y[to[i]] = a[from_a[i]] + b[from_b[i]]."""
    kind = dtype_of(dtype).tir

    def make() -> Any:
        @T.prim_func(private=True)
        def kernel(
            a_: T.handle(kind),
            b_: T.handle(kind),
            y_: T.handle(kind),
            at_a_: T.handle("int32"),
            at_b_: T.handle("int32"),
            at_y_: T.handle("int32"),
            begin: T.int32,
            end: T.int32,
        ) -> T.int32:
            a, b = T.decl_buffer((1 << 30,), kind, data=a_), T.decl_buffer((1 << 30,), kind, data=b_)
            y, at_y = T.decl_buffer((1 << 30,), kind, data=y_), T.decl_buffer((1 << 30,), "int32", data=at_y_)
            at_a, at_b = T.decl_buffer((1 << 30,), "int32", data=at_a_), T.decl_buffer((1 << 30,), "int32", data=at_b_)
            for i in range(end - begin):
                y[at_y[begin + i]] = a[at_a[begin + i]] + b[at_b[begin + i]]
            return T.int32(0)

        return kernel

    return _source(f"add_{dtype}", "aby", dtype, make)


def _source(name: str, values: str, dtype: str, make: Any) -> Source:
    params = [*(Param(v, "act", dtype) for v in values), *(Param(f"at_{v}", "ptr", "int32") for v in values)]
    return Source(f"{name}_{len(values)}_{len(values)}", tuple(params), make)
