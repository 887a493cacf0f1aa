"""Where tokens go and how many stay: the option `token_pruning` read against a graph, or the reason why the graph stays whole."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from sparsec.errors import InvalidInput
from sparsec.facts.forward import SUMS
from sparsec.ir.arguments import arguments
from sparsec.ir.miss import Miss
from sparsec.tokens import ops as token_ops
from sparsec.tokens import pruning_ops
from sparsec.tokens.budget import TokenPruning, counts, spread
from sparsec.tokens.token_axis import TokenSets, exit_of, follow, self_attentions
from sparsec.tokens.token_rules import Followed, token_count
from sparsec.tokens.work import TokenWork

aten = torch.ops.aten


@dataclass(frozen=True)
class Cut:
    """After block `number`, whose attention is `attention`, `keep` of the tokens of the value `at` stay.

    The first `first` always do; `cls`: token 0 judges the others.
    """

    number: int
    attention: fx.Node
    at: fx.Node
    keep: int
    first: int = 0
    cls: bool = False


def plan_cuts(graph: fx.Graph, option: TokenPruning) -> list[Cut] | Miss:
    """The cuts that an option asks for, in order, none where everything stays; or the first node that forbids one, and why.

    InvalidInput for a graph without attention of tokens among themselves, a block that it does not have, a budget that no count meets.
    """
    attentions = self_attentions(graph)
    if not attentions:
        raise InvalidInput(
            "Token pruning on a model without tokens.", why="No attention of tokens [N, T, F] among themselves was recognised."
        )
    numbers = option.blocks(len(attentions))
    if option.budget == 1 or (option.budget is None and set(option.ratios()) == {1.0}):
        return []
    if not numbers:
        raise InvalidInput("token_pruning['budget'] cannot be spread.", why="The model has one block; nothing comes after it.")
    places = _places(graph, numbers, attentions, option.strategy == "merge")
    return places if isinstance(places, Miss) else _counted(graph, places, option)


def _places(graph: fx.Graph, numbers: Sequence[int], attentions: Sequence[fx.Node], merges: bool) -> list[tuple[Cut, Followed]] | Miss:
    """The ends of the blocks and what follows them, each a use of the tokens of the one before.

    Dropping commutes with what is done to tokens one by one, so it goes before a closing normalisation; a mean of tokens does not.
    """
    sets = TokenSets(graph)
    places: list[tuple[Cut, Followed]] = []
    for number in numbers:
        attention = attentions[number - 1]
        at = exit_of(attention, normed=merges)
        if isinstance(at, Miss):
            return at
        if sets.of(at) != sets.of(attention):
            return Miss(f"its tokens are not those that block {number} attends to", at)
        followed = follow(at)
        if isinstance(followed, Miss):
            return followed
        if places and at not in places[-1][1].carriers[1:]:
            return Miss(f"block {number} does not use the tokens that block {places[-1][0].number} leaves", at)
        places.append((Cut(number, attention, at, token_count(at)), followed))
    return places


def _counted(graph: fx.Graph, places: Sequence[tuple[Cut, Followed]], option: TokenPruning) -> list[Cut] | Miss:
    """The cuts with the number of tokens that stay; those that keep all are left out."""
    tokens, ends = places[0][1].tokens, [followed for _, followed in places]
    reads = ends[0].reads
    cls = 0 in reads if option.cls is None else option.cls
    first = max(int(cls), 1 + max(reads, default=-1))
    for cut, followed in places:
        if refusal := _refusal(cut, followed, option, cls) or (option.strategy == "merge" and _merge_refusal(cut, followed)):
            return refusal
    if first >= tokens > 1 and reads:
        return Miss(f"it reads token {max(reads)} of {tokens}, and only tokens at the start can keep their places", reads[max(reads)])
    if option.budget is None:
        left = counts(tokens, option.ratios(), first)
    else:
        floor = 0.5 if option.strategy == "merge" else 0.0
        left = spread(option.budget, tokens, len(places), TokenWork(graph, ends), first, floor)
    before = (tokens, *left)
    cuts = [replace(cut, keep=count, first=first, cls=cls) for (cut, _), count in zip(places, left, strict=True)]
    return _halved(cuts, before, option) or [cut for cut, whole in zip(cuts, before, strict=False) if cut.keep < whole]


def _halved(cuts: Sequence[Cut], before: Sequence[int], option: TokenPruning) -> Miss | None:
    """One merging joins pairs, so it removes at most about half of the tokens."""
    for cut, tokens in zip(cuts, before, strict=False):
        least = tokens - pruning_ops.mergeable(tokens, cut.first)
        if option.strategy == "merge" and cut.keep < least:
            return Miss(f"merging in pairs leaves at least {least} of {tokens} tokens, not {cut.keep}", cut.at)
    return None


def _refusal(cut: Cut, followed: Followed, option: TokenPruning, cls: bool) -> Miss | None:
    if followed.returned and not option.allow_shorter:
        reason = 'the graph returns its tokens, and fewer would change the shape of the result ("allow_shorter": True lets it)'
        return Miss(reason, followed.returned[0])
    if cls and arguments(cut.attention)["causal"]:
        return Miss("token 0 sees nothing but itself in causal attention, so it cannot judge the others", cut.attention)
    return None


def _merge_refusal(cut: Cut, followed: Followed) -> Miss | None:
    """What merged tokens have no meaning for: order, biases per pair, products, other masks than the one they were merged under."""
    mask = arguments(cut.attention)["key_bias"]
    if mask is not None and not _is_padding(mask):
        return Miss("merging needs a key bias of 0 for valid tokens, as sizes take its place", cut.attention)
    for node in (cut.attention, *followed.attentions):
        named = arguments(node)
        if named["causal"] or named["pair_bias"] is not None:
            return Miss("merged tokens have no one position for a causal mask or a bias per pair", node)
        if named["key_bias"] is not mask:
            return Miss(f"its key bias is not that of block {cut.number}, under which tokens are merged", node)
    for each in followed.aligned:
        if each.kind == "tokens" and each.node.target not in SUMS:
            return Miss("merged tokens are means, which a product along the tokens does not keep", each.node)
    for mean in followed.means:
        if mask is not None or (mean.target is aten.mean.dim and arguments(mean)["keepdim"]):
            return Miss("the mean counts padding, or keeps the dimension of tokens", mean)
    return None


def _is_padding(bias: fx.Node) -> bool:
    """Whether a key bias leaves the scores of valid tokens as they are."""
    named = arguments(bias) if bias.op == "call_function" else {}
    return bias.target is token_ops.key_bias and named["on"] == 0
