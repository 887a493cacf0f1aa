"""Regions as single calls of a graph that means the same."""

import operator
import random

import pytest
import torch
from torch import fx

from sparsec.ir.pipeline import copied
from sparsec.lower.outline import splice
from sparsec.lower.regions import Region

aten = torch.ops.aten


class Spliced:
    """Runs a region's nodes in torch, counting its calls."""

    def __init__(self, region: Region) -> None:
        self.region, self.calls = region, 0

    def run(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        self.calls += 1
        values = dict(zip(self.region.inputs, inputs, strict=True))
        for node in self.region.specs:
            args = [values[a] if isinstance(a, fx.Node) else a for a in node.args]
            values[node] = node.target(*args)
        return [values[node] for node in self.region.outputs]

    def insert(self, graph: fx.Graph, inputs: list[fx.Node]) -> fx.Node:
        return graph.call_function(self.run, (inputs,))


def graph_of(seed: int) -> fx.GraphModule:
    """Sums and products of earlier values; some values are returned, some twice."""
    rng, graph = random.Random(seed), fx.Graph()
    values = [graph.placeholder("x"), graph.placeholder("y")]
    for _ in range(rng.randint(3, 9)):
        target = rng.choice([aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor])
        values.append(graph.call_function(target, (rng.choice(values), rng.choice(values))))
    graph.output((values[-1], rng.choice(values), values[-1]))
    for node in values:
        node.meta["val"] = torch.empty(3)
    return fx.GraphModule(torch.nn.Module(), graph)


def region(number: int, nodes: list[fx.Node]) -> Region:
    inputs = dict.fromkeys(a for n in nodes for a in n.all_input_nodes if a not in nodes)
    outputs = tuple(n for n in nodes if any(u not in nodes for u in n.users))
    return Region(number, dict.fromkeys(nodes), tuple(inputs), outputs, {}, 64)


def parts(graph_module: fx.GraphModule, rng: random.Random) -> list[Region]:
    """Runs of consecutive nodes, which are convex, with some nodes left out between them."""
    calls = [n for n in graph_module.graph.nodes if n.op == "call_function"]
    found, at = [], 0
    while at < len(calls):
        size = rng.randint(1, 3)
        if rng.random() < 0.7:
            found.append(region(len(found), calls[at : at + size]))
        at += size
    return [r for r in found if r.outputs]


@pytest.mark.parametrize("seed", range(40))
def test_a_spliced_graph_means_the_same_and_calls_each_region_once(seed):
    graph_module = graph_of(seed)
    before = str(graph_module.graph)
    regions = [(r, Spliced(r)) for r in parts(graph_module, random.Random(seed))]
    made = splice(graph_module, regions)
    made.graph.lint()
    x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, -1.0, 2.0])
    for found, expected in zip(made(x, y), graph_module(x, y), strict=True):
        assert torch.equal(found, expected)
    used = [op for r, op in regions if op.calls]
    assert all(op.calls == 1 for op in used)
    inside = {n.name for r, _ in regions for n in r.specs}
    assert not inside & {n.name for n in made.graph.nodes}
    assert str(graph_module.graph) == before


def test_results_keep_what_is_known_of_them():
    graph_module = graph_of(1)
    (call,) = list(graph_module.graph.nodes)[2:3]
    call.meta["custom"] = {"sparsec": {"source": "here"}}
    whole = region(0, [n for n in graph_module.graph.nodes if n.op == "call_function"])
    made = splice(graph_module, [(whole, Spliced(whole))])
    results = [n for n in made.graph.nodes if n.target is operator.getitem]
    assert [r.meta["val"].shape for r in results] == [(3,)] * len(results)


def test_regions_may_interleave():
    """r0 = {a, c}, r1 = {b}: c reads b, b reads nothing of r0."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    a = graph.call_function(aten.mul.Tensor, (x, x))
    b = graph.call_function(aten.add.Tensor, (x, x))
    c = graph.call_function(aten.sub.Tensor, (a, b))
    graph.output((c,))
    graph_module = fx.GraphModule(torch.nn.Module(), graph)
    regions = [region(0, [a, c]), region(1, [b])]
    made = splice(copied(graph_module), [(r, Spliced(r)) for r in regions])
    value = torch.tensor([1.0, 3.0])
    assert torch.equal(made(value)[0], graph_module(value)[0])
