"""Which nodes become specs, and what is said of the others; specs as data and as oracles."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparsec.doors.from_torch.capture import capture
from sparsec.ir import ops
from sparsec.ir.arguments import operands
from sparsec.ir.miss import Miss
from sparsec.ir.operands import residual, sources, weights
from sparsec.ir.pipeline import Context, run
from sparsec.lower.costs import Costs
from sparsec.lower.describe import spec_of
from sparsec.lower.spec import KernelSpec
from sparsec.passes import PIPELINE

# Whole compilations: the fast set has the parts.
pytestmark = pytest.mark.slow

aten = torch.ops.aten
FUSING = PIPELINE[: next(n for n, step in enumerate(PIPELINE) if step.name == "assign_layouts")]
MAP = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(0))


def fused(function, *inputs: Tensor, **costs) -> fx.GraphModule:
    """The graph of a function or module after fusion."""

    class Module(nn.Module):
        def forward(self, *args):
            return function(*args)

    module = function if isinstance(function, nn.Module) else Module()
    return run(capture(module.eval(), inputs or (MAP,)).graph_module, FUSING, Context(costs=Costs(**costs))).graph_module


def last(graph_module: fx.GraphModule) -> fx.Node:
    return [node for node in graph_module.graph.nodes if node.op == "call_function"][-1]


DEPTHWISE = nn.Conv2d(4, 4, 3, padding=1, groups=4)
COMPUTED = {
    "conv2d": nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.SiLU()),
    "conv2d with residual": lambda x: x + DEPTHWISE(x),
    "conv2d with dilation": nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(120, 7), nn.ReLU6()),
    "depthwise_pointwise": nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, groups=4), nn.ReLU6(), nn.Conv2d(4, 6, 1), nn.Hardswish()),
    "activate": lambda x: F.hardsigmoid(x),
    "add": lambda x: x + x.relu(),
    "add to itself": lambda x: x + x,
    "mul": lambda x: x * x.relu(),
    "mul by channel": lambda x: x.mean((2, 3), keepdim=True) * x,
    "global_avg_pool": lambda x: x.mean((-2, -1), keepdim=True),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "avg_pool2d": lambda x: F.avg_pool2d(x, (3, 2), 1, count_include_pad=False),
    "alias": lambda x: x.relu().flatten(1),
    "alias of a map": lambda x: x.relu().view(2, 8, 15, 1),
    "permute": lambda x: x.relu().transpose(1, 3),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_the_reference_of_a_spec_is_what_its_node_computes(name):
    torch.manual_seed(1)
    graph_module = fused(COMPUTED[name], joined_bytes=0)
    checked = 0
    values: dict[fx.Node, Tensor] = {}
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            values[node] = MAP
        if node.op != "call_function":
            continue
        args = [graph_module.get_buffer(a.target) if isinstance(a, fx.Node) and a.op == "get_attr" else a for a in node.args]
        args = [values[a] if isinstance(a, fx.Node) else a for a in args]
        values[node] = node.target(*args, **node.kwargs)
        spec = spec_of(node)
        assert isinstance(spec, KernelSpec), spec
        taken = args if node.target in ops.FUNCTIONS else [a for a in args if isinstance(a, Tensor)]
        torch.testing.assert_close(spec.reference(*taken), values[node])
        assert spec.output == tuple(values[node].shape[1:])
        assert spec.inputs == tuple(tuple(a.meta["val"].shape[1:]) for a in sources(node))
        assert (spec.residual is None) == (residual(node) is None)
        checked += 1
    assert checked
    assert spec_of(last(graph_module)).op == name.split()[0]


REFUSED = {
    "broadcasts": lambda x: x * x.mean((1, 2, 3), keepdim=True),
    "constant operand": lambda x: x + 1.0,
    "factor": lambda x: torch.add(x, x.relu(), alpha=2),
    "own divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "ceil_mode": lambda x: F.max_pool2d(x, 2, ceil_mode=True),
    "only pooling to one pixel": lambda x: F.adaptive_avg_pool2d(x, 2),
    "float64": lambda x: x.double().relu(),
    "kernels take": lambda x: x.unsqueeze(2).relu(),
    "cumsum.default is an operator without a record": lambda x: x.cumsum(1),
    "computed, not constant": lambda x: F.conv2d(x, x[:, :, :1, :1]),
    "batch sizes": lambda x: x[:1] * x,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusals_say_why(reason):
    found = spec_of(last(fused(REFUSED[reason])))
    assert isinstance(found, Miss)
    assert reason in found.reason


def test_what_reads_constants_only_is_refused():
    graph = fx.Graph()
    root = nn.Module()
    root.register_buffer("c", MAP)
    constant = graph.get_attr("c")
    constant.meta["val"] = MAP
    for target, args in (
        (aten.max_pool2d.default, ([2, 2],)),
        (aten.flatten.using_ints, (1,)),
        (aten.adaptive_avg_pool2d.default, ([1, 1],)),
    ):
        node = graph.call_function(target, (constant, *args))
        node.meta["val"] = target(MAP, *args)
        assert spec_of(node).reason == "it reads constants only"


def test_placeholders_and_results_of_several_tensors_are_no_operators():
    graph_module = fused(lambda x: x.max(1)[0])
    nodes = list(graph_module.graph.nodes)
    assert all("not an operator" in spec_of(node).reason for node in nodes[:2])


def test_pooling_of_one_pixel_changes_nothing():
    assert spec_of(last(fused(lambda x: F.adaptive_avg_pool2d(x, 1), MAP[:, :, :1, :1]))).op == "alias"


def test_constants_and_residuals_are_told_apart():
    conv = nn.Conv2d(4, 4, 1, bias=False)
    node = last(fused(lambda x: conv(x) + x))
    assert residual(node) is operands(node)[0]
    assert spec_of(node).operands() == {"x": (4, 6, 5), "weight": (4, 4, 1, 1), "residual": (4, 6, 5)}
    assert [w is None for w in weights(node)] == [False, True]
    assert residual(last(fused(nn.ReLU()))) is None


def test_specs_are_equal_as_text_where_they_are_equal():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1)
    first, again = (spec_of(last(fused(conv))) for _ in range(2))
    other = spec_of(last(fused(nn.Conv2d(4, 6, 3, padding=1, dilation=1, stride=2))))
    assert (first, first.json(), first.key) == (again, again.json(), again.key)
    assert first.key != other.key
    assert json.loads(first.json())["op"] == "conv2d"
    with pytest.raises(KeyError):
        _ = first["kernel_size"]


def test_conversions_are_the_identity_on_values():
    spec = KernelSpec("convert", ((4, 6, 5),), (4, 6, 5), attributes=(("layout", "halo"),))
    assert torch.equal(spec.reference(MAP), MAP)
