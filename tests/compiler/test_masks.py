"""Masks are told exactly: what the analysis says equals the mask for every content of the input, or there is a reason."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from sparsec.ir.miss import Miss
from sparsec.tokens.masks import Bias, Fill, Scores, analyse
from sparsec.tokens.ops import key_bias
from tests.strategies import Network

aten = torch.ops.aten
LOW = torch.finfo(torch.float32).min
N, H, T = 3, 2, 5
SCORES = Scores(N, H, T, T)


class MaskGraph(Network):
    """A graph whose input is a mask [N,T] of a dtype."""

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...] = (N, T)) -> None:
        super().__init__(shape, 0)
        self.dtype = dtype
        self.values[0].meta["val"] = torch.empty(shape, dtype=dtype)
        self.input = self.input.to(dtype)

    def value(self, node: fx.Node, content: Tensor) -> Tensor:
        self.input = content.to(self.dtype)
        return self.returns(node).run()[0]


def told(bias: Bias, content: Tensor, scores: Scores = SCORES) -> Tensor:
    """The bias of the scores [N,H,Tq,Tk] that an analysis means."""
    total = torch.zeros(scores.batch, scores.heads, scores.queries, scores.keys)
    if bias.source is not None:
        mask = content.reshape(scores.batch, scores.keys)
        total = total + key_bias(mask, on=bias.on, off=bias.off, affine=bias.affine)[:, None, None]
    if bias.pair is not None:
        total = total + bias.pair
    return total.masked_fill(torch.ones(scores.queries, scores.keys).triu(1).bool(), -torch.inf) if bias.causal else total


def four(net: MaskGraph) -> fx.Node:
    """[N,T] → [N,1,1,T]."""
    net.add(aten.unsqueeze.default, net.last, 1)
    return net.add(aten.unsqueeze.default, net.last, 2)


def inverted(net: MaskGraph) -> fx.Node:
    """(1 - m)·-10000, as BERT has it."""
    net.add(aten._to_copy.default, four(net), dtype=torch.float32)
    return net.add(aten.mul.Tensor, net.add(aten.rsub.Scalar, net.last, 1.0), -10000.0)


def filled_twice(net: MaskGraph) -> fx.Node:
    """x = 1 - m, then x.masked_fill(x ≠ 0, low)."""
    x = net.add(aten.rsub.Scalar, net.add(aten._to_copy.default, four(net), dtype=torch.float32), 1.0)
    return net.add(aten.masked_fill.Scalar, x, net.add(aten._to_copy.default, x, dtype=torch.bool), LOW)


def compared(net: MaskGraph) -> fx.Node:
    net.add(aten.eq.Scalar, four(net), 0)
    net.add(aten.expand.default, net.last, [N, 1, T, T])
    return net.add(aten.masked_fill.Scalar, net.constant(torch.zeros(N, 1, T, T)), net.last, -torch.inf)


def other_token(net: MaskGraph) -> fx.Node:
    """Padding is where an identifier is 2: a function of ids ≠ 2, not of ids ≠ 0."""
    net.add(aten.ne.Scalar, net.last, 2)
    return net.add(aten.where.ScalarSelf, four(net), 0.0, net.constant(torch.tensor(LOW)))


def indexed(net: MaskGraph) -> fx.Node:
    """How vectorised mask functions read a mask: by indices of samples and keys."""
    net.add(aten._to_copy.default, net.last, dtype=torch.bool)
    rows, columns = (net.constant(torch.arange(size).view(shape)) for size, shape in ((N, (N, 1, 1, 1)), (T, (1, 1, 1, T))))
    net.add(aten.index.Tensor, net.last, [rows, columns])
    net.add(aten.__and__.Tensor, net.constant(torch.ones(1, 1, T, 1, dtype=torch.bool)), net.last)
    return net.add(aten.where.ScalarOther, net.last, net.constant(torch.zeros(())), LOW)


def with_triangle(net: MaskGraph) -> fx.Node:
    net.add(aten.ne.Scalar, four(net), 0)
    net.add(aten.logical_and.default, net.last, net.constant(torch.ones(T, T, dtype=torch.bool).tril()))
    return net.add(aten.where.ScalarOther, net.last, net.constant(torch.zeros(())), -torch.inf)


def with_relative_positions(net: MaskGraph) -> fx.Node:
    pad = compared(net)
    return net.add(aten.add.Tensor, pad, net.constant(torch.arange(H * T * T).view(1, H, T, T).float()))


def hidden_where_set(net: MaskGraph) -> fx.Node:
    """A mask that is true where a key does not count, as nn.MultiheadAttention takes it, and a triangle."""
    net.add(aten.masked_fill.Scalar, net.constant(torch.zeros(N, T)), net.add(aten.ne.Scalar, net.last, 0), -torch.inf)
    return net.add(aten.add.Tensor, four(net), net.constant(torch.full((T, T), -torch.inf).triu(1)))


def products(net: MaskGraph) -> fx.Node:
    """Logic by arithmetic."""
    half = net.add(aten._to_copy.default, net.add(aten.logical_not.default, four(net)), dtype=torch.float32)
    return net.add(aten.mul.Tensor, half, net.constant(torch.full((1, 1, 1, T), -64.0)))


def inverted_lowest(net: MaskGraph) -> fx.Node:
    """(1 - m)·low: the difference of what 0 and 1 mean is no float32 number times 2, so 1 - m is what is read."""
    net.add(aten.rsub.Scalar, net.add(aten._to_copy.default, four(net), dtype=torch.float32), 1.0)
    return net.add(aten.mul.Tensor, net.last, LOW)


BUILDERS = (
    inverted_lowest,
    inverted,
    filled_twice,
    compared,
    other_token,
    indexed,
    with_triangle,
    with_relative_positions,
    hidden_where_set,
    products,
)
CONTENTS = {torch.int64: st.integers(-3, 3), torch.float32: st.integers(-6, 6).map(lambda v: v / 2), torch.bool: st.booleans()}


@st.composite
def contents(draw: st.DrawFn, dtype: torch.dtype) -> Tensor:
    """Masks [N,T]; some samples have no token at all."""
    rows = [draw(st.lists(CONTENTS[dtype], min_size=T, max_size=T)) if draw(st.booleans()) else [0] * T for _ in range(N)]
    return torch.tensor(rows, dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(CONTENTS))
@pytest.mark.parametrize("builder", BUILDERS)
@settings(max_examples=40)
@given(data=st.data())
@pytest.mark.turns(2)
def test_padding_masks_for_every_content(builder: Callable, dtype: torch.dtype, data: st.DataObject) -> None:
    net = MaskGraph(dtype)
    mask = builder(net)
    bias = analyse((mask,), SCORES)
    assert isinstance(bias, Bias), bias
    content = data.draw(contents(dtype))
    expected = net.value(mask, content).expand(N, H, T, T)
    source = net.value(bias.source, content)
    assert torch.equal(told(bias, source), expected)


@pytest.mark.parametrize("builder", BUILDERS)
def test_where_padding_comes_from(builder: Callable) -> None:
    """From the input itself, except where it is compared with another number than 0."""
    net = MaskGraph(torch.int64)
    bias = analyse((builder(net),), SCORES)
    assert (bias.source is net.values[0]) == (builder not in (other_token, filled_twice))
    assert bias.causal == (builder in (with_triangle, hidden_where_set))
    assert (bias.pair is not None) == (builder is with_relative_positions)
    assert bias.affine == (builder in (inverted, inverted_lowest))


def constant(tensor: Tensor) -> fx.Node:
    return MaskGraph(torch.bool).constant(tensor)


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.zeros(T, T), Bias()),
        (torch.zeros(N, 1, T, T), Bias()),
        (torch.full((1, 1, T, T), -torch.inf).triu(1), Bias(causal=True)),
        (torch.full((T, T), LOW).triu(1), Bias(causal=True)),
    ],
)
def test_constant_masks(tensor: Tensor, expected: Bias) -> None:
    assert analyse((constant(tensor),), SCORES) == expected


def test_bool_masks_hide_where_they_are_false() -> None:
    every, lower = torch.ones(N, H, T, T, dtype=torch.bool), torch.ones(T, T, dtype=torch.bool).tril()
    assert analyse((Fill(constant(every), -math.inf, False),), SCORES) == Bias()
    assert analyse((Fill(constant(lower), -math.inf, False),), SCORES) == Bias(causal=True)
    assert analyse((Fill(constant(~lower), LOW, True),), SCORES) == Bias(causal=True)


@settings(max_examples=60)
@given(st.data())
def test_constant_biases_per_pair(data: st.DataObject) -> None:
    shape = [data.draw(st.sampled_from([1, size])) for size in (N, H, T, T)][data.draw(st.integers(0, 2)) :]
    tensor = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))).float()
    found = analyse((constant(tensor),), SCORES)
    same = len(shape) < 4 or torch.equal(tensor, tensor[:1].expand_as(tensor))
    assert isinstance(found, Bias) == same
    if same:
        assert torch.equal(told(found, torch.zeros(N, T)), tensor.expand(N, H, T, T))
        assert found.pair is None or found.pair.shape[0] == (1 if (tensor.expand(N, H, T, T)[:, :1] == tensor).all() else H)


def test_a_finite_triangle_beside_padding_is_no_causal_mask() -> None:
    """Where padding hides all earlier keys, lowest values are shared with the later ones."""
    net = MaskGraph(torch.bool)
    pad = net.add(aten.where.ScalarOther, four(net), net.constant(torch.zeros(())), LOW)
    bias = analyse((pad, net.constant(torch.full((T, T), LOW).triu(1))), SCORES)
    assert not bias.causal and bias.pair.min() == LOW


def test_masks_of_merged_samples_and_heads() -> None:
    net = MaskGraph(torch.bool)
    net.add(aten.expand.default, four(net), [N, H, T, T])
    mask = net.add(aten.reshape.default, net.last, [N * H, T, T])
    low = Fill(mask, -math.inf, False)
    assert analyse((low,), Scores(N, H, T, T, merged=True)) == Bias(net.values[0], 0.0, -math.inf)
    assert "shape" in analyse((low,), SCORES).reason


def refused(build: Callable[[MaskGraph], Any], dtype: torch.dtype = torch.int64, shape: tuple[int, ...] = (N, T)) -> str:
    net = MaskGraph(dtype, shape)
    found = build(net)
    refusal = analyse(found if isinstance(found, tuple) else (found,), SCORES)
    assert isinstance(refusal, Miss), refusal
    return refusal.reason


def test_masks_of_pairs_are_refused() -> None:
    """An input [N,1,T,T] has one value per pair of queries and keys."""
    assert "one value per key" in refused(lambda net: net.add(aten.mul.Tensor, net.last, 2.0), torch.float32, (N, 1, T, T))


def test_keys_of_another_sample_are_refused() -> None:
    def build(net: MaskGraph) -> fx.Node:
        net.add(aten.ne.Scalar, net.last, 0)
        net.add(aten.index.Tensor, net.last, [net.constant(torch.tensor([1, 0, 2]))])
        return net.add(aten.where.ScalarOther, four(net), net.constant(torch.zeros(())), LOW)

    # What remains to be told is the reordered mask itself, of one value per key again.
    net = MaskGraph(torch.int64)
    assert analyse((build(net),), SCORES).source is not net.values[0]


def test_queries_masked_as_keys_are_refused() -> None:
    def build(net: MaskGraph) -> fx.Node:
        net.add(aten.ne.Scalar, net.last, 0)
        net.add(aten.view.default, net.last, [N, 1, T, 1])
        return net.add(aten.where.ScalarOther, net.last, net.constant(torch.zeros(())), LOW)

    assert "one value of its own sample" in refused(build)


def test_products_of_two_positions_are_refused() -> None:
    def build(net: MaskGraph) -> fx.Node:
        wide = net.add(aten._to_copy.default, four(net), dtype=torch.float32)
        return net.add(aten.mul.Tensor, wide, net.add(aten.transpose.int, wide, 2, 3))

    assert "not a function" in refused(build)


def test_a_lowest_value_shared_by_padding_and_triangle_is_refused() -> None:
    def build(net: MaskGraph) -> fx.Node:
        net.add(aten.ne.Scalar, four(net), 0)
        net.add(aten.logical_and.default, net.last, net.constant(torch.ones(T, T, dtype=torch.bool).tril()))
        return net.add(aten.where.ScalarOther, net.last, net.constant(torch.zeros(())), LOW)

    assert "shares finite values" in refused(build)


def test_what_is_no_sum_of_key_and_pair_is_refused() -> None:
    def build(net: MaskGraph) -> fx.Node:
        net.add(aten.logical_not.default, four(net))
        return net.add(aten.mul.Tensor, net.last, net.constant(torch.arange(1.0, T * T + 1).view(T, T)))

    assert "no sum" in refused(build)


def test_two_padding_masks_are_refused() -> None:
    def build(net: MaskGraph) -> tuple[fx.Node, fx.Node]:
        first = inverted(net)
        net.values.append(net.values[0])
        return first, inverted(net)

    assert "two masks" in refused(build)


def test_integers_and_nan_are_refused() -> None:
    assert "int64" in refused(four)
    assert "NaN" in refused(lambda net: net.constant(torch.full((T, T), torch.nan)))


def test_numbers_beyond_float32_are_refused() -> None:
    def build(net: MaskGraph) -> fx.Node:
        low = net.constant(torch.tensor(torch.finfo(torch.float64).min, dtype=torch.float64))
        return net.add(aten.where.ScalarSelf, four(net), 0.0, low)

    assert "float32" in refused(build, torch.bool)


@pytest.mark.parametrize(
    ("target", "args", "keywords"),
    [
        (aten.gt.Scalar, (0,), {}),
        (aten.eq.Scalar, (1,), {}),
        (aten.abs.default, (), {}),
        (aten.pow.Tensor_Scalar, (2,), {}),
        (aten._to_copy.default, (), {"dtype": torch.int32}),
    ],
)
def test_of_numbers_only_lines_and_zeros_are_told(target: Any, args: tuple, keywords: dict) -> None:
    """What else is done to any numbers may still be told of its result, but never as a function of the numbers."""
    net = MaskGraph(torch.float32)
    net.add(target, net.last, *args, **keywords)
    net.add(aten._to_copy.default, four(net), dtype=torch.float32)
    bias = analyse((net.last,), SCORES)
    assert isinstance(bias, Bias) and bias.source is not net.values[0]
