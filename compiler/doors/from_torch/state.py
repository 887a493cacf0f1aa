"""Whether a call of a model depends on the calls before it: what a graph, made of one call, would do wrong from the second on.

self.hidden = torch.tanh(self.layer(x) + self.hidden)     what an earlier call made of its inputs
self.steps += 1; return x / self.steps                    a number that changes

A table that the first call makes of sizes and the next ones find is no such thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsec.doors.from_torch.dry_run import Call, CallLog, returned, without_data, writes
from sparsec.doors.from_torch.exporting import OF_TRACING, first_line, quiet_shapes
from sparsec.doors.from_torch.leftovers import unchanged
from sparsec.doors.from_torch.randomness import DropoutReturnsItsInput

#: What these make has the values of their first argument; the others say a type or a shape.
_OF_THE_FIRST = frozenset({"to", "type_as", "expand_as", "view_as", "reshape_as"})


def dependence_on_calls(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[str], str]:
    """The attributes that a call changes, and how the next call's results depend on that; empty where they do not, or nothing is known."""
    with without_data(), unchanged(module) as attributes, DropoutReturnsItsInput(), quiet_shapes(), _Runs() as runs:
        try:
            calls = [runs.calls_of(module, args, kwargs)]
        except Exception:  # It does not run without data.
            return [], ""
        if not (changed := attributes.changed()):
            return [], ""
        try:
            calls += [runs.calls_of(module, args, kwargs) for _ in range(2)]
        except OF_TRACING:  # What the first call kept has no values.
            return [], ""
        except Exception as error:
            return changed, f"the next call raises {first_line(error)}"
    reason = next(filter(None, (_difference(a, b) for a, b in pairwise(calls))), "")
    return (changed, runs.stale or reason) if runs.stale or reason else ([], "")


class _Runs(CallLog):
    """Calls one after the other: which tensors have values of whose inputs. stale: what was given those of an earlier call's."""

    def __init__(self) -> None:
        super().__init__()
        self.stale = ""
        self._run = 0
        self._data: dict[int, tuple[Tensor, int]] = {}
        self._steps: list[tuple[Call, set[int], set[int]]] = []

    def calls_of(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Call]:
        """The functions between a call's inputs and its results, and what it returns."""
        given = pytree.tree_map_only(Tensor, lambda x: torch.empty(x.shape, dtype=x.dtype), (tuple(args), dict(kwargs)))
        self._run += 1
        self._steps = []
        self._known |= {id(x): (x, None) for x in _tensors(given)}
        self._data |= {id(x): (x, self._run) for x in _tensors(given)}
        results = module(*given[0], **given[1])
        self._take("a result", results)
        return [*self._towards(results), returned(results)]

    def _towards(self, results: Any) -> list[Call]:
        """Of the functions that were given data those whose results are used, and those that write."""
        needed, found = _ids(results), []
        for call, given, made in reversed(self._steps):
            if made & needed or writes(call.name):
                needed |= given
                found.append(call)
        return found[::-1]

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        before, name = len(self.calls), func.__name__
        result = super().__torch_function__(func, types, args, kwargs)
        given = args[:1] if name in _OF_THE_FIRST else (args, kwargs)
        if not (name.startswith("new_") or name.endswith("_like")) and self._take(name, given, result):
            self._steps += [(call, _ids(given), _ids(result)) for call in self.calls[before:]]
        return result

    def _take(self, name: str, values: Any, result: Any = ()) -> bool:
        """Whether a function takes data, which its result then is as well."""
        runs = {self._data[id(x)][1] for x in _tensors(values) if id(x) in self._data}
        if not runs:
            return False
        made = _tensors(result)
        if min(runs) < self._run and (made or name == "a result"):
            self.stale = self.stale or f"{name} takes what an earlier call made of its inputs"
        self._data |= {id(x): (x, self._run) for x in made}
        return True


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _ids(values: Any) -> set[int]:
    return {*map(id, _tensors(values))}


def _difference(here: list[Call], there: list[Call]) -> str:
    for a, b in zip_longest(here, there):
        if a is None or b is None or a.kind != b.kind:
            return "other functions run in the next call"
        if not all(map(_same, a.numbers, b.numbers)) or not all(map(_same, a.constants, b.constants)):
            return f"{a.name} of a number that the next call changes"
    return ""


def _same(a: Any, b: Any) -> bool:
    """Equal; what is not known is taken for equal."""
    if isinstance(a, Tensor):
        return a.shape == b.shape and bool(((a == b) | (a != a) | (b != b)).all())
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b or a != a or b != b
