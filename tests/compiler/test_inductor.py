"""Graphs with constants and with regions go through Inductor and come out right."""

import gc
import operator

import pytest
import torch
from torch import fx, nn

from sparsec.doors.from_torch.capture import capture
from sparsec.errors import MachineError
from sparsec.lower.inductor import compile_dense
from sparsec.lower.region_op import REGION, RegionOp, _running

torch.set_num_threads(1)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.relu(self.norm(self.convolution(x))) * 2


@pytest.mark.parametrize("freezing", [False, True])
@pytest.mark.slow
def test_a_captured_graph_with_constants(freezing):
    model, x = Chain().eval(), torch.randn(2, 3, 8, 8)
    captured = capture(model, (x,))
    run = compile_dense(captured.graph_module, [x], freezing=freezing)
    with torch.no_grad():
        torch.testing.assert_close(captured.restore(run(x)), model(x), rtol=1e-4, atol=1e-5)


def test_gradients_flow_without_freezing():
    graph = fx.Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    graph.output((graph.call_function(torch.ops.aten.linear.default, (x, weight)),))
    values = [torch.randn(2, 8), torch.randn(4, 8, requires_grad=True)]
    run = compile_dense(fx.GraphModule(nn.Module(), graph), values)
    run(*values)[0].sum().backward()
    torch.testing.assert_close(values[1].grad, values[0].sum(0).expand(4, 8))


def test_a_missing_compiler_is_named():
    graph = fx.Graph()
    graph.output((graph.call_function(torch.ops.aten.tanh.default, (graph.placeholder("x"),)),))
    without = torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler"), "fx_graph_cache": False})
    with without, pytest.raises(MachineError, match=r"finds no C\+\+ compiler"):
        compile_dense(fx.GraphModule(nn.Module(), graph), [torch.randn(2, 8)])


def around_a_region(op) -> fx.GraphModule:
    graph = fx.Graph()
    x = graph.placeholder("x")
    before = graph.call_function(torch.ops.aten.relu.default, (x,))
    region = op.insert(graph, [before])
    first, second = (graph.call_function(operator.getitem, (region, at)) for at in (0, 1))
    graph.output((graph.call_function(torch.ops.aten.mul.Tensor, (first, 2.0)), second))
    return fx.GraphModule(nn.Module(), graph)


def split_sums(inputs):
    return [inputs[0].sum(1), inputs[0].sum(2)]


def allocate(inputs):
    return [torch.empty(2, 4), torch.empty(2, 3)]


@pytest.mark.parametrize("freezing", [False, True])
def test_a_region_inside_a_graph(freezing):
    x = torch.randn(2, 3, 4)
    op = RegionOp(split_sums, allocate)
    run = compile_dense(around_a_region(op), [x], freezing=freezing)
    with torch.no_grad():
        first, second = run(x)
    torch.testing.assert_close(first, x.relu().sum(1) * 2)
    torch.testing.assert_close(second, x.relu().sum(2))


def test_regions_of_equal_shape_are_not_confused():
    x = torch.randn(2, 3, 4)
    ops = [RegionOp(split_sums, allocate), RegionOp(lambda v: [-value for value in split_sums(v)], allocate)]
    with torch.no_grad():
        plus, minus = [compile_dense(around_a_region(op), [x])(x) for op in ops]
    for a, b in zip(plus, minus, strict=True):
        torch.testing.assert_close(a, -b)


def test_a_region_takes_contiguous_inputs_from_convolutions():
    seen = []

    def identity(inputs):
        seen.append(inputs[0].is_contiguous())
        return [inputs[0].clone()]

    op = RegionOp(identity, lambda inputs: [torch.empty(2, 8, 6, 6)])
    model, x = Chain().eval(), torch.randn(2, 3, 8, 8)
    graph_module = capture(model, (x,)).graph_module
    output = graph_module.graph.output_node()
    [value] = output.args[0]
    with graph_module.graph.inserting_before(output):
        region = op.insert(graph_module.graph, [value])
        output.args = ((graph_module.graph.call_function(operator.getitem, (region, 0)),),)
    graph_module.recompile()
    with torch.no_grad():
        torch.testing.assert_close(compile_dense(graph_module, [x], freezing=True)(x)[0], model(x), rtol=1e-4, atol=1e-5)
    assert seen and all(seen)


def test_shapes_are_known_without_running():
    op = RegionOp(split_sums, lambda inputs: [torch.empty(2, 4), torch.empty(2, 3, dtype=torch.bfloat16)])
    values = REGION(op.handle, [torch.empty(2, 3, 4, device="meta")])
    assert [(value.shape, value.dtype) for value in values] == [((2, 4), torch.float32), ((2, 3), torch.bfloat16)]


def test_a_handle_dies_with_its_owner():
    op = RegionOp(split_sums, allocate)
    handle = op.handle
    torch.testing.assert_close(op([torch.ones(1, 2, 3)])[0], torch.full((1, 3), 2.0))
    del op
    gc.collect()
    assert handle not in _running
