"""Regions: convex, as large as possible, and only where sparsity pays."""

import random

import networkx as nx
import pytest
import torch
from torch import fx

from sparsec.backends.cpu.access import layouts_of
from sparsec.ir import ops
from sparsec.ir.forms import notes
from sparsec.ir.miss import Miss
from sparsec.ir.pipeline import Context, Result, run
from sparsec.passes import PIPELINE

aten = torch.ops.aten


class Net:
    """A float32 graph of 1x1 convolutions and other operators on 4x6x6 maps."""

    def __init__(self) -> None:
        self.root, self.graph = torch.nn.Module(), fx.Graph()
        self.x = self.graph.placeholder("x")
        self.x.meta["val"] = torch.empty(1, 4, 6, 6)

    def add(self, target, *args, **kwargs) -> fx.Node:
        node = self.graph.call_function(target, args, kwargs)
        node.meta["val"] = target(*[a.meta["val"] if isinstance(a, fx.Node) else a for a in args], **kwargs)
        return node

    def conv(self, x: fx.Node, weight: torch.Tensor | None = None) -> fx.Node:
        name = f"w{len(self.graph.nodes)}"
        self.root.register_buffer(name, torch.eye(4).view(4, 4, 1, 1) if weight is None else weight)
        constant = self.graph.get_attr(name)
        constant.meta["val"] = getattr(self.root, name)
        attributes = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "activation": "none"}
        return self.add(ops.conv2d, x, constant, None, None, **attributes)

    def cumsum(self, x: fx.Node) -> fx.Node:
        return self.add(aten.cumsum.default, x, 1)

    def join(self, x: fx.Node, y: fx.Node) -> fx.Node:
        return self.add(aten.mul.Tensor, x, y)

    def grouped(self, *returned: fx.Node, keep_dense: bool = True, keep_whole: bool = False) -> Result:
        self.graph.output(tuple(returned)).meta["val"] = None
        module = fx.GraphModule(self.root, self.graph)
        return run(module, PIPELINE, Context(offers=lambda spec: None, layouts=layouts_of, keep_dense=keep_dense, keep_whole=keep_whole))


def region(result: Result, made: fx.Node) -> int | None:
    (node,) = (n for n in result.graph_module.graph.nodes if n.name == made.name)
    return notes(node).get("region")


def members(result: Result) -> dict[int, list[fx.Node]]:
    found: dict[int, list[fx.Node]] = {}
    for node in result.graph_module.graph.nodes:
        if (number := notes(node).get("region")) is not None:
            found.setdefault(number, []).append(node)
    return found


def test_a_network_of_known_operators_is_one_region():
    net = Net()
    a = net.conv(net.x)
    b, c = net.conv(a), net.conv(a)
    result = net.grouped(net.join(b, c), a)
    assert list(members(result)) == [0]
    assert len(members(result)[0]) == 4


def test_an_unknown_operator_in_the_middle_gives_two_regions_in_order():
    net = Net()
    a = net.conv(net.x)
    middle = net.cumsum(a)
    b = net.conv(middle)
    result = net.grouped(b)
    assert [region(result, node) for node in (a, middle, b)] == [0, None, 1]


def test_an_unknown_operator_beside_the_way_does_not_split_it_but_one_on_a_detour_does():
    """a ─ b ─ join, a ─ cumsum ─ join: no region may hold both a and join."""
    net = Net()
    a = net.conv(net.x)
    aside = net.cumsum(a)
    detour = net.join(net.conv(a), net.cumsum(a))
    result = net.grouped(detour, aside)
    assert region(result, a) != region(result, detour)
    assert len(members(result)) == 2
    net = Net()
    a = net.conv(net.x)
    b = net.conv(a)
    result = net.grouped(b, net.cumsum(a))
    assert region(result, a) == region(result, b) == 0


def test_branches_without_a_common_operand_meet_in_one_region():
    net = Net()
    result = net.grouped(net.join(net.conv(net.x), net.conv(net.cumsum(net.x))))
    assert len(members(result)) == 1


def convex(result: Result) -> bool:
    """Whether the graph stays acyclic with every region contracted to one vertex."""
    home = {n: ("region", notes(n)["region"]) if "region" in notes(n) else ("node", n.name) for n in result.graph_module.graph.nodes}
    quotient = nx.DiGraph((home[p], home[n]) for n in home for p in n.all_input_nodes if home[p] != home[n])
    return nx.is_directed_acyclic_graph(quotient)


def mergeable(result: Result) -> list[tuple[int, int]]:
    """Pairs of neighbouring regions that could have been one."""
    graph, found = result.graph_module.graph, members(result)
    pairs = {(notes(p).get("region"), notes(n).get("region")) for n in graph.nodes for p in n.all_input_nodes}
    one = [(a, b) for a, b in pairs if a is not None and b is not None and a != b]
    possible = []
    for a, b in one:
        saved = [dict(notes(n)) for n in found[b]]
        for node in found[b]:
            notes(node)["region"] = a
        if convex(result):
            possible.append((a, b))
        for node, old in zip(found[b], saved, strict=True):
            notes(node).update(old)
    return possible


@pytest.mark.parametrize("seed", range(60))
def test_regions_of_drawn_graphs_are_convex_and_no_two_neighbours_could_be_one(seed):
    rng, net = random.Random(seed), Net()
    values = [net.x]
    for _ in range(rng.randint(2, 14)):
        x = rng.choice(values[-4:])
        match rng.choice(["conv", "conv", "join", "cumsum"]):
            case "conv":
                values.append(net.conv(x))
            case "join":
                values.append(net.join(x, rng.choice(values)))
            case _:
                values.append(net.cumsum(x))
    result = net.grouped(*[v for v in values[1:] if not v.users] or values[-1:])
    assert convex(result)
    assert mergeable(result) == []
    known = [n for n in result.graph_module.graph.nodes if n.op == "call_function" and "cumsum" not in n.name]
    assert all("region" in notes(n) for n in known)


def test_a_region_without_gain_stays_dense_and_says_when_it_would_pay():
    net = Net()
    a = net.conv(net.x, torch.ones(4, 4, 1, 1))
    result = net.grouped(a, keep_dense=False)
    assert region(result, a) is None
    (miss,) = result.story.chapters[-1].misses
    assert "stays dense: predicted gain 0.93x" in miss.reason
    assert "below density 0.60" in miss.reason


@pytest.mark.parametrize(("zeros", "kept"), [(0, False), (5, False), (6, False), (7, True), (16, True)])
def test_single_zeros_pay_below_the_break_even_density(zeros, kept):
    net = Net()
    weight = torch.ones(16)
    weight[torch.tensor([0, 5, 10, 15, 1, 6, 11, 12, 2, 7, 8, 13, 3, 4, 9, 14][:zeros], dtype=torch.long)] = 0
    a = net.conv(net.x, weight.view(4, 4, 1, 1))
    assert (region(net.grouped(a, keep_dense=False), a) == 0) is kept


def test_only_the_region_that_pays_is_kept_and_numbers_are_dense():
    net = Net()
    dense = net.conv(net.x, torch.ones(4, 4, 1, 1))
    sparse = net.conv(net.cumsum(dense))
    result = net.grouped(sparse, keep_dense=False)
    assert (region(result, dense), region(result, sparse)) == (None, 0)


@pytest.mark.parametrize("others", [False, True])
def test_a_region_without_gain_is_kept_for_an_artifact_only_where_it_is_everything(others):
    net = Net()
    dense = net.conv(net.x, torch.ones(4, 4, 1, 1))
    result = net.grouped(net.cumsum(dense) if others else dense, keep_dense=False, keep_whole=True)
    assert region(result, dense) == (None if others else 0)


def test_what_no_backend_offers_is_in_no_region():
    net = Net()
    a = net.conv(net.x)
    net.graph.output((a,)).meta["val"] = None
    result = run(fx.GraphModule(net.root, net.graph), PIPELINE, Context(offers=lambda spec: Miss("none"), keep_dense=True))
    assert members(result) == {}


def test_views_alone_are_no_region():
    net = Net()
    conv = net.conv(net.x)
    turned = net.add(aten.permute.default, net.cumsum(conv), [0, 1, 3, 2])
    result = net.grouped(net.cumsum(turned))
    assert region(result, turned) is None and set(members(result)) == {0}
    assert any("computes nothing" in miss.reason for chapter in result.story.chapters for miss in chapter.misses)
