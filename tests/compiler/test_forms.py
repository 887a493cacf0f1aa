"""Each form is a check that finds the breach planted for it."""

import pytest
import torch

from sparsec.errors import VerificationError
from sparsec.ir import ops
from sparsec.ir.form_checks import check
from sparsec.ir.forms import Form
from sparsec.ir.pipeline import Context, Pass, run
from sparsec.passes import PIPELINE
from tests.strategies import Network, integers

aten = torch.ops.aten


def network() -> Network:
    net = Network((1, 2, 4, 4), 0)
    net.conv(integers((3, 2, 3, 3), 1))
    net.add(aten.relu.default, net.last)
    return net.returns(net.last)


def test_the_pipeline_reaches_its_forms() -> None:
    graph_module = run(network().graph_module, PIPELINE, Context()).graph_module
    for form in Form:
        check(form, graph_module)


def test_a_module_call_is_not_captured() -> None:
    net = network()
    net.graph_module.add_submodule("inner", torch.nn.ReLU())
    with net.graph_module.graph.inserting_after(net.last):
        net.graph_module.graph.call_module("inner", (net.last,))
    with pytest.raises(VerificationError, match="not CAPTURED: call_module"):
        check(Form.CAPTURED, net.graph_module)


def test_a_missing_value_is_not_captured() -> None:
    net = network()
    del net.last.meta["val"]
    with pytest.raises(VerificationError, match=r"(?s)val.*is missing.*where: relu"):
        check(Form.CAPTURED, net.graph_module)


@pytest.mark.parametrize(
    "value",
    [torch.nn.Parameter(torch.ones(3, 2, 3, 3)), torch.ones(3, 2, 3, 6)[..., ::2], torch.eye(3).to_sparse_csr()],
    ids=["parameter", "strided", "sparse"],
)
def test_constants_are_detached_dense_and_contiguous(value: torch.Tensor) -> None:
    net = network()
    (node,) = net.graph_module.graph.find_nodes(op="get_attr")
    del net.graph_module._buffers[node.target]
    setattr(net.graph_module, node.target, value)
    with pytest.raises(VerificationError, match="not a detached, dense, contiguous tensor"):
        check(Form.CAPTURED, net.graph_module)


def test_a_dangling_constant_is_found() -> None:
    net = network()
    (node,) = net.graph_module.graph.find_nodes(op="get_attr")
    delattr(net.graph_module, node.target)
    with pytest.raises(VerificationError, match="is not a tensor"):
        check(Form.CAPTURED, net.graph_module)


def test_writing_is_allowed_to_fresh_values_only() -> None:
    net = network()
    net.last.target = aten.relu_.default
    check(Form.CAPTURED, net.graph_module)
    net.returns(net.last, net.values[-2])
    with pytest.raises(VerificationError, match="writes to a value that others may read"):
        check(Form.CAPTURED, net.graph_module)


def test_writing_to_an_input_is_not_captured() -> None:
    net = Network((2, 2), 0)
    net.add(aten.relu_.default, net.last)
    with pytest.raises(VerificationError, match="writes to a value"):
        check(Form.CAPTURED, net.returns(net.last).graph_module)


def test_a_value_without_fact_is_not_inferred() -> None:
    with pytest.raises(VerificationError, match="not INFERRED: a value has no fact"):
        check(Form.INFERRED, network().graph_module)


def until(name: str) -> tuple[Pass, ...]:
    """The pipeline up to and with a pass."""
    names = [step.name for step in PIPELINE]
    return PIPELINE[: names.index(name) + 1]


def test_unfused_operators_are_not_fused() -> None:
    graph_module = run(network().graph_module, until("infer_activation_facts"), Context()).graph_module
    with pytest.raises(VerificationError, match=r"not FUSED: aten.conv2d.default"):
        check(Form.FUSED, graph_module)


def test_an_unknown_activation_is_not_fused() -> None:
    graph_module = run(network().graph_module, until("fuse_epilogue"), Context()).graph_module
    (conv,) = graph_module.graph.find_nodes(op="call_function", target=ops.conv2d)
    conv.kwargs = {**conv.kwargs, "activation": "mish"}
    with pytest.raises(VerificationError, match="unknown activation 'mish'"):
        check(Form.FUSED, graph_module)


def test_values_of_ours_without_layout_are_not_laid_out() -> None:
    graph_module = run(network().graph_module, until("fuse_depthwise_pointwise"), Context()).graph_module
    with pytest.raises(VerificationError, match=r"not LAID_OUT: .*has no layout"):
        check(Form.LAID_OUT, graph_module)


def test_a_region_that_is_entered_again_is_refused() -> None:
    net = Network((1, 2), 0)
    nodes = [net.add(aten.neg.default, net.last) for _ in range(3)]
    graph_module = run(net.returns(net.last).graph_module, PIPELINE, Context()).graph_module
    nodes = graph_module.graph.find_nodes(op="call_function", target=aten.neg.default)
    for node, region in zip(nodes, (0, None, 0), strict=True):
        node.meta["custom"]["sparsec"]["region"] = region
    with pytest.raises(VerificationError, match="region 0 is left and entered again"):
        check(Form.REGIONS, graph_module)
    nodes[1].meta["custom"]["sparsec"]["region"] = 0
    check(Form.REGIONS, graph_module)
