"""Which values carry which tokens, where blocks end, and what follows tokens to the outputs."""

import pytest
import torch
from torch import fx

from sparsec.ir.arguments import arguments
from sparsec.ir.miss import Miss
from sparsec.tokens import ops as token_ops
from sparsec.tokens.token_axis import TokenSets, exit_of, follow, self_attentions
from sparsec.tokens.token_rules import Followed
from sparsec.tokens.work import TokenWork
from tests.strategies import Network
from tests.token_networks import TokenNetwork

aten = torch.ops.aten


def nodes(graph_module: fx.GraphModule, target: object) -> list[fx.Node]:
    return [node for node in graph_module.graph.nodes if node.target is target]


def followed(node: fx.Node) -> Followed:
    found = follow(node)
    assert isinstance(found, Followed)
    return found


@pytest.mark.parametrize("post_norm", [False, True])
def test_all_values_of_a_transformer_carry_the_same_tokens(post_norm: bool) -> None:
    graph_module = TokenNetwork(post_norm=post_norm, masked=True, table=3).graph_module()
    sets = TokenSets(graph_module.graph)
    (cat,) = nodes(graph_module, aten.cat.default)
    x, mask = graph_module.graph.find_nodes(op="placeholder")
    carriers = [node for node in graph_module.graph.nodes if node.op == "call_function" and node.meta["val"].dim() == 3]
    assert {sets.of(node) for node in carriers} == {sets.of(cat)}
    assert sets.of(x) not in (None, sets.of(cat)) and sets.of(mask) is None
    assert sets.of(nodes(graph_module, aten.select.int)[0]) is None


def test_tokens_that_meet_are_one_set() -> None:
    net = Network((2, 5, 4), 0)
    a, b = (net.add(aten.cumsum.default, net.values[0], dim) for dim in (1, 2))
    assert len({TokenSets(net.graph_module.graph).of(node) for node in (net.values[0], a, b)}) == 3
    net.add(aten.add.Tensor, a, b)
    sets = TokenSets(net.returns(net.last).graph_module.graph)
    assert sets.of(a) == sets.of(b) == sets.of(net.last) != sets.of(net.values[0])


def test_blocks_are_attention_of_one_set() -> None:
    graph_module = TokenNetwork(depth=3).graph_module()
    attentions = nodes(graph_module, token_ops.attention)
    assert self_attentions(graph_module.graph) == attentions
    attentions[1].replace_input_with(attentions[1].args[2], graph_module.graph.find_nodes(op="placeholder")[0])
    assert self_attentions(graph_module.graph) == [attentions[0], attentions[2]]


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("head", ["select", "mean", "tokens"])
def test_blocks_end_at_their_last_residual_sum(post_norm: bool, head: str) -> None:
    graph_module = TokenNetwork(post_norm=post_norm, head=head).graph_module()
    attentions, sums = nodes(graph_module, token_ops.attention), nodes(graph_module, aten.add.Tensor)
    assert [exit_of(attention) for attention in attentions] == sums[1::2]
    norms = nodes(graph_module, aten.layer_norm.default)
    assert [exit_of(attention, normed=True) for attention in attentions] == (norms[1::2] if post_norm else sums[1::2])


def test_attention_that_nothing_depends_on_has_no_end() -> None:
    graph_module = TokenNetwork(depth=1).graph_module()
    (attention,) = nodes(graph_module, token_ops.attention)
    next(iter(attention.users)).replace_input_with(attention, attention.args[0])
    found = exit_of(attention)
    assert isinstance(found, Miss) and found.reason == "nothing depends on this attention"


def test_followed_tokens() -> None:
    graph_module = TokenNetwork(masked=True, pairs=1, table=2, skip=True).graph_module()
    attentions = nodes(graph_module, token_ops.attention)
    end = exit_of(attentions[0])
    assert isinstance(end, fx.Node)
    found = followed(end)
    assert found.attentions == attentions[1:] and found.tokens == 10 and not found.means and not found.returned
    assert list(found.reads) == [0] and found.reads[0].target is aten.select.int
    kinds = [(each.node, each.name, each.kind) for each in found.aligned]
    tables = [node for node in found.carriers if node.target is aten.add.Tensor and node.args[1].op == "get_attr"]
    assert [(node, "other", "tokens") for node in tables] == [kind for kind in kinds if kind[0] in tables]
    for attention in attentions[1:]:
        assert {(attention, "key_bias", "keys"), (attention, "pair_bias", "pairs")} <= set(kinds)
    (long,) = [each for each in found.aligned if each.operand.target is aten.cat.default]
    assert long.kind == "tokens" and arguments(long.node)[long.name] is long.operand


def test_means_and_results_are_found() -> None:
    for head in ("mean", "tokens"):
        graph_module = TokenNetwork(head=head, depth=1).graph_module()
        found = followed(nodes(graph_module, aten.add.Tensor)[1])
        assert found.means == nodes(graph_module, aten.mean.dim)
        assert found.returned == ([found.start] if head == "tokens" else [])


def chained(*steps: tuple) -> Miss | Followed:
    """Follow the input [2,5,4] through operators, each of the value before it."""
    net = Network((2, 5, 4), 0)
    for target, *args in steps:
        net.add(target, net.last, *args)
    return follow(net.returns(net.last).values[0])


@pytest.mark.parametrize(
    "step",
    [
        (aten.relu.default,),
        (aten.gelu.default,),
        (aten.mul.Tensor, 2.0),
        (aten.div.Tensor, 3),
        (aten.dropout.default, 0.5, False),
        (aten.clone.default,),
        (aten.to.dtype, torch.float32),
        (aten.layer_norm.default, [4]),
    ],
)
def test_operators_on_single_tokens_are_followed(step: tuple) -> None:
    found = chained(step)
    assert isinstance(found, Followed) and len(found.carriers) == 2 and not found.aligned


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ((aten.dropout.default, 0.5, True), "aten.dropout.default is not known to treat tokens one by one"),
        ((aten.softmax.int, 1), "aten.softmax.int is not known"),
        ((aten.layer_norm.default, [5, 4]), "more than the features"),
        ((aten.select.int, 0, 0), "takes a part of the features or of the batch"),
        ((aten.mean.dim, [1, 2]), "not over the tokens alone"),
        ((aten.mean.dim, None), "not over the tokens alone"),
    ],
)
def test_operators_that_mix_tokens_are_not(step: tuple, reason: str) -> None:
    found = chained(step)
    assert isinstance(found, Miss) and reason in found.reason and found.where.target is step[0]


def test_tokens_as_parameters_are_not_followed() -> None:
    net = Network((2, 5, 4), 0)
    gate = net.add(aten.sum.dim_IntList, net.values[0], [0, 1])
    net.add(aten.layer_norm.default, net.values[0], [4], gate)
    found = follow(net.returns(net.last).values[0])
    assert isinstance(found, Miss) and found.where is gate


def test_work_is_that_of_the_tokens_that_are_left() -> None:
    graph_module = TokenNetwork(batch=3, depth=2).graph_module()
    end = exit_of(nodes(graph_module, token_ops.attention)[0])
    assert isinstance(end, fx.Node)
    work = TokenWork(graph_module.graph, [followed(end)])
    block = lambda tokens: tokens * (4 * 8 * 8 + 2 * 8 * 12) + tokens * tokens * 16  # noqa: E731
    for count in (1, 4, 10):
        assert work([count]) == 3 * (block(10) + block(count) + 8 * 5)
