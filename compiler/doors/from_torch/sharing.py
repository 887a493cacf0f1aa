"""Which results share memory where a trace cannot know: by the strides of values that are computed.

conv ─ y, y.flatten(1)      one memory or two, as the convolution lays y out: by its weights, by strides of axes of size one

A trace has stand-ins, whose strides are not always those of eager mode, and weights in row-major order. So where results lead to one value
through a reshape or a copy, the model is run once, and what it does is what is done.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparsec.doors.captured import Captured
from sparsec.doors.from_torch.aliasing import Aliasing, Result, Step, order_of, viewed
from sparsec.doors.from_torch.leftovers import run_apart
from sparsec.doors.from_torch.lower import Fixed
from sparsec.errors import UnsupportedModel
from sparsec.lower.regions import returned

aten = torch.ops.aten
_COPY = Step(aten.clone.default, (), {})


def as_in_eager(described: Captured, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Captured:
    """The same, with results that share memory where those of eager mode do for these arguments.

    UnsupportedModel where eager mode's results share memory that the graph's do not, where sizes are free and they differ at all, or where
    eager mode cannot run the model.
    """
    outputs = returned(described.graph_module.graph)
    known = described.aliasing or Aliasing(tuple(map(Result, range(len(outputs)))), {})
    slots = [slot for slot in described.out_slots if not isinstance(slot, Fixed)]
    if not _is_uncertain(slots, known.results, outputs):
        return described
    results = _results(module, args, kwargs)
    if len(results) != len(described.out_slots):
        raise _refused(f"It returned {len(results)} values where its graph has {len(described.out_slots)}.")
    leaves = [leaf for slot, leaf in zip(described.out_slots, results, strict=True) if not isinstance(slot, Fixed)]
    given = [x for x in pytree.tree_leaves((tuple(args), dict(kwargs))) if isinstance(x, Tensor)]
    sharing = _Sharing(known.results, given)
    left = iter([sharing.place(slot, leaf) for slot, leaf in zip(slots, leaves, strict=True)])
    if not sharing.copies:
        return described
    if described.symbols:
        raise _refused("Results are one memory or several by the strides of computed values, and sizes are free.")
    orders = {result.position: order_of(outputs[result.position]) for result in sharing.copies if not result.of_input}
    return replace(
        described,
        aliasing=replace(known, results=tuple(sharing.made), orders={**orders, **known.orders}),
        out_slots=tuple(slot if isinstance(slot, Fixed) else next(left) for slot in described.out_slots),
    )


def _is_uncertain(slots: Sequence[int], results: Sequence[Result], outputs: Sequence[fx.Node]) -> bool:
    """Whether two of the results come of one computed value, and a reshape or a copy is on the way."""
    ends = {slot: outputs[results[slot].position] for slot in slots if not results[slot].of_input}
    origins = {slot: _origin(node) for slot, node in ends.items()}
    count = Counter(origins[slot] for slot in slots if slot in origins)
    several = [slot for slot in slots if slot in origins and count[origins[slot]] > 1 and origins[slot].op == "call_function"]
    reshaped = any(step.target is aten.reshape.default for slot in several for step in results[slot].chain)
    return reshaped or len({*several}) < len(several) or any(ends[slot] is not origins[slot] for slot in several)


def _origin(node: fx.Node) -> fx.Node:
    """The value that a chain of views and copies leads to."""
    while isinstance(source := node.args[0] if node.target is aten.clone.default else viewed(node), fx.Node):
        node = source
    return node


def _results(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """What the model returns. UnsupportedModel where it cannot be run, as with weights in a layout for which torch has no kernels."""
    with run_apart(module):
        try:
            return pytree.tree_leaves(module(*args, **kwargs))
        except Exception as error:
            raise _refused(f"Eager mode cannot run it: {type(error).__name__}: {error}") from error


def _memory(x: Tensor) -> int:
    """0 where there is nothing to share."""
    return x.untyped_storage().data_ptr() if x.numel() else 0


class _Sharing:
    """Results one after the other: what is of one memory in the graph and of two in eager mode becomes a copy.

    made: the results; copies: those among them that are copies now.
    """

    def __init__(self, results: Sequence[Result], given: Sequence[Tensor]) -> None:
        """``results``: of the graph, by slot; ``given``: the inputs."""
        self._results = results
        self._memory = {(True, number): _memory(x) for number, x in enumerate(given)}
        self._places = defaultdict[int, set[Any]](set)
        for place, memory in self._memory.items():
            self._places[memory].add(place)
        self._made: dict[tuple[int, int], int] = {}
        self.made: list[Result] = []
        self.copies: list[Result] = []

    def place(self, slot: int, leaf: Tensor) -> int:
        """Which of ``made`` a result is. UnsupportedModel where it is of a memory that others have, and not in the graph."""
        key = slot, _memory(leaf)
        if key not in self._made:
            self._made[key] = len(self.made)
            self.made.append(self._result(*key))
        return self._made[key]

    def _result(self, slot: int, memory: int) -> Result:
        result = self._results[slot]
        place = result.of_input, result.position
        if not memory or self._memory.setdefault(place, memory) == memory:
            if memory and self._places[memory] and place not in self._places[memory]:
                raise _refused("Eager mode returns one memory twice, by the strides of computed values, where the graph makes two.")
            self._places[memory].add(place)
            return result
        if self._places[memory]:
            raise _refused("Eager mode returns one memory twice, by the strides of computed values, and a part of it in another one.")
        self._places[memory].add(slot)
        self.copies.append(replace(result, chain=(*result.chain, _COPY)))
        return self.copies[-1]


def _refused(why: str) -> UnsupportedModel:
    hint = "Return clones of results that are views or reshapes of others."
    return UnsupportedModel("Which results of the model share memory is not known without running it.", why=why, hint=hint)
