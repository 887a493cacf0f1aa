"""Results lie in memory as those of eager mode do: code behind a graph break may ask, and reshape is a view or a copy by it.

y.transpose(1, 2) ─ break ─ y.reshape(2, -1)      eager: a copy; of a contiguous result it would be a view, and a write to it one to y
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import sympy
import torch
from torch import Tensor, fx

#: Where the value of a symbol is: the position of a number among the graph's inputs, or of a tensor and one of its axes.
Place = tuple[int, int | None]


class Placements:
    """How the results of one of Dynamo's graphs lie in eager mode, those that are not contiguous.

    ``inputs``: positions among the graph's placeholders of the values that ``placed`` is given.
    """

    def __init__(self, graph_module: fx.GraphModule, inputs: Sequence[int]) -> None:
        returned: Any = graph_module.graph.output_node().args[0]
        values = [_described(node) for node in (returned if isinstance(returned, tuple | list) else (returned,))]
        self._strides = {position: _expressions(value.stride()) for position, value in enumerate(values) if _is_turned(value)}
        wanted = {symbol for strides in self._strides.values() for step in strides for symbol in getattr(step, "free_symbols", ())}
        self._places = {s: place for s, place in _places(graph_module, inputs).items() if s in wanted} if wanted else {}
        self._evaluated = lru_cache(maxsize=64)(self._evaluate)

    def __bool__(self) -> bool:
        return bool(self._strides)

    def placed(self, results: Sequence[Any], inputs: Sequence[Any]) -> Sequence[Any]:
        """The results as they lie in eager mode. Those that share memory were made as views of what lies so."""
        shown = Counter(result.untyped_storage().data_ptr() for result in results if isinstance(result, Tensor))
        strides = self._evaluated(tuple(_read(inputs, place) for place in self._places.values()))
        made = list(results)
        for position, wanted in strides.items():
            if isinstance(value := results[position], Tensor) and shown[value.untyped_storage().data_ptr()] == 1:
                made[position] = place(value, wanted)
        return tuple(made)

    def _evaluate(self, sizes: tuple[int, ...]) -> Mapping[int, tuple[int, ...]]:
        given = dict(zip(self._places, map(sympy.Integer, sizes), strict=True))
        return {
            position: tuple(step if isinstance(step, int) else int(step.xreplace(given)) for step in strides)
            for position, strides in self._strides.items()
        }


def place(value: Tensor, strides: Sequence[int]) -> Tensor:
    """The value itself if it has these strides, else a copy that has. Axes with stride 0 are expanded as they were."""
    if all(size == 1 or have == want for size, have, want in zip(value.shape, value.stride(), strides, strict=True)):
        return value
    small = value[tuple(slice(0, 1) if step == 0 else slice(None) for step in strides)]
    made = torch.empty_strided(small.shape, strides, dtype=value.dtype, device=value.device)
    return made.copy_(small).expand(value.shape)


def _described(node: Any) -> Any:
    return node.meta.get("example_value") if isinstance(node, fx.Node) else None


def _is_turned(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    sizes, strides = ([size if isinstance(size, int) else int(size.node.hint) for size in of] for of in (value.shape, value.stride()))
    return not torch.empty_strided(sizes, strides, device="meta").is_contiguous()


def _expressions(strides: Sequence[Any]) -> tuple[Any, ...]:
    """Numbers, or expressions of symbols, without fixing any."""
    return tuple(step if isinstance(step, int) else step.node.expr for step in strides)


def _places(graph_module: fx.GraphModule, inputs: Sequence[int]) -> dict[sympy.Symbol, Place]:
    """Where each symbol that stands for a size of an input is found in a call."""
    found: dict[sympy.Symbol, Place] = {}
    placeholders = list(graph_module.graph.find_nodes(op="placeholder"))
    for number, position in enumerate(inputs):
        value = _described(placeholders[position])
        sizes: Any = [(None, value)] if isinstance(value, torch.SymInt) else enumerate(value.shape) if isinstance(value, Tensor) else ()
        for axis, size in sizes:
            if isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol):
                found.setdefault(size.node.expr, (number, axis))
    return found


def _read(inputs: Sequence[Any], where: Place) -> int:
    position, axis = where
    return int(inputs[position] if axis is None else inputs[position].shape[axis])
