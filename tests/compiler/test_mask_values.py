"""Whatever is computed from a mask, what is said of each element holds for every content."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsec.tokens.mask_values import Pattern, follow
from tests.strategies import Network, integers

aten = torch.ops.aten
T = 3
BINARY = (aten.add.Tensor, aten.mul.Tensor, aten.eq.Tensor, aten.ne.Tensor, aten.gt.Tensor, aten.minimum.default)
UNARY = (aten.logical_not.default, aten.clone.default)


def meant(pattern: Pattern, content: Tensor) -> Tensor:
    """The value that a pattern says."""
    m = content.flatten()[pattern.source.clamp(min=0)]
    if pattern.affine:
        told = pattern.off + (pattern.on - pattern.off) * m
    else:
        told = torch.where(m != 0, pattern.on, pattern.off)
    return torch.where(pattern.source >= 0, told.to(pattern.on.dtype), pattern.on)


def step(draw: st.DrawFn, net: Network) -> None:
    """One operator on values of the shape of the latest."""
    value, seed = st.sampled_from(net.values), draw(st.integers(0, 9))
    triangle = net.constant(torch.ones(T, T, dtype=torch.bool).tril())
    table = net.constant(integers((T, T), seed, -1, 2))
    other = draw(st.sampled_from([*net.values, table]))
    match draw(st.integers(0, 5)):
        case 0:
            net.add(draw(st.sampled_from(BINARY)), draw(value), other)
        case 1:
            net.add(draw(st.sampled_from(UNARY)), draw(value))
        case 2:
            net.add(aten._to_copy.default, draw(value), dtype=draw(st.sampled_from([torch.bool, torch.int64, torch.float64])))
        case 3:
            condition = net.edit.call(aten._to_copy.default, (draw(value),), {"dtype": torch.bool}, before=net._output)
            net.add(aten.where.self, draw(st.sampled_from([condition, triangle])), draw(value), other)
        case 4:
            net.add(aten.transpose.int, draw(value), 0, 1)
        case 5:
            shown = net.edit.call(aten.expand.default, (draw(value), [T, T]), before=net._output)
            net.add(aten.index.Tensor, shown, [net.constant(torch.tensor(draw(st.permutations(range(T)))))])


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_what_is_followed_holds(dtype: torch.dtype, data: st.DataObject) -> None:
    net = Network((T, T), 0)
    net.values[0].meta["val"] = torch.empty(T, T, dtype=dtype)
    leaf = net.values[0]
    for _ in range(data.draw(st.integers(1, 5))):
        step(data.draw, net)
    content = torch.tensor(data.draw(st.lists(st.integers(-2, 3), min_size=T * T, max_size=T * T))).view(T, T)
    net.input = content.to(dtype)
    for node in net.values[1:]:
        pattern = follow(node, leaf)
        if pattern is not None:
            assert torch.equal(meant(pattern, net.input).double(), net.returns(node).run()[0].double())


def test_elements_of_two_origins_are_not_followed() -> None:
    net = Network((T, T), 0)
    net.add(aten.minimum.default, net.last, net.add(aten.transpose.int, net.last, 0, 1))
    assert follow(net.last, net.values[0]) is None
