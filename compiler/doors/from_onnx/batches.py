"""Whether an ONNX model does for every batch what it does for the one that its graph is made for: its nodes at two batch sizes.

What shape arithmetic gives is a constant of the graph, and a node that changes nothing at this size is no call in it:

    Div(x, Shape(x)[0])      Add(x, Range(0, Shape(x)[0], 1))      Slice(x, 0, 4)  of 1 to 4 samples
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from torch import Tensor, fx

from sparsec.doors.from_torch.batches import cuts, follows
from sparsec.doors.from_torch.dry_run import Shape
from sparsec.doors.from_torch.numbers import of_each_sample

#: Inputs that are sizes: what follows from them is seen in the shapes of the results.
_SIZES: Mapping[str, frozenset[int]] = {
    "Reshape": frozenset({1}),
    "Expand": frozenset({1}),
    "Resize": frozenset({3}),
    "Slice": frozenset({1, 2, 3, 4}),
}
_RESHAPES = frozenset({"Reshape", "Expand", "Flatten"})
#: Of an axis as long as this or longer nothing is cut.
_ENDLESS = 1 << 30


@dataclass(frozen=True, eq=False)
class NodeCall:
    """A node whose results are not known before the model runs. known: those of its inputs that are; given, made: shapes of all."""

    kind: str
    place: str
    known: tuple[Tensor | None, ...]
    given: tuple[Shape | None, ...]
    made: tuple[Shape, ...]


def node_call(kind: str, place: str, inputs: Sequence[Any], results: Sequence[Any]) -> NodeCall | None:
    """None where all results are known."""
    if not any(isinstance(value, fx.Node) for value in results):
        return None
    known = tuple(value if isinstance(value, Tensor) else None for value in inputs)
    made = tuple(shape for value in results if (shape := _shape(value)) is not None)
    return NodeCall(kind, place, known, tuple(map(_shape, inputs)), made)


def _shape(value: Any) -> Shape | None:
    value = value.meta["val"] if isinstance(value, fx.Node) else value
    return tuple(value.shape) if isinstance(value, Tensor) else None


def dependence(here: Sequence[NodeCall], there: Sequence[NodeCall], batch: int, another: int) -> str:
    """What depends on the batch in a graph made for ``batch`` samples, from its nodes and those at ``another`` size; empty if nothing."""
    found = (_difference(a, b, batch, another) for a, b in zip_longest(here, there))
    return next(filter(None, found), "")


def _difference(a: NodeCall | None, b: NodeCall | None, batch: int, another: int) -> str:
    if a is None or b is None or (a.kind, a.place) != (b.kind, b.place):
        return "other nodes run"
    if _ranks(a.given) != _ranks(b.given) or _ranks(a.made) != _ranks(b.made):
        return f"{a.kind} makes something else ({a.place})"
    for number, (x, y) in enumerate(zip(a.known, b.known, strict=True)):
        alike = x is y or number in _SIZES.get(a.kind, ()) or (x is not None and y is not None and of_each_sample(x, y, batch, another))
        if not alike:
            return f"{a.kind} of a constant that depends on it ({a.place})"
    if a.kind == "Slice" and (found := _fixed_part(a, b)):
        return found
    made = [*zip(a.made, b.made, strict=True)]
    was = (a.given[0] or (), b.given[0] or ()) if a.given and b.given else ((), ())
    if a.kind in _RESHAPES and not all(follows(was, shapes, batch, another) for shapes in made):
        return f"{a.kind} makes {list(a.made[0])} of {batch} samples, {list(b.made[0])} of {another} ({a.place})"
    for given, there in zip(a.given, b.given, strict=True):
        if given is not None and there is not None and any(cuts(given, x, there, y) for x, y in made):
            return f"{a.kind} keeps all of {list(given)}, and not all of {list(there)} ({a.place})"
    return ""


def _ranks(shapes: Sequence[Shape | None]) -> list[int | None]:
    return [None if shape is None else len(shape) for shape in shapes]


def _fixed_part(a: NodeCall, b: NodeCall) -> str:
    """A slice with the same ends along an axis whose length follows the batch, other than all of it."""
    (x, y), ends = (a.given[0], b.given[0]), [[_integers(call, number) for number in range(1, 5)] for call in (a, b)]
    if x is None or y is None:
        return ""
    starts, stops, axes, steps = ends[0]
    axes = axes or list(range(len(starts)))
    for number, axis in enumerate(axes):
        mine, other = ([part[number] for part in (each[0], each[1], each[3]) if part] for each in ends)
        everything = starts[number] == 0 and stops[number] >= _ENDLESS and (not steps or steps[number] == 1)
        if x[axis] != y[axis] and mine == other and not everything:
            return f"Slice keeps {starts[number]}:{stops[number]} of {x[axis]} and of {y[axis]} ({a.place})"
    return ""


def _integers(call: NodeCall, number: int) -> list[int]:
    value = call.known[number] if number < len(call.known) else None
    return [] if value is None else [int(each) for each in value.flatten().tolist()]
