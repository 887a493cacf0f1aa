"""InsertTokenPruning: equal to models pruned by hand, the identity where everything stays, and refusals that say why."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from sparsec.errors import InvalidInput
from sparsec.ir.pipeline import Context, Result, run
from sparsec.passes.insert_token_pruning import InsertTokenPruning
from sparsec.settings import Settings
from sparsec.tokens import ops as token_ops
from sparsec.tokens import pruning_ops
from sparsec.tokens.budget import remaining
from tests.token_networks import TokenNetwork

aten = torch.ops.aten
INSERT = (InsertTokenPruning(),)


def pruned(graph_module: fx.GraphModule, **option: Any) -> Result:
    return run(graph_module, INSERT, Context(Settings(token_pruning=option)))


def calls(result: Result, target: Any) -> list[fx.Node]:
    return [node for node in result.graph_module.graph.nodes if node.target is target]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def check(net: TokenNetwork, keep: Any, after: list[int], strategy: str = "prune", cls: bool | None = None) -> Result:
    """The pass agrees with the network written out by hand."""
    result = pruned(net.graph_module(), keep=keep, after=after, strategy=strategy, cls=cls)
    assert not result.story.chapters[0].misses
    keeps, left = {}, net.total
    for block, share in zip(after, keep if isinstance(keep, list) else [keep] * len(after), strict=True):
        keeps[block] = left = max(remaining(left, share), 1)
    judged = net.head == "select" if cls is None else cls
    for seed in range(3):
        (found,) = result.graph_module(*net.inputs(seed))
        close(found, net.by_hand(net.inputs(seed), keeps, strategy, judged))
    return result


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize(("cls", "head"), [(True, "select"), (True, "mean"), (False, "mean"), (False, "select")])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.turns(2)
def test_equals_pruning_by_hand(post_norm: bool, cls: bool, head: str, masked: bool) -> None:
    check(TokenNetwork(post_norm=post_norm, cls=cls, head=head, masked=masked, tokens=12), 0.5, [1, 2])


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("table", [0, 1, 2, 3])
@pytest.mark.parametrize("head", ["select", "mean"])
@pytest.mark.turns(2)
def test_biases_per_pair_and_tables_of_positions_follow(pairs: int, table: int, head: str) -> None:
    check(TokenNetwork(pairs=pairs, table=table, head=head, masked=True), [0.7, 0.6], [1, 2])


def test_a_long_residual_follows() -> None:
    result = check(TokenNetwork(skip=True), 0.5, [1, 2])
    assert len(calls(result, pruning_ops.gather_tokens)) == 4


def test_causal_attention_keeps_its_order() -> None:
    check(TokenNetwork(causal=True, cls=False, head="mean"), 0.6, [1, 2])


@pytest.mark.parametrize("cls", [False, True])
def test_the_judge_can_be_chosen(cls: bool) -> None:
    result = check(TokenNetwork(head="select"), 0.5, [1], cls=cls)
    assert f"judged by {'token 0' if cls else 'all tokens'}" in str(result.story)
    (keep,) = calls(result, pruning_ops.keep_tokens)
    assert keep.kwargs["first"] == 1


@pytest.mark.parametrize("strategy", ["prune", "merge"])
@settings(max_examples=12)
@given(data=st.data())
@pytest.mark.slow
def test_any_size(strategy: str, data: st.DataObject) -> None:
    depth = data.draw(st.integers(1, 4))
    net = TokenNetwork(
        batch=data.draw(st.integers(1, 3)),
        tokens=data.draw(st.integers(2, 17)),
        depth=depth,
        heads=data.draw(st.sampled_from([1, 2, 4])),
        cls=data.draw(st.booleans()),
        post_norm=data.draw(st.booleans()),
        head=data.draw(st.sampled_from(["select", "mean"])),
        table=data.draw(st.integers(0, 3)),
    )
    after = sorted(data.draw(st.sets(st.integers(1, depth), min_size=1)))
    keep = [data.draw(st.floats(0.65 if strategy == "merge" else 0.05, 1.0)) for _ in after]
    check(net, keep, after, strategy)


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize(("cls", "head", "masked"), [(True, "select", False), (True, "select", True), (False, "mean", False)])
@pytest.mark.turns(2)
def test_equals_merging_by_hand(post_norm: bool, cls: bool, head: str, masked: bool) -> None:
    net = TokenNetwork(post_norm=post_norm, cls=cls, head=head, masked=masked, tokens=12, skip=True, table=3)
    result = check(net, [0.7, 0.6], [1, 2], "merge")
    assert len(calls(result, pruning_ops.mean_merged)) == (head == "mean")


def test_tokens_go_after_the_residual_sum_that_ends_the_block() -> None:
    for post_norm in (False, True):
        result = pruned(TokenNetwork(post_norm=post_norm).graph_module(), keep=0.5, after=[2])
        (gather,) = calls(result, pruning_ops.gather_tokens)
        attention = calls(result, token_ops.attention)
        whole = gather.args[0]
        assert isinstance(whole, fx.Node) and whole.target is aten.add.Tensor
        assert [node.args[0].meta["val"].shape[1] for node in attention] == [10, 10, 5]
        downs = [node for node in calls(result, aten.linear.default) if node.args[0].meta["val"].shape[-1] == 12]
        assert whole.args[1] is downs[1]


@pytest.mark.parametrize("option", [{"keep": 1.0, "after": [1, 2]}, {"keep": [1, 1], "after": [1, 3]}, {"budget": 1.0}])
@pytest.mark.parametrize("strategy", ["prune", "merge"])
@pytest.mark.parametrize("head", ["select", "tokens"])
def test_keeping_all_changes_nothing(option: dict, strategy: str, head: str) -> None:
    whole = TokenNetwork(masked=True, head=head).graph_module()
    result = pruned(whole, **option, strategy=strategy)
    assert str(result.graph_module.graph) == str(whole.graph)
    assert result.graph_module.code == run(whole, (), Context()).graph_module.code
    assert not result.story.chapters[0].misses


def test_a_share_that_rounds_up_to_all_changes_nothing() -> None:
    whole = TokenNetwork(tokens=4).graph_module()
    assert str(pruned(whole, keep=0.95, after=[1]).graph_module.graph) == str(whole.graph)


def test_twice_is_once() -> None:
    for strategy in ("prune", "merge"):
        option = Context(Settings(token_pruning={"keep": 0.6, "after": [1], "strategy": strategy}))
        once = run(TokenNetwork().graph_module(), INSERT, option).graph_module
        assert str(run(once, INSERT, option).graph_module.graph) == str(once.graph)


def test_without_the_option_nothing_happens() -> None:
    whole = TokenNetwork(head="tokens").graph_module()
    assert str(run(whole, INSERT, Context()).graph_module.graph) == str(whole.graph)


@pytest.mark.parametrize("strategy", ["prune", "merge"])
@pytest.mark.parametrize("budget", [0.55, 0.7, 0.9])
@pytest.mark.turns(2)
def test_a_budget_is_spread_over_all_blocks_but_the_last(budget: float, strategy: str) -> None:
    net = TokenNetwork(batch=1, tokens=40, depth=4)
    result = pruned(net.graph_module(), budget=budget, strategy=strategy)
    sizes = [node.args[0].meta["val"].shape[1] for node in calls(result, token_ops.attention)]
    work = [sum(t * 8 * 8 * 4 + t * 8 * 12 * 2 + t * t * 16 for t in each) for each in (sizes, [41] * 4)]
    assert budget - 0.06 < work[0] / work[1] <= budget
    ratios = [b / a for a, b in itertools.pairwise(sizes)]
    assert max(ratios) - min(ratios) < 0.06 and max(ratios) < 1


def test_a_budget_may_name_its_blocks() -> None:
    result = pruned(TokenNetwork(batch=1, tokens=40, depth=4).graph_module(), budget=0.7, after=[2, 3])
    sizes = [node.args[0].meta["val"].shape[1] for node in calls(result, token_ops.attention)]
    assert sizes[0] == sizes[1] == 41 > sizes[2] > sizes[3]


# Refusals: the graph stays as it is, and the story says at which node and why.


def refused(graph_module: fx.GraphModule, **option: Any) -> tuple[str, str]:
    result = pruned(graph_module, **option)
    assert str(result.graph_module.graph) == str(graph_module.graph)
    (miss,) = result.story.chapters[0].misses
    return miss.where, miss.reason


def test_returned_tokens_are_refused_unless_allowed() -> None:
    net = TokenNetwork(head="tokens", cls=False)
    node, reason = refused(net.graph_module(), keep=0.5, after=[1, 2])
    assert node == "add_tensor_5" and "the graph returns its tokens" in reason and "allow_shorter" in reason
    result = pruned(net.graph_module(), keep=0.5, after=[1, 2], allow_shorter=True)
    (found,) = result.graph_module(*net.inputs())
    close(found, net.by_hand(net.inputs(), {1: 5, 2: 3}, cls=False))


def rewired(net: TokenNetwork, change: Any) -> fx.GraphModule:
    """The network with `change(call, exit of block 2)` put in place of that exit."""
    graph_module = net.graph_module()
    attention = graph_module.graph.find_nodes(op="call_function", target=token_ops.attention)[2]
    end = next(n for n in attention.graph.nodes if n.target is aten.layer_norm.default and attention in _behind(n)).args[0]
    edit = net._edit
    users = list(end.users)
    made = change(lambda target, *args, **kwargs: edit.call(target, args, kwargs, before=users[0]), end)
    for user in users:
        user.replace_input_with(end, made)
    return graph_module


def _behind(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        fresh = [user for user in waiting.pop().users if user not in found and user.target is not aten.add.Tensor]
        found.update(fresh)
        waiting += fresh
    return found


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda call, x: call(aten.cumsum.default, x, 1), "aten.cumsum.default is not known to treat tokens one by one"),
        (lambda call, x: call(aten.flip.default, x, [1]), "aten.flip.default is not known to treat tokens one by one"),
        (lambda call, x: call(aten.layer_norm.default, x, [10, 8]), "the normalisation is over more than the features of a token"),
        (lambda call, x: call(aten.sub.Tensor, x, call(aten.mean.dim, x, [2], True)), "the mean is not over the tokens alone"),
        (lambda call, x: call(aten.view.default, x, [2, 10, 8]), "aten.view.default is not known to treat tokens one by one"),
        (
            lambda call, x: call(aten.matmul.default, call(aten.matmul.default, x, call(aten.transpose.int, x, 1, 2)), x),
            "transpose.int is not",
        ),
        (lambda call, x: call(aten.add.Tensor, x, call(aten.slice.Tensor, x, 2, 0, 1)), "takes a part of the features"),
        (
            lambda call, x: call(aten.add.Tensor, x, call(aten.unsqueeze.default, call(aten.select.int, x, 1, -1), 1)),
            "it reads token 9 of 10",
        ),
        (lambda call, x: call(aten.add.Tensor, x, call(aten.slice.Tensor, x, 1, 9, 10)), "it reads token 9 of 10"),
    ],
)
def test_uses_that_mix_tokens_are_refused(change: Any, reason: str) -> None:
    _, found = refused(rewired(TokenNetwork(), change), keep=0.5, after=[1])
    assert reason in found


def test_a_read_token_near_the_start_is_kept_in_place() -> None:
    graph_module = rewired(
        TokenNetwork(), lambda call, x: call(aten.add.Tensor, x, call(aten.unsqueeze.default, call(aten.select.int, x, 1, 2), 1))
    )
    result = pruned(graph_module, keep=0.5, after=[1])
    (keep,) = calls(result, pruning_ops.keep_tokens)
    assert keep.kwargs == {"keep": 5, "first": 3}


def test_attention_to_other_tokens_is_no_block() -> None:
    net = TokenNetwork(depth=2)
    graph_module = net.graph_module()
    second = graph_module.graph.find_nodes(op="call_function", target=token_ops.attention)[1]
    other = net._edit.add_constant(torch.ones(2, 10, 8).double(), "memory", before=second)
    second.replace_input_with(second.args[1], other)
    assert refused(graph_module, keep=0.5, after=[1]) == (second.name, "queries, keys and values are not of the same tokens")
    with pytest.raises(InvalidInput, match=r"token_pruning\['after'\] cannot be \[2\]"):
        pruned(graph_module, keep=0.5, after=[2])


def test_a_judge_that_sees_only_itself_is_refused() -> None:
    assert "sees nothing but itself" in refused(TokenNetwork(causal=True).graph_module(), keep=0.5, after=[1])[1]


@pytest.mark.parametrize(
    ("net", "option", "reason"),
    [
        (TokenNetwork(pairs=2), {"keep": 0.7}, "no one position"),
        (TokenNetwork(causal=True, head="mean"), {"keep": 0.7}, "no one position"),
        (TokenNetwork(masked=True, head="mean"), {"keep": 0.7}, "the mean counts padding"),
        (TokenNetwork(), {"keep": 0.3}, "merging in pairs leaves at least 6 of 10 tokens, not 3"),
    ],
)
def test_what_merging_cannot_do_is_refused(net: TokenNetwork, option: dict, reason: str) -> None:
    assert reason in refused(net.graph_module(), **option, after=[1], strategy="merge")[1]


def test_a_model_without_tokens_is_an_error() -> None:
    graph = fx.Graph()
    place = graph.placeholder("x")
    place.meta["val"] = torch.empty(1, 3)
    graph.output((place,))
    for option in ({"keep": 0.5, "after": [1]}, {"keep": 1.0, "after": [1]}, {"budget": 0.5}):
        with pytest.raises(InvalidInput, match="Token pruning on a model without tokens"):
            pruned(fx.GraphModule(torch.nn.Module(), graph), **option)


def test_blocks_that_a_model_does_not_have_are_an_error() -> None:
    with pytest.raises(InvalidInput, match=r"token_pruning\['after'\] cannot be \[3, 4\].*\n.*The model has 3 blocks"):
        pruned(TokenNetwork().graph_module(), keep=0.5, after=[3, 4])
    with pytest.raises(InvalidInput, match="one block"):
        pruned(TokenNetwork(depth=1).graph_module(), budget=0.5)
    with pytest.raises(InvalidInput, match=r"token_pruning\['budget'\] cannot be 0.1.*\n.*at least 0\.\d\d"):
        pruned(TokenNetwork().graph_module(), budget=0.1)
