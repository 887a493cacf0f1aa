"""Finding attention: scaled_dot_product_attention, or softmax(q·kᵀ·scale + masks)·v in any of its spellings.

matmul(q, kᵀ) ── mul scale ── add mask ── softmax ── matmul(·, v)      →      Core(q, k, v, [mask], scale)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from sparsec.ir.arguments import arguments, is_identity
from sparsec.ir.forms import constant, is_value
from sparsec.ir.miss import Miss
from sparsec.tokens.axes import factor_of, is_view, number
from sparsec.tokens.masks import LOWEST, Fill

aten = torch.ops.aten
SOFTMAX = frozenset({aten.softmax.int, aten._softmax.default})
PRODUCTS = frozenset({aten.matmul.default, aten.bmm.default})


@dataclass(frozen=True)
class Core:
    """Attention whose result is `node`; query, key, value [..., T, D], the key [..., D, T] if `key_turned`; all `inside` is replaced."""

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    scale: float
    key_turned: bool = False
    causal: bool = False
    masks: tuple[fx.Node | Fill, ...] = ()
    inside: tuple[fx.Node, ...] = field(default=())


def core_of(node: fx.Node) -> Core | Miss | None:
    """The attention of which a node is the result, or a softmax over the keys that nothing makes attention of."""
    if node.target is aten.scaled_dot_product_attention.default:
        return _whole(node)
    if node.target in PRODUCTS and (softmax := _weights(node)) is not None:
        return _spelled_out(node, softmax)
    return None


def _whole(node: fx.Node) -> Core | Miss:
    named = arguments(node)
    if named["dropout_p"]:
        return Miss("it drops out weights at random", node)
    if named["enable_gqa"]:
        return Miss("groups of heads share keys", node)
    query, key, value, mask = named["query"], named["key"], named["value"], named["attn_mask"]
    width = query.meta["val"].shape[-1]
    scale = 1 / math.sqrt(width) if named["scale"] is None else float(named["scale"])
    masks = () if mask is None else (Fill(mask, -math.inf, False) if mask.meta["val"].dtype is torch.bool else mask,)
    return Core(node, query, key, value, scale, causal=bool(named["is_causal"]), masks=masks, inside=(node,))


def _weights(node: fx.Node) -> fx.Node | None:
    """The softmax over keys that a product multiplies with values."""
    weights = node.args[0]
    while isinstance(weights, fx.Node) and weights.target not in SOFTMAX:
        inner = _without_nan(weights)
        if inner is weights and not _keeps_pairs(weights):
            return None
        weights = inner if inner is not weights else weights.args[0]
    if not isinstance(weights, fx.Node):
        return None
    rank = weights.meta["val"].dim()
    return weights if rank in (3, 4) and weights.args[1] in (-1, rank - 1) else None


def gives_nan(node: fx.Node) -> bool:
    """Whether attention gives NaN for a query all of whose keys are hidden by -inf: a softmax spelled out, its NaN not replaced."""
    if node.target is aten.scaled_dot_product_attention.default:
        return False
    weights = node.args[0]
    while isinstance(weights, fx.Node) and weights.target not in SOFTMAX:
        if _without_nan(weights) is not weights:
            return False
        weights = weights.args[0]
    return True


def _without_nan(node: fx.Node) -> fx.Node:
    """x of where(isnan(x), 0, x); attention of ours has no NaN where all keys are hidden."""
    if node.target not in (aten.where.self, aten.where.ScalarSelf):
        return node
    condition, zero, x = node.args[:3]
    tests = isinstance(condition, fx.Node) and condition.target is aten.isnan.default and condition.args[0] is x
    return x if tests and isinstance(x, fx.Node) and _level(zero) == 0 else node


def _keeps_pairs(node: fx.Node) -> bool:
    """Whether a node only merges or splits the dimensions before queries and keys."""
    if is_identity(node):
        return True
    if not is_view(node) or not is_value(node) or node.target in (aten.select.int, aten.slice.Tensor):
        return False
    source = node.args[0]
    if not isinstance(source, fx.Node) or not is_value(source) or node.target in (aten.permute.default, aten.transpose.int):
        return False
    a, b = source.meta["val"], node.meta["val"]
    return a.numel() == b.numel() and a.dim() > 2 < b.dim() and a.shape[-2:] == b.shape[-2:]


def _spelled_out(node: fx.Node, softmax: fx.Node) -> Core | Miss | None:
    scores = softmax.args[0]
    if softmax.meta["val"].dtype != scores.meta["val"].dtype:  # type: ignore[union-attr]
        return Miss("its softmax changes the dtype", node)
    found = _scores(scores, _Path(node))
    if isinstance(found, Core):
        return replace(found, value=node.args[1], inside=(*found.inside, softmax, node))  # type: ignore[arg-type]
    return found


@dataclass(frozen=True)
class _Path:
    """What lies between some scores and the softmax: the factor, and the masks added or filled in."""

    node: fx.Node
    factor: float = 1.0
    masks: tuple[fx.Node | Fill, ...] = ()
    inside: tuple[fx.Node, ...] = ()

    def mask(self, mask: fx.Node | Fill) -> "_Path":
        return replace(self, masks=(mask, *self.masks))


Found = Core | Miss | None


def _scores(node: Any, path: _Path) -> Found:
    """Down from scores to the product of queries and keys; None where there is none."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    path = replace(path, inside=(node, *path.inside))
    if (scaled := factor_of(node)) is not None:
        return _scores(scaled[0], replace(path, factor=path.factor * scaled[1]))
    rule = _RULES.get(node.target)
    if rule is not None:
        return rule(node, path)
    return _scores(node.args[0], path) if _keeps_pairs(node) else None


def _product(node: fx.Node, path: _Path) -> Found:
    query, key = node.args[:2]
    return _core(query, key, path)


def _core(query: Any, key: Any, path: _Path) -> Core:
    return Core(path.node, query, key, query, path.factor, key_turned=True, masks=path.masks, inside=path.inside)


def _biased_product(node: fx.Node, path: _Path) -> Found:
    named = arguments(node)
    if named["beta"] == 0:
        return _core(named["batch1"], named["batch2"], replace(path, factor=path.factor * named["alpha"]))
    if named["beta"] != 1 or path.factor != 1:
        return Miss("its mask is scaled", path.node)
    return _core(named["batch1"], named["batch2"], replace(path.mask(named["self"]), factor=float(named["alpha"])))


def _sum(node: fx.Node, path: _Path) -> Found:
    """The side that leads to a product of queries and keys are the scores, the other is a mask."""
    a, b = node.args[:2]
    for scores, mask in ((a, b), (b, a)):
        found = _scores(scores, path.mask(mask)) if isinstance(mask, fx.Node) else None
        if found is not None and (path.factor != 1 or arguments(node)["alpha"] != 1):
            return Miss("its mask is scaled", path.node)
        if found is not None and node.meta["val"].shape == scores.meta["val"].shape:  # type: ignore[union-attr]
            return found
    return None


def _filled(node: fx.Node, path: _Path) -> Found:
    """where(mask, scores, value) and scores.masked_fill(mask, value); a value that is not lowest would replace, not add."""
    named = arguments(node)
    if "mask" in named:
        scores, mask, value, where = named["self"], named["mask"], named["value"], True
    elif _level(named["other"]) is not None:
        scores, mask, value, where = named["self"], named["condition"], named["other"], False
    else:
        scores, mask, value, where = named["other"], named["condition"], named["self"], True
    low = _level(value)
    if low is None:
        return None
    found = _scores(scores, path.mask(Fill(mask, low, where)))
    if isinstance(found, Core) and path.factor != 1:
        return Miss("its mask is scaled", path.node)
    if isinstance(found, Core) and (low > LOWEST or mask.meta["val"].dtype is not torch.bool):
        return Miss(f"it fills masked scores with {low:g}, which does not hide them where all are masked", path.node)
    if isinstance(found, Core) and low != -math.inf and len(found.masks) > len(path.masks) + 1:
        return Miss("it fills scores that are masked already with a finite value", path.node)
    return found


def _level(value: object) -> float | None:
    """A plain number, or what all elements of a constant are."""
    tensor = constant(value)
    if tensor is None or not tensor.numel():
        return number(value)
    level = tensor.flatten()[0]
    return float(level) if bool((tensor == level).all()) else None


_RULES: dict[Any, Callable[[fx.Node, _Path], Found]] = {
    **dict.fromkeys(PRODUCTS, _product),
    aten.baddbmm.default: _biased_product,
    aten.add.Tensor: _sum,
    **dict.fromkeys((aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf), _filled),
    **dict.fromkeys((aten.masked_fill.Scalar, aten.masked_fill.Tensor), _filled),
}
