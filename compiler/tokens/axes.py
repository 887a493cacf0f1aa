"""Which axis of a value each dimension of a view of it walks along.

x [N,T,F] ── view [N,T,H,D] ── transpose 1 2      →      dims ((0,1,N)), ((2,D,H)), ((1,1,T)), ((2,1,D)) of x

A dimension is a sequence of atoms (axis, step, size), the most significant first: atom index i moves i·step along the axis.
Axes of size 1 have no atoms, but for the first: what is found for a batch of one has to hold for every batch.
"""

import math
import operator
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import fx

from sparsec.ir.arguments import arguments, is_identity
from sparsec.ir.editor import Editor
from sparsec.ir.forms import constant, is_value, notes

aten = torch.ops.aten
REPEATED = -1

RESHAPES = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
    }
)
PARTS = frozenset(
    {aten.unbind.int, aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes, aten.chunk.default, aten.tensor_split.sections}
)


@dataclass(frozen=True)
class Atom:
    """`size` positions along an axis of the root, `step` apart; axis REPEATED: the same position again and again."""

    axis: int
    step: int
    size: int

    @property
    def end(self) -> int:
        """The step of an atom that continues this one on its more significant side."""
        return self.step * self.size


Dim = tuple[Atom, ...]
#: The first axis where it has size 1.
SAMPLE = Atom(0, 0, 1)


def size_of(dim: Dim) -> int:
    """How many indices a dimension has."""
    return math.prod(atom.size for atom in dim)


@dataclass(frozen=True)
class View:
    """A value that shows elements of `root`, each times `factor`: its dimensions, and the first index along each axis of the root."""

    root: fx.Node
    dims: tuple[Dim, ...]
    starts: tuple[int, ...]
    factor: float = 1.0

    @classmethod
    def whole(cls, root: fx.Node) -> "View":
        """A value as a view of itself."""
        shape = root.meta["val"].shape
        return cls(root, tuple(axis_of(root, axis) for axis in range(len(shape))), (0,) * len(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the view."""
        return tuple(map(size_of, self.dims))

    @property
    def is_whole(self) -> bool:
        """Whether the view is the root itself."""
        return self == View.whole(self.root)

    @property
    def is_rearrangement(self) -> bool:
        """Whether the view shows every element of the root once, times one."""
        axes = range(self.root.meta["val"].dim())
        atoms = [atom for dim in self.dims for atom in dim]
        covered = all(covers(self.root, axis, [a for a in atoms if a.axis == axis]) for axis in axes)
        return covered and not any(self.starts) and self.factor == 1 and all(a.axis != REPEATED for a in atoms)


def axis_of(root: fx.Node, axis: int) -> Dim:
    """All of one axis of a value."""
    size = int(root.meta["val"].shape[axis])
    return (Atom(axis, 1, size),) if size > 1 else () if axis else (SAMPLE,)


def covers(root: fx.Node, axis: int, atoms: Sequence[Atom]) -> bool:
    """Whether atoms of an axis, in any order, give each of its indices once."""
    if SAMPLE in axis_of(root, axis):
        return list(atoms) == [SAMPLE]
    reach = 1
    for atom in sorted(atoms, key=lambda atom: atom.step):
        if atom.step != reach:
            return False
        reach = atom.end
    return reach == root.meta["val"].shape[axis]


def indices(dims: Sequence[Dim], start: int = 0) -> list[int]:
    """The positions along an axis that dimensions of atoms of that axis show, in order, the first dimension slowest."""
    steps = [[i * atom.step for i in range(atom.size)] for dim in dims for atom in dim]
    return [start + sum(choice) for choice in product(*steps)]


def view_of(node: fx.Node, *, scaled: bool = False) -> View:
    """A value as a view of the first value up its chain of views that is none; with `scaled`, products with a number count as views.

    What cannot be followed ends the chain. So does a value noted as ``root``.
    """
    source = _viewed(node) if is_value(node) and not notes(node).get("root") and node.meta["val"].numel() else None
    if source is not None:
        found = _step(view_of(source, scaled=scaled), node)
        if found is not None:
            return found
    elif scaled and (found_factor := factor_of(node)) is not None:
        inner = view_of(found_factor[0], scaled=True)
        return replace(inner, factor=inner.factor * found_factor[1])
    return View.whole(node)


def is_view(node: fx.Node) -> bool:
    """Whether a node rearranges or selects elements of one value, or is the tuple of parts of one."""
    return node.op == "call_function" and (node.target in PARTS or (is_value(node) and _viewed(node) is not None))


def factor_of(node: fx.Node) -> tuple[fx.Node, float] | None:
    """The value and the number whose product or quotient a node is."""
    if node.target not in (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar):
        return None
    a, b = node.args[:2]
    if number(a) is not None and node.target is aten.mul.Tensor:
        a, b = b, a
    scale = number(b)
    if scale is None or not isinstance(a, fx.Node) or not _same_kind(a, node):
        return None
    quotient = node.target in (aten.div.Tensor, aten.div.Scalar)
    return None if quotient and scale == 0 else (a, 1 / scale if quotient else scale)


def _same_kind(a: fx.Node, b: fx.Node) -> bool:
    return is_value(a) and a.meta["val"].shape == b.meta["val"].shape and a.meta["val"].dtype == b.meta["val"].dtype


def number(value: object) -> float | None:
    """A plain number, or the one element of a constant."""
    if isinstance(value, int | float):
        return float(value)
    tensor = constant(value)
    return float(tensor) if tensor is not None and tensor.numel() == 1 else None


def build(edit: Editor, view: View, before: fx.Node) -> fx.Node:
    """Nodes that compute a rearrangement of a root: reshape, permute, reshape, unsqueeze, as far as needed."""
    if (found := order_of(view)) is not None and found != sorted(found):
        return edit.call(aten.permute.default, (view.root, found), before=before, sources=(view.root,))
    node, atoms = view.root, [atom for dim in view.dims for atom in dim]
    # A reshape could not tell axes of size 1 from that of the samples of a batch of one.
    added = next((position for position, dim in enumerate(view.dims) if dim), 0) if atoms[:1] == [SAMPLE] else 0
    split = sorted(atoms, key=lambda atom: (atom.axis, -atom.step))
    shape = [atom.size for atom in split]
    order = [split.index(atom) for atom in atoms]
    if order == sorted(order):
        shape, order = list(view.root.meta["val"].shape), []
    steps: list[tuple[Any, Any]] = [(aten.reshape.default, shape), (aten.permute.default, order)]
    steps.append((aten.reshape.default, list(view.shape[added:])))
    steps += [(aten.unsqueeze.default, 0)] * added
    for target, values in steps:
        idle = values == [] if target is aten.permute.default else values == list(node.meta["val"].shape)
        node = node if idle else edit.call(target, (node, values), before=before, sources=(view.root,))
    return node


def order_of(view: View) -> list[int] | None:
    """Which dimension of the root each dimension of a view is, those of size 1 in order; None where they are not the same."""
    whole = View.whole(view.root)
    if view.factor != 1 or view.starts != whole.starts or Counter(view.dims) != Counter(whole.dims):
        return None
    left = list(enumerate(whole.dims))
    order = []
    for dim in view.dims:
        found = next(entry for entry in left if entry[1] == dim)
        left.remove(found)
        order.append(found[0])
    return order


# Rules: what one node does to a view of its source


def _viewed(node: fx.Node) -> fx.Node | None:
    """The value that a node shows another way, if it does."""
    if node.op != "call_function":
        return None
    source = node.args[0] if node.args else None
    if node.target is operator.getitem:
        source = source.args[0] if isinstance(source, fx.Node) and source.target in PARTS else None
    elif node.target not in _RULES and not is_identity(node):
        return None
    return source if isinstance(source, fx.Node) and is_value(source) else None


def _step(view: View, node: fx.Node) -> View | None:
    if node.target is operator.getitem:
        return _part(view, node)
    rule = _RULES.get(node.target)
    return rule(view, node) if rule is not None else view


def _merged(atoms: Sequence[Atom]) -> list[Atom]:
    """The same positions in the same order from as few atoms as can be."""
    made: list[Atom] = []
    for atom in atoms:
        if made and made[-1].axis == atom.axis and made[-1].step == atom.end:
            made[-1] = Atom(atom.axis, atom.step, made[-1].size * atom.size)
        elif atom.size > 1 or atom == SAMPLE:
            made.append(atom)
    return made


def _reshape(view: View, node: fx.Node) -> View | None:
    left = _merged([atom for dim in view.dims for atom in dim])
    shape = [*map(int, node.meta["val"].shape)]
    dims = []
    for size, following in zip(shape, [*shape, 0][1:], strict=True):
        taken = _take(left, size)
        if taken is None:
            return None
        # Between two others the samples are taken to be merged with the first.
        if size > 1 and following != 1 and left[:1] == [SAMPLE]:
            taken.append(left.pop(0))
        dims.append(tuple(_merged(taken)))
    return replace(view, dims=tuple(dims))


def _squeeze(view: View, node: fx.Node) -> View | None:
    """Without the samples only where there is one of them, so never."""
    if not view.dims:
        return view
    named, rank = arguments(node).get("dim", range(len(view.dims))), len(view.dims)
    gone = {dim % rank for dim in ([named] if isinstance(named, int) else named) if size_of(view.dims[dim]) == 1}
    if any(SAMPLE in view.dims[dim] for dim in gone):
        return None
    return replace(view, dims=tuple(dim for position, dim in enumerate(view.dims) if position not in gone))


def _unsqueeze(view: View, node: fx.Node) -> View:
    dim = arguments(node)["dim"] % (len(view.dims) + 1)
    return replace(view, dims=(*view.dims[:dim], (), *view.dims[dim:]))


def _take(left: list[Atom], size: int) -> list[Atom] | None:
    """Remove the most significant atoms of `left` that together have `size` indices, splitting the last where needed."""
    taken = [left.pop(0)] if left[:1] == [SAMPLE] else []
    while size > 1:
        atom = left.pop(0) if left else None
        if atom is None:
            return None
        if size % atom.size:
            if atom.size % size:
                return None
            inner = atom.size // size
            left.insert(0, Atom(atom.axis, atom.step, inner))
            atom = Atom(atom.axis, atom.step * inner, size)
        taken.append(atom)
        size //= atom.size
    return taken


def _permute(view: View, node: fx.Node) -> View:
    return replace(view, dims=tuple(view.dims[d] for d in arguments(node)["dims"]))


def _transpose(view: View, node: fx.Node) -> View:
    named, dims = arguments(node), list(view.dims)
    if node.target is aten.t.default:
        return replace(view, dims=tuple(reversed(dims)))
    if dims:  # A scalar has an axis to turn, and nothing turns.
        a, b = named["dim0"], named["dim1"]
        dims[a], dims[b] = dims[b], dims[a]
    return replace(view, dims=tuple(dims))


def _expand(view: View, node: fx.Node) -> View:
    shape = node.meta["val"].shape
    dims = [()] * (len(shape) - len(view.dims)) + list(view.dims)
    return replace(view, dims=tuple(d if size_of(d) == n else (Atom(REPEATED, 0, n),) for d, n in zip(dims, shape, strict=True)))


def _select(view: View, node: fx.Node) -> View | None:
    named = arguments(node)
    return _picked(view, named["dim"], named["index"])


def _picked(view: View, dim: int, index: int) -> View:
    dim %= len(view.dims)
    moved, *_ = _cut(view, dim, index % size_of(view.dims[dim]), 1, 1) or (view,)
    return replace(moved, dims=(*view.dims[:dim], *view.dims[dim + 1 :]))


def _slice(view: View, node: fx.Node) -> View | None:
    named = arguments(node)
    dim, step = named["dim"] % len(view.dims), named["step"]
    if not named["start"] and (named["end"] is None or named["end"] == sys.maxsize) and step == 1:
        return view
    start, _, _ = slice(named["start"], named["end"], step).indices(size_of(view.dims[dim]))
    found = _cut(view, dim, start, node.meta["val"].shape[dim], step)
    return None if found is None else found[0]


def _part(view: View, node: fx.Node) -> View | None:
    parts, index = node.args
    named = arguments(parts)  # type: ignore[arg-type]
    dim = named["dim"] % len(view.dims)
    if parts.target is aten.unbind.int:  # type: ignore[union-attr]
        return _picked(view, dim, index)  # type: ignore[arg-type]
    sizes = [part.shape[dim] for part in parts.meta["val"]]  # type: ignore[union-attr]
    found = _cut(view, dim, sum(sizes[:index]), sizes[index], 1)  # type: ignore[index, misc]
    return None if found is None else found[0]


def _cut(view: View, dim: int, start: int, size: int, step: int) -> tuple[View] | None:
    """Indices start, start + step, ... of one dimension; within the most significant atom, or of one index only."""
    atoms = view.dims[dim]
    inner = size_of(atoms[1:])
    if size != 1 and (start % inner or size % inner or (step != 1 and len(atoms) > 1)):
        return None
    starts = list(view.starts)
    for position, atom in enumerate(atoms):
        below = size_of(atoms[position + 1 :])
        if atom.axis != REPEATED:
            starts[atom.axis] += start // below % atom.size * atom.step
    kept = () if size == 1 else (Atom(atoms[0].axis, atoms[0].step * step, size // inner), *atoms[1:])
    dims = (*view.dims[:dim], tuple(_merged(kept)), *view.dims[dim + 1 :])
    return (replace(view, dims=dims, starts=tuple(starts)),)


_RULES: dict[Any, Callable[[View, fx.Node], View | None]] = {
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys((aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims), _squeeze),
    aten.unsqueeze.default: _unsqueeze,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.t.default: _transpose,
    aten.expand.default: _expand,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
}


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that read a value or a view of it, scaled or not, and are none themselves."""
    for user in node.users:
        if is_view(user) or user.target is operator.getitem or factor_of(user) is not None:
            yield from readers(user)
        else:
            yield user
