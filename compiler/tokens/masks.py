"""What a mask of attention scores is: per key a function of an input, plus a constant per pair of query and key.

scores [N,H,Tq,Tk] + mask      →      scores + key(m[n,k]) + pair[h,q,k],   key: `on` and `off` by m ≠ 0, or affine in m

Exact: nothing is taken for what it only probably is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from sparsec.ir.miss import Miss
from sparsec.tokens.mask_values import Pattern, follow, frontier

aten = torch.ops.aten
#: A score this low gets weight 0 beside any score that is not.
LOWEST = -1e30


@dataclass(frozen=True)
class Scores:
    """The shape [N,H,Tq,Tk] of attention scores; `merged`: masks of three dimensions have the leading one N·H, else H."""

    batch: int
    heads: int
    queries: int
    keys: int
    merged: bool = False


@dataclass(frozen=True)
class Fill:
    """A bool mask as a sum: `value` where it equals `where`, else 0."""

    mask: fx.Node
    value: float
    where: bool


@dataclass(frozen=True)
class Bias:
    """source: a value of N·Tk elements, or None; `on`, `off`, `affine` as in `token_ops.key_bias`; pair [1 or H,Tq,Tk] or None."""

    source: fx.Node | None = None
    on: float = 0.0
    off: float = 0.0
    affine: bool = False
    pair: Tensor | None = None
    causal: bool = False


def analyse(masks: Sequence[fx.Node | Fill], scores: Scores) -> Bias | Miss:
    """The sum of masks as one bias, or why it is none."""
    total = Bias()
    for mask in masks:
        found = _term(mask, scores)
        if isinstance(found, Miss):
            return found
        if found.source is not None and total.source is not None:
            return Miss(f"two masks depend on inputs, {total.source.name} and {found.source.name}")
        pair = found.pair if total.pair is None else total.pair if found.pair is None else total.pair + found.pair
        total = replace(total if found.source is None else found, pair=pair)
    return _simplified(total)


def _simplified(bias: Bias) -> Bias:
    """A zero pair bias is none, a triangular one is causal, one the same for all heads is stored once.

    A finite lowest value hides a key only beside one that is not hidden, which padding could do to all.
    """
    pair = bias.pair
    if pair is None or not bool(pair.any()):
        return replace(bias, pair=None)
    upper = torch.ones(pair.shape[1:], dtype=torch.bool).triu(1)
    hidden = pair == -torch.inf if bias.source is not None else pair <= LOWEST
    if bool((hidden == upper).all()) and not bool(pair[:, ~upper].any()):
        return replace(bias, pair=None, causal=True)
    return replace(bias, pair=pair[:1] if bool((pair == pair[:1]).all()) else pair)


def _term(term: fx.Node | Fill, scores: Scores) -> Bias | Miss:
    """One mask; the sum of two where it cannot be told as a whole."""
    mask = term.mask if isinstance(term, Fill) else term
    reason = ""
    for leaf in [None, *_leaves(mask, scores)]:
        pattern = follow(mask, leaf)
        if pattern is not None:
            found = _bias(pattern if mask is term else _additive(pattern, term), leaf, scores)  # type: ignore[arg-type]
            if isinstance(found, Bias):
                return found
            reason = reason or f"{mask.name} {found.reason}"
    reason = reason or f"{mask.name} is not a function of constants and of one value per key"
    parts = mask.args[:2]
    if mask.target is not aten.add.Tensor or mask.kwargs.get("alpha", 1) != 1 or not all(isinstance(part, fx.Node) for part in parts):
        return Miss(reason)
    return _sum([_term(part, scores) for part in parts]) or Miss(reason)  # type: ignore[arg-type]


def _sum(terms: list[Bias | Miss]) -> Bias | None:
    found = [term for term in terms if isinstance(term, Bias)]
    keyed = [term for term in found if term.source is not None]
    if len(found) != len(terms) or len(keyed) > 1:
        return None
    pairs = [term.pair for term in found if term.pair is not None]
    pair = sum(pairs[1:], pairs[0]) if pairs else None
    return replace(keyed[0] if keyed else Bias(), pair=pair)


def _leaves(mask: fx.Node, scores: Scores) -> list[fx.Node]:
    found = [node for node in frontier(mask) if isinstance(node.meta.get("val"), Tensor)]
    return [node for node in found if node.meta["val"].numel() == scores.batch * scores.keys]


def _bias(pattern: Pattern, leaf: fx.Node | None, scores: Scores) -> Bias | Miss:
    if pattern.off.dtype not in (torch.float32, torch.float64):
        return Miss(f"is {pattern.off.dtype}")
    found = _shaped(pattern, scores)
    if found is None:
        return Miss(
            f"has shape {list(pattern.off.shape)}, which does not fit scores {[scores.batch, scores.heads, scores.queries, scores.keys]}"
        )
    if bool(found.off.isnan().any() | found.on.isnan().any()):
        return Miss("holds NaN")
    first = _of_any_sample(found, scores)
    if isinstance(first, Miss):
        return first
    full = (first.off.shape[0], scores.queries, scores.keys)
    off, on, depends = (part.expand(full) for part in (first.off, first.on, first.depends))
    if leaf is None or not bool(depends.any()):
        return Bias(pair=on)
    return _split(leaf, off, on, depends, first.affine)


def _additive(pattern: Pattern, fill: Fill) -> Pattern:
    off, on = (torch.where(side == fill.where, fill.value, 0.0) for side in (pattern.off, pattern.on))
    return replace(pattern, off=off, on=on)


def _shaped(pattern: Pattern, scores: Scores) -> Pattern | None:
    """With four dimensions, each 1 or that of the scores."""
    shape = list(pattern.off.shape)
    if len(shape) == 3 and scores.merged:
        shape[:1] = [scores.batch, scores.heads] if shape[0] == scores.batch * scores.heads else [1, shape[0]]
    shape = [1] * (4 - len(shape)) + shape
    whole = (scores.batch, scores.heads, scores.queries, scores.keys)
    if len(shape) != 4 or any(size not in (1, most) for size, most in zip(shape, whole, strict=True)):
        return None
    return Pattern(pattern.off.reshape(shape), pattern.on.reshape(shape), pattern.source.reshape(shape), pattern.affine)


def _of_any_sample(pattern: Pattern, scores: Scores) -> Pattern | Miss:
    """[h,Tq,Tk] of each sample, where element (h, q, k) of sample n depends on element (n, k) of the input or on nothing."""
    expected = torch.arange(scores.batch * scores.keys).view(scores.batch, 1, 1, scores.keys)
    if not bool(((pattern.source == expected) | ~pattern.depends).all()):
        return Miss("does not give each key one value of its own sample")
    for part in (pattern.off, pattern.on, pattern.depends):
        if not bool((part == part[:1]).all()):
            return Miss("differs between samples of the batch")
    return Pattern(pattern.off[0], pattern.on[0], pattern.source[0], pattern.affine)


def _split(leaf: fx.Node, off: Tensor, on: Tensor, depends: Tensor, affine: bool) -> Bias | Miss:
    """off = pair + key's off, on = pair + key's on; -inf swallows what it is added to."""
    low, high = off[depends][0], on[depends][0]
    if not affine and bool((off == -torch.inf).all()):
        return Bias(leaf, 0.0, -torch.inf, pair=on)
    if not affine and bool((on == -torch.inf).all()):
        return Bias(leaf, -torch.inf, 0.0, pair=off)
    if not bool(depends.all()):
        return Miss("shares finite values between padding and pairs, which are no sum of the two")
    if bool((off == low).all() & (on == high).all()):
        return _in_float32(Bias(leaf, float(high), float(low), affine))
    drop = low - high
    if bool(drop.isfinite()) and bool((on + drop == off).all()):
        return _in_float32(Bias(leaf, 0.0, float(drop), affine, pair=on))
    return Miss("is no sum of a value per key and a value per pair")


def _in_float32(bias: Bias) -> Bias | Miss:
    """Where float32 holds what `key_bias` computes; off + (on - off)·m, if both are there and large, it may not."""
    for value in (bias.on, bias.off):
        if float(torch.tensor(value, dtype=torch.float32)) != value:
            return Miss(f"holds {value}, which is no float32 number")
    if bias.affine and bias.source is not None and bias.source.meta["val"].dtype is torch.float64:
        return Miss(f"follows float64 values of {bias.source.name}")
    if bias.affine and bias.off and bias.on and max(abs(bias.on), abs(bias.off)) > -LOWEST:
        return Miss("leaves the range of float32 on the way")
    return bias
