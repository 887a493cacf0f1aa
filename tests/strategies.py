"""Hypothesis strategies of all tests: tensors with zeros, facts, and small networks of convolutions, tokens and views in doubles.

All arithmetic of networks without softmax, norms over features and smooth activations is exact (sums and products of small dyadic numbers),
so two graphs that mean the same agree bit for bit, whatever the order of summation.
"""

import math
import operator

import torch
from hypothesis import strategies as st
from torch import Tensor, fx

from sparsec.facts.lattice import Fact
from tests.network import Network, integers, with_zeros
from tests.token_networks import TokenNetwork

aten = torch.ops.aten
SEEDS = st.integers(0, 2**20)
PATTERNS = ("dense", "unstructured", "dead rows", "dead columns", "zero", "last row")


@st.composite
def sparse_matrices(draw: st.DrawFn, largest: int = 40) -> Tensor:
    """Weights [O, I] or [O, I, kh, kw] with each pattern of zeros."""
    shape = [draw(st.integers(1, largest)), draw(st.integers(1, largest))]
    if draw(st.booleans()):
        shape += [draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 3]))]
    seed = draw(SEEDS)
    return with_zeros(integers(tuple(shape), seed, 1, 3), draw(st.sampled_from(PATTERNS)), seed + 1)


@st.composite
def facts(draw: st.DrawFn) -> Fact:
    """Facts measured of tensors, weakened at random, so that pairs are often comparable."""
    fact = Fact.of(draw(sparse_matrices()))
    plain = fact.to_json()
    kept = {key: value for key, value in plain.items() if key == "density" or draw(st.booleans())}
    return Fact.from_json(kept)


def conv_step(draw: st.DrawFn, net: Network) -> None:
    """A convolution: dense, grouped or depthwise, any stride, padding, bias and pattern of zeros."""
    _, inputs, height, width = net.size()
    seed = draw(SEEDS)
    kernel = draw(st.sampled_from([k for k in (1, 3, 5) if k <= min(height, width) + 2]))
    groups = draw(st.sampled_from(sorted({1, inputs, math.gcd(inputs, 2)})))
    outputs = inputs if groups == inputs > 1 else groups * draw(st.integers(1, 5))
    weight = integers((outputs, inputs // groups, kernel, kernel), seed, -2, 2)
    weight = with_zeros(weight, draw(st.sampled_from(PATTERNS)), seed + 1)
    bias = integers((outputs,), seed + 2) if draw(st.booleans()) else None
    padding = draw(st.sampled_from([p for p in (0, kernel // 2) if kernel <= min(height, width) + 2 * p]))
    net.conv(weight, bias, draw(st.sampled_from([1, 1, 2])), padding, groups)


def activation_step(draw: st.DrawFn, net: Network) -> None:
    """An activation without rounding."""
    kinds = [
        (aten.relu.default, ()),
        (aten.relu6.default, ()),
        (aten.hardtanh.default, (-1.0, 2.0)),
        (aten.clamp.default, (1.0,)),
        (aten.clamp.default, (None, 2.0)),
    ]
    target, limits = draw(st.sampled_from(kinds))
    net.add(target, net.last, *limits)


def norm_step(draw: st.DrawFn, net: Network) -> None:
    """Batch normalisation."""
    net.norm(draw(SEEDS))


def sum_step(draw: st.DrawFn, net: Network) -> None:
    """The sum with an earlier value of the same shape."""
    same = [value for value in net.values if net.size(value) == net.size()]
    net.add(aten.add.Tensor, net.last, draw(st.sampled_from(same)))


def product_step(draw: st.DrawFn, net: Network) -> None:
    """The product with an earlier value that has the same channels, or one pixel of each."""
    shape = net.size()
    fitting = [v for v in net.values if net.size(v) in (shape, (*shape[:2], 1, 1))]
    net.add(aten.mul.Tensor, net.last, draw(st.sampled_from(fitting)))


def concatenation_step(draw: st.DrawFn, net: Network) -> None:
    """Concatenation along channels with an earlier value."""
    fitting = [v for v in net.values if len(net.size(v)) == 4 and net.size(v)[2:] == net.size()[2:]]
    net.add(aten.cat.default, [net.last, draw(st.sampled_from(fitting))], 1)


def pool_step(draw: st.DrawFn, net: Network) -> None:
    """Max pooling; dropout that is off."""
    if min(net.size()[2:]) >= 2 and draw(st.booleans()):
        net.add(aten.max_pool2d.default, net.last, [2, 2])
    else:
        net.add(aten.dropout.default, net.last, 0.5, False)


STEPS = (
    conv_step,
    conv_step,
    conv_step,
    activation_step,
    activation_step,
    norm_step,
    sum_step,
    product_step,
    concatenation_step,
    pool_step,
)


def _is_power_of_two(value: int) -> bool:
    return value & (value - 1) == 0


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Convolutional networks: steps in any order, then perhaps a pool, flattening and linear layers."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(2, 9)), draw(st.integers(2, 9)))
    net = Network(shape, draw(SEEDS))
    for _ in range(draw(st.integers(2, 7))):
        draw(st.sampled_from(STEPS))(draw, net)
    if draw(st.booleans()):
        _head(draw, net)
    extra = [draw(st.sampled_from(net.values))] if draw(st.booleans()) else []
    return net.returns(net.last, *extra)


def _head(draw: st.DrawFn, net: Network) -> None:
    _, _, height, width = net.size()
    if _is_power_of_two(height * width):
        pools = [(aten.adaptive_avg_pool2d.default, ([1, 1],)), (aten.mean.dim, ([2, 3], True)), (aten.mean.dim, ([-1, -2],))]
        target, args = draw(st.sampled_from(pools))
        net.add(target, net.last, *args)
    if len(net.size()) == 4:
        batch, *rest = net.size()
        if draw(st.booleans()):
            net.add(aten.flatten.using_ints, net.last, 1)
        else:
            net.add(aten.view.default, net.last, [batch, math.prod(rest)])
    for _ in range(draw(st.integers(1, 2))):
        seed = draw(SEEDS)
        outputs = draw(st.integers(1, 6))
        weight = with_zeros(integers((outputs, net.size()[1]), seed, -2, 2), draw(st.sampled_from(PATTERNS)), seed + 1)
        net.linear(weight, integers((outputs,), seed + 2) if draw(st.booleans()) else None)
        if draw(st.booleans()):
            norm_step(draw, net)
        if draw(st.booleans()):
            activation_step(draw, net)


# Tokens [N, T, F]


def rows(draw: st.DrawFn, net: Network, x: fx.Node, outputs: int) -> fx.Node:
    """A linear layer over the last axis, as one operator or as a product and a sum."""
    seed = draw(SEEDS)
    weight = with_zeros(integers((outputs, net.size(x)[-1]), seed, -2, 2), draw(st.sampled_from(PATTERNS)), seed + 1) / 4
    bias = [net.constant(integers((outputs,), seed + 2) / 4, "bias")] if draw(st.booleans()) else []
    if len(net.size(x)) > 1 and draw(st.booleans()):
        product = net.part(aten.matmul.default, x, net.constant(weight.t(), "matrix"))
        return net.part(aten.add.Tensor, product, *bias) if bias else product
    return net.part(aten.linear.default, x, net.constant(weight, "weight"), *bias)


def rows_step(draw: st.DrawFn, net: Network) -> None:
    """A linear layer over the last axis of any size."""
    net.values.append(rows(draw, net, net.last, draw(st.integers(1, 6))))


def features_norm_step(draw: st.DrawFn, net: Network) -> None:
    """LayerNorm with any of its parameters."""
    features, seed = net.size()[-1:], draw(SEEDS)
    parameters = [net.constant(integers(features, seed + i) / 4, "norm") if draw(st.booleans()) else None for i in range(2)]
    net.add(aten.layer_norm.default, net.last, list(features), *parameters, draw(st.sampled_from([1e-5, 0.25])))


def smooth_step(draw: st.DrawFn, net: Network) -> None:
    """An activation that rounds, or one that does not."""
    kinds = [(aten.gelu.default, {}), (aten.gelu.default, {"approximate": "tanh"}), (aten.tanh.default, {}), (aten.relu.default, {})]
    target, named = draw(st.sampled_from(kinds))
    net.add(target, net.last, **named)


def positions_step(draw: st.DrawFn, net: Network) -> None:
    """A constant for each token, for each feature, or for both."""
    batch, tokens, features = net.size()
    shapes = [(tokens, features), (1, tokens, features), (features,), (tokens, 1)]
    table = integers(draw(st.sampled_from(shapes)), draw(SEEDS)) / 4
    repeated = table.expand(batch, tokens, features) if draw(st.booleans()) else table
    net.add(aten.add.Tensor, net.last, net.constant(repeated, "positions"))


def first_token_step(draw: st.DrawFn, net: Network) -> None:
    """One more token in front."""
    batch, _, features = net.size()
    token = integers((1, 1, features), draw(SEEDS)).expand(batch, 1, features)
    net.add(aten.cat.default, [net.constant(token, "token"), net.last], draw(st.sampled_from([1, -2])))


def attention_step(draw: st.DrawFn, net: Network) -> None:
    """Attention to the latest tokens or to earlier ones, spelled in one of several ways, a layer after it, perhaps a shortcut."""
    x, (batch, tokens, features) = net.last, net.size()
    heads = draw(st.sampled_from([h for h in (1, 2, 3) if features % h == 0]))
    four = [batch, -1, heads, features // heads]
    if draw(st.booleans()):
        packed = net.part(aten.reshape.default, rows(draw, net, x, 3 * features), [batch, tokens, 3, *four[2:]])
        parts = net.part(aten.unbind.int, net.part(aten.permute.default, packed, [2, 0, 3, 1, 4]))
        q, k, v = (net.part(operator.getitem, parts, i) for i in range(3))
    else:
        memory = draw(st.sampled_from([node for node in net.values if net.size(node)[::2] == (batch, features)]))
        made = [net.part(aten.view.default, rows(draw, net, source, features), four) for source in (x, memory, memory)]
        q, k, v = (net.part(aten.transpose.int, node, 1, 2) for node in made)
    turned = net.part(aten.transpose.int, _core(draw, net, q, k, v), 1, 2)
    merged = net.part(aten.reshape.default, turned, [batch, tokens, features])
    out = rows(draw, net, merged, features)
    net.values.append(net.part(aten.add.Tensor, x, out) if draw(st.booleans()) else out)


def _core(draw: st.DrawFn, net: Network, q: fx.Node, k: fx.Node, v: fx.Node) -> fx.Node:
    """q [N,H,Tq,D], k, v [N,H,Tk,D] → [N,H,Tq,D]."""
    if draw(st.booleans()):
        return net.part(aten.scaled_dot_product_attention.default, q, k, v, None, 0.0, draw(st.booleans()))
    scores = net.part(aten.matmul.default, q, net.part(aten.transpose.int, k, -2, -1))
    scores = net.part(aten.mul.Tensor, scores, draw(st.sampled_from([0.5, 0.25])))
    if draw(st.booleans()):
        pairs = integers(net.size(scores)[2:], draw(SEEDS), 0, 1)
        scores = net.part(aten.add.Tensor, scores, net.constant(pairs, "pairs"))
    return net.part(aten.matmul.default, net.part(aten.softmax.int, scores, -1), v)


TOKEN_STEPS = (
    attention_step,
    attention_step,
    rows_step,
    features_norm_step,
    smooth_step,
    smooth_step,
    positions_step,
    first_token_step,
    sum_step,
)


class Recognised:
    """A network of our own token operators, with a mask, biases of pairs and tables where it has some."""

    exact = False

    def __init__(self, network: TokenNetwork) -> None:
        self.graph_module, self.inputs = network.graph_module(), network.inputs()
        self.graph_module.recompile()

    def __repr__(self) -> str:
        return f"{self.graph_module.graph}"

    def run(self, graph_module: fx.GraphModule | None = None) -> tuple[Tensor, ...]:
        """See `Network.run`."""
        with torch.no_grad():
            return (graph_module or self.graph_module)(*self.inputs)


#: A graph that means something, with inputs: `graph_module`, `inputs`, `exact` and `run`.
Drawn = Network | Recognised


@st.composite
def recognised(draw: st.DrawFn) -> Recognised:
    """Any of the networks that TokenNetwork describes."""
    flags = {name: draw(st.booleans()) for name in ("cls", "post_norm", "masked", "skip", "causal")}
    sizes = {"tokens": draw(st.integers(1, 5)), "depth": draw(st.integers(1, 2)), "pairs": draw(st.sampled_from([0, 1, 2]))}
    head = draw(st.sampled_from(["select", "mean", "tokens"]))
    return Recognised(TokenNetwork(**flags, **sizes, table=draw(st.integers(0, 3)), head=head))


@st.composite
def transformers(draw: st.DrawFn) -> Network:
    """Steps in any order on tokens or on the patches of a map, then perhaps one token or the mean of all."""
    batch, features = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 4, 6]))
    if draw(st.booleans()):
        net = Network((batch, 2, 4, draw(st.sampled_from([2, 4]))), draw(SEEDS), exact=False)
        net.conv(integers((features, 2, 2, 2), draw(SEEDS)), None, 2)
        net.values = [net.part(aten.transpose.int, net.part(aten.flatten.using_ints, net.last, 2), 1, 2)]
    else:
        net = Network((batch, draw(st.integers(1, 5)), features), draw(SEEDS), exact=False)
    for _ in range(draw(st.integers(3, 7))):
        draw(st.sampled_from(TOKEN_STEPS))(draw, net)
    heads = [(), (aten.select.int, 1, 0), (aten.mean.dim, [1]), (aten.mean.dim, [-2], True)]
    if head := draw(st.sampled_from(heads)):
        net.add(head[0], net.last, *head[1:])
        rows_step(draw, net)
    return net.returns(net.last, *([draw(st.sampled_from(net.values))] if draw(st.booleans()) else []))


# Views


def view_step(draw: st.DrawFn, net: Network) -> None:
    """One of the views that keep all elements, now and then of the samples too."""
    shape, first = net.size(), draw(st.sampled_from([1, 1, 1, 0]))
    kinds = (
        ["reshape", "unsqueeze"]
        + ["transpose", "permute", "flatten"] * (len(shape) > first + 1)
        + ["squeeze"] * (1 in shape[first:] and len(shape) > 1)
    )
    match draw(st.sampled_from(kinds)):
        case "reshape":
            net.add(aten.reshape.default, net.last, [*shape[:first], *_factors(draw, math.prod(shape[first:]))])
        case "unsqueeze":
            net.add(aten.unsqueeze.default, net.last, draw(st.sampled_from([*range(first, len(shape) + 1), -1])))
        case "squeeze":
            net.add(aten.squeeze.dim, net.last, draw(st.sampled_from([a for a in range(first, len(shape)) if shape[a] == 1])))
        case "transpose":
            net.add(aten.transpose.int, net.last, *draw(st.permutations(range(first, len(shape))))[:2])
        case "permute":
            order = draw(st.permutations(range(first, len(shape))))
            net.add(aten.permute.default, net.last, [*range(first), *order])
            if draw(st.booleans()):
                net.add(aten.contiguous.default, net.last)
        case "flatten":
            net.add(aten.flatten.using_ints, net.last, draw(st.integers(first, len(shape) - 2)))


def _factors(draw: st.DrawFn, count: int) -> list[int]:
    """One to three factors of a number, in any order."""
    factors = []
    for _ in range(draw(st.integers(0, 2))):
        factors.append(draw(st.sampled_from([d for d in range(1, count + 1) if count % d == 0])))
        count //= factors[-1]
    return draw(st.permutations([*factors, count]))


def layer_step(draw: st.DrawFn, net: Network) -> None:
    """What computes, and fits the latest value."""
    kinds = [rows_step, rows_step, activation_step, sum_step]
    draw(st.sampled_from([*kinds, conv_step, conv_step] if len(net.size()) == 4 else kinds))(draw, net)


@st.composite
def view_networks(draw: st.DrawFn) -> Network:
    """Layers with views between them, on maps, tokens and vectors."""
    sizes = draw(st.lists(st.sampled_from([1, 2, 2, 3, 4, 6]), min_size=1, max_size=3))
    net = Network((draw(st.integers(1, 3)), *sizes), draw(SEEDS))
    for _ in range(draw(st.integers(2, 3))):
        layer_step(draw, net)
        for _ in range(draw(st.integers(1, 3))):
            view_step(draw, net)
    layer_step(draw, net)
    return net.returns(net.last, *([draw(st.sampled_from(net.values))] if draw(st.booleans()) else []))


#: Networks of every kind by name: what the property tests of the pipeline draw.
KINDS = {"convolutions": networks(), "tokens": transformers() | transformers() | recognised(), "views": view_networks()}
