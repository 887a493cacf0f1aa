"""What a graph with symbolic sizes makes of them beside shapes.

x / n      x + p[:n]      x + p[n - 1]      x.clamp(max=n)      x + torch.arange(n)[:, None]

A graph is made for one size. It serves others where only shapes follow the size: everywhere else the size is a number in it, or a constant.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
#: Operators, and functions and methods of tensors, of which these arguments and those after them are shapes: what they make has the same
#: elements, or the same number everywhere.
_SHAPES = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "expand", "repeat", "new_zeros", "new_ones", "new_empty"), 1),
    **dict.fromkeys(("zeros", "ones", "empty"), 0),
}
#: The same where only this argument is one.
_SHAPE = {"full": 0, "new_full": 1}


def may_hold(condition: sympy.Basic, sizes: Mapping[sympy.Symbol, int]) -> bool:
    """Whether a condition holds for these sizes, or may by others that it asks for; not where it divides by zero."""
    try:
        return bool(condition.subs(sizes) != sympy.false)
    except ZeroDivisionError:
        return False


@dataclass(frozen=True, eq=False)
class Sized:
    """A graph with symbolic sizes: ``meta`` has its values without data under ``key``, ``stored`` what the placeholders of constants hold.

    inputs: the placeholders that a call gives.
    """

    graph: fx.Graph
    key: str
    inputs: Collection[fx.Node]
    stored: Mapping[fx.Node, Any]

    def stepped(self) -> set[sympy.Symbol]:
        """The symbols of which operators take other than linear expressions, which two sizes do not tell: ``p[n // 64]``."""
        sizes = [size for node in self.graph.nodes for _, size in self._sizes(node)]
        return {symbol for size in sizes for symbol in size.free_symbols if not _is_linear(size, symbol)}

    def use_of_samples(self, symbols: Collection[sympy.Symbol], sizes: Mapping[sympy.Symbol, int], batches: tuple[int, int]) -> str:
        """What is made of the number of samples, which all of ``symbols`` are; empty if only shapes.

        sizes: of the other symbols. batches: two that the graph admits, 2 or more.
        """
        for node in self.graph.nodes:
            for position, size in self._sizes(node):
                if size.free_symbols & {*symbols} and not self._makes_shape(node, position, size, symbols):
                    return f"{node.name} takes {size}, where {', '.join(sorted(map(str, symbols)))} is their number"
        here, there = (_Values(self, {**sizes, **dict.fromkeys(symbols, batch)}) for batch in batches)
        for node in self._given_with_inputs(symbols):
            try:
                alike = of_each_sample(here[node], there[node], *batches)
                counts = self._indexes_samples(node, symbols) and _counts(here[node], batches[0]) and _counts(there[node], batches[1])
            except Exception as error:
                return f"{node.name} cannot be told for other numbers of them: {type(error).__name__}"
            if not alike and not counts:
                return f"{node.name} is a constant that depends on it"
        return ""

    def _sizes(self, node: fx.Node) -> Iterator[tuple[Any, Any]]:
        """The sizes among the arguments of what makes tensors, with their positions or names."""
        made = node.op in ("call_function", "call_method") and pytree.tree_leaves(node.meta.get(self.key))
        if not made or not any(isinstance(leaf, Tensor) for leaf in made):
            return
        for position, argument in (*enumerate(node.args), *node.kwargs.items()):
            leaves: list[fx.Node] = []
            fx.map_arg(argument, leaves.append)
            for leaf in leaves:
                if isinstance(value := leaf.meta.get(self.key), _SYMBOLIC):
                    yield position, value.node.expr

    def _makes_shape(self, node: fx.Node, position: Any, size: Any, symbols: Collection[sympy.Symbol]) -> bool:
        """Whether what is made of a size follows from the shape of the result, and is the same for each sample."""
        if not all(_is_linear(size, symbol) for symbol in symbols if symbol in size.free_symbols):
            return False
        name = _name(node)
        if name == "arange":  # its values are looked at
            return True
        if name == "slice" and position == 3:  # all of an axis
            x, axis, start = node.args[:3]
            return start in (0, None) and _expression(x.meta[self.key].shape[axis]) == size  # type: ignore[union-attr]
        shape = position == "size" or position == _SHAPE.get(name) or (name in _SHAPES and position >= _SHAPES[name])
        if not shape or name != "repeat":
            return shape
        x, *times = node.args
        times = [*times[0]] if isinstance(times[0], list | tuple) else times  # type: ignore[list-item]
        lengths = [*x.meta[self.key].shape]  # type: ignore[union-attr]
        pairs = zip([1] * (len(times) - len(lengths)) + lengths, times, strict=True)
        return all(length == 1 or not isinstance(number, fx.Node) for length, number in pairs)

    def _given_with_inputs(self, symbols: Collection[sympy.Symbol]) -> list[fx.Node]:
        """Constants that depend on the symbols, where an operator takes them beside a value of the inputs, or they are results."""
        of_inputs, varying = set(self.inputs), set[fx.Node]()
        for node in self.graph.nodes:
            before = {a for a in node.all_input_nodes if not isinstance(a.meta.get(self.key), _SYMBOLIC)}
            if before & of_inputs:
                of_inputs.add(node)
            elif before & varying or any(size.free_symbols & {*symbols} for _, size in self._sizes(node)):
                varying.add(node)
        return [node for node in self.graph.nodes if node in varying and any(u in of_inputs or u.op == "output" for u in node.users)]

    def _indexes_samples(self, node: fx.Node, symbols: Collection[sympy.Symbol]) -> bool:
        """Whether it is all that is done with these numbers that sample n of something is taken for sample n."""
        return all(_name(user) in ("index", "getitem") and self._first_index(user) is node for user in node.users) and all(
            _expression(user.args[0].meta[self.key].shape[0]) in symbols  # type: ignore[union-attr]
            for user in node.users
        )

    def _first_index(self, node: fx.Node) -> Any:
        found = node.args[1]
        return found[0] if isinstance(found, list | tuple) and found else found


def of_each_sample(x: Tensor, y: Tensor, batch: int, another: int) -> bool:
    """Whether constants at two batches are equal, or repeat the same along an axis that is the samples' or a multiple of them."""
    if x.shape == y.shape:
        return torch.equal(x, y)
    if x.dim() != y.dim() or x.dtype != y.dtype:
        return False
    (axis, *more) = (axis for axis, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)) if a != b)
    each, rest = divmod(x.shape[axis], batch)
    if more or rest or each * another != y.shape[axis]:
        return False
    first = x.narrow(axis, 0, each)
    return all(torch.equal(part, first) for whole in (x, y) for part in whole.split(each, axis)) if each else True


def _counts(numbers: Tensor, batch: int) -> bool:
    """Whether they are 0, 1, ... along the first axis, and nothing else along others."""
    return numbers.numel() == batch == numbers.shape[0] and numbers.flatten().tolist() == [*range(batch)]


def _is_linear(size: Any, symbol: sympy.Symbol) -> bool:
    return bool(size.is_polynomial(symbol)) and sympy.degree(size, symbol) <= 1


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def _name(node: fx.Node) -> str:
    """As users write it: "view" for aten.view.default."""
    target = node.target
    return target if isinstance(target, str) else getattr(getattr(target, "overloadpacket", target), "__name__", "")


class _Values:
    """Values of nodes that depend on no input, at sizes for all symbols."""

    def __init__(self, sized: Sized, sizes: Mapping[sympy.Symbol, int]) -> None:
        self.sized, self.sizes = sized, {symbol: sympy.Integer(size) for symbol, size in sizes.items()}
        self.known: dict[fx.Node, Any] = dict(sized.stored)

    def __getitem__(self, node: fx.Node) -> Any:
        if node not in self.known:
            self.known[node] = self._value(node)
        return self.known[node]

    def _value(self, node: fx.Node) -> Any:
        if isinstance(noted := node.meta.get(self.sized.key), _SYMBOLIC):
            value = noted.node.expr.xreplace(self.sizes)
            return int(value) if value.is_Integer else bool(value) if value.is_Boolean else float(value)
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.__getitem__)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        raise LookupError(node.op)
