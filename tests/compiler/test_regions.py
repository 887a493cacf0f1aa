"""What crosses the edge of a region, and how its values are stored."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from sparsec.backends.cpu.access import layouts_of, pads_of
from sparsec.doors.from_torch.capture import capture
from sparsec.ir.pipeline import Context, run
from sparsec.lower.layouts import Geometry, Storage
from sparsec.lower.regions import Region, extract
from sparsec.passes import PIPELINE

IMAGES = torch.randn(1, 4, 9, 7)


class Module(nn.Module):
    """A function of four convolutions."""

    def __init__(self, function) -> None:
        super().__init__()
        self.one, self.three = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.five, self.halve = nn.Conv2d(4, 4, 5, padding=2), nn.Conv2d(4, 4, 3, 2, 1)
        self.function = function

    def forward(self, *args):
        return self.function(self, *args)


def regions(function, *inputs, tile: int = 64) -> list[Region]:
    captured = capture(Module(function).eval(), inputs or (IMAGES,))
    context = Context(offers=lambda spec: None, layouts=layouts_of, keep_dense=True)
    found = extract(run(captured.graph_module, PIPELINE, context).graph_module)
    return [replace(region, tile=tile, pads=pads_of(region.specs.values())) for region in found]


def names(nodes) -> list[str]:
    return [node.name for node in nodes]


def test_inputs_and_outputs_come_in_the_order_of_the_graph():
    (region,) = regions(lambda m, x, y: ((z := m.one(y)) + x, z), IMAGES, IMAGES)
    assert names(region.inputs) == ["args_0", "args_1"]
    (returned,) = region.outputs[0].graph.find_nodes(op="output")
    assert names(region.outputs) == names(returned.args[0])
    assert len(region.outputs) == 2


def test_a_value_that_the_next_region_reads_is_an_output():
    first, second = regions(lambda m, x: m.one((z := m.one(x)).cumsum(1)) + z)
    assert len(first.outputs) == 1
    assert first.outputs[0] in second.inputs
    assert [first.number, second.number] == [0, 1]


def test_pads_are_the_widest_reach_at_each_resolution():
    (region,) = regions(lambda m, x: m.three(m.halve(m.five(m.three(x)))))
    assert region.pads == {(9, 7): 2, (5, 4): 1}
    (region,) = regions(lambda m, x: m.one(x))
    assert region.pads == {}
    (region,) = regions(lambda m, x: F.conv2d(x, m.three.weight, padding=4, dilation=4))
    assert region.pads == {(9, 7): 4}


def test_storage_follows_layout_and_resolution():
    (region,) = regions(lambda m, x: F.adaptive_avg_pool2d(m.three(m.one(m.one(x))), 1).flatten(1), tile=32)
    space = Geometry(9, 7, 1, 32)
    stored = [region.storage(node) for node in region.specs]
    halo, tiled, vector = Storage("halo", 4, space), Storage("tiled", 4, space), Storage("single", 4)
    assert stored == [tiled, halo, halo, vector, vector]


def test_tiles_may_differ_by_resolution():
    from dataclasses import replace

    (region,) = regions(lambda m, x: m.halve(x))
    region = replace(region, tiles={(5, 4): 32})
    assert (region.index_space(5, 4).tile, region.index_space(9, 7).tile) == (32, 64)
