"""Our operators that leave tokens out or join them. The bodies are what the operators mean; every backend is tested against them.

Plain functions, used as `call_function` targets of FX graphs, on real, fake and float64 tensors. Dimension 1 carries tokens. Ties go to
the lower index everywhere, so that the same numbers give the same tokens on every backend.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsec.errors import InvalidInput
from sparsec.tokens.ops import _attention_weights, _split


def token_scores(
    query: Tensor,
    key: Tensor,
    key_bias: Tensor | None = None,
    pair_bias: Tensor | None = None,
    *,
    heads: int,
    scale: float,
    causal: bool = False,
    cls: bool,
) -> Tensor:
    """How much attention each token receives in `sparsec.tokens.ops.attention` of the same operands, mean over heads → [N,T].

    With `cls` what token 0 gives it (Liang et al. 2022); else the mean over all queries, each weighted by exp(min(key_bias, 0)), so that
    padding has no say. query, key [N,T,H·D], key_bias [N,T], pair_bias [H or 1,T,T] or [N,H or 1,T,T].
    """
    if query.shape[1] != key.shape[1]:
        raise InvalidInput(f"Scores are of one set of tokens, not of {query.shape[1]} queries and {key.shape[1]} keys.")
    if cls:
        query, pair_bias = query[:, :1], None if pair_bias is None else pair_bias[..., :1, :]
    weights = _attention_weights(_split(query, heads), _split(key, heads), key_bias, pair_bias, scale, causal)
    if cls:
        return weights[:, :, 0].mean(1)
    if key_bias is None:
        return weights.mean((1, 2))
    voices = token_sizes(key_bias).to(weights.dtype)
    total = voices.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return (voices[:, None, :, None] * weights).sum(2).mean(1) / total


def keep_tokens(scores: Tensor, *, keep: int, first: int) -> Tensor:
    """The positions of the `keep` tokens of highest score [N,T], ascending → int64 [N,keep].

    The first `first` tokens always stay; of equal scores the lower position wins; NaN counts as -inf. InvalidInput unless
    first ≤ keep ≤ T.
    """
    _check_count(keep, scores.shape[1], first)
    ranked = torch.where(scores == scores, scores, -torch.inf)
    ranked = torch.cat([torch.full_like(ranked[:, :first], torch.inf), ranked[:, first:]], 1)
    return ranked.sort(dim=1, descending=True, stable=True).indices[:, :keep].sort(dim=1).values


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """The tokens at `index` [N,K] of x [N or 1,T,F] → [N,K,F]."""
    return x.expand(len(index), -1, -1).gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def gather_keys(bias: Tensor, index: Tensor) -> Tensor:
    """The numbers at `index` [N,K] of bias [N or 1,T] → [N,K]."""
    return bias.expand(len(index), -1).gather(1, index)


def gather_pairs(bias: Tensor, index: Tensor) -> Tensor:
    """Rows and columns at `index` [N,K] of a bias per pair of tokens, [H,T,T] or [N,H,T,T] → [N,H,K,K]."""
    bias = bias.expand(len(index), *bias.shape[-3:])
    rows = bias.gather(2, index[:, None, :, None].expand(-1, bias.shape[1], -1, bias.shape[3]))
    return rows.gather(3, index[:, None, None, :].expand(-1, bias.shape[1], index.shape[1], -1))


def merge_plan(key: Tensor, *, heads: int, keep: int, first: int) -> Tensor:
    """Which of `keep` slots each token goes to, by bipartite matching of similar tokens (Bolya et al. 2023) → int64 [N,T].

    Tokens are compared by the cosine of their keys [N,T,H·D], mean over heads. Each token at an even position has an edge to its most
    similar one at an odd position; the T - keep strongest edges are merged. The first `first` tokens take no part. Slots are numbered
    by the positions of the tokens that stay, so the first tokens keep their places. InvalidInput where too few tokens can go.
    """
    tokens = key.shape[1]
    _check_count(keep, tokens, first)
    gone = tokens - keep
    if gone > mergeable(tokens, first):
        raise InvalidInput(f"Merging in pairs leaves at least {tokens - mergeable(tokens, first)} of {tokens} tokens, not {keep}.")
    if gone == 0:
        return torch.arange(tokens, device=key.device).expand(len(key), -1).contiguous()
    metric = F.normalize(_split(key, heads).mean(1), dim=2)
    likeness = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
    likeness[:, : (first + 1) // 2] = -torch.inf
    likeness[:, :, : first // 2] = -torch.inf
    best, partner = likeness.max(2)
    merged = best.sort(dim=1, descending=True, stable=True).indices[:, :gone]
    return _slots(2 * merged, 2 * partner.gather(1, merged) + 1, tokens)


def _slots(source: Tensor, target: Tensor, tokens: int) -> Tensor:
    """Slots of all tokens where each `source` [N,R] goes to the slot of its `target`."""
    stays = torch.ones(len(source), tokens, dtype=torch.int64, device=source.device).scatter(1, source, 0)
    slot = stays.cumsum(1) - 1
    return slot.scatter(1, source, slot.gather(1, target))


def mergeable(tokens: int, first: int) -> int:
    """How many tokens one merging can remove: those at even positions from `first` on, if there is an odd one to merge with."""
    even, odd = (tokens + 1) // 2 - (first + 1) // 2, tokens // 2 - first // 2
    return even if odd > 0 else 0


def merge_tokens(x: Tensor, plan: Tensor, sizes: Tensor | None = None, *, keep: int) -> Tensor:
    """The mean of the tokens of each slot, weighted by `sizes` [N,T] (None: 1 each): x [N or 1,T,F], plan [N,T] → [N,keep,F].

    A slot of total size 0 is the plain mean of its tokens.
    """
    x = x.expand(len(plan), -1, -1)
    shares = _shares(plan, sizes, keep, x.dtype)
    return _slot_sums(shares[:, :, None] * x, plan, keep)


def _shares(plan: Tensor, sizes: Tensor | None, keep: int, dtype: torch.dtype) -> Tensor:
    """The weight of each token in its slot [N,T]; those of a slot sum to 1."""
    ones = torch.ones(plan.shape, dtype=dtype, device=plan.device)
    weights = ones if sizes is None else sizes.to(dtype)
    empty = merge_sizes(plan, weights, keep=keep).gather(1, plan) == 0
    weights = torch.where(empty, ones, weights)
    return weights / merge_sizes(plan, weights, keep=keep).gather(1, plan)


def _slot_sums(x: Tensor, plan: Tensor, keep: int) -> Tensor:
    """[N,T,F] → [N,keep,F]."""
    return x.new_zeros(len(x), keep, x.shape[2]).scatter_add(1, plan[:, :, None].expand_as(x), x)


def merge_sizes(plan: Tensor, sizes: Tensor | None = None, *, keep: int, dtype: str = "float32") -> Tensor:
    """How many tokens each slot holds, as a number of `dtype`, or the sum of their `sizes` [N,T]: plan [N,T] → [N,keep]."""
    sizes = torch.ones(plan.shape, dtype=getattr(torch, dtype), device=plan.device) if sizes is None else sizes
    return sizes.new_zeros(len(plan), keep).scatter_add(1, plan, sizes)


def log_sizes(sizes: Tensor) -> Tensor:
    """The key bias of merged tokens, [N,K] → [N,K]: a token of size s counts s times in a softmax, one of size 0 not at all."""
    return sizes.log()


def token_sizes(key_bias: Tensor) -> Tensor:
    """How much each token counts under a padding bias, exp(min(key_bias, 0)): [N,T] → [N,T]."""
    return key_bias.clamp_max(0).exp()


def mean_merged(x: Tensor, sizes: Tensor) -> Tensor:
    """The mean over tokens [N,K,F] weighted by their `sizes` [N,K] → [N,F]: that of all tokens before merging."""
    weights = sizes.to(x.dtype)
    return (weights[:, :, None] * x).sum(1) / weights.sum(1, keepdim=True)


def _check_count(keep: int, tokens: int, first: int) -> None:
    if not max(1, first) <= keep <= tokens:
        raise InvalidInput(f"{keep} of {tokens} tokens cannot stay.", why=f"{max(1, first)} to {tokens} can: the first {first} always do.")


FUNCTIONS = (
    token_scores,
    keep_tokens,
    gather_tokens,
    gather_keys,
    gather_pairs,
    merge_plan,
    merge_tokens,
    merge_sizes,
    log_sizes,
    token_sizes,
    mean_merged,
)
