"""The Editor keeps shapes, names, facts and provenance right, and refuses what would change them."""

import pytest
import torch

from sparsec.errors import PassRefused
from sparsec.facts.lattice import Fact
from sparsec.ir import ops
from sparsec.ir.editor import Editor, merged_source
from sparsec.ir.forms import constant, known_fact, notes
from sparsec.ir.pipeline import Context, copied, run
from sparsec.passes import PIPELINE
from tests.strategies import Network, integers

aten = torch.ops.aten


@pytest.fixture
def net() -> Network:
    network = Network((1, 2, 4, 4), 0)
    network.conv(integers((3, 2, 3, 3), 1))
    network.add(aten.relu.default, network.last)
    return network.returns(network.last)


def test_replace_refuses_another_shape(net: Network) -> None:
    before = str(net.graph_module.graph)
    with pytest.raises(PassRefused, match="another shape or dtype"):
        net.edit.replace(net.last, aten.max_pool2d.default, (net.values[-2], [2, 2]))
    assert str(net.graph_module.graph) == before


def test_replace_refuses_another_dtype(net: Network) -> None:
    with pytest.raises(PassRefused, match=r"float64.*float32"):
        net.edit.replace(net.last, aten.to.dtype, (net.values[-2], torch.float32))


def test_replace_keeps_value_and_merges_sources(net: Network) -> None:
    conv, relu = net.values[-2:]
    net.edit.note(conv, source="a.py:1")
    net.edit.note(relu, source="a.py:2")
    made = net.edit.replace(relu, ops.conv2d, (*conv.args[:2],), {"activation": "clamp", "lo": 0.0}, absorbed=(conv,))
    assert notes(made)["source"] == "a.py:1; a.py:2"
    assert made.meta["val"].shape == (1, 3, 2, 2)
    assert net.edit.sweep() == 1
    assert torch.equal(net.run()[0], net.run(net.returns(made).graph_module)[0])


def test_sources_are_told_once(net: Network) -> None:
    for node, source in zip(net.values, ("a", "a; b", "c"), strict=True):
        net.edit.note(node, source=source)
    assert merged_source(net.values) == "a; b; c"


def test_facts_follow_a_replacement(net: Network) -> None:
    graph_module = run(net.graph_module, PIPELINE[:4], Context()).graph_module
    edit = Editor(graph_module)
    (relu,) = graph_module.graph.find_nodes(op="call_function", target=aten.relu.default)
    edit.note(relu, fact=Fact(high=5.0))
    made = edit.replace(relu, ops.activate, relu.args, {"activation": "clamp", "lo": 0.0})
    assert (known_fact(made).low, known_fact(made).high) == (0.0, 5.0)


def test_constants_get_free_names_and_are_stored_contiguous(net: Network) -> None:
    wide = torch.zeros(3, 2).t()
    names = [net.edit.add_constant(wide, "a.b", before=net.last).target for _ in range(3)]
    assert names == ["a_b", "a_b_1", "a_b_2"]
    stored = net.graph_module.get_buffer("a_b")
    assert stored.is_contiguous()
    assert stored.shape == (2, 3)


def test_erase_refuses_what_is_read(net: Network) -> None:
    with pytest.raises(PassRefused, match=f"read by {net.last.name}"):
        net.edit.erase(net.values[-2])


def test_sweep_drops_dead_calls_and_constants_but_no_input(net: Network) -> None:
    net.returns(net.values[0])
    assert net.edit.sweep() == 3
    assert [node.op for node in net.graph_module.graph.nodes] == ["placeholder", "output"]
    assert not list(net.graph_module.buffers())


def test_set_args_refuses_another_shape_outside_resizing(net: Network) -> None:
    conv = net.values[-2]
    smaller = net.edit.add_constant(torch.zeros(2, 2, 3, 3).double(), "smaller", before=conv)
    with pytest.raises(PassRefused):
        net.edit.set_args(conv, (conv.args[0], smaller))


def test_resizing_computes_inner_values_and_keeps_outputs(net: Network) -> None:
    conv = net.values[-2]
    smaller = net.edit.add_constant(torch.zeros(2, 2, 3, 3).double(), "smaller", before=conv)
    with pytest.raises(PassRefused, match="outputs of the graph"), net.edit.resizing():
        net.edit.set_args(conv, (conv.args[0], smaller))
    assert conv.meta["val"].shape == (1, 2, 2, 2)


def test_notes_of_a_copy_are_its_own(net: Network) -> None:
    net.edit.note(net.last, layout="nchw")
    other = copied(net.graph_module)
    (relu,) = other.graph.find_nodes(op="call_function", target=aten.relu.default)
    Editor(other).note(relu, layout="halo")
    assert notes(net.last)["layout"] == "nchw"


def test_constants_are_shared_by_a_copy(net: Network) -> None:
    (weight,) = net.graph_module.graph.find_nodes(op="get_attr")
    (same,) = copied(net.graph_module).graph.find_nodes(op="get_attr")
    assert constant(weight) is constant(same)
    assert constant(net.last) is None
    assert constant(3) is None
