"""The verifier finds faults planted in a graph."""

import pytest
import torch

from sparsec.errors import VerificationError
from sparsec.ir.forms import Form
from sparsec.ir.verify import Verifier
from tests.strategies import Network, integers

aten = torch.ops.aten


@pytest.fixture
def net() -> Network:
    network = Network((1, 2, 4, 4), 0)
    network.conv(integers((3, 2, 3, 3), 1))
    network.add(aten.relu.default, network.last)
    return network.returns(network.last)


def test_a_sound_graph_passes_and_the_second_time_computes_nothing(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = Verifier()
    verifier(net.graph_module, Form.CAPTURED)
    monkeypatch.setattr(verifier, "_compute", lambda *_: pytest.fail("computed again"))
    verifier(net.graph_module, Form.CAPTURED)


@pytest.mark.parametrize("wrong", [torch.empty(1, 3, 2, 3).double(), torch.empty(1, 3, 2, 2)], ids=["shape", "dtype"])
def test_a_value_that_is_not_what_it_says(net: Network, wrong: torch.Tensor) -> None:
    net.last.meta["val"] = wrong
    with pytest.raises(VerificationError, match=r"(?s)does not have the value it says.*relu"):
        Verifier()(net.graph_module, Form.CAPTURED)


def test_a_constant_that_is_not_what_it_says(net: Network) -> None:
    (node,) = net.graph_module.graph.find_nodes(op="get_attr")
    net.graph_module.register_buffer(node.target, torch.ones(4, 2, 3, 3).double())
    with pytest.raises(VerificationError, match="does not have the value it says"):
        Verifier()(net.graph_module, Form.CAPTURED)


def test_arguments_that_cannot_be_executed(net: Network) -> None:
    conv = net.values[-2]
    conv.target = aten.linear.default
    with pytest.raises(VerificationError, match=r"(?s)cannot be executed.*conv2d"):
        Verifier()(net.graph_module, Form.CAPTURED)


def test_strides_that_a_view_relies_on_are_followed() -> None:
    """The view is as it was; only the value before it lost the copy that made it contiguous."""
    net = Network((2, 3), 0)
    turned = net.add(aten.transpose.int, net.last, 0, 1)
    copy = net.add(aten.contiguous.default, turned)
    net.add(aten.view.default, copy, [6])
    net.returns(net.last)
    verifier = Verifier()
    verifier(net.graph_module, Form.CAPTURED)
    net.last.args = (turned, [6])
    with pytest.raises(VerificationError, match=r"(?s)cannot be executed.*view"):
        verifier(net.graph_module, Form.CAPTURED)


def test_a_node_before_its_input(net: Network) -> None:
    net.values[-2].prepend(net.last)
    with pytest.raises(VerificationError, match="comes before its input"):
        Verifier()(net.graph_module, Form.CAPTURED)


def test_a_form_that_is_not_reached(net: Network) -> None:
    with pytest.raises(VerificationError, match="not INFERRED"):
        Verifier()(net.graph_module, Form.INFERRED)
