"""Leave tokens out after some blocks, or join similar ones; only where `settings.token_pruning` asks.

    q, k, v → attention ─ … ─ x = sum ─ next block      →      q, k → token_scores → keep_tokens → index
                                                               x = sum ─ gather_tokens(x, index) ─ next block on fewer tokens

Tokens go where a block ends: at its last residual sum (merging: after the normalisation that may follow it). What later lies along
them (masks, tables of positions, biases per pair) loses the same ones. All or nothing: where one use of the tokens cannot be proved to
treat them one by one, the graph stays as it is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import fx

from sparsec.errors import PassRefused
from sparsec.ir.arguments import arguments, positional
from sparsec.ir.pipeline import Approximate, Context, Editor, Form, Miss, Pass
from sparsec.tokens import ops as token_ops
from sparsec.tokens import pruning_ops
from sparsec.tokens.budget import TokenPruning
from sparsec.tokens.cuts import Cut, plan_cuts
from sparsec.tokens.token_axis import follow
from sparsec.tokens.token_rules import Aligned, Followed, token_count

aten = torch.ops.aten
INSERTED = (pruning_ops.keep_tokens, pruning_ops.merge_plan)
#: Puts in place of an operand along the tokens what is left of it, before a node.
Reduce = Callable[[fx.Node, str, fx.Node], fx.Node]


class InsertTokenPruning(Pass):
    """Tokens go after the blocks that the option names; nothing happens without the option, or where it keeps all.

    Its budget is the share of tokens left out, which the option sets: none by default.
    """

    name = "insert_token_pruning"
    takes = Form.CAPTURED
    gives = Form.CAPTURED
    effect = Approximate(0.0)

    def apply(self, edit: Editor, context: Context) -> None:
        """Plan all cuts on the whole graph, then make them in order. InvalidInput as in `sparsec.tokens.cuts.plan_cuts`."""
        if context.settings.token_pruning is None or any(node.target in INSERTED for node in edit.nodes()):
            return
        option = TokenPruning.read(context.settings.token_pruning)
        cuts = plan_cuts(edit.graph, option)
        if isinstance(cuts, Miss):
            edit.misses.append(cuts)
            return
        if not cuts:
            return
        weights: dict[fx.Node, fx.Node] = {}
        with _resizing(edit, option):
            for cut in cuts:
                followed = _followed(cut)
                weights |= (_merge if option.strategy == "merge" else _prune)(edit, cut, followed)
                _shorten(followed, cut.keep)
        for mean, sizes in weights.items():
            edit.replace(mean, pruning_ops.mean_merged, (mean.args[0], sizes))
        for cut in cuts:
            judge = "by similarity" if option.strategy == "merge" else f"judged by {'token 0' if cut.cls else 'all tokens'}"
            edit.hit(cut.at, f"{cut.keep} of {token_count(cut.at)} tokens stay after block {cut.number}, {judge}")


def _prune(edit: Editor, cut: Cut, followed: Followed) -> dict[fx.Node, fx.Node]:
    named, anchor = arguments(cut.attention), cut.at.next
    operands = tuple(named[name] for name in ("query", "key", "key_bias", "pair_bias"))
    traits = {name: named[name] for name in ("heads", "scale", "causal")}
    gathers = {"tokens": pruning_ops.gather_tokens, "keys": pruning_ops.gather_keys, "pairs": pruning_ops.gather_pairs}

    def insert(target: object, args: tuple, before: fx.Node = anchor, **kwargs: object) -> fx.Node:
        return edit.call(target, args, kwargs, before=before, sources=(cut.attention,))  # type: ignore[arg-type]

    scores = insert(pruning_ops.token_scores, operands, **traits, cls=cut.cls)
    index = insert(pruning_ops.keep_tokens, (scores,), keep=cut.keep, first=cut.first)
    short = insert(pruning_ops.gather_tokens, (cut.at, index))

    def reduce(operand: fx.Node, kind: str, before: fx.Node) -> fx.Node:
        if kind == "tokens" and (table := _table(edit, operand, before)) is not None:
            return insert(aten.embedding.default, (table, index), before)
        return insert(gathers[kind], (operand, index), before)

    _reconnect(edit, followed, short, reduce)
    return {}


def _merge(edit: Editor, cut: Cut, followed: Followed) -> dict[fx.Node, fx.Node]:
    """Returns how much the tokens of each mean that follows count."""
    named, anchor = arguments(cut.attention), cut.at.next

    def insert(target: object, args: tuple, before: fx.Node = anchor, **kwargs: object) -> fx.Node:
        return edit.call(target, args, kwargs, before=before, sources=(cut.attention,))  # type: ignore[arg-type]

    sizes = _sizes(named["key_bias"], insert)
    plan = insert(pruning_ops.merge_plan, (named["key"],), heads=named["heads"], keep=cut.keep, first=cut.first)
    merged = insert(pruning_ops.merge_tokens, (cut.at, plan, sizes), keep=cut.keep)
    dtype = str(cut.at.meta["val"].dtype).removeprefix("torch.")
    counted: dict[str, Any] = {} if sizes is not None or dtype == "float32" else {"dtype": dtype}
    left = insert(pruning_ops.merge_sizes, (plan, sizes), keep=cut.keep, **counted)
    bias = insert(pruning_ops.log_sizes, (left,))

    def reduce(operand: fx.Node, kind: str, before: fx.Node) -> fx.Node:
        if kind == "keys":
            return bias
        rows = operand if operand.meta["val"].dim() == 3 else insert(aten.unsqueeze.default, (operand, 0), before)
        return insert(pruning_ops.merge_tokens, (rows, plan, sizes), before, keep=cut.keep)

    _reconnect(edit, followed, merged, reduce)
    for attention in followed.attentions:
        edit.set_args(attention, *positional(token_ops.attention, arguments(attention) | {"key_bias": bias}))
    return dict.fromkeys(followed.means, left)


def _shorten(followed: Followed, keep: int) -> None:
    """Let later cuts see that fewer tokens are left; `edit.resizing` computes the values themselves at its end, once for all cuts."""
    for node in followed.carriers[1:]:
        node.meta["val"] = node.meta["val"][:, :keep]


def _sizes(bias: fx.Node | None, insert: Callable[..., fx.Node]) -> fx.Node | None:
    """How much the tokens of an attention count by its key bias: what they were merged from, or 1 and, for padding, 0."""
    if bias is None:
        return None
    return bias.args[0] if bias.target is pruning_ops.log_sizes else insert(pruning_ops.token_sizes, (bias,))  # type: ignore[return-value]


def _followed(cut: Cut) -> Followed:
    followed = follow(cut.at)
    if isinstance(followed, Miss):
        raise PassRefused(f"Tokens cannot go after block {cut.number}.", where=str(followed.where), why=followed.reason)
    return followed


def _table(edit: Editor, operand: fx.Node, before: fx.Node) -> fx.Node | None:
    """A constant [1,T,F], or any [T,F], as a table whose rows can be looked up; None for other operands."""
    if operand.meta["val"].dim() == 2:
        return operand
    tensor = edit.constant(operand)
    if tensor is None or tensor.dim() != 3 or tensor.shape[0] != 1:
        return None
    return edit.add_constant(tensor[0], f"{operand.target}_table", before=before, sources=(operand,))


def _reconnect(edit: Editor, followed: Followed, short: fx.Node, reduce: Reduce) -> None:
    """Let the users of the whole tokens read the rest, and give each the rest of what lies along them."""
    for user in list(followed.start.users):
        if user is not short:
            _swap(edit, user, {followed.start: short})
    reduced: dict[tuple[fx.Node, str], fx.Node] = {}
    for each in followed.aligned:
        key = (each.operand, each.kind)
        if key not in reduced:
            reduced[key] = reduce(each.operand, each.kind, each.node)
        _swap(edit, each.node, {each.operand: reduced[key]}, each)


def _swap(edit: Editor, node: fx.Node, others: dict[fx.Node, fx.Node], each: Aligned | None = None) -> None:
    """Replace operands, only the one of this name where `each` names one."""
    if each is None:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda operand: others.get(operand, operand))
        edit.set_args(node, args, kwargs)
    else:
        edit.set_args(node, *positional(node.target, arguments(node) | {each.name: others[each.operand]}))


@contextmanager
def _resizing(edit: Editor, option: TokenPruning) -> Iterator[None]:
    """`edit.resizing()`, where the option allows it without its last check: that outputs keep their shapes."""
    with suppress(PassRefused) if option.allow_shorter else nullcontext(), edit.resizing():
        yield
