"""What operators do to facts forward, from inputs to the output: the rules that their records name.

They hold bit for bit on finite values: a constant channel is recorded only where no rounding can differ. The backward direction is
`sparsec.facts.backward`, both are applied in `sparsec.facts.propagation`.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor, fx

from sparsec.facts.lattice import NOTHING, ZERO, Fact, join
from sparsec.ir.arguments import Activation, Layer, activation_of, arguments, layer_of
from sparsec.ir.forms import constant, is_value, known_fact

aten = torch.ops.aten
#: The least value of activations that dip below zero.
LEAST = {"silu": -0.2784645, "hardswish": -0.375, "gelu": -0.1699712, "gelu_tanh": -0.1700411}
KEEP_ZERO = frozenset({"none", "tanh", *LEAST})

AVERAGES = frozenset({aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.mean.dim})
RESHAPES = frozenset({aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten._unsafe_view.default})
NORMS = frozenset({aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default})
SUMS = frozenset({aten.add.Tensor, aten.add_.Tensor})
PRODUCTS = frozenset({aten.mul.Tensor, aten.mul_.Tensor})


def channel_count(node: fx.Node) -> int:
    """The size of dimension 1, or 1 for a value of fewer dimensions."""
    value = node.meta["val"]
    return value.shape[1] if isinstance(value, Tensor) and value.dim() >= 2 else 1


def of_channels(node: fx.Node, values: dict[int, float], low: float = -math.inf, high: float = math.inf) -> Fact:
    """A fact from the channels known to be constant, zeros among them."""
    dead = frozenset(channel for channel, value in values.items() if value == 0)
    if len(dead) == channel_count(node):
        return ZERO
    return Fact(
        dead=((1, dead),) if dead else (),
        constants=tuple(sorted((channel, value) for channel, value in values.items() if value != 0)),
        low=low,
        high=high,
    )


def channel_values(node: object) -> dict[int, float]:
    """The channels of a value that are known to be constant, with their values."""
    if not isinstance(node, fx.Node) or not is_value(node):
        return {}
    fact = known_fact(node)
    if fact.is_zero:
        return dict.fromkeys(range(channel_count(node)), 0.0)
    return {**dict.fromkeys(fact.dead_along(1), 0.0), **dict(fact.constants)}


def activated(fact: Fact, activation: Activation, node: fx.Node) -> Fact:
    """The fact of `activation` applied to a value with `fact`; `node` gives shape and dtype."""
    low, high = _activated_range(fact, activation)
    keeps_zero = activation.name in KEEP_ZERO or activation.lo <= 0 <= activation.hi
    keeps_zero &= activation.name not in ("sigmoid", "hardsigmoid")
    if keeps_zero and fact.is_zero:
        return ZERO
    dtype = node.meta["val"].dtype
    exact = activation.name in ("none", "clamp")
    known = dict.fromkeys(range(channel_count(node)), 0.0) if fact.is_zero else dict(fact.constants)
    known |= dict.fromkeys(fact.dead_along(1), 0.0)
    values = {c: float(activation(torch.tensor(v, dtype=dtype))) for c, v in known.items() if exact or v == 0}
    values = values if exact or keeps_zero else {}
    made = of_channels(node, values, low, high)
    if not keeps_zero or made.is_zero:
        return made
    kept_dead = [(dim, indices) for dim, indices in fact.dead if dim != 1]
    dead = tuple(sorted([*made.dead, *kept_dead], key=lambda entry: entry[0]))
    return replace(made, density=fact.density, groups=fact.groups, blocks=fact.blocks, dead=dead)


def _activated_range(fact: Fact, activation: Activation) -> tuple[float, float]:
    low, high = fact.span
    match activation.name:
        case "clamp":
            return min(max(low, activation.lo), activation.hi), min(max(high, activation.lo), activation.hi)
        case "sigmoid" | "hardsigmoid":
            return 0.0, 1.0
        case "silu" | "hardswish" | "gelu" | "gelu_tanh":
            return (0.0 if low >= 0 else LEAST[activation.name] - 1e-3), math.inf
        case "tanh":
            return (0.0 if low >= 0 else -1.0), 1.0
    return low, high


def of_layer(node: fx.Node) -> Fact:
    """A convolution or linear layer; nothing of one that is none of ours, such as a convolution without a batch."""
    layer = layer_of(node)
    return NOTHING if layer is None else _silenced(layer)


def of_activation(node: fx.Node) -> Fact:
    """An activation of ours; nothing of others, such as a clamp to limits that are computed."""
    found = activation_of(node)
    return NOTHING if found is None else activated(known_fact(found[0]), found[1], node)


def _silenced(layer: Layer) -> Fact:
    """Outputs whose weights all meet dead inputs are bias + residual."""
    low_high = _activated_range(NOTHING, layer.activation)
    weight, bias = layer.constant_weight, layer.constant_bias
    if weight is None or bias is None or not layer.makes_channels:
        return Fact(low=low_high[0], high=low_high[1])
    base = dict(enumerate(bias.tolist()))
    silent = {o: base[o] for o in silent_outputs(weight, layer.groups, channel_values(layer.x))}
    if layer.residual is not None:
        silent = _sums(silent, channel_values(layer.residual), layer.node)
    return activated(of_channels(layer.node, silent), layer.activation, layer.node)


def silent_outputs(weight: Tensor, groups: int, values: dict[int, float]) -> list[int]:
    """The outputs of weight [O, I/groups, ...] that no input other than a zero one reaches."""
    reach = reached(weight, groups)
    dead = torch.zeros(reach.shape[1], dtype=torch.bool)
    dead[[channel for channel, value in values.items() if value == 0]] = True
    return torch.nonzero(~(reach & ~dead).any(1)).flatten().tolist()


def reached(weight: Tensor, groups: int) -> Tensor:
    """Which outputs read which inputs: bool [O, I], from weight [O, I/groups, ...]. A non-finite weight reads."""
    mask = (weight != 0).flatten(2) if weight.dim() > 2 else (weight != 0).unsqueeze(2)
    taps = mask.any(2) if mask.shape[2] > 1 else mask.squeeze(2)
    if groups == 1:
        return taps
    outputs, inputs = taps.shape
    full = torch.zeros(outputs, inputs * groups, dtype=torch.bool)
    for group in range(groups):
        rows = slice(group * outputs // groups, (group + 1) * outputs // groups)
        full[rows, group * inputs : (group + 1) * inputs] = taps[rows]
    return full


def _sums(a: dict[int, float], b: dict[int, float], node: fx.Node) -> dict[int, float]:
    """Channels constant in both summands, added in the dtype of the node."""
    dtype = node.meta["val"].dtype
    both = a.keys() & b.keys()
    return {c: float(torch.tensor(a[c], dtype=dtype) + torch.tensor(b[c], dtype=dtype)) for c in both}


def of_depthwise_pointwise(node: fx.Node) -> Fact:
    """The range of its last activation."""
    low, high = _activated_range(NOTHING, Activation.read(arguments(node)))
    return Fact(low=low, high=high)


def _tensors(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Both operands of a binary operator where they are tensors of the shape of the result."""
    operands = node.args[:2]
    shape = node.meta["val"].shape
    fits = all(isinstance(o, fx.Node) and is_value(o) and o.meta["val"].shape == shape for o in operands)
    return (operands[0], operands[1]) if fits else None  # type: ignore[return-value]


def of_sum(node: fx.Node) -> Fact:
    """Channels constant in both summands, without a factor."""
    operands = _tensors(node)
    if operands is None or arguments(node)["alpha"] != 1:
        return NOTHING
    a, b = (known_fact(operand) for operand in operands)
    low = 0.0 if min(a.span[0], b.span[0]) >= 0 else -math.inf
    made = of_channels(node, _sums(channel_values(operands[0]), channel_values(operands[1]), node), low)
    return made if made.is_zero else replace(made, density=min(1.0, a.density + b.density))


def of_product(node: fx.Node) -> Fact:
    """A zero channel of either factor silences the product; factors may have one pixel per channel."""
    factors = [factor for factor in node.args[:2] if isinstance(factor, fx.Node) and is_value(factor)]
    if len(factors) != 2 or any(not keeps_channels(factor, node) for factor in factors):
        return NOTHING
    zeros = {c: v for factor in factors for c, v in channel_values(factor).items() if v == 0}
    low = 0.0 if all(known_fact(factor).span[0] >= 0 for factor in factors) else -math.inf
    return of_channels(node, zeros, low)


def keeps_channels(operand: fx.Node, node: fx.Node) -> bool:
    """Whether an operand has the rank and the channels of a result, so that channel c only meets channel c."""
    a, b = operand.meta["val"], node.meta["val"]
    return a.dim() == b.dim() >= 2 and a.shape[1] == b.shape[1]


def of_norm(node: fx.Node) -> Fact:
    """A channel with factor 0 is its shift."""
    return of_channels(node, _norm_values(node))


def _norm_values(node: fx.Node) -> dict[int, float]:
    """A channel with factor 0 is its shift, whatever the statistics (finite) are."""
    named = arguments(node)
    weight, bias = constant(named["weight"]), constant(named["bias"])
    if weight is None or bias is None or named.get("training"):
        return {}
    return {c: float(bias[c]) for c in torch.nonzero(weight == 0).flatten().tolist()}


def of_max_pool(node: fx.Node) -> Fact:
    """Constant channels stay."""
    source = known_fact(node.args[0])
    return of_channels(node, channel_values(node.args[0]) if pools_apart(node) else {}, *source.span)


def pools_apart(node: fx.Node) -> bool:
    """Whether a maximum keeps batches and channels apart: pooling of [N,C,H,W], not of one map [C,H,W], whose dimension 1 are rows."""
    return node.target is aten.max_pool2d.default and node.meta["val"].dim() == 4


def of_average(node: fx.Node) -> Fact:
    """Zero channels stay; sums of others may round."""
    if not averages_apart(node):
        return NOTHING
    zeros = {c: v for c, v in channel_values(node.args[0]).items() if v == 0}
    return of_channels(node, zeros, 0.0 if known_fact(node.args[0]).span[0] >= 0 else -math.inf)


def averages_apart(node: fx.Node) -> bool:
    """Whether an average keeps batches and channels apart: pooling of [N,C,H,W], or a mean over later dimensions."""
    source = node.args[0]
    rank = source.meta["val"].dim()  # type: ignore[union-attr]
    if node.target is not aten.mean.dim:
        return rank == 4
    return min((dim % max(rank, 1) for dim in arguments(node)["dim"] or (0,)), default=0) > 1


def of_cat(node: fx.Node) -> Fact:
    """Channels of the parts, one after the other; along other dimensions what holds of all parts."""
    named = arguments(node)
    parts, rank = named["tensors"], node.meta["val"].dim()
    facts = [known_fact(part) for part in parts]
    if rank < 2 or named["dim"] % rank != 1:
        joined = reduce(join, facts)
        return replace(joined, groups=(), blocks=(), pattern=None, dead=(), density=1.0) if not joined.is_zero else ZERO
    values = {c + start: v for part, start, _ in cat_spans(node) for c, v in channel_values(part).items()}
    return of_channels(node, values, min(f.span[0] for f in facts), max(f.span[1] for f in facts))


def cat_spans(node: fx.Node) -> Iterable[tuple[fx.Node, int, int]]:
    """Each part of a concatenation along channels with its first and last + 1 channel of the result."""
    start = 0
    for part in arguments(node)["tensors"]:
        yield part, start, start + channel_count(part)
        start += channel_count(part)


def flattening(node: fx.Node) -> int:
    """How many consecutive channels of the result one channel of the input becomes; 0 where channels are mixed.

    [N,C,H,W] → [N,C·H·W] gives H·W, [N,C] → [N,C,1,1] gives 1.
    """
    source = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    result = node.meta["val"].shape
    if len(source) < 2 or len(result) < 2 or source[0] != result[0] or source[1] == 0:
        return 0
    times = result[1] // source[1]
    return times if times * source[1] == result[1] and math.prod(source[2:]) == times * math.prod(result[2:]) else 0


def of_reshape(node: fx.Node) -> Fact:
    """Each channel becomes so many, where none are mixed."""
    source = known_fact(node.args[0])
    if source.is_zero:
        return ZERO
    times = flattening(node)
    values = {c * times + i: v for c, v in channel_values(node.args[0]).items() for i in range(times)} if times else {}
    return replace(of_channels(node, values, source.low, source.high), density=source.density)


def of_permutation(node: fx.Node) -> Fact:
    """Other dimensions: what does not speak of them."""
    source = known_fact(node.args[0])
    return ZERO if source.is_zero else Fact(density=source.density, low=source.low, high=source.high)


def of_item(node: fx.Node) -> Fact:
    """The first result of a normalisation."""
    source = node.args[0]
    is_norm = isinstance(source, fx.Node) and source.target in NORMS and node.args[1] == 0
    return of_channels(node, _norm_values(source)) if is_norm else NOTHING  # type: ignore[arg-type]
