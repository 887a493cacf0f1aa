"""InferActivationFacts: forward to every value, backward from its readers."""

import torch

from sparsec.ir.form_checks import check
from sparsec.ir.forms import Form, known_fact
from sparsec.ir.pipeline import Context, run
from sparsec.passes import InferActivationFacts, InferWeightFacts
from tests.strategies import Network, integers

aten = torch.ops.aten


def test_facts_go_forward_and_readers_are_asked() -> None:
    net = Network((1, 3, 4, 4), 0)
    first, second = integers((4, 3, 3, 3), 1, 1, 3), integers((2, 4, 3, 3), 2, 1, 3)
    first[1], second[:, 3] = 0, 0
    net.conv(first, torch.full((4,), 2.0).double(), padding=1)
    net.add(aten.relu6.default, net.last)
    net.conv(second)
    result = run(net.returns(net.last).graph_module, (InferWeightFacts(), InferActivationFacts()), Context())
    check(Form.INFERRED, result.graph_module)
    (relu,) = result.graph_module.graph.find_nodes(op="call_function", target=aten.relu6.default)
    assert known_fact(relu).constants == ((1, 2.0),)
    assert (known_fact(relu).low, known_fact(relu).high) == (0.0, 6.0)
    lines = [hit.line for hit in result.story.chapters[1].hits]
    assert lines.count("1 of 4 channels are constant") == 2
    assert lines.count("1 of 4 channels are unread") == 2
