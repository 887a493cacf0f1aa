"""What holds of every prefix of the pipeline, whatever passes it has."""

import pytest
import torch
from hypothesis import given, settings
from torch import fx

from sparsec.demand import all_channels, channels_read
from sparsec.forms import is_value, known_fact
from sparsec.passes import PIPELINE
from sparsec.pipeline import Context, run
from sparsec.transfer import channel_count
from tests.strategies import Network, networks

PREFIXES = [pytest.param(PIPELINE[: n + 1], id=step.name) for n, step in enumerate(PIPELINE)]
EAGER_FUSION = Context(costs={"depthwise_pointwise_bytes": 0})


class FactCheck(fx.Interpreter):
    """Runs a graph and checks every fact on the real value."""

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        if isinstance(value, torch.Tensor):
            assert known_fact(node).holds(value), f"{node.format_node()}: {known_fact(node)}"
        return value


class Disturbance(fx.Interpreter):
    """Runs a graph with large numbers in every channel that nobody is said to read."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.read = channels_read(graph_module.graph)

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        if node.op == "call_function" and is_value(node) and node.users and channel_count(node) > 1:
            value = value.clone()
            for channel in all_channels(node) - self.read[node]:
                value.select(1, channel).fill_(1e6)
        return value


@pytest.mark.parametrize("passes", PREFIXES)
@settings(max_examples=12)
@given(network=networks())
def test_every_prefix_means_the_same(passes: tuple, network: Network) -> None:
    result = run(network.graph_module, passes, EAGER_FUSION)
    for expected, found in zip(network.run(), network.run(result.graph_module), strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("passes", PREFIXES)
@settings(max_examples=8)
@given(network=networks())
def test_twice_is_once(passes: tuple, network: Network) -> None:
    once = run(network.graph_module, passes, EAGER_FUSION).graph_module
    twice = run(network.graph_module, (*passes, passes[-1]), EAGER_FUSION).graph_module
    assert [signature(node) for node in once.graph.nodes] == [signature(node) for node in twice.graph.nodes]


def signature(node: fx.Node) -> tuple:
    arguments = fx.map_arg((node.args, dict(node.kwargs)), lambda n: n.meta["val"].shape)
    return node.op, str(node.target) if node.op == "call_function" else "", str(arguments)


@pytest.mark.parametrize("passes", PREFIXES)
@settings(max_examples=8)
@given(network=networks())
def test_facts_hold_on_real_values(passes: tuple, network: Network) -> None:
    result = run(network.graph_module, passes, EAGER_FUSION)
    FactCheck(result.graph_module).run(network.input)


@settings(max_examples=60)
@given(network=networks())
def test_channels_that_nobody_reads_do_not_matter(network: Network) -> None:
    for expected, found in zip(network.run(), Disturbance(network.graph_module).run(network.input), strict=True):
        assert torch.equal(expected, found)


@settings(max_examples=30)
@given(network=networks())
def test_every_miss_has_a_reason(network: Network) -> None:
    story = run(network.graph_module, PIPELINE, Context()).story
    assert [chapter.name for chapter in story.chapters] == [step.name for step in PIPELINE]
    assert all(miss.reason and miss.node for chapter in story.chapters for miss in chapter.misses)
    assert all(hit.line for chapter in story.chapters for hit in chapter.hits)


@settings(max_examples=15)
@given(network=networks())
def test_the_callers_graph_is_left_as_it_was(network: Network) -> None:
    code, metas = str(network.graph_module.graph), [dict(node.meta) for node in network.graph_module.graph.nodes]
    run(network.graph_module, PIPELINE, Context())
    assert str(network.graph_module.graph) == code
    assert [dict(node.meta) for node in network.graph_module.graph.nodes] == metas
