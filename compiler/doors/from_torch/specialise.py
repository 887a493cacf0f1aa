"""An exported program with symbolic sizes at given sizes.

sym_size(x, 1) → s          s = 128, an int
view(x, [2, s, 4, 16])      view(x, [2, 128, 4, 16])      values recomputed on fake tensors, then compared with the symbolic ones
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from sparsec.doors.from_torch.dense_weights import plain
from sparsec.doors.from_torch.lookups import Lookups
from sparsec.doors.from_torch.lower import STORED, check_sizes, source_of
from sparsec.errors import InvalidInput, SparsecError, UnsupportedModel
from sparsec.ir.editor import Recomputation
from sparsec.ir.symbols import shape_text

aten = torch.ops.aten
_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)
_ASSERTIONS = frozenset({aten._assert_scalar.default, aten.sym_constrain_range.default, aten.sym_constrain_range_for_size.default})


def specialised(program: ExportedProgram, names: Mapping[Any, str], sizes: Mapping[str, int]) -> fx.Graph:
    """The program's graph with sizes for all its symbols; ``names`` gives the name under which ``sizes`` has each.

    UnsupportedModel where it cannot be had, InvalidInput where an assertion of the program forbids the sizes.
    """
    return _Specialisation(program, names, sizes).run()


def expression(size: Any) -> Any:
    """A size as a sympy expression; ints as they are."""
    return size.node.expr if isinstance(size, torch.SymInt) else size


class _Specialisation:
    """One walk over the program's graph with every symbol a number."""

    def __init__(self, program: ExportedProgram, names: Mapping[Any, str], sizes: Mapping[str, int]) -> None:
        self.program, self.sizes = program, sizes
        self.numbers = {symbol: sympy.Integer(sizes[name]) for symbol, name in names.items()}
        self.graph = fx.Graph()
        self.moved: dict[fx.Node, Any] = {}
        self.compute = Recomputation()
        self.lookups = Lookups()

    def run(self) -> fx.Graph:
        entries = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._place(node, entries[node.name])
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self._copy(node)
            else:
                raise UnsupportedModel("The model holds a subgraph.", where=source_of(node), why=str(node.target))
        return self.graph

    def _place(self, node: fx.Node, entry: Any) -> None:
        made = self._copy(node)
        value = node.meta.get("val")
        if entry.kind in STORED:
            stored = self.program.constants if entry.target in self.program.constants else self.program.state_dict
            made.meta["val"] = self.compute.like(plain(stored[entry.target]))
            self.lookups.add(made, stored[entry.target])
        elif isinstance(value, Tensor):
            made.meta["val"] = self.compute(torch.empty, (self._shape(value),), {"dtype": value.dtype})

    def _call(self, node: fx.Node) -> None:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.moved.__getitem__)
        if node.target in _ASSERTIONS:
            self._check(node, args)
            return
        check_sizes(node)
        value = self._computed(node, args, kwargs)
        if isinstance(value, _NUMBERS):
            self.moved[node] = value
            return
        self._compare(node, value)
        made = self._copy(node)
        made.meta["val"] = value
        self.lookups.follow(made, value)
        if missing := self.lookups.missing(made):
            raise self._refused(node, missing)

    def _copy(self, node: fx.Node) -> fx.Node:
        self.moved[node] = made = self.graph.node_copy(node, self.moved.__getitem__)
        # The signature speaks of nodes by name, also of those whose names a graph would not give out again.
        made.name, made.meta = node.name, dict(node.meta)
        return made

    def _computed(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        try:
            return self.compute(node.target, args, kwargs)
        except SparsecError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise self._refused(node, why) from error

    def _check(self, node: fx.Node, args: Sequence[Any]) -> None:
        """The program's own assertion; one about a number must hold."""
        if node.target is aten._assert_scalar.default and not isinstance(args[0], fx.Node) and not args[0]:
            raise InvalidInput("The exported program does not allow these sizes.", where=self._sizes_text(), why=str(args[1]))

    def _compare(self, node: fx.Node, value: Any) -> None:
        """The shapes must be those that the symbolic program promises."""
        symbolic, concrete = pytree.tree_leaves(node.meta.get("val")), pytree.tree_leaves(value)
        if len(symbolic) != len(concrete):
            raise self._refused(node, f"It gives {len(concrete)} values and not {len(symbolic)}.")
        for promised, found in zip(symbolic, concrete, strict=True):
            if isinstance(promised, Tensor) and tuple(found.shape) != self._shape(promised):
                raise self._refused(node, f"Its shape is {list(found.shape)}, and {shape_text(promised.shape)} was exported.")

    def _shape(self, value: Tensor) -> tuple[int, ...]:
        return tuple(self._length(size) for size in value.shape)

    def _length(self, size: Any) -> int:
        if isinstance(size, int):
            return size
        found = expression(size).xreplace(self.numbers)
        if not found.is_Integer:
            raise UnsupportedModel("The model has a size that depends on the values of its inputs.", why=str(size))
        return int(found)

    def _refused(self, node: fx.Node, why: str) -> UnsupportedModel:
        what = f"The program cannot be compiled for {self._sizes_text()}."
        return UnsupportedModel(what, where=f"{node.name} {source_of(node)}".strip(), why=why)

    def _sizes_text(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self.sizes.items())
