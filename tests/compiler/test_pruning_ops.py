"""Operators that leave tokens out or join them, against loops written out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsec.errors import InvalidInput
from sparsec.tokens import ops as token_ops
from sparsec.tokens import pruning_ops as ops
from tests.token_networks import most, normal, paired


def received(q: Tensor, k: Tensor, bias: Tensor, heads: int, cls: bool) -> Tensor:
    """Scores of one sample: q, k [T,E], bias [T]."""
    total = torch.zeros(len(k), dtype=torch.float64)
    for qh, kh in zip(q.chunk(heads, 1), k.chunk(heads, 1), strict=True):
        weights = (qh @ kh.T / math.sqrt(qh.shape[1]) + bias).softmax(1)
        voices = torch.eye(1, len(k), dtype=torch.float64)[0] if cls else bias.clamp(max=0).exp()
        total += voices @ weights / voices.sum() / heads
    return total


@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_scores_are_attention_received(cls: bool, masked: bool, heads: int) -> None:
    q, k, bias = normal(3, 7, 8, seed=1), normal(3, 7, 8, seed=2), normal(3, 7, seed=3)
    bias[1, 2:5] = -1e30
    found = ops.token_scores(q, k, bias if masked else None, heads=heads, scale=(8 // heads) ** -0.5, cls=cls)
    expected = [received(a, b, c, heads, cls) for a, b, c in zip(q, k, bias * masked, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected))
    assert torch.all(found[1, 2:5] == 0) or not masked


def test_scores_follow_biases_per_pair_and_causal_masks() -> None:
    q, k, pairs = normal(2, 5, 4, seed=1), normal(2, 5, 4, seed=2), normal(2, 5, 5, seed=3)
    found = ops.token_scores(q, k, None, pairs, heads=2, scale=1.0, causal=True, cls=False)
    whole = pairs + torch.full((5, 5), -math.inf).triu(1)
    split = [torch.stack(x.chunk(2, 2), 1) for x in (q, k)]
    torch.testing.assert_close(found, (split[0] @ split[1].transpose(2, 3) + whole).softmax(3).mean((1, 2)))


def test_a_sample_of_padding_has_scores_of_zero() -> None:
    q = normal(1, 3, 4, seed=1)
    assert torch.equal(ops.token_scores(q, q, torch.full((1, 3), -1e30), heads=1, scale=1.0, cls=False), torch.zeros(1, 3).double())


def test_scores_of_two_sets_are_refused() -> None:
    with pytest.raises(InvalidInput, match="3 queries and 4 keys"):
        ops.token_scores(normal(1, 3, 4, seed=1), normal(1, 4, 4, seed=1), heads=1, scale=1.0, cls=False)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
def test_the_tokens_of_highest_score_stay_in_order(scores: list, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(scores)))
    keep = data.draw(st.integers(max(1, first), len(scores)))
    row = torch.tensor(scores).double()
    assert ops.keep_tokens(row[None], keep=keep, first=first).tolist() == [most(row, keep, first)]


def test_nan_goes_first_and_infinity_stays() -> None:
    scores = torch.tensor([[math.nan, 0.0, math.inf, -1.0, math.nan]])
    assert ops.keep_tokens(scores, keep=3, first=0).tolist() == [[1, 2, 3]]
    assert ops.keep_tokens(scores, keep=3, first=1).tolist() == [[0, 1, 2]]
    assert ops.keep_tokens(torch.full((1, 4), math.nan), keep=2, first=0).tolist() == [[0, 1]]


@pytest.mark.parametrize(("keep", "first"), [(0, 0), (6, 0), (2, 3)])
def test_impossible_counts_are_refused(keep: int, first: int) -> None:
    with pytest.raises(InvalidInput, match=f"{keep} of 5 tokens cannot stay"):
        ops.keep_tokens(torch.zeros(1, 5), keep=keep, first=first)
    with pytest.raises(InvalidInput, match=f"{keep} of 5 tokens cannot stay"):
        ops.merge_plan(torch.zeros(1, 5, 2), heads=1, keep=keep, first=first)


def test_gathers() -> None:
    index = torch.tensor([[0, 2], [1, 3]])
    x, table, keys = normal(2, 4, 3, seed=1), normal(1, 4, 3, seed=2), normal(2, 4, seed=3)
    assert torch.equal(ops.gather_tokens(x, index), torch.stack([x[0][[0, 2]], x[1][[1, 3]]]))
    assert torch.equal(ops.gather_tokens(table, index), torch.stack([table[0][[0, 2]], table[0][[1, 3]]]))
    assert torch.equal(ops.gather_keys(keys, index), torch.stack([keys[0][[0, 2]], keys[1][[1, 3]]]))
    for pairs in (normal(3, 4, 4, seed=4), normal(2, 3, 4, 4, seed=5)):
        each = pairs.expand(2, 3, 4, 4)
        expected = [each[n][:, at][:, :, at] for n, at in enumerate(index)]
        assert torch.equal(ops.gather_pairs(pairs, index), torch.stack(expected))


def groups_of(plan: Tensor, keep: int) -> list[set[int]]:
    return [{t for t, slot in enumerate(plan.tolist()) if slot == s} for s in range(keep)]


@given(tokens=st.integers(1, 14), first=st.integers(0, 3), heads=st.sampled_from([1, 2]), data=st.data())
def test_plans_join_the_most_similar_pairs(tokens: int, first: int, heads: int, data: st.DataObject) -> None:
    first = min(first, tokens)
    keep = data.draw(st.integers(max(1, first, tokens - ops.mergeable(tokens, first)), tokens))
    key = normal(2, tokens, 6, seed=data.draw(st.integers(0, 99)))
    plan = ops.merge_plan(key, heads=heads, keep=keep, first=first)
    assert plan[:, :first].tolist() == [list(range(first))] * 2
    for row, each in zip(plan, key, strict=True):
        assert groups_of(row, keep) == [set(part) for part in paired(torch.stack(each.chunk(heads, 1)).mean(0), keep, first)]


def test_a_plan_for_fewer_than_pairs_is_refused() -> None:
    with pytest.raises(InvalidInput, match="leaves at least 3 of 5 tokens, not 2"):
        ops.merge_plan(normal(1, 5, 4, seed=1), heads=1, keep=2, first=1)


def test_equal_keys_merge_the_lowest_positions() -> None:
    assert ops.merge_plan(torch.ones(1, 6, 2), heads=1, keep=4, first=0).tolist() == [[0, 0, 0, 1, 2, 3]]
    assert ops.merge_plan(torch.ones(1, 6, 2), heads=1, keep=4, first=1).tolist() == [[0, 1, 1, 2, 1, 3]]


def test_merged_tokens_are_means_by_size() -> None:
    plan, sizes = torch.tensor([[0, 1, 0, 1, 2]]), torch.tensor([[1.0, 0, 3, 0, 0]])
    x = normal(1, 5, 2, seed=1)
    expected = torch.stack([x[0, 0] / 4 + x[0, 2] * 3 / 4, (x[0, 1] + x[0, 3]) / 2, x[0, 4]])
    torch.testing.assert_close(ops.merge_tokens(x, plan, sizes, keep=3)[0], expected)
    torch.testing.assert_close(ops.merge_tokens(x, plan, keep=3)[0, 0], (x[0, 0] + x[0, 2]) / 2)
    assert ops.merge_sizes(plan, sizes, keep=3).tolist() == [[4, 0, 0]]
    assert ops.merge_sizes(plan, keep=3).tolist() == [[2, 2, 1]]


def test_the_mean_of_merged_tokens_is_that_of_all() -> None:
    x, plan = normal(2, 7, 3, seed=1), torch.tensor([[0, 0, 1, 2, 2, 2, 3], [0, 1, 1, 2, 2, 3, 3]])
    merged, sizes = ops.merge_tokens(x, plan, keep=4), ops.merge_sizes(plan, keep=4)
    torch.testing.assert_close(ops.mean_merged(merged, sizes), x.mean(1))


def test_attention_to_a_merged_token_is_attention_to_its_copies() -> None:
    """Keys of size s under the bias log(s) are s equal keys; those of size 0 are none."""
    q, kv, sizes = normal(1, 3, 4, seed=1), normal(1, 3, 4, seed=2), torch.tensor([[2.0, 0, 3]])
    copies = kv[:, [0, 0, 2, 2, 2]]
    found = token_ops.attention(q, kv, kv, ops.log_sizes(sizes), heads=2, scale=0.5)
    torch.testing.assert_close(found, token_ops.attention(q, copies, copies, heads=2, scale=0.5), rtol=1e-6, atol=1e-6)
    assert ops.token_sizes(torch.tensor([[0.0, -1e30, 2.0]])).tolist() == [[1, 0, 1]]
