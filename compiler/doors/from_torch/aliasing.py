"""Results that share memory in eager mode: a graph computes what they show once, and views of it are made afterwards, in torch.

conv ─ y, y.flatten(1), y[:, 0]      →      conv ─ y, then aten.reshape(y, ...), aten.select(y, ...)
x, x.flatten(1), conv(x)             →      conv(x), then the caller's x and aten.reshape(x, ...)
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from sparsec.errors import UnsupportedModel

aten = torch.ops.aten
#: Views whose first argument after the tensor is the shape of the result.
_SHAPED = (aten.reshape.default, aten.expand.default)
#: Views of which neither the schema tells nor the functional form of a program.
UNSAFE = frozenset({aten.unsafe_chunk.default, aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default})
#: Views by a shape. Of the second the schema does not tell: a functional form has it where a program writes to a reshape that was a copy.
_RESHAPES = frozenset({aten.view.default, aten._unsafe_view.default})


@dataclass(frozen=True)
class Step:
    """One view of a tensor: ``target(tensor, *args, **kwargs)``."""

    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, value: Any) -> Any:
        return self.target(value, *self.args, **self.kwargs)

    def resized(self, old: int, new: int) -> Step:
        """The same for another batch size, where that is the first size of the result."""
        if self.target not in _SHAPED or not self.args[0] or self.args[0][0] != old:
            return self
        return replace(self, args=([new, *self.args[0][1:]], *self.args[1:]))


Chain = tuple[Step, ...]


@dataclass(frozen=True)
class Result:
    """Where a result comes from: output or input ``position`` of the graph, and the views that lead from there to it."""

    position: int
    chain: Chain = ()
    of_input: bool = False


@dataclass(frozen=True)
class Aliasing:
    """How the outputs of a graph, and the tensors that it was given, become the results of its program.

    orders: for each output that has views, its sizes when it was captured and its dimensions from the outermost in memory to the innermost.
    """

    results: tuple[Result, ...]
    orders: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]]

    def restore(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        """The results, with the aliases of eager mode. ``inputs``: the caller's own tensors."""
        stored = [self._stored(x, i) for i, x in enumerate(outputs)]
        return [self._made(result, inputs[result.position] if result.of_input else stored[result.position]) for result in self.results]

    @cached_property
    def follows_batch(self) -> bool:
        """Whether the views can be made at every size of dimension 0."""
        return all(self._serves_more(result) for result in self.results if result.chain)

    def _stored(self, value: Tensor, position: int) -> Tensor:
        if position not in self.orders:
            return value
        made = torch.empty_permuted(value.shape, self.orders[position][1], dtype=value.dtype, device=value.device)
        return value if value.stride() == made.stride() and not value.storage_offset() else made.copy_(value)

    def _made(self, result: Result, value: Tensor) -> Tensor:
        old, new = self._batch(result), value.shape[0] if value.dim() else 1
        for step in result.chain:
            value = step(value) if old in (None, new) else step.resized(old, new)(value)
        return value

    def _batch(self, result: Result) -> int | None:
        """The size of dimension 0 for which the chain was captured; None where it cannot change."""
        sizes = () if result.of_input else self.orders.get(result.position, ((), ()))[0]
        return sizes[0] if sizes else None

    def _serves_more(self, result: Result) -> bool:
        """Tried on a value with one more in dimension 0."""
        if self._batch(result) is None:
            return False
        sizes, order = self.orders[result.position]
        values = [torch.empty_permuted((batch, *sizes[1:]), order, device="meta") for batch in (sizes[0], sizes[0] + 1)]
        try:
            once, more = (self._made(result, value) for value in values)
        except RuntimeError:
            return False
        return once.dim() > 0 and more.shape == (sizes[0] + 1, *once.shape[1:])


def root_of(node: fx.Node) -> fx.Node:
    """The value whose memory a chain of views shows."""
    while (source := viewed(node)) is not None:
        node = source
    return node


def aliasing_of(results: Sequence[fx.Node], inputs: Sequence[fx.Node]) -> tuple[Aliasing | None, list[fx.Node]]:
    """How distinct results of a functional graph are made, and what the graph has to return for that; None where it returns the results.

    inputs: the tensors that a caller gives. UnsupportedModel where a view depends on more than the value that it shows.
    """
    roots = [root_of(node) for node in results]
    shown = Counter(roots)
    sources = [root if root in inputs or shown[root] > 1 else node for node, root in zip(results, roots, strict=True)]
    returned = list(dict.fromkeys(source for source in sources if source not in inputs))
    if returned == list(results):
        return None, returned
    made = tuple(_result(node, source, returned, inputs) for node, source in zip(results, sources, strict=True))
    return Aliasing(made, {i: order_of(node) for i, node in enumerate(returned) if shown[node] > 1}), returned


def _result(node: fx.Node, source: fx.Node, returned: Sequence[fx.Node], inputs: Sequence[fx.Node]) -> Result:
    of_input = source in inputs
    return Result((inputs if of_input else returned).index(source), _chain(node, source), of_input)


def _chain(node: fx.Node, source: fx.Node) -> Chain:
    steps: list[Step] = []
    while node is not source:
        value, *rest = node.args
        if any(isinstance(argument, fx.Node) for argument in (*rest, *node.kwargs.values())):
            raise UnsupportedModel("A result is a view that depends on values.", where=node.name, hint="Return a clone of it.")
        # A value that is stored otherwise than when it was captured may have no such view.
        target = aten.reshape.default if node.target in _RESHAPES else node.target
        steps.append(Step(target, tuple(rest), dict(node.kwargs)))
        node = value  # type: ignore[assignment]
    return tuple(reversed(steps))


def order_of(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes of a value, and its dimensions from the outermost in memory to the innermost."""
    value = node.meta["val"]
    sizes, strides = tuple(value.shape), value.stride()
    # Dimensions of one element have strides that say nothing: they stay in front of the dimension that follows them.
    inner = [math.prod(sizes[axis + 1 :]) if sizes[axis] == 1 else strides[axis] for axis in range(len(sizes))]
    return sizes, tuple(sorted(range(len(sizes)), key=lambda axis: -inner[axis]))


def viewed(node: fx.Node) -> fx.Node | None:
    """What a node is a view of."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source = node.args[0]
    shows = is_view(source) if node.target is operator.getitem else is_view(node)
    return source if shows else None


def is_view(node: fx.Node) -> bool:
    """Whether the results of an operator show the memory of an argument."""
    schema = getattr(node.target, "_schema", None)
    return node.target in UNSAFE | _RESHAPES or (schema is not None and any(result.alias_info for result in schema.returns))


def shows_unsaid(node: fx.Node) -> bool:
    """Whether a composite operator that says nothing of memory (meshgrid, broadcast_tensors, atleast_1d) shows an argument's."""
    if node.op != "call_function" or not getattr(node.target, "_can_decompose", bool)() or is_view(node):
        return False
    given = {storage for source in node.all_input_nodes for storage in storages(source)}
    return bool(given & storages(node))


def storages(node: fx.Node) -> set[int]:
    """Identities of the memory that the values of a node have."""
    values = (value for value in pytree.tree_leaves(node.meta.get("val")) if isinstance(value, Tensor))
    return {value.untyped_storage()._cdata for value in values if value.layout == torch.strided}
