"""What has to hold of every pass and of every prefix of the pipeline, on drawn networks of all kinds."""

from collections.abc import Callable
from zlib import crc32

import torch
from hypothesis import Phase, given, seed, settings
from torch import fx

from sparsec.facts.backward import all_channels
from sparsec.facts.forward import channel_count
from sparsec.facts.propagation import channels_read
from sparsec.ir.editor import shape_and_dtype
from sparsec.ir.forms import is_value, known_fact
from sparsec.ir.pipeline import Context, Pass, run
from sparsec.lower.costs import Costs
from tests.strategies import KINDS, Drawn

Passes = tuple[Pass, ...]
Claim = Callable[[Drawn, Passes], None]
EAGER_FUSION = Context(costs=Costs(joined_bytes=0))


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


def means_the_same(network: Drawn, passes: Passes) -> None:
    wanted = network.run()
    found = network.run(run(network.graph_module, passes, EAGER_FUSION).graph_module)
    for ours, expected in zip(found, wanted, strict=True):
        if network.exact:
            assert torch.equal(ours, expected)
        else:
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def is_once_what_it_is_twice(network: Drawn, passes: Passes) -> None:
    once = run(network.graph_module, passes, EAGER_FUSION).graph_module
    twice = run(network.graph_module, (*passes, passes[-1]), EAGER_FUSION).graph_module
    assert [signature(node) for node in once.graph.nodes] == [signature(node) for node in twice.graph.nodes]


def signature(node: fx.Node) -> tuple:
    arguments = fx.map_arg((node.args, dict(node.kwargs)), lambda n: shape_and_dtype(n.meta["val"]))
    return node.op, str(node.target) if node.op == "call_function" else "", str(arguments)


def has_facts_that_hold(network: Drawn, passes: Passes) -> None:
    result = run(network.graph_module, passes, EAGER_FUSION)
    FactCheck(result.graph_module).run(*network.inputs)


def is_read_where_it_matters(network: Drawn, passes: Passes) -> None:
    for expected, found in zip(network.run(), Disturbance(network.graph_module).run(*network.inputs), strict=True):
        assert torch.equal(expected, found)


def tells_why(network: Drawn, passes: Passes) -> None:
    story = run(network.graph_module, passes, Context()).story
    assert [chapter.name for chapter in story.chapters] == [step.name for step in passes]
    assert all(miss.reason and miss.where for chapter in story.chapters for miss in chapter.misses)
    assert all(hit.line for chapter in story.chapters for hit in chapter.hits)


def leaves_the_callers_graph(network: Drawn, passes: Passes) -> None:
    module = network.graph_module
    code, metas = str(module.graph), [dict(node.meta) for node in module.graph.nodes]
    constants = {name: value.clone() for name, value in module.named_buffers()}
    run(module, passes, Context())
    assert str(module.graph) == code
    assert [dict(node.meta) for node in module.graph.nodes] == metas
    assert constants.keys() == dict(module.named_buffers()).keys()
    assert all(torch.equal(constants[name], value) for name, value in module.named_buffers())


#: For how many networks of each kind a claim is tried: with every prefix, and with the whole pipeline.
OF_PREFIXES: dict[Claim, int] = {means_the_same: 5, is_once_what_it_is_twice: 8, has_facts_that_hold: 5}
OF_THE_WHOLE: dict[Claim, int] = {
    means_the_same: 60,
    has_facts_that_hold: 20,
    is_read_where_it_matters: 30,
    tells_why: 10,
    leaves_the_callers_graph: 10,
}


def holds_for_all(claim: Claim, kind: str, passes: Passes, examples: int, *, shrink: bool = True) -> None:
    """Draw networks of a kind until the claim fails: AssertionError. Each claim, kind and number of passes has networks of its own.

    What hypothesis draws in one run resembles what it drew before, so that there are runs of at most ten.
    """
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)

    @settings(max_examples=min(examples, 10), report_multiple_bugs=False, phases=phases)
    @given(network=KINDS[kind])
    def check(network: Drawn) -> None:
        claim(network, passes)

    for begin in range(0, examples, 10):
        seed(crc32(f"{claim.__name__} {kind} {len(passes)} {begin}".encode()))(check)()
