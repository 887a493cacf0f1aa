"""Exported programs with symbolic sizes: what their axes follow, which sizes to compile for, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, SymBoolArgument, SymFloatArgument, SymIntArgument
from torch.utils import _pytree as pytree

from sparsec.doors.from_torch.numbers import Sized
from sparsec.doors.from_torch.specialise import expression, specialised
from sparsec.errors import UnsupportedModel
from sparsec.ir.shape_guards import read_guards
from sparsec.ir.symbols import LARGEST, Dim, Signature, SymbolSpec
from sparsec.run.affine import Affine

BATCH = "batch"
#: torch traces with sizes of at least 2 and runs what it traced with 1 as well.
_TRACED_LEAST = 2


@dataclass(frozen=True, eq=False)
class Symbolic:
    """A functional program with symbolic sizes.

    signature: names and dimensions of its inputs. outputs: dimensions of its results, None where a length follows sizes in a way that an
    Affine cannot say. batches: the symbols that are dimension 0 of every input and output, and no other dimension; empty if there are none.
    stepped: the symbols that it makes other than linear use of.
    """

    program: ExportedProgram
    signature: Signature
    outputs: tuple[tuple[Dim | None, ...], ...]
    batches: frozenset[str]
    names: Mapping[Any, str]
    stepped: frozenset[str] = frozenset()

    def graph(self, sizes: Mapping[str, int]) -> fx.Graph:
        """The program's graph for these sizes. UnsupportedModel where it cannot be had, InvalidInput where the program forbids them."""
        self.signature.check(sizes)
        return specialised(self.program, self.names, sizes)

    def use_of_samples(self, sizes: Mapping[str, int]) -> str:
        """What the program makes of the number of samples beside shapes, looked at with these sizes of tokens; empty if nothing.

        Samples are dimension 0 of inputs.
        """
        leading, most = self.signature.leading, max(sizes.values(), default=0) + LARGEST
        alike = (size for size in range(_TRACED_LEAST, most) if self.signature.allows({**sizes, **dict.fromkeys(leading, size)}))
        if not leading or len(batches := [*islice(alike, 2)]) < 2:
            return ""
        symbols = {symbol for symbol, name in self.names.items() if name in leading}
        others = {symbol: sizes[name] for symbol, name in self.names.items() if name not in leading}
        return _sized(self.program).use_of_samples(symbols, others, (batches[0], batches[1]))

    def first_choice(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Sizes to compile for, given those of an example: the largest for tokens, the example's for everything else.

        Tokens are dimension 1 of inputs [N, T] or [N, T, F]. Where their number has no largest value it is rounded up to a bucket.
        """
        chosen = dict(sizes)
        for name in self.signature.tokens - self.batches:
            most = self.signature.symbols[name].most
            chosen[name] = most if most is not None and most <= LARGEST else self.signature.symbols[name].aligned(sizes[name])
        return chosen


def is_symbolic(program: ExportedProgram) -> bool:
    """Whether a tensor that the program takes has a size that is not fixed."""
    return any(not isinstance(size, int) for _, value in _taken(program) for size in value.shape)


def read_symbols(program: ExportedProgram) -> Symbolic:
    """What the axes of a functional program follow. UnsupportedModel for numbers as inputs and for lengths that give no size."""
    for spec in program.graph_signature.input_specs:
        if isinstance(spec.arg, SymIntArgument | SymFloatArgument | SymBoolArgument):
            raise UnsupportedModel(
                "The program takes a number that is free.", where=spec.arg.name, hint="Export it with a fixed number there."
            )
    taken, returned = _taken(program), [node.meta["val"] for node in _results(program)]
    batch = _batch_symbols([value for _, value in taken], returned)
    names = _names(taken, batch)
    signature = Signature(
        names=tuple(name for name, _ in taken),
        dims=tuple(tuple(_input_dim(name, size, names) for size in value.shape) for name, value in taken),
        symbols={name: _limits(name, program.range_constraints.get(symbol)) for symbol, name in names.items()},
        guards=read_guards(getattr(program, "_guards_code", None) or (), {name: [1] * value.dim() for name, value in taken}),
    )
    outputs = tuple(tuple(_dim(size, names) for size in value.shape) if isinstance(value, Tensor) else () for value in returned)
    steps = frozenset(names[symbol] for symbol in _sized(program).stepped() if symbol in names)
    return Symbolic(program, signature, outputs, frozenset(names[symbol] for symbol in batch), names, steps)


def _sized(program: ExportedProgram) -> Sized:
    values = {**program.state_dict, **program.constants}
    entries = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    places = {node: entries[node.name] for node in program.graph.nodes if node.op == "placeholder"}
    stored = {node: values[entry.target] for node, entry in places.items() if entry.target in values}
    return Sized(program.graph, "val", {node for node, entry in places.items() if entry.kind == InputKind.USER_INPUT}, stored)


def example_arguments(program: ExportedProgram) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The program's own example inputs, or random ones: the least batch, and up to one bucket of every other free size."""
    if program.example_inputs:
        args, kwargs = program.example_inputs
        return tuple(args), dict(kwargs)
    symbolic = read_symbols(program)
    symbols = symbolic.signature.symbols
    sizes = {name: spec.least if name in symbolic.batches else max(spec.least, spec.aligned(1)) for name, spec in symbols.items()}
    tensors = dict(_taken(program))
    shapes = zip(symbolic.signature.names, symbolic.signature.shapes(sizes), strict=True)
    made = {name: random_tensor(shape, tensors[name].dtype) for name, shape in shapes}
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    leaves = [made[spec.arg.name] if spec.arg.name in made else getattr(spec.arg, "value", None) for spec in specs]
    args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    return args, kwargs


def random_tensor(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Normal numbers, the same for every call; zeros of a dtype that has none."""
    made = torch.zeros(tuple(shape), dtype=dtype)
    return made.normal_(generator=torch.Generator().manual_seed(0)) if dtype.is_floating_point else made


def input_names(program: ExportedProgram) -> list[str]:
    """The names of the tensors that a caller gives, in order."""
    return [name for name, _ in _taken(program)]


# What axes follow


def _taken(program: ExportedProgram) -> list[tuple[str, Tensor]]:
    """Names and symbolic values of the tensors that a caller gives."""
    given = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT}
    values = [(node.name, node.meta.get("val")) for node in program.graph.nodes if node.op == "placeholder" and node.name in given]
    return [(name, value) for name, value in values if isinstance(value, Tensor)]


def _results(program: ExportedProgram) -> list[fx.Node]:
    return [value for value in program.graph.output_node().args[0] if isinstance(value, fx.Node)]  # type: ignore[union-attr]


def _batch_symbols(taken: Sequence[Tensor], returned: Sequence[Any]) -> set[Any]:
    """The symbols that are dimension 0 of every tensor and part of no other dimension; export may not see that inputs share one."""
    values = [*taken, *returned]
    if not taken or not all(isinstance(value, Tensor) and value.dim() for value in values):
        return set()
    found = {expression(value.shape[0]) for value in taken}
    others = set().union(*(_free(size) for value in values for size in value.shape[1:]))
    common = all(_free(value.shape[0]) == {expression(value.shape[0])} for value in values)
    return found if common and not found & others and {expression(value.shape[0]) for value in returned} <= found else set()


def _free(size: Any) -> set[Any]:
    return set(size.node.expr.free_symbols) if isinstance(size, torch.SymInt) else set()


def _names(taken: Sequence[tuple[str, Tensor]], batch: set[Any]) -> dict[Any, str]:
    """A name for every symbol: that of the user's Dim, "batch", or the input and axis where it comes first."""
    names: dict[Any, str] = {}
    for name, value in taken:
        for axis, size in enumerate(value.shape):
            for symbol in sorted(_free(size) - names.keys(), key=str):
                own = _dim_name(size, name, axis) if expression(size) == symbol else ""
                made = own or (BATCH if batch == {symbol} else f"{name}_{axis}")
                names[symbol] = made if made not in names.values() else str(symbol)
    return names


def _dim_name(size: Any, name: str, axis: int) -> str:
    """The name of the user's Dim, which a program remembers until it is saved."""
    known = getattr(size.node.shape_env, "source_name_to_debug_name", {}).get(f"L['{name}'].size()[{axis}]", "")
    return known if known.isidentifier() and not known.startswith("_") else ""


def _dim(size: Any, names: Mapping[Any, str]) -> Dim | None:
    """A length as int or Affine; None where it is neither."""
    if isinstance(size, int):
        return size
    found = expression(size)
    if found.is_Integer:  # a free axis that the program's code leaves one length
        return int(found)
    if len(found.free_symbols) != 1 or not found.free_symbols <= names.keys():
        return None
    (symbol,) = found.free_symbols
    times, plus = found.coeff(symbol), found - found.coeff(symbol) * symbol
    return Affine(names[symbol], int(plus), int(times)) if times.is_Integer and plus.is_Integer and times > 0 else None


def _input_dim(name: str, size: Any, names: Mapping[Any, str]) -> Dim:
    dim = _dim(size, names)
    if dim is None:
        raise UnsupportedModel(
            "An input has a length that gives no size.", where=name, why=str(size), hint="Export with one Dim for each free axis."
        )
    return dim


def _limits(name: str, allowed: Any) -> SymbolSpec:
    if allowed is None:
        return SymbolSpec(name)
    least = int(allowed.lower) if allowed.lower.is_Integer and allowed.lower > _TRACED_LEAST else 1
    return SymbolSpec(name, least, int(allowed.upper) if allowed.upper.is_Integer and allowed.upper < 1 << 48 else None)
