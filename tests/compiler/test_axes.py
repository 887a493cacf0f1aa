"""Views are followed axis by axis: what a chain of views shows, and how it is built again."""

import itertools
import math
import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from sparsec.tokens.axes import REPEATED, SAMPLE, View, axis_of, build, factor_of, indices, is_view, readers, view_of
from tests.strategies import Network, integers

aten = torch.ops.aten


def shown(view: View) -> Tensor:
    """The elements of a root numbered in order that a view shows."""
    shape = view.root.meta["val"].shape
    total = torch.zeros((), dtype=torch.int64)
    for dim in view.dims:
        along = torch.zeros(1, dtype=torch.int64)
        for atom in dim:
            stride = 0 if atom.axis == REPEATED else atom.step * math.prod(shape[atom.axis + 1 :])
            along = (along[:, None] + torch.arange(atom.size) * stride).flatten()
        total = total[..., None] + along
    return total + sum(start * math.prod(shape[axis + 1 :]) for axis, start in enumerate(view.starts))


def numbered(net: Network, node: fx.Node) -> Tensor:
    """The elements of the input numbered in order that a node of a graph of views shows."""
    net.input = torch.arange(math.prod(net.shape)).view(net.shape)
    return net.returns(node).run()[0]


def permutation(draw: st.DrawFn, net: Network) -> None:
    net.add(aten.permute.default, net.last, draw(st.permutations(range(len(net.size())))))


def transposition(draw: st.DrawFn, net: Network) -> None:
    rank = len(net.size())
    net.add(aten.transpose.int, net.last, *(draw(st.integers(-rank, rank - 1)) for _ in "ab"))


def refactoring(draw: st.DrawFn, net: Network) -> None:
    sizes, left = [], math.prod(net.size())
    while left > 1 and len(sizes) < 4:
        sizes.append(draw(st.sampled_from([d for d in range(1, left + 1) if left % d == 0])))
        left //= sizes[-1]
    net.add(aten.reshape.default, net.last, [*sizes, left])


def splitting(draw: st.DrawFn, net: Network) -> None:
    """Split one dimension, as heads are split off, or merge it with the next."""
    size, dim = list(net.size()), draw(st.integers(0, len(net.size()) - 1))
    factor = draw(st.sampled_from([d for d in range(1, size[dim] + 1) if size[dim] % d == 0]))
    net.add(aten.reshape.default, net.last, [*size[:dim], factor, size[dim] // factor, *size[dim + 1 :]])


def slicing(draw: st.DrawFn, net: Network) -> None:
    dim = draw(st.integers(0, len(net.size()) - 1))
    size = net.size()[dim]
    start = draw(st.integers(-size, size - 1))
    end = draw(st.integers(start % size + 1, size + 3))
    net.add(aten.slice.Tensor, net.last, dim, start, end, draw(st.integers(1, 3)))


def selection(draw: st.DrawFn, net: Network) -> None:
    if len(net.size()) > 1:
        dim = draw(st.integers(0, len(net.size()) - 1))
        net.add(aten.select.int, net.last, dim, draw(st.integers(-net.size()[dim], net.size()[dim] - 1)))


def part(draw: st.DrawFn, net: Network) -> None:
    dim = draw(st.integers(0, len(net.size()) - 1))
    size = net.size()[dim]
    pieces = [(aten.split.Tensor, draw(st.integers(1, size))), (aten.chunk.default, draw(st.integers(1, size)))]
    if len(net.size()) > 1:
        pieces.append((aten.unbind.int, None))
    target, argument = draw(st.sampled_from(pieces))
    parts = net.edit.call(target, (net.last, dim) if argument is None else (net.last, argument, dim), before=net._output)
    net.add(operator.getitem, parts, draw(st.integers(0, len(parts.meta["val"]) - 1)))


def widening(draw: st.DrawFn, net: Network) -> None:
    net.add(aten.unsqueeze.default, net.last, draw(st.integers(0, len(net.size()))))
    if draw(st.booleans()):
        net.add(aten.expand.default, net.last, [-1 if n > 1 else draw(st.integers(1, 2)) for n in net.size()])


def copying(draw: st.DrawFn, net: Network) -> None:
    net.add(draw(st.sampled_from([aten.clone.default, aten.contiguous.default, aten.alias.default])), net.last)


REARRANGING = (permutation, transposition, refactoring, splitting, copying)
STEPS = (*REARRANGING, slicing, selection, part, widening)


@st.composite
def chains(draw: st.DrawFn, steps: tuple) -> Network:
    net = Network(tuple(draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))), 0)
    for _ in range(draw(st.integers(1, 6))):
        if math.prod(net.size()) <= 2000:
            draw(st.sampled_from(steps))(draw, net)
    return net


@settings(max_examples=150)
@given(net=chains(STEPS))
def test_a_view_shows_what_its_dimensions_say(net: Network) -> None:
    for node in net.values[1:]:
        view = view_of(node)
        assert view.shape == net.size(node)
        root = torch.arange(math.prod(net.shape)).view(net.shape) if view.root is net.values[0] else numbered(net, view.root)
        assert torch.equal(root.flatten()[shown(view)], numbered(net, node))


@settings(max_examples=100)
@given(net=chains(REARRANGING))
def test_a_rearrangement_is_built_again(net: Network) -> None:
    view = view_of(net.last)
    if view.root is net.values[0]:
        assert view.is_rearrangement
        made = build(net.edit, view, net._output)
        assert torch.equal(numbered(net, net.last), numbered(net, made))


@settings(max_examples=100)
@given(net=chains(STEPS))
def test_only_all_elements_once_are_a_rearrangement(net: Network) -> None:
    """The one sample of a batch of one among them: of more samples it would be a choice."""
    view = view_of(net.last)
    sampled = SAMPLE not in axis_of(view.root, 0) or any(SAMPLE in dim for dim in view.dims)
    once = sorted(shown(view).flatten().tolist()) == list(range(math.prod(view.root.meta["val"].shape)))
    assert view.is_rearrangement == (once and sampled)


def heads_of(net: Network, heads: int) -> fx.Node:
    samples, tokens, features = net.size()
    net.add(aten.view.default, net.last, [samples, tokens, heads, features // heads])
    return net.add(aten.transpose.int, net.last, 1, 2)


@pytest.mark.parametrize(("tokens", "heads", "width"), [(5, 3, 7), (1, 3, 2), (5, 1, 4), (3, 4, 1)])
def test_heads_and_their_inverse(tokens: int, heads: int, width: int) -> None:
    net = Network((2, tokens, heads * width), 0)
    view = view_of(heads_of(net, heads))
    assert indices((view.dims[1], view.dims[3])) == list(range(heads * width))
    assert not view.is_whole or heads == 1
    net.add(aten.transpose.int, net.last, 1, 2)
    net.add(aten.reshape.default, net.last, [2, tokens, heads * width])
    assert view_of(net.last).is_whole


def test_numbers_on_the_way_are_collected_on_demand() -> None:
    net = Network((2, 3, 4), 0)
    net.add(aten.mul.Tensor, net.last, 0.5)
    net.add(aten.permute.default, net.last, [1, 0, 2])
    net.add(aten.div.Tensor, net.last, net.constant(torch.tensor(4.0).double()))
    assert view_of(net.last).is_whole and view_of(net.last).root is net.last
    found = view_of(net.last, scaled=True)
    assert (found.root, found.factor, found.shape) == (net.values[0], 0.125, (3, 2, 4))


@pytest.mark.parametrize("other", [0, torch.ones(2), "node"])
def test_what_is_no_factor(other: object) -> None:
    net = Network((3, 2), 0)
    argument = net.last if other == "node" else net.constant(other.double()) if isinstance(other, Tensor) else other
    assert factor_of(net.add(aten.div.Tensor, net.last, argument)) is None


def test_readers_are_seen_through_views() -> None:
    net = Network((2, 4), 0)
    parts = net.edit.call(aten.chunk.default, (net.last, 2, 1), before=net._output)
    first = net.add(operator.getitem, parts, 0)
    read = net.add(aten.relu.default, net.add(aten.mul.Tensor, first, 2))
    also = net.add(aten.linear.default, net.values[0], net.constant(integers((3, 4), 1)))
    net.returns(read, also)
    assert set(readers(net.values[0])) == {read, also}
    assert is_view(first) and not is_view(read)


def test_following_ends_at_a_noted_root() -> None:
    net = Network((2, 3, 4), 0)
    turned = net.add(aten.permute.default, net.last, [1, 0, 2])
    net.edit.note(turned, root=True)
    assert view_of(turned).root is turned
    assert view_of(net.add(aten.permute.default, turned, [1, 0, 2])).root is turned


def test_parts_of_merged_dimensions() -> None:
    """[2,3,4] ── permute 1 0 2 ── [6,4]: one index can always be told, several where whole samples stay together."""
    for start, end, step in itertools.product(range(6), range(1, 7), (1, 2)):
        if start < end:
            net = Network((2, 3, 4), 0)
            net.add(aten.reshape.default, net.add(aten.permute.default, net.last, [1, 0, 2]), [6, 4])
            node = net.add(aten.slice.Tensor, net.last, 0, start, end, step)
            view = view_of(node)
            told = net.size(node)[0] == 1 or (start % 2 == end % 2 == 0 and step == 1)
            assert (view.root is net.values[0]) == told
            if told:
                assert torch.equal(shown(view), numbered(net, node))


@pytest.mark.parametrize("index", range(6))
def test_one_index_of_merged_dimensions(index: int) -> None:
    net = Network((2, 3, 4), 0)
    net.add(aten.reshape.default, net.add(aten.permute.default, net.last, [1, 0, 2]), [6, 4])
    node = net.add(aten.select.int, net.last, 0, index)
    assert view_of(node).root is net.values[0]
    assert torch.equal(shown(view_of(node)), numbered(net, node))


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1)])
def test_one_element_as_a_scalar(shape: tuple[int, ...]) -> None:
    net = Network(shape, 0)
    net.add(aten.reshape.default, net.last, [])
    assert view_of(net.last).shape == () and not view_of(net.last).is_rearrangement
    net.add(aten.squeeze.dim, net.last, -1)
    assert view_of(net.last).shape == ()
    net.add(aten.transpose.int, net.last, 0, -1)
    assert view_of(net.last).shape == ()
