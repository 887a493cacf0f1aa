"""Whether a model does for every batch what it does for the example's: its functions at other batch sizes, without data.

A program works sample by sample and knows the samples as axis 0. Code may mean something else that looks the same at one size:

    x.view(1, -1)  for x [1,F]      x / len(x)      x[:1]      x, len(x)      x if len(x) < 8 else x.half().float()

Two sizes tell the first four apart. Conditions on the batch are read with a size that is a symbol; where one holds for some batches
only, the functions of another batch are looked at too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from sparsec.doors.from_torch.dry_run import FILLED, Call, CallLog, Shape, returned, run_without_data, without_data
from sparsec.doors.from_torch.exporting import quiet_shapes
from sparsec.doors.from_torch.leftovers import unchanged
from sparsec.doors.from_torch.numbers import may_hold, of_each_sample
from sparsec.doors.from_torch.randomness import DropoutReturnsItsInput
from sparsec.ir.miss import Miss
from sparsec.ir.symbols import LARGEST, Signature

#: Ways through the code that are looked at.
_MOST_BRANCHES = 4

#: Functions of these names make another shape of the same elements, from sizes among their arguments.
_RESHAPES = frozenset({"view", "reshape", "flatten", "unflatten", "expand", "view_as", "reshape_as", "expand_as", "broadcast_to"})
#: What these ask of a size is the user's condition: they keep all of an axis up to some length, and less of a longer one.
_PARTS = frozenset({"__getitem__", "narrow", "split", "split_with_sizes", "chunk", "tensor_split", "vsplit"})


def _depends(here: Call, there: Call, batch: int, another: int) -> str:
    """What depends on the batch, called with ``batch`` samples here and with ``another`` number there."""
    if here.kind != there.kind:
        return f"{here.name} makes something else"
    if here.name not in _RESHAPES | FILLED and here.numbers != there.numbers:
        return f"{here.name} of a number that depends on it"
    if len(here.constants) != len(there.constants) or not all(
        of_each_sample(x, y, batch, another) for x, y in zip(here.constants, there.constants, strict=True)
    ):
        return f"{here.name} of a constant that depends on it"
    made = [*zip(here.shapes, there.shapes, strict=True)]
    was = here.given[0] if here.given else (), there.given[0] if there.given else ()
    if here.name in _RESHAPES and not all(follows(was, shapes, batch, another) for shapes in made):
        return f"{here.name} makes {list(here.shapes[0])} of {batch} samples, {list(there.shapes[0])} of {another}"
    for given, other in zip(here.given, there.given, strict=True):
        if any(cuts(given, x, other, y) for x, y in made):
            return f"{here.name} keeps all of {list(given)}, and not all of {list(other)}"
    return ""


def cuts(given: Shape, made: Shape, given_there: Shape, made_there: Shape) -> bool:
    """Whether what keeps the shape of an argument at this batch size, and is nothing in a graph made for it, does more at another one."""
    return made == given != given_there and sorted(made_there) != sorted(given_there)


def follows(given: tuple[Shape, Shape], made: tuple[Shape, Shape], batch: int, another: int) -> bool:
    """Whether shapes alone say at the first batch size which axis of ``made`` holds the samples, alone or merged with others.

    Both are shapes with ``batch`` samples and with ``another`` number. What holds the samples first keeps them first: ``view(2, -1)``
    of [2, F] does not.
    """
    shape, other = made
    changed = [axis for axis, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b]
    if not changed:
        return True
    (axis, *more) = changed
    if more or shape[axis] * another != other[axis] * batch:
        return False
    if axis == 0 and shape[0] == batch:
        return True
    before, after = shape[:axis], shape[axis + 1 :]
    first = given[0][:1] == (batch,) != given[1][:1]
    if axis and (first or before[0] == batch) and any(size != 1 for size in before):
        return False
    return batch not in (*before[-1:], *after[:1], *_outer(before[::-1]), *_outer(after))


def _outer(sizes: Shape) -> Shape:
    """The first size that is not one."""
    return tuple(size for size in sizes if size != 1)[:1]


def only_batch(shapes: Sequence[Sequence[int]], what: str, option: str) -> str:
    """Why a file without free sizes serves the batch of its inputs' ``shapes`` only; empty where these have none in common.

    ``what``: the file; ``option``: of its exporter. Its numbers do not say which of them stood for the batch: ``x.reshape(2, -1)`` and
    ``x.reshape(len(x), -1)`` are the same there.
    """
    return f"{what} leaves no batch free (its exporter does with {option})" if len({shape[0] for shape in shapes if shape}) == 1 else ""


def dependence_on_batch(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, int]:
    """What a program compiled for these arguments would do wrong with another batch, empty if nothing; the least batch that it serves.

    That is 0 where it serves the one of the arguments only; 2 where a batch of 1 alone is another case, as for ``x.squeeze()``.
    Sizes say nothing where inputs have different first dimensions, which is a batch of no kind, or none.
    """
    batches = {len(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()}
    if len(batches) != 1 or not (batch := batches.pop()):
        return "", 0
    here, alone = _calls(module, args, kwargs, batch), ""
    for other in _others(module, args, kwargs, batch):
        if found := _difference(here, _calls(module, args, kwargs, other), batch, other):
            if other > 1 or batch == 1:
                return found, 0
            alone = found
    return alone, 2 if alone else 0


def _difference(here: list[Call] | Miss, there: list[Call] | Miss, batch: int, another: int) -> str:
    if isinstance(there, Miss):
        return f"with a batch of {another}: {there.reason}"
    if isinstance(here, Miss):
        return f"with a batch of {another}: {here.reason}"
    pairs = zip_longest(here, there)
    differences = (_depends(a, b, batch, another) if a and b and a.name == b.name else "other functions run" for a, b in pairs)
    return next(filter(None, differences), "")


def _others(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], batch: int) -> Iterator[int]:
    """Batches that may mean something else: the next one, of those that fail a condition met on the way the least two, and so on.

    Two, as ``x[:4]`` keeps all of the first batch that fails its condition, and not of the next.
    """
    yield batch + 1
    if batch > 1:
        yield 1
    known = [_conditions(module, args, kwargs, max(batch, 2))]
    for _ in range(_MOST_BRANCHES):
        unknown = (size for size in range(1, LARGEST + 1) if not any(all(met(size) for met in conditions) for conditions in known))
        size = next(unknown, None)
        if size is None:
            return
        yield from {size, size + 1} - {1, batch, batch + 1}
        known.append([size.__eq__] if size == 1 else _conditions(module, args, kwargs, size))


def _conditions(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], batch: int) -> list[Callable[[int], bool]]:
    """What the code asks of the batch size on its way with ``batch`` samples, 2 or more (see ``_Asked``)."""
    shapes, source, found = ShapeEnv(), ConstantSource("batch"), list[Any]()
    symbol = shapes.create_symbol(batch, source, dynamic_dim=DimDynamic.DYNAMIC)
    size: Any = shapes.create_symintnode(symbol, hint=batch, source=source)
    with without_data(shapes), unchanged(module), DropoutReturnsItsInput(), quiet_shapes(), _Asked(shapes, found):

        def stand_in(leaf: Tensor) -> Tensor:
            return torch.empty((size, *leaf.shape[1:]) if leaf.dim() else (), dtype=leaf.dtype)

        given, named = pytree.tree_map_only(Tensor, stand_in, (tuple(args), dict(kwargs)))
        found.clear()
        with suppress(Exception):
            module(*given, **named)
    return [partial(_holds, expression) for expression in found]


def _holds(expression: Any, batch: int) -> bool:
    """Whether a condition on one symbol holds for a batch of this size."""
    return may_hold(expression, dict.fromkeys(expression.free_symbols, batch))


class _Asked(TorchFunctionMode):
    """Keeps the conditions on sizes that are asked outside of torch's functions, and by those that keep parts."""

    def __init__(self, shapes: ShapeEnv, found: list[Any]) -> None:
        super().__init__()
        self.shapes, self.found, self.seen = shapes, found, 0

    def _see(self) -> None:
        self.found += [guard.expr for guard in self.shapes.guards[self.seen :] if guard.expr.free_symbols]
        self.seen = len(self.shapes.guards)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        self._see()
        try:
            return run_without_data(func, args, kwargs or {})
        finally:
            self.seen = self.seen if func.__name__ in _PARTS else len(self.shapes.guards)

    def __exit__(self, *raised: Any) -> None:
        self._see()
        super().__exit__(*raised)


def unlike_one(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], signature: Signature, sizes: Mapping[str, int]
) -> tuple[set[str], pytree.TreeSpec | None]:
    """The symbols at whose size 1 other functions run than at ``sizes``, or with results of other ranks; how results are nested at these.

    torch.export traces with sizes of 2 or more, and what it traced runs with 1 as well. It nests results as with symbols: a name that
    holds a size holds that of the symbol. None where the module cannot be called without data.
    """
    usual = {name: max(size, 2) for name, size in sizes.items()}
    here = _calls_on(module, args, kwargs, signature.shapes(usual))
    if isinstance(here, Miss):
        return set(), None
    found = set()
    for name in usual:
        there = _calls_on(module, args, kwargs, signature.shapes({**usual, name: 1}))
        if isinstance(there, Miss) or [call.kind for call in there] != [call.kind for call in here]:
            found.add(name)
    return found, here[-1].numbers[0]


def _calls(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], batch: int) -> list[Call] | Miss:
    """The functions of a call with ``batch`` samples, or how it fails."""
    tensors = [leaf for leaf in pytree.tree_leaves((tuple(args), dict(kwargs))) if isinstance(leaf, Tensor)]
    return _calls_on(module, args, kwargs, [(batch, *x.shape[1:]) if x.dim() else () for x in tensors])


def _calls_on(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], shapes: Sequence[tuple[int, ...]]) -> list[Call] | Miss:
    """The functions of a call with tensors of these shapes, or how it fails."""
    with without_data(), unchanged(module), DropoutReturnsItsInput(), quiet_shapes(), CallLog() as log:
        left = iter(shapes)
        given, named = pytree.tree_map_only(Tensor, lambda x: torch.empty(next(left), dtype=x.dtype), (tuple(args), dict(kwargs)))
        log.start((given, named))
        try:
            results = module(*given, **named)
        except Exception as error:
            return Miss(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    return [*log.calls, returned(results)]
