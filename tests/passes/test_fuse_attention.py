"""FuseAttention: every spelling of attention becomes one operator on tokens, or there is a reason."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sparsec.doors.from_torch.capture import capture
from sparsec.ir.pipeline import Context, Result, run
from sparsec.passes.canonicalise_tokens import CanonicaliseTokens
from sparsec.passes.fold_constants import FoldConstants
from sparsec.passes.fuse_attention import FuseAttention
from sparsec.passes.sink_views import SinkViews
from sparsec.tokens import ops as token_ops
from tests.strategies import Network, integers

aten = torch.ops.aten
PASSES = (FoldConstants(), CanonicaliseTokens(), FuseAttention(), SinkViews())


def calls(result: Result) -> list:
    return [node.target for node in result.graph_module.graph.nodes if node.op == "call_function"]


def reasons(result: Result) -> list[str]:
    return [miss.reason for chapter in result.story.chapters for miss in chapter.misses if chapter.name == "fuse_attention"]


def fused(model: nn.Module, *args: Tensor, others: tuple = ()) -> Result:
    """The graph after the passes; in float64 it means what the model means, of other arguments too."""
    captured = capture(model.eval(), args)
    result = run(captured.graph_module, PASSES, Context())
    for given_ in (args, *others):
        with torch.no_grad():
            expected, found = model(*given_), captured.restore(result.graph_module(*captured.flatten(given_)))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    return result


def attention(result: Result) -> fx.Node:
    (node,) = result.graph_module.graph.find_nodes(op="call_function", target=token_ops.attention)
    return node


class Block(nn.Module):
    """Projections around a core that takes q [N,Tq,H,D], k, v [N,Tk,H,D] and gives [N,Tq,H,D]."""

    def __init__(self, core: Callable, heads: int, width: int) -> None:
        super().__init__()
        self.core, self.heads, self.width = core, heads, width
        for name in ("query", "key", "value", "out"):
            setattr(self, name, nn.Linear(heads * width, heads * width, dtype=torch.float64))

    def forward(self, x: Tensor, memory: Tensor, *rest: Tensor) -> Tensor:
        q, k, v = (layer(t).view(*t.shape[:2], self.heads, self.width) for layer, t in zip(self.layers(), (x, memory, memory), strict=True))
        return self.out(self.core(q, k, v, *rest).reshape(x.shape))

    def layers(self) -> tuple[nn.Module, ...]:
        return self.query, self.key, self.value


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True).transpose(1, 2)


def spelled_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q.transpose(1, 2) @ k.transpose(1, 2).transpose(2, 3) / math.sqrt(q.shape[3])
    return (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)


def turned_at_once(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys go to [N,H,D,T] in one step, the scale is split over queries and keys."""
    root = q.shape[3] ** -0.25
    scores = (q.permute(0, 2, 1, 3) * root) @ (k.permute(0, 2, 3, 1) * root)
    return torch.matmul(F.dropout(torch.softmax(scores, 3), 0.1, False), v.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)


def merged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Three dimensions [N·H,T,D], the scale inside baddbmm, a triangle as its mask."""
    batch, queries, heads, width = q.shape
    q, k, v = (t.transpose(1, 2).reshape(batch * heads, t.shape[1], width) for t in (q, k, v))
    mask = torch.full((queries, k.shape[1]), -torch.inf, dtype=q.dtype).triu(1)
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=0.25)
    return torch.bmm(scores.softmax(2), v).view(batch, heads, queries, width).transpose(1, 2)


def one_matmul_each(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """matmul as bmm between views, as some exporters leave it."""
    batch, queries, heads, width = q.shape
    flat = [t.transpose(1, 2).expand(batch, heads, -1, -1).reshape(batch * heads, -1, width) for t in (q, k, v)]
    scores = torch.bmm(flat[0], flat[1].transpose(1, 2)).view(batch, heads, queries, -1) * width**-0.5
    weights = scores.softmax(-1).view(batch * heads, queries, -1)
    return torch.bmm(weights, flat[2]).view(batch, heads, queries, width).transpose(1, 2)


def where_not_nan(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)) * q.shape[3] ** -0.5
    hidden = torch.ones(scores.shape[2:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    weights = torch.where(weights.isnan(), 0.0, weights)
    return (weights @ v.transpose(1, 2)).transpose(1, 2)


CORES = (plain, causal, spelled_out, turned_at_once, merged, one_matmul_each, where_not_nan)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("sizes", [(2, 3, 5, 7, 3), (1, 1, 1, 1, 1), (3, 1, 2, 1, 5), (1, 2, 1, 5, 1)])
@pytest.mark.turns(2)
def test_spellings(core: Callable, sizes: tuple[int, ...]) -> None:
    """Samples, heads, width, queries and keys of any sizes, 1 among them."""
    samples, heads, width, queries, keys = sizes
    x, memory = (torch.randn(samples, tokens, heads * width, dtype=torch.float64) for tokens in (queries, keys))
    result = fused(Block(core, heads, width), x, memory)
    assert reasons(result) == []
    assert calls(result) == [aten.linear.default] * 3 + [token_ops.attention, aten.linear.default]
    scale = 0.25 if core is merged else width**-0.5
    settings_ = attention(result).kwargs
    assert (settings_["heads"], settings_["scale"]) == (heads, pytest.approx(scale))
    assert settings_["causal"] == (core in (causal, merged, where_not_nan) and (core is causal or keys > 1))


class Packed(nn.Module):
    """One layer for queries, keys and values, taken apart in different ways."""

    def __init__(self, split: Callable, heads: int = 3, width: int = 5) -> None:
        super().__init__()
        self.split, self.shape = split, (3, heads, width)
        self.qkv = nn.Linear(7, 3 * heads * width, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.qkv(x), *self.shape)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def by_unbind(y: Tensor, three: int, heads: int, width: int) -> tuple[Tensor, ...]:
    return y.reshape(*y.shape[:2], three, heads, width).permute(2, 0, 3, 1, 4).unbind(0)


def by_index(y: Tensor, three: int, heads: int, width: int) -> tuple[Tensor, ...]:
    y = y.view(*y.shape[:2], three, heads, width).permute(2, 0, 3, 1, 4)
    return y[0], y[1], y[2]


def by_chunk(y: Tensor, three: int, heads: int, width: int) -> tuple[Tensor, ...]:
    return tuple(part.unflatten(2, (heads, width)).transpose(1, 2) for part in y.chunk(three, -1))


def by_slices(y: Tensor, three: int, heads: int, width: int) -> tuple[Tensor, ...]:
    size = heads * width
    return tuple(y[:, :, i * size : (i + 1) * size].reshape(*y.shape[:2], heads, width).transpose(1, 2) for i in range(three))


def heads_first(y: Tensor, three: int, heads: int, width: int) -> tuple[Tensor, ...]:
    """Features in the order [H,3,D]: the rows of each part are not next to each other."""
    return y.view(*y.shape[:2], heads, three * width).transpose(1, 2).split(width, -1)


def features_first(y: Tensor, three: int, heads: int, width: int) -> tuple[Tensor, ...]:
    """Features in the order [D,H,3]."""
    return y.view(*y.shape[:2], width, heads, three).permute(4, 0, 3, 1, 2).unbind(0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("split", [by_unbind, by_index, by_chunk, by_slices, heads_first, features_first])
@pytest.mark.turns(2)
def test_packed_projections_become_three_layers(split: Callable, bias: bool) -> None:
    model = Packed(split)
    if not bias:
        model.qkv.bias = None
    result = fused(model, torch.randn(2, 5, 7, dtype=torch.float64))
    assert calls(result) == [aten.linear.default] * 3 + [token_ops.attention]


def test_a_packed_projection_that_is_read_elsewhere_stays() -> None:
    class Both(Packed):
        def forward(self, x: Tensor) -> Tensor:
            y = self.qkv(x)
            q, k, v = self.split(y, *self.shape)
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) + y.relu().mean(2, keepdim=True)

    result = fused(Both(by_unbind), torch.randn(2, 5, 7, dtype=torch.float64))
    assert any("relu reads too" in reason for reason in reasons(result))
    assert aten.scaled_dot_product_attention.default in calls(result)


def test_a_bool_mask_of_padding_equals_eager_where_nothing_is_left() -> None:
    def core(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None] > 0).transpose(1, 2)

    model = Block(core, 3, 5)
    x = torch.randn(2, 7, 15, dtype=torch.float64)
    masks = [torch.tensor([[1] * 7, [0] * 7]), torch.tensor([[1, 0, 1, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0, 1]])]
    result = fused(model, x, x, masks[0], others=tuple((x, x, mask) for mask in masks))
    key_bias = attention(result).args[3]
    assert key_bias.target is token_ops.key_bias and attention(result).args[4] is None


def test_layers_share_the_bias_of_their_mask() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Block(masked, 2, 3) for _ in range(3))

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x, x, mask)
            return x

    def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) + (1.0 - mask[:, None, None]) * -10000.0
        return (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)

    x = torch.randn(2, 5, 6, dtype=torch.float64)
    result = fused(Stack(), x, torch.tensor([[1.0] * 5, [1.0, 0.0, 0.0, 1.0, 1.0]]))
    assert calls(result).count(token_ops.key_bias) == 1
    assert calls(result).count(token_ops.attention) == 3


def test_relative_positions_are_a_bias_per_pair() -> None:
    table = torch.randn(3, 5, 5, dtype=torch.float64)

    def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) + table
        return (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)

    x = torch.randn(2, 5, 6, dtype=torch.float64)
    pair = attention(fused(Block(core, 3, 2), x, x)).args[4]
    assert pair.meta["val"].shape == (3, 5, 5)


def test_time_before_samples() -> None:
    """[T,N,F] with the samples second: attention gets turned tokens."""

    class TimeFirst(Block):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x).view(x.shape[0], -1, self.width).transpose(0, 1) for layer in self.layers())
            weights = (q @ k.transpose(1, 2)).softmax(-1)
            return self.out((weights @ v).transpose(0, 1).reshape(x.shape))

    result = fused(TimeFirst(None, 3, 2), torch.randn(5, 2, 6, dtype=torch.float64))
    assert attention(result).meta["val"].shape == (2, 5, 6)
    assert calls(result) == [
        aten.permute.default,
        *[aten.linear.default] * 3,
        token_ops.attention,
        aten.linear.default,
        aten.permute.default,
    ]


# Refusals


def sdpa(**keywords: object) -> Network:
    net = Network((2, 3, 5, 4), 0)
    net.add(aten.scaled_dot_product_attention.default, net.last, net.last, net.last, **keywords)
    return net.returns(net.last)


def refusal(net: Network) -> str:
    result = run(net.graph_module, (FuseAttention(),), Context())
    assert token_ops.attention not in calls(result)
    (reason,) = reasons(result)
    return reason


def test_dropout_and_shared_keys_are_refused() -> None:
    assert "at random" in refusal(sdpa(dropout_p=0.5))
    assert "groups of heads" in refusal(sdpa(enable_gqa=True))


def test_heads_without_tokens_are_refused() -> None:
    """An input that comes as [N,H,T,D] has its heads in no feature."""
    assert "no split of the features" in refusal(sdpa())


def from_tokens(shape: tuple[int, ...], change: Callable[[Network, fx.Node], fx.Node]) -> Network:
    net = Network(shape, 0)
    net.add(aten.view.default, net.last, [*shape[:2], 2, shape[2] // 2])
    heads = net.add(aten.transpose.int, net.last, 1, 2)
    other = change(net, heads)
    net.add(aten.scaled_dot_product_attention.default, heads, other, other)
    return net.returns(net.last)


def test_parts_of_what_is_no_layer_are_refused() -> None:
    """Half of the input as keys: nothing whose rows could be taken."""

    net = Network((2, 5, 8), 0)
    net.add(aten.view.default, net.last, [2, 5, 2, 2, 2])
    parts = [net.add(aten.transpose.int, net.add(aten.select.int, net.values[1], 2, i), 1, 2) for i in (0, 1)]
    net.add(aten.scaled_dot_product_attention.default, parts[0], parts[1], parts[1])
    assert "no linear layer" in refusal(net.returns(net.last))


def test_keys_shared_by_heads_are_refused() -> None:
    def change(net: Network, heads: fx.Node) -> fx.Node:
        net.add(aten.slice.Tensor, heads, 1, 0, 1)
        return net.add(aten.expand.default, net.last, [2, 2, 5, 4])

    assert "no split" in refusal(from_tokens((2, 5, 8), change))


def test_some_of_the_tokens_are_refused() -> None:
    assert "no split" in refusal(from_tokens((2, 5, 8), lambda net, heads: net.add(aten.slice.Tensor, heads, 2, 1, 4)))


def test_heads_among_samples_are_refused() -> None:
    def change(net: Network, heads: fx.Node) -> fx.Node:
        net.add(aten.transpose.int, heads, 0, 1)
        return net.add(aten.reshape.default, net.last, [4, 5, 4])

    net = Network((2, 5, 8), 0)
    net.add(aten.view.default, net.last, [2, 5, 2, 4])
    turned = change(net, net.add(aten.transpose.int, net.last, 1, 2))
    net.add(aten.bmm.default, turned, net.add(aten.transpose.int, turned, 1, 2))
    net.add(aten.bmm.default, net.add(aten.softmax.int, net.last, -1), turned)
    assert "heads before samples" in refusal(net.returns(net.last))


def scored(change: Callable[[Network, fx.Node], fx.Node], dtype: torch.dtype | None = None) -> Network:
    """softmax(change(x·xᵀ))·x of one head."""
    net = Network((2, 5, 8), 0)
    scores = net.add(aten.matmul.default, net.values[0], net.add(aten.transpose.int, net.values[0], 1, 2))
    changed = change(net, scores)
    weights = net.add(aten.softmax.int, changed, -1, dtype)
    if dtype is not None:
        weights = net.add(aten._to_copy.default, weights, dtype=torch.float64)
    net.add(aten.matmul.default, weights, net.values[0])
    return net.returns(net.last)


def test_one_head_without_a_dimension_for_it() -> None:
    result = run(scored(lambda net, scores: net.add(aten.mul.Tensor, scores, 0.5)).graph_module, (FuseAttention(), SinkViews()), Context())
    assert calls(result) == [token_ops.attention]
    assert attention(result).kwargs == {"heads": 1, "scale": 0.5, "causal": False}


def test_scaled_masks_are_refused() -> None:
    def change(net: Network, scores: fx.Node) -> fx.Node:
        return net.add(aten.mul.Tensor, net.add(aten.add.Tensor, scores, net.constant(integers((5, 5), 1))), 0.5)

    assert "mask is scaled" in refusal(scored(change))


@pytest.mark.parametrize("low", [-10000.0, -1e9])
def test_fills_that_do_not_hide_are_refused(low: float) -> None:
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    net = scored(lambda net, scores: net.add(aten.masked_fill.Scalar, scores, net.constant(hidden), low))
    assert "does not hide" in refusal(net)


def test_finite_fills_over_masks_are_refused() -> None:
    def change(net: Network, scores: fx.Node) -> fx.Node:
        masked = net.add(aten.add.Tensor, scores, net.constant(integers((5, 5), 1)))
        return net.add(aten.masked_fill.Scalar, masked, net.constant(torch.ones(5, 5, dtype=torch.bool).triu(1)), -1e38)

    assert "masked already" in refusal(scored(change))


def test_computed_masks_are_refused_with_their_reason() -> None:
    net = scored(lambda net, scores: net.add(aten.add.Tensor, scores, net.add(aten.cumsum.default, net.constant(integers((5, 5), 1)), 0)))
    assert calls(run(net.graph_module, (FuseAttention(),), Context())).count(token_ops.attention) == 1
    gated = scored(lambda net, scores: net.add(aten.add.Tensor, scores, net.add(aten.sigmoid.default, scores)))
    assert "mask sigmoid" in refusal(gated)


def test_a_softmax_over_queries_is_no_attention() -> None:
    net = Network((2, 5, 5), 0)
    net.add(aten.matmul.default, net.add(aten.softmax.int, net.last, 1), net.values[0])
    result = run(net.returns(net.last).graph_module, (FuseAttention(),), Context())
    assert token_ops.attention not in calls(result) and reasons(result) == []
