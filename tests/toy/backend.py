"""What is affine in one value (products, means, positions, moves) is one kernel, whose matrix is found by asking the spec's reference."""

import ctypes
import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm

from sparsec.backends.base import Executor, Machine, Param, Source
from sparsec.backends.interpreter import Interpreter, Kernel
from sparsec.backends.plain import Plain
from sparsec.backends.plan import Buffer, Call, Group, Move, Task
from sparsec.ir.miss import Miss
from sparsec.lower.spec import KernelSpec, Schedule
from sparsec.run.program import Program
from tests.toy import kernels
from tests.toy.machine import machine as this_machine

AFFINE = ("conv2d", "linear", "add_table", "prepend", "select_token", "map_to_tokens", "global_avg_pool", "activate")
NONE = {"activation": "none", "lo": float("-inf"), "hi": float("inf")}


class Toy(Plain):
    name = executor = "toy"

    def __init__(self, machine: Machine | None = None) -> None:
        self.machine = machine or this_machine()

    def offers(self, spec: KernelSpec) -> Miss | None:
        attributes = NONE | dict(spec.attributes)
        known = spec.operator.is_view or spec.op in (*AFFINE, "add", "layer_norm", "attention")
        known &= attributes["activation"] in ("none", "clamp", "gelu")
        plain = spec.residual is None and not spec.dtypes and not attributes.get("causal")
        short = len(spec.inputs) <= {"add": 2, "attention": 3}.get(spec.op, 1) and not (spec.op == "attention" and spec.weights)
        return None if known and plain and short else Miss(f"the toy has no {spec.op} like this")

    def kernels(self, task: Task, schedule: Schedule) -> tuple[Source, ...]:
        return (kernel_of(task.spec),)

    def lower(self, task: Task, schedule: Schedule) -> list[Group]:
        spec, source, buffers = task.spec, kernel_of(task.spec), [*task.sources, task.target]
        places = [b.storage.addresses(s) - b.storage.origin for b, s in zip(buffers, (*spec.inputs, spec.output), strict=True)]
        tables, units = places, {"add": len(places[-1]), "attention": spec.output[0] * dict(spec.attributes).get("heads", 1)}
        if spec.op == "layer_norm":
            tables = [*places, *(np.full(spec.output[1], v) if w is None else w for w, v in zip(task.weights, (1, 0), strict=True))]
        elif spec.op in AFFINE:
            start, columns, values, base = affine_map(spec, task.weights)
            tables, units = [start, places[0][columns], places[1], values, base], {spec.op: len(places[1])}
        return [Group((called(source, task.node, spec.op, buffers, tables, units.get(spec.op, spec.output[0])),))]

    def move(self, move: Move) -> Call:
        assert move.places is not None
        source, target = (at - b.storage.origin for at, b in zip(move.places, (move.source, move.target), strict=True))
        count = len(target)
        tables = [np.arange(count + 1), source, target, np.ones(count), np.zeros(count)]
        return called(kernel_of(_COPY), f"{move.source.name}->", "convert", [move.source, move.target], tables, count)

    def build(self, sources: Sequence[Source], cache: Path | None) -> Path:
        functions = {s.symbol: s.make().with_attr("global_symbol", s.symbol).with_attr("calling_conv", 3) for s in sources}
        path = Path(tempfile.mkdtemp(dir=cache)) / "toy.so"
        tvm.compile(tvm.IRModule(functions), target=tvm.target.Target("llvm")).export_library(str(path))
        return path

    def runner(self, program: Program, library: Path, threads: int, room: int = 0) -> Executor:
        loaded = ctypes.CDLL(str(library))
        return Interpreter(self.executor, program, library, [bound(loaded, symbol) for symbol in program.kernels], threads, room)

    def digest(self, sources: Sequence[Source] = ()) -> str:
        return hashlib.sha256(" ".join(s.symbol for s in sources).encode()).hexdigest()[:16]


BACKEND = Toy
_COPY = KernelSpec("activate", ((1,),), (1,))


def bound(library: Any, symbol: str) -> Kernel:
    """A kernel of the library on the fields of a record; its name ends with how many activations and tables it reads."""
    acts, tables = map(int, symbol.split("_")[-2:])
    fields, function = [*range(1, 1 + 3 * acts, 3), *range(1 + 3 * acts, 1 + 3 * acts + tables)], getattr(library, symbol)
    return lambda record, begin, end: function(*(ctypes.c_void_p(int(record[f])) for f in fields), begin, end)


#: By operator: the kernel, its values by one letter and then its tables, and what is compiled in.
KINDS: dict[str, Any] = {
    "add": (kernels.add, "a b y at_a at_b place", lambda s: ()),
    "layer_norm": (kernels.norm, "x y column place scale shift", lambda s: (s.output[1], s["eps"])),
    "attention": (
        kernels.attention,
        "q k v y at_q at_k at_v place",
        lambda s: (s.inputs[1][0], s["heads"], s.output[1] // s["heads"], s["scale"]),
    ),
}
LINEAR = kernels.affine, "x y start column place value base", lambda s: tuple((NONE | dict(s.attributes))[name] for name in NONE)
FLOATS = dict.fromkeys(("value", "base", "scale", "shift"), "float32")


def kernel_of(spec: KernelSpec) -> Source:
    make, names, sizes_of = KINDS.get(spec.op, LINEAR)
    sizes, acts = sizes_of(spec), sum(len(name) == 1 for name in names.split())
    params = [Param(n, "act", "float32") if len(n) == 1 else Param(n, "ptr", FLOATS.get(n, "int32")) for n in names.split()]
    symbol = f"{make.__name__}_{hashlib.sha256(str(sizes).encode()).hexdigest()[:12]}_{acts}_{len(params) - acts}"
    return Source(symbol, tuple(params), lambda: make(*sizes))


def affine_map(spec: KernelSpec, weights: Sequence[Any]) -> list[np.ndarray]:
    """Row starts, columns and values of A, and b, where the spec without its activation is A x + b."""
    plain = replace(spec, attributes=tuple((n, NONE.get(n, v)) for n, v in spec.attributes))
    size, held = int(np.prod(spec.inputs[0])), [None if w is None else torch.from_numpy(w).double() for w in weights]
    basis = torch.zeros(1, size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)
    zero, ones = (plain.reference(*plain.arguments([x.reshape(-1, *spec.inputs[0])], held)).flatten(1) for x in basis)
    matrix = (ones - zero).T.numpy()
    rows, columns = np.nonzero(matrix)
    return [np.searchsorted(rows, np.arange(len(matrix) + 1)), columns, matrix[rows, columns], zero[0].numpy()]


def called(source: Source, node: str, kind: str, buffers: Sequence[Buffer], tables: Sequence[np.ndarray], units: int) -> Call:
    names = [[p.name for p in source.params if p.kind == k] for k in ("act", "ptr")]
    constants = {n: t.astype(FLOATS.get(n, "int32")) for n, t in zip(names[1], tables, strict=True)}
    return Call(source, node, kind, dict(zip(names[0], buffers, strict=True)), (names[0][-1],), constants, {}, units, 0, 0)
