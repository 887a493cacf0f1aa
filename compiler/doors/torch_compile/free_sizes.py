"""What in one of Dynamo's graphs follows its symbols: the numbers of tokens and of samples that one program may serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from sparsec.doors.captured import Captured
from sparsec.doors.from_torch.batches import cuts
from sparsec.doors.from_torch.numbers import Sized, may_hold
from sparsec.ir.symbols import Dim, Signature, SymbolSpec, bucket
from sparsec.run.affine import Affine

TOKENS = "tokens"
#: In place of a free length among sizes.
_FREE = -2


@dataclass(frozen=True)
class TokenSizes:
    """One symbol of Dynamo's that is the number of tokens.

    numbers: positions of inputs that are the symbol itself; tensors: positions of inputs [N, T] or [N, T, F]; outputs: the dimensions of
    each result; allows: whether Dynamo's guards leave this graph a number of tokens.
    """

    numbers: tuple[int, ...]
    tensors: tuple[int, ...]
    outputs: tuple[tuple[Dim | None, ...], ...]
    allows: Callable[[int], bool] = lambda size: True

    def size(self, args: Sequence[Any]) -> int:
        """The number of tokens of a call."""
        return int(args[self.tensors[0]].shape[1])

    def most(self, size: int) -> int:
        """The largest number of tokens in the bucket of ``size`` that the graph may be called with, as 40 where it has 40 positions."""
        return next((most for most in range(bucket(size), size, -1) if self.allows(most)), size)

    def at(self, args: Sequence[Any], size: int) -> tuple[Any, ...]:
        """Arguments of the same kinds with another number of tokens; what the tensors hold is not kept."""
        made = list(args)
        for position in self.numbers:
            made[position] = size
        for position in self.tensors:
            x = args[position]
            made[position] = torch.zeros((x.shape[0], size, *x.shape[2:]), dtype=x.dtype)
        return tuple(made)

    def described(self, captured: Captured, inputs: Sequence[int], size: int) -> Captured:
        """A graph captured at ``size`` tokens, as the largest of 1 to ``size``. inputs: positions of the tensors that are no weights."""
        free = [position in self.tensors for position in inputs]
        specs = (replace(spec, dims=_dims(spec.shape) if f else spec.shape) for spec, f in zip(captured.inputs, free, strict=True))
        return replace(
            captured,
            inputs=tuple(specs),
            signature=Signature(symbols={TOKENS: SymbolSpec(TOKENS, 1, size)}),
            sizes={TOKENS: size},
            output_dims=self.outputs,
        )

    def freed(self, sizes: Sequence[Any], others: Sequence[int], most: int) -> list[Any]:
        """Sizes of the inputs that are no weights, with the number of tokens marked where it is at most ``most``."""
        out = list(sizes)
        for at, position in enumerate(others):
            if position in self.numbers and sizes[at] <= most:
                out[at] = _FREE
            elif position in self.tensors and sizes[at][1] <= most:
                out[at] = (sizes[at][0], _FREE, *sizes[at][2:])
        return out


def _dims(shape: Sequence[int]) -> tuple[Dim, ...]:
    return (shape[0], Affine(TOKENS), *shape[2:])


def token_sizes(graph_module: fx.GraphModule, weights: Sequence[int]) -> TokenSizes | None:
    """The number of tokens of one of Dynamo's graphs, if just one symbol is dimension 1 of inputs and nothing else follows it.

    None where results are numbers, which are those of one size.
    """
    if not all(isinstance(node.meta.get("example_value"), Tensor) for node in _returned(graph_module)):
        return None
    places = list(enumerate(graph_module.graph.find_nodes(op="placeholder")))
    values = {i: node.meta.get("example_value") for i, node in places if i not in set(weights)}
    tensors = {i: [_text(s) for s in value.shape] for i, value in values.items() if isinstance(value, Tensor)}
    found = {sizes[1] for sizes in tensors.values() if len(sizes) in (2, 3) and isinstance(sizes[1], str)}
    if len(found) != 1:
        return None
    (symbol,) = found
    mine = tuple(i for i, sizes in tensors.items() if len(sizes) in (2, 3) and sizes[1] == symbol)
    others = [s for i, sizes in tensors.items() for at, s in enumerate(sizes) if isinstance(s, str) and (i not in mine or at != 1)]
    inputs = {node for i, node in places if i in values}
    stepped = Sized(graph_module.graph, "example_value", inputs, {}).stepped()
    if any(symbol in text for text in others) or symbol in map(str, stepped):
        return None
    numbers = tuple(i for i, value in values.items() if isinstance(value, torch.SymInt) and _text(value) == symbol)
    (size, *_) = (value.shape[1] for i, value in values.items() if i in mine)
    return TokenSizes(numbers, mine, tuple(_output_dims(node, symbol) for node in _returned(graph_module)), _allows(size))


def use_of_samples(graph_module: fx.GraphModule, args: Sequence[Any], weights: Sequence[int]) -> str:
    """What a graph for a call with ``args`` would do wrong with other batches: see ``Sized.use_of_samples``; empty if nothing.

    Also what keeps all samples of this call, and is nothing in a graph for it, and would not keep all of more, as ``x[:2]`` of two.
    Dynamo's graph says both. Where Dynamo leaves the batch no symbol, it admits no other.
    """
    here, leading = dict[Any, int](), dict[Any, int]()
    places = dict(zip(graph_module.graph.find_nodes(op="placeholder"), args, strict=True))
    for node, arg in places.items():
        value = node.meta.get("example_value")
        sizes, numbers = (value.shape, arg.shape) if isinstance(value, Tensor) else ((value,), (arg,))
        known = [(size.node.expr, number) for size, number in zip(sizes, numbers, strict=True) if _is_symbol(size)]
        here |= dict(known)
        leading |= dict(known[:1] if isinstance(value, Tensor) and sizes and _is_symbol(sizes[0]) else ())
    if not leading:
        return ""
    batch = next(iter(leading.values()))
    batches = [symbol for symbol, size in leading.items() if size == batch]
    stored = {node: value for i, (node, value) in enumerate(places.items()) if i in set(weights)}
    sized = Sized(graph_module.graph, "example_value", places.keys() - stored.keys(), stored)
    try:
        cut = _cut(graph_module.graph, here, here | {symbol: here[symbol] + 1 for symbol in batches})
        return cut or sized.use_of_samples(batches, here, (batch, batch + 1))
    except ZeroDivisionError:
        return f"a size of it divides by zero with a batch of {batch + 1}"


def _cut(graph: fx.Graph, here: Mapping[Any, int], there: Mapping[Any, int]) -> str:
    """What keeps all of a value with these sizes and not with those; empty if nothing does."""
    for node in graph.nodes:
        made = _shapes(node, here), _shapes(node, there)
        for source in node.all_input_nodes:
            given = _shapes(source, here), _shapes(source, there)
            if any(cuts(a, b, c, d) for a, c in zip(*given, strict=True) for b, d in zip(*made, strict=True)):
                return f"{node.name} keeps all of {list(given[0][0])}, and not all of {list(given[1][0])}"
    return ""


def _is_symbol(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and size.node.expr.is_symbol


def _shapes(node: fx.Node, values: Mapping[Any, int]) -> list[tuple[int, ...]]:
    """Those of the tensors that a node makes, where symbols have these values."""
    leaves = [leaf for leaf in tree_leaves(node.meta.get("example_value")) if isinstance(leaf, Tensor)]
    return [tuple(size.node.expr.subs(values) if isinstance(size, torch.SymInt) else size for size in leaf.shape) for leaf in leaves]


def _allows(size: torch.SymInt) -> Callable[[int], bool]:
    """Guards with other symbols too are taken to hold unless they are false whatever those are."""
    symbol, environment = size.node.expr, size.node.shape_env
    guards = [guard.expr for guard in environment.guards if symbol in guard.expr.free_symbols]
    return lambda number: all(may_hold(guard, {symbol: number}) for guard in guards)


def _text(size: Any) -> int | str:
    return str(size.node.expr) if isinstance(size, torch.SymInt) and not size.node.expr.is_number else int(size)


def _returned(graph_module: fx.GraphModule) -> list[fx.Node]:
    values = graph_module.graph.output_node().args[0]
    return [value for value in values if isinstance(value, fx.Node)]  # type: ignore[union-attr]


def _output_dims(node: fx.Node, symbol: str) -> tuple[Dim | None, ...]:
    """A length that follows the number of tokens is an Affine, or None if it follows it in another way; others are ints."""
    value = node.meta.get("example_value")
    if not isinstance(value, Tensor):
        return ()
    texts = [_text(size) for size in value.shape]
    return tuple(Affine(TOKENS) if t == symbol else None if isinstance(t, str) and symbol in t else 0 for t in texts)
