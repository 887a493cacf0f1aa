"""The exact meaning of a mask computed from one input: each element as a function of one element of that input.

mask [N,T] ── != 0 ── [:, None, None] ── and lower triangle      →      off: all False, on: lower triangle, source: n·T + k
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from sparsec.ir.arguments import arguments
from sparsec.ir.forms import constant, is_value

aten = torch.ops.aten

REARRANGEMENTS = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.expand.default,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.transpose.int,
        aten.permute.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.clone.default,
        aten.contiguous.default,
        aten.alias.default,
        aten.detach.default,
        aten.repeat.default,
        aten.index.Tensor,
    }
)
CASTS = frozenset({aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.type_as.default})
CHOICES = frozenset(
    {
        aten.where.self,
        aten.where.Scalar,
        aten.where.ScalarSelf,
        aten.where.ScalarOther,
        aten.masked_fill.Scalar,
        aten.masked_fill.Tensor,
    }
)
LIKE = frozenset({aten.zeros_like.default, aten.ones_like.default, aten.full_like.default})
SUMS = frozenset(
    {
        aten.add.Tensor,
        aten.add.Scalar,
        aten.sub.Tensor,
        aten.sub.Scalar,
        aten.rsub.Scalar,
        aten.rsub.Tensor,
        aten.neg.default,
    }
)
SCALES = frozenset({aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar})
LOGIC = frozenset({aten.__and__.Tensor, aten.__or__.Tensor, aten.__and__.Scalar, aten.__or__.Scalar})
EQUALITIES = frozenset({aten.eq.Scalar, aten.eq.Tensor, aten.ne.Scalar, aten.ne.Tensor, aten.logical_not.default})
NUMBERS = (torch.int32, torch.int64, torch.float32, torch.float64)


@dataclass(frozen=True)
class Pattern:
    """A tensor whose elements depend on an input m: `off` where the element of m that counts is 0, `on` where it is 1.

    source: position of that element in the flattened input, -1 for none. `affine`: off + (on - off)·m for any m; else `on` for any m but 0.
    """

    off: Tensor
    on: Tensor
    source: Tensor
    affine: bool = False

    @classmethod
    def fixed(cls, value: Tensor) -> "Pattern":
        """A constant."""
        return cls(value, value, torch.full((1,) * value.dim(), -1).expand(value.shape))

    @classmethod
    def leaf(cls, shape: torch.Size, dtype: torch.dtype) -> "Pattern":
        """The input itself; a bool has but two values."""
        zeros = torch.zeros(shape, dtype=dtype)
        source = torch.arange(zeros.numel()).view(shape)
        return cls(zeros, torch.ones(shape, dtype=dtype), source, affine=dtype is not torch.bool)

    @functools.cached_property
    def depends(self) -> Tensor:
        """Which elements depend on the input."""
        return self.source >= 0

    @property
    def is_fixed(self) -> bool:
        """Whether no element depends on the input."""
        return not bool(self.depends.any())


def frontier(node: fx.Node) -> list[fx.Node]:
    """The values, in order, of which one may explain a mask: those that can be followed from it and those where that ends."""
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current not in seen and current.op != "get_attr":
            seen.add(current)
            waiting += current.all_input_nodes if _is_known(current) else []
    return sorted(seen)


def follow(node: fx.Node, leaf: fx.Node | None) -> Pattern | None:
    """A value as a function of `leaf` alone, or of nothing; None where it depends on more or in another way."""
    return _Walk(leaf)(node)


def _is_known(node: fx.Node) -> bool:
    known = node.target in REARRANGEMENTS | CASTS | CHOICES | LIKE | LOGIC
    return node.op == "call_function" and (known or torch.Tag.pointwise in getattr(node.target, "tags", ()))


class _Walk:
    """Evaluates nodes once each."""

    def __init__(self, leaf: fx.Node | None) -> None:
        self.leaf = leaf
        self.known: dict[fx.Node, Pattern | None] = {}

    def __call__(self, node: fx.Node) -> Pattern | None:
        if node not in self.known:
            with torch.no_grad():
                self.known[node] = self._value(node)
        return self.known[node]

    def _value(self, node: fx.Node) -> Pattern | None:
        if node is self.leaf:
            return Pattern.leaf(node.meta["val"].shape, node.meta["val"].dtype)
        if (tensor := constant(node)) is not None:
            return Pattern.fixed(tensor)
        if node.op != "call_function" or not is_value(node) or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            return None
        operands = {source: self(source) for source in node.all_input_nodes}
        if any(pattern is None for pattern in operands.values()):
            return None
        try:
            return _apply(node, operands)  # type: ignore[arg-type]
        except (IndexError, RuntimeError):  # As in eager mode at these sizes, see FoldConstants.
            return None


Operands = dict[fx.Node, Pattern]


def _run(node: fx.Node, pick: Callable[[fx.Node], Tensor]) -> Any:
    args, kwargs = tree_map_only(fx.Node, pick, (tuple(node.args), dict(node.kwargs)))
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _side(node: fx.Node, operands: Operands, side: str) -> Tensor:
    """The result where all operands are on one side, "off" or "on"."""
    return _run(node, lambda source: getattr(operands[source], side))


def _apply(node: fx.Node, operands: Operands) -> Pattern | None:
    varying = [pattern for pattern in operands.values() if not pattern.is_fixed]
    if not varying or node.target in LIKE:
        return Pattern.fixed(_run(node, lambda source: operands[source].off))
    if node.target in REARRANGEMENTS:
        return _rearranged(node, operands)
    if not _is_known(node):
        return None
    off, on = _side(node, operands, "off"), _side(node, operands, "on")
    source = _sources(varying, off.shape)
    if source is None:
        return None
    affine: bool | None = False
    if any(pattern.affine for pattern in varying):
        affine = _affinity(node, operands, off, on)
    return None if affine is None else _settled(Pattern(off, on, source, affine))


def _settled(pattern: Pattern) -> Pattern:
    """Elements that are the same either way are constants."""
    source = torch.where(pattern.off == pattern.on, -1, pattern.source)
    return replace(pattern, source=source, affine=pattern.affine and bool((source >= 0).any()))


def _rearranged(node: fx.Node, operands: Operands) -> Pattern | None:
    """Only the first argument may depend on the input."""
    first = node.args[0]
    if any(source is not first and not pattern.is_fixed for source, pattern in operands.items()):
        return None
    source = _run(node, lambda operand: operands[operand].source if operand is first else operands[operand].off)
    return Pattern(_side(node, operands, "off"), _side(node, operands, "on"), source, operands[first].affine)  # type: ignore[index]


def _sources(varying: list[Pattern], shape: torch.Size) -> Tensor | None:
    """Where each element of a result comes from; None where one comes from two places."""
    merged = torch.full((), -1)
    for pattern in varying:
        if bool(((merged >= 0) & pattern.depends & (merged != pattern.source)).any()):
            return None
        merged = torch.maximum(merged, pattern.source)
    return merged.expand(shape)


def _affinity(node: fx.Node, operands: Operands, off: Tensor, on: Tensor) -> bool | None:
    """Whether a result is affine in the input; False: it depends on whether the input is 0 only; None: neither.

    On a slope, f(m) = f(0) if and only if m = 0, so comparing with f(0) tells just that.
    """
    varying = [pattern for pattern in operands.values() if not pattern.is_fixed]
    slopes = all(pattern.affine for pattern in varying)
    if node.target in CHOICES:
        return _chosen(node, operands)
    if node.target in CASTS:
        return _cast(varying[0], on.dtype)
    if node.target in EQUALITIES and slopes and len(varying) == 1:
        settles = _equals(node, operands, "off") & ~_equals(node, operands, "on")
        return False if bool((settles | ~varying[0].depends).all()) else None
    if not slopes or on.dtype not in NUMBERS:
        return None
    if node.target in SUMS:
        return True
    divides = node.target in (aten.div.Tensor, aten.div.Scalar)
    if node.target in SCALES and len(varying) == 1 and not (divides and operands.get(node.args[0]) is not varying[0]):  # type: ignore[arg-type]
        return None if node.args[0] is node.args[1] else True
    return None


def _equals(node: fx.Node, operands: Operands, side: str) -> Tensor:
    found = _side(node, operands, side)
    return ~found if node.target in (aten.ne.Scalar, aten.ne.Tensor) else found


def _cast(pattern: Pattern, dtype: torch.dtype) -> bool | None:
    if dtype is torch.bool:
        settles = (pattern.off == 0) & (pattern.on != 0) | ~pattern.depends
        return False if bool(settles.all()) else None
    narrows = pattern.off.dtype.is_floating_point and not dtype.is_floating_point
    return True if dtype in NUMBERS and not narrows else None


def _chosen(node: fx.Node, operands: Operands) -> bool | None:
    """where(c, a, b): affine if c is fixed; on or off if no slope is chosen where the input is not 0."""
    named = arguments(node)
    fills = node.target in (aten.masked_fill.Scalar, aten.masked_fill.Tensor)
    condition = operands[named["mask" if fills else "condition"]]
    branches = [named["value"], named["self"]] if fills else [named["self"], named["other"]]
    a, b = (operands[b].depends & operands[b].affine if isinstance(b, fx.Node) else torch.tensor(False) for b in branches)
    if condition.is_fixed:
        steps = [operands[b] for b in branches if isinstance(b, fx.Node) and not operands[b].is_fixed and not operands[b].affine]
        return None if steps else True
    if condition.affine:
        return None
    return None if bool(torch.where(condition.on, a, b).any()) else False
