"""InferWeightFacts: every constant is measured, matrices and filters are told of."""

import math

import torch

from sparsec.facts.lattice import Groups
from sparsec.ir.forms import known_fact
from sparsec.ir.pipeline import Context, Result, run
from sparsec.passes import InferWeightFacts
from tests.strategies import Network, integers


def inferred(weight: torch.Tensor) -> Result:
    net = Network((1, weight.shape[1]), 0)
    net.linear(weight, torch.zeros(weight.shape[0]).double())
    return run(net.returns(net.last).graph_module, (InferWeightFacts(),), Context())


def test_facts_are_noted_on_constants_and_told() -> None:
    weight = integers((4, 8), 0, 1, 3)
    weight[:, ::2] = 0
    weight[3] = 0
    result = inferred(weight)
    nodes = result.graph_module.graph.find_nodes(op="get_attr")
    fact, bias = (known_fact(node) for node in nodes)
    assert fact.groups == (Groups(1, 2), Groups(2, 4), Groups(4, 8))
    assert fact.dead_along(0) == {3}
    assert bias.is_zero
    (hit,) = result.story.chapters[0].hits
    assert hit.line.startswith("37.5% nonzero, 1:2, 2:4, 4:8")


def test_dense_and_non_finite_weights_are_misses() -> None:
    dense = integers((4, 8), 0, 1, 3)
    (miss,) = inferred(dense).story.chapters[0].misses
    assert miss.reason == "no value is zero"
    dense[0, 0] = math.nan
    (miss,) = inferred(dense).story.chapters[0].misses
    assert miss.reason == "the values are non-finite"
