"""Layouts by minimum cut: as cheap as the best of all labelings, and honoured by every kernel."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch import fx

from sparsec.backends.cpu.access import layouts_of
from sparsec.ir import ops
from sparsec.ir.arguments import operands
from sparsec.ir.forms import notes
from sparsec.ir.miss import Miss
from sparsec.ir.pipeline import Context, Result, run
from sparsec.lower.costs import Costs
from sparsec.lower.describe import spec_of
from sparsec.lower.spec import KernelSpec
from sparsec.passes import PIPELINE
from sparsec.passes.assign_layouts import AssignLayouts, is_map

aten = torch.ops.aten
BEFORE = PIPELINE[: next(n for n, step in enumerate(PIPELINE) if isinstance(step, AssignLayouts))]


class Net:
    """A float32 graph under construction; only shapes matter."""

    def __init__(self, shape: tuple[int, ...] = (1, 4, 6, 6)) -> None:
        self.root, self.graph = torch.nn.Module(), fx.Graph()
        self.x = self.graph.placeholder("x")
        self.x.meta["val"] = torch.empty(shape)

    def add(self, target, *args, **kwargs) -> fx.Node:
        node = self.graph.call_function(target, args, kwargs)
        values = [a.meta["val"] if isinstance(a, fx.Node) else a for a in args]
        node.meta["val"] = target(*values, **kwargs)
        return node

    def conv(self, x: fx.Node, kernel: int, outputs: int = 4, residual: fx.Node | None = None) -> fx.Node:
        name = f"w{len(self.graph.nodes)}"
        self.root.register_buffer(name, torch.ones(outputs, x.meta["val"].shape[1], kernel, kernel))
        weight = self.graph.get_attr(name)
        weight.meta["val"] = getattr(self.root, name)
        return self.add(ops.conv2d, x, weight, None, residual, stride=(1, 1), padding=(kernel // 2,) * 2, activation="none")

    def laid_out(self, *returned: fx.Node, offers=lambda spec: None, passes: tuple | None = None, **costs) -> Result:
        self.graph.output(tuple(returned)).meta["val"] = None
        module = fx.GraphModule(self.root, self.graph)
        return run(module, passes or (*BEFORE, AssignLayouts()), Context(offers=offers, layouts=layouts_of, costs=Costs(**costs)))


def layout(result: Result, made: fx.Node) -> str:
    """Of the value that has the name of a node of the net."""
    (node,) = (n for n in result.graph_module.graph.nodes if n.name == made.name)
    return notes(node)["layout"]


def conversions(result: Result) -> list[fx.Node]:
    return [node for node in result.graph_module.graph.nodes if node.target is ops.to_layout]


def test_a_value_between_pointwise_convolutions_is_tiled():
    net = Net()
    first = net.conv(net.x, 1)
    result = net.laid_out(net.conv(first, 1))
    assert (layout(result, first), conversions(result)) == ("tiled", [])


def test_a_value_that_a_stencil_reads_has_a_halo():
    net = Net()
    first = net.conv(net.x, 1)
    result = net.laid_out(net.conv(first, 3))
    assert (layout(result, first), conversions(result)) == ("halo", [])


def test_values_of_one_pixel_are_vectors_and_foreign_ones_stay_as_they_are():
    net = Net()
    pooled = net.add(aten.adaptive_avg_pool2d.default, net.conv(net.x, 1), [1, 1])
    foreign = [net.add(aten.cumsum.default, net.x, 1)]
    foreign += [net.add(aten.exp.default, foreign[0])]
    result = net.laid_out(pooled, *foreign)
    assert [layout(result, node) for node in (pooled, *foreign)] == ["single", "nchw", "nchw"]


def test_pools_write_halos_whoever_reads_them():
    net = Net()
    pooled = net.add(aten.max_pool2d.default, net.conv(net.x, 1), [3, 3], [1, 1], [1, 1])
    result = net.laid_out(net.conv(pooled, 1), turned_read=1e9)
    assert layout(result, pooled) == "halo"


def test_a_conversion_serves_all_stencils_where_packing_pays():
    net = Net()
    shared = net.conv(net.x, 1)
    readers = [net.conv(shared, k) for k in (1, 3, 1, 3, 1)]
    result = net.laid_out(*readers, convert=1.0, turned_read=0.5)
    (made,) = conversions(result)
    assert (notes(made)["layout"], len(made.users)) == ("halo", 2)
    assert layout(result, shared) == "tiled"
    assert all(user.kwargs["padding"] == (1, 1) for user in made.users)


def test_a_conversion_is_not_made_where_it_costs_more():
    net = Net()
    shared = net.conv(net.x, 1)
    result = net.laid_out(*[net.conv(shared, k) for k in (1, 3)], convert=1.0, turned_read=0.5)
    assert conversions(result) == []


def test_refusals_are_misses_with_the_reason():
    net = Net()
    result = net.laid_out(net.add(aten.cumsum.default, net.conv(net.x, 1), 1), offers=lambda spec: Miss(f"no {spec.op}"))
    reasons = [miss.reason for miss in result.story.chapters[-1].misses]
    assert len(reasons) == 2
    assert reasons[0] == "no conv2d"
    assert "cumsum" in reasons[1]


def drawn(seed: int) -> tuple[Net, list[fx.Node], dict[str, float]]:
    rng, net = random.Random(seed), Net()
    values = [net.x]
    for _ in range(rng.randint(2, 6)):
        x = rng.choice(values)
        match rng.choice(["1x1", "1x1", "1x1", "wide", "3x3", "add", "pool", "halve", "unknown", "relu"]):
            case "1x1":
                values.append(net.conv(x, 1))
            case "wide":
                values.append(net.conv(x, 1, 12))
            case "3x3":
                values.append(net.conv(x, 3))
            case "add":
                alike = [value for value in values if value.meta["val"].shape == x.meta["val"].shape]
                values.append(net.add(aten.add.Tensor, x, rng.choice(alike)))
            case "halve" if x.meta["val"].shape[-1] % 2 == 0:
                values.append(net.add(aten.max_pool2d.default, x, [2, 2], [2, 2]))
            case "pool":
                values.append(net.add(aten.max_pool2d.default, x, [3, 3], [1, 1], [1, 1]))
            case "unknown":
                values.append(net.add(aten.cumsum.default, x, 1))
            case _:
                values.append(net.add(aten.relu.default, x))
    unread = [v for v in values[1:] if not v.users] or values[-1:]
    return net, unread, {"convert": rng.choice([0.4, 1.0, 2.0]), "turned_read": rng.choice([0.3, 0.5, 1.1])}


def reads_halo(spec: KernelSpec) -> bool:
    """What shifts or copies rows needs them; of the drawn operators, convolutions of more than one tap and pools."""
    return spec.op == "max_pool2d" or (spec.op == "conv2d" and spec.weights[0][2:] != (1, 1))


def writes_halo(spec: KernelSpec) -> bool:
    return spec.op == "max_pool2d"


def price(specs: dict[fx.Node, KernelSpec], maps: list[fx.Node], halo: set[fx.Node], costs: dict[str, float]) -> float:
    """What a labeling costs, from the definition: conversions of packed values that need halo readers, 1x1 readers of halo ones."""
    total = 0.0
    for node, spec in specs.items():
        if (writes_halo(spec) and node not in halo) or (spec.op == "alias" and (node in halo) != (node.args[0] in halo)):
            return float("inf")
    for value in maps:
        size = 4 * int(np.prod(value.meta["val"].shape[1:]))
        first = [specs[u] for u in value.users if u in specs and u.args[0] is value]
        outside = value not in specs or any(u not in specs for u in value.users)
        if value in halo:
            total += size * costs["turned_read"] * sum(s.op == "conv2d" and not reads_halo(s) for s in first)
        elif outside or any(map(reads_halo, first)):
            total += size * costs["convert"]
    return total


@pytest.mark.parametrize("seed", range(40))
def test_the_cut_is_the_cheapest_of_all_labelings(seed):
    net, unread, costs = drawn(seed)
    before = net.laid_out(*unread, passes=BEFORE).graph_module.graph
    specs = {n: s for n in before.nodes if n.op == "call_function" and isinstance(s := spec_of(n), KernelSpec)}
    maps = [n for n in before.nodes if n.op != "get_attr" and "val" in n.meta and is_map_touched(n, specs)]
    best = min(
        price(specs, maps, {m for m, bit in zip(maps, bits, strict=True) if bit}, costs)
        for bits in itertools.product([False, True], repeat=len(maps))
    )
    labelled = rerun(net, costs)
    chosen = {m for m in maps if labelled[m.name] == "halo"}
    assert price(specs, maps, chosen, costs) == pytest.approx(best)


def is_map_touched(node: fx.Node, specs: dict[fx.Node, KernelSpec]) -> bool:
    return node.op != "output" and is_map(node) and (node in specs or any(node in operands(reader) for reader in specs))


def rerun(net: Net, costs: dict[str, float]) -> dict[str, str]:
    result = run(
        fx.GraphModule(net.root, net.graph),
        (*BEFORE, AssignLayouts()),
        Context(offers=lambda spec: None, layouts=layouts_of, costs=Costs(**costs)),
    )
    return {n.name: notes(n).get("layout", "") for n in result.graph_module.graph.nodes}


@pytest.mark.parametrize("seed", range(40))
def test_every_reader_gets_the_layout_it_reads_and_twice_is_once(seed):
    net, unread, costs = drawn(seed)
    once = net.laid_out(*unread, **costs)
    for node in once.graph_module.graph.nodes:
        spec = spec_of(node) if node.op == "call_function" else None
        if isinstance(spec, KernelSpec) and reads_halo(spec):
            assert notes(node.args[0])["layout"] == "halo"
        if isinstance(spec, Miss):
            assert spec.reason
    context = Context(offers=lambda spec: None, layouts=layouts_of, costs=Costs(**costs))
    twice = run(fx.GraphModule(net.root, net.graph), (*BEFORE, AssignLayouts(), AssignLayouts()), context)
    rows = [[(n.name, n.target, notes(n).get("layout")) for n in r.graph_module.graph.nodes] for r in (once, twice)]
    assert rows[0] == rows[1]
