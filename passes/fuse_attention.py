"""Make attention one operator on tokens.

linear(x, Wq) ── view [N,T,H,D] ── transpose ─┐
linear(x, Wk) ── view [N,T,H,D] ── transpose ─ sdpa ── transpose ── view      →      attention(linear, linear, linear, key_bias(mask))
linear(x, Wv) ── view [N,T,H,D] ── transpose ─┘

One linear layer for queries, keys and values becomes three, by its rows. The result is viewed as it was, [N,H,T,E]; what follows is
left to `sink_views`. A query all of whose keys are padding, hidden by -inf, gets 0, also where a softmax spelled out would give NaN.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from sparsec.ir.arguments import Layer, layer_of
from sparsec.ir.pipeline import Context, Editor, Form, Miss, Pass
from sparsec.tokens import ops as token_ops
from sparsec.tokens.attention_core import Core, core_of, gives_nan
from sparsec.tokens.axes import Atom, Dim, View, build, covers, indices, is_view, readers, size_of, view_of
from sparsec.tokens.masks import Bias, Scores, analyse

aten = torch.ops.aten


@dataclass(frozen=True)
class Heads:
    """Tokens split into heads: the leading axes of `root` as samples and tokens, the root's feature for each feature of each head."""

    root: fx.Node
    samples: Dim
    tokens: Dim
    features: tuple[int, ...]
    count: int
    factor: float

    @property
    def is_whole(self) -> bool:
        """Whether the heads lie side by side in all features of the root."""
        return self.features == tuple(range(self.root.meta["val"].shape[-1]))


class FuseAttention(Pass):
    """Each softmax over keys with the products around it becomes `token_ops.attention` on [N,T,F]."""

    name = "fuse_attention"
    takes = Form.CAPTURED
    gives = Form.CAPTURED

    def apply(self, edit: Editor, context: Context) -> None:
        """In order; masks shared by several layers are looked at once."""
        known: dict[Any, Bias | Miss] = {}
        for node in edit.nodes():
            found = core_of(node) if not node._erased else None
            if isinstance(found, Core):
                found = _fuse(edit, found, known)
            if isinstance(found, Miss):
                edit.misses.append(found)
        edit.sweep()


def _fuse(edit: Editor, core: Core, known: dict[Any, Bias | Miss]) -> Miss | None:
    parts = _operands(core)
    if isinstance(parts, Miss):
        return parts.at(core.node)
    query, key, value = parts
    rank = core.query.meta["val"].dim()
    scores = Scores(size_of(query.samples), query.count, size_of(query.tokens), size_of(key.tokens), merged=rank == 3)
    if (core.masks, scores) not in known:
        known[core.masks, scores] = analyse(core.masks, scores)
    bias = known[core.masks, scores]
    if isinstance(bias, Miss):
        return Miss(f"mask {bias.reason}", core.node)
    if bias.pair is not None and bool((bias.pair == -torch.inf).all(-1).any()) and gives_nan(core.node):
        return Miss("a constant mask hides all keys of a query, which makes NaN", core.node)
    _rewrite(edit, core, (query, key, value), bias)
    return None


def _operands(core: Core) -> tuple[Heads, Heads, Heads] | Miss:
    """Queries, keys and values as heads of tokens, or why they are none."""
    found = []
    for name, node, turned in (("query", core.query, False), ("key", core.key, core.key_turned), ("value", core.value, False)):
        heads = _heads(view_of(node, scaled=name != "value"), turned)
        if isinstance(heads, Heads) and not heads.is_whole:
            heads = _refusal(heads, core) or heads
        if isinstance(heads, Miss):
            return Miss(f"the {name} {heads.reason}")
        found.append(heads)
    query, key, value = found
    if not query.count == key.count == value.count or not size_of(query.samples) == size_of(key.samples) == size_of(value.samples):
        return Miss("queries, keys and values differ in heads or samples")
    return query, key, value


def _heads(view: View, turned: bool) -> Heads | Miss:
    """[N,H,T,D] or [N·H,T,D], with the last two turned [..., D,T]."""
    rank = view.root.meta["val"].dim()
    if len(view.dims) not in (3, 4) or rank < 2:
        return Miss(f"{view.root.name} has no features to split into heads")
    *leading, tokens, width = (*view.dims[:-2], view.dims[-1], view.dims[-2]) if turned else view.dims
    merged = [atom for dim in leading for atom in dim]
    of_heads = [atom for atom in merged if atom.axis == rank - 1]
    samples = [atom for atom in merged if atom.axis != rank - 1]
    if (*samples, *of_heads) != tuple(merged):
        return Miss(f"has heads before samples of {view.root.name}")
    in_head = all(atom.axis == rank - 1 for atom in width) and (len(leading) == 1 or size_of(leading[0]) == size_of(tuple(samples)))
    if not in_head or not _all_tokens(view, (*samples, *tokens)):
        return Miss(f"is no split of the features of {view.root.name} into heads")
    features = indices((tuple(of_heads), width), view.starts[-1])
    return Heads(view.root, tuple(samples), tokens, tuple(features), size_of(tuple(of_heads)), view.factor)


def _all_tokens(view: View, atoms: tuple[Atom, ...]) -> bool:
    leading = range(view.root.meta["val"].dim() - 1)
    within = all(atom.axis in leading for atom in atoms)
    return within and all(covers(view.root, axis, [a for a in atoms if a.axis == axis]) for axis in leading)


def _refusal(heads: Heads, core: Core) -> Miss | None:
    """Why the layer that makes the root cannot be split by rows."""
    layer = layer_of(heads.root)
    if layer is None or heads.root.target is not aten.linear.default or not layer.is_constant:
        return Miss(f"is a part of {heads.root.name}, which is no linear layer with constant weights")
    others = [reader.name for reader in readers(heads.root) if reader not in core.inside and not _is_same_attention(reader, core)]
    return Miss(f"is a part of {heads.root.name}, which {others[0]} reads too") if others else None


def _is_same_attention(reader: fx.Node, core: Core) -> bool:
    return reader in core.inside or reader is core.node


def _rewrite(edit: Editor, core: Core, parts: tuple[Heads, Heads, Heads], bias: Bias) -> None:
    query, key, _ = parts
    tokens = [_tokens(edit, heads, core.node) for heads in parts]
    key_bias = None if bias.source is None else _key_bias(edit, bias, size_of(key.samples), size_of(key.tokens), core.node)
    dtype = core.node.meta["val"].dtype
    pair = None if bias.pair is None else edit.add_constant(bias.pair.to(dtype), f"{core.node.name}_pairs", before=core.node)
    settings = {"heads": query.count, "scale": core.scale * query.factor * key.factor, "causal": core.causal or bias.causal}
    made = edit.call(token_ops.attention, (*tokens, key_bias, pair), settings, before=core.node, sources=core.inside)
    _reshape_all(edit, core.node)
    edit.hit(core.node, f"attention of {query.count} heads{_said(bias)}")
    edit.substitute(core.node, _as_before(edit, made, core.node, query.count))


def _said(bias: Bias) -> str:
    parts = [f"padding by {bias.source.name}"] if bias.source is not None else []
    parts += ["a bias per pair"] if bias.pair is not None else []
    return f" with {' and '.join(parts)}" if parts else ""


def _tokens(edit: Editor, heads: Heads, before: fx.Node) -> fx.Node:
    """[N,T,H·D]."""
    layer = layer_of(heads.root)
    root = heads.root if heads.is_whole or layer is None else _rows(edit, layer, heads.features, before)
    view = View.whole(root)
    view = replace(view, dims=(heads.samples, heads.tokens, view.dims[-1]))
    return root if view.is_whole else build(edit, view, before)


def _rows(edit: Editor, layer: Layer, rows: tuple[int, ...], before: fx.Node) -> fx.Node:
    """The linear layer of some outputs."""
    weight, _ = layer.constants()
    chosen = list(rows)
    parameters = [edit.add_constant(weight[chosen], f"{layer.weight.name}_rows", before=before, sources=(layer.node,))]
    if layer.bias is not None and layer.constant_bias is not None:
        parameters.append(edit.add_constant(layer.constant_bias[chosen], f"{layer.weight.name}_bias", before=before, sources=(layer.node,)))
    return edit.call(aten.linear.default, (layer.x, *parameters), before=before, sources=(layer.node,))


def _key_bias(edit: Editor, bias: Bias, samples: int, keys: int, before: fx.Node) -> fx.Node:
    """The bias of an earlier layer where there is one."""
    mask: Any = bias.source
    if mask.meta["val"].shape != (samples, keys):
        mask = _once(edit, aten.reshape.default, (mask, [samples, keys]), {}, before)
    settings = {"on": bias.on, "off": bias.off, "affine": bias.affine}
    return _once(edit, token_ops.key_bias, (mask,), settings, before)


def _once(edit: Editor, target: Any, args: tuple, settings: dict[str, Any], before: fx.Node) -> fx.Node:
    for user in args[0].users:
        if user.target is target and user.args == args and user.kwargs == settings and user < before:
            return user
    return edit.call(target, args, settings, before=before)


def _as_before(edit: Editor, made: fx.Node, node: fx.Node, heads: int) -> fx.Node:
    """[N,T,H·E] → [N,H,T,E] or [N·H,T,E]."""
    samples, tokens, width = made.meta["val"].shape
    split = edit.call(aten.reshape.default, (made, [samples, tokens, heads, width // heads]), before=node)
    turned = edit.call(aten.permute.default, (split, [0, 2, 1, 3]), before=node)
    shape = list(node.meta["val"].shape)
    return turned if shape == list(turned.meta["val"].shape) else edit.call(aten.reshape.default, (turned, shape), before=node)


def _reshape_all(edit: Editor, node: fx.Node) -> None:
    """Views of a value whose order in memory changes: where `view` could fail, `reshape` does not."""
    for user in list(node.users):
        if is_view(user):
            _reshape_all(edit, user)
        if user.target in (aten.view.default, aten._unsafe_view.default):
            edit.replace(user, aten.reshape.default, user.args, user.kwargs)
