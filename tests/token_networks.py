"""Small transformers twice: as a CAPTURED graph of token operators, and written out by hand with tokens left out or joined in between."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from sparsec.ir.editor import Editor
from sparsec.tokens import ops as token_ops

aten = torch.ops.aten


def normal(*shape: int, seed: int) -> Tensor:
    """float64 numbers from a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass
class TokenNetwork:
    """x [N,T,F] (with `cls` one more token in front) through `depth` blocks to [N,classes], or to tokens where `head` is "tokens".

    post_norm: BERT's order instead of ViT's. masked: a second input, the padding mask [N,T]. pairs: a bias per pair of tokens.
    table: positions are added in every block, by a table of this many dimensions, or (1) a vector. skip: the input is added again before
    the head.
    """

    batch: int = 2
    tokens: int = 9
    depth: int = 3
    heads: int = 2
    features: int = 8
    cls: bool = True
    post_norm: bool = False
    masked: bool = False
    pairs: int = 0
    table: int = 0
    skip: bool = False
    causal: bool = False
    head: str = "select"
    weights: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        total = self.total
        for block in range(self.depth):
            shapes: dict[str, tuple[int, int]] = {
                "q": (self.features,) * 2,
                "k": (self.features,) * 2,
                "v": (self.features,) * 2,
                "o": (self.features,) * 2,
            }
            shapes |= {"up": (12, self.features), "down": (self.features, 12)}
            for number, (name, shape) in enumerate(shapes.items()):
                self.weights[f"{name}{block}"] = normal(*shape, seed=10 * block + number) / 2
            if self.pairs:
                self.weights[f"pair{block}"] = normal(self.pairs, total, total, seed=block + 50)
            if self.table:
                self.weights[f"table{block}"] = normal(*[1, total, self.features][3 - self.table :], seed=block + 70)
        self.weights |= {"cls": normal(1, 1, self.features, seed=7), "head": normal(5, self.features, seed=8)}

    @property
    def total(self) -> int:
        """Tokens, the CLS token among them."""
        return self.tokens + self.cls

    def inputs(self, seed: int = 0) -> list[Tensor]:
        """Tokens and, where masked, a mask of 0 and 1 in which every row has a valid token."""
        x = normal(self.batch, self.tokens, self.features, seed=seed)
        mask = (normal(self.batch, self.total, seed=seed + 1) > -0.3).long()
        mask[:, 0] = 1
        return [x, mask] if self.masked else [x]

    # The graph

    def graph_module(self) -> fx.GraphModule:
        """The network as a CAPTURED graph."""
        graph = fx.Graph()
        places = [graph.placeholder(name) for name in ("x", "mask")[: 1 + self.masked]]
        for place, value in zip(places, self.inputs(), strict=True):
            place.meta["val"] = torch.empty(value.shape, dtype=value.dtype)
        self._end = graph.output((places[0],))
        self._edit = Editor(fx.GraphModule(torch.nn.Module(), graph))
        self._bias = self._call(token_ops.key_bias, places[1], on=0.0, off=-1e30) if self.masked else None
        first = x = places[0]
        if self.cls:
            first = x = self._call(aten.cat.default, [self._constant(self.weights["cls"].expand(self.batch, -1, -1)), x], 1)
        for block in range(self.depth):
            x = self._block(x, block)
        if self.skip:
            x = self._call(aten.add.Tensor, x, first)
        self._end.args = (self._headed(x),)
        return self._edit.graph_module

    def _block(self, x: fx.Node, block: int) -> fx.Node:
        if self.table:
            x = self._call(aten.add.Tensor, x, self._constant(self.weights[f"table{block}"]))
        normed = x if self.post_norm else self._norm(x)
        q, k, v = (self._linear(normed, f"{name}{block}") for name in "qkv")
        pair = self._constant(self.weights[f"pair{block}"]) if self.pairs else None
        traits = {"heads": self.heads, "scale": self.scale, "causal": self.causal}
        attended = self._call(token_ops.attention, q, k, v, self._bias, pair, **traits)
        x = self._call(aten.add.Tensor, x, self._linear(attended, f"o{block}"))
        normed = x = self._norm(x) if self.post_norm else x
        normed = x if self.post_norm else self._norm(x)
        hidden = self._call(aten.gelu.default, self._linear(normed, f"up{block}"))
        x = self._call(aten.add.Tensor, x, self._linear(hidden, f"down{block}"))
        return self._norm(x) if self.post_norm else x

    def _headed(self, x: fx.Node) -> tuple[fx.Node, ...]:
        if self.head == "tokens":
            return (x,)
        pooled = self._call(aten.mean.dim, x, [1]) if self.head == "mean" else self._call(aten.select.int, x, 1, 0)
        return (self._linear(pooled, "head"),)

    def _call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self._edit.call(target, args, kwargs, before=self._end)

    def _constant(self, tensor: Tensor) -> fx.Node:
        return self._edit.add_constant(tensor, "c", before=self._end)

    def _linear(self, x: fx.Node, name: str) -> fx.Node:
        return self._call(aten.linear.default, x, self._constant(self.weights[name]))

    def _norm(self, x: fx.Node) -> fx.Node:
        return self._call(aten.layer_norm.default, x, [self.features])

    @property
    def scale(self) -> float:
        """The factor of attention scores."""
        return (self.features // self.heads) ** -0.5

    # By hand

    def by_hand(self, inputs: list[Tensor], keeps: Mapping[int, int], strategy: str = "prune", cls: bool = True) -> Tensor:
        """The result, one sample at a time, where keeps[b] tokens stay after block b (from 1)."""
        masks = inputs[1] if self.masked else [None] * self.batch
        return torch.stack([self._sample(x, mask, keeps, strategy, cls) for x, mask in zip(inputs[0], masks, strict=True)])

    def _sample(self, x: Tensor, mask: Tensor | None, keeps: Mapping[int, int], strategy: str, cls: bool) -> Tensor:
        x = torch.cat([self.weights["cls"][0], x]) if self.cls else x
        state = _State(x, torch.ones(len(x), dtype=torch.float64) if mask is None else mask.double())
        first, groups = x, [[t] for t in range(len(x))]
        for block in range(self.depth):
            state.x, scores, keys = self._hand_block(state, block, groups)
            if (keep := keeps.get(block + 1)) is not None and keep < len(groups):
                if strategy == "merge":
                    parts = paired(keys, keep, int(self.head == "select"))
                else:
                    received = scores[:, 0] if cls else (scores * state.valid[None, :, None]).sum(1) / state.valid.sum()
                    parts = [[t] for t in most(received.mean(0), keep, int(self.head == "select"))]
                groups = state.join(parts, groups)
        x = state.x + torch.stack([state.mean(first, group) for group in groups]) if self.skip else state.x
        if self.head == "tokens":
            return x
        weights = state.sizes if strategy == "merge" else torch.ones_like(state.sizes)
        pooled = (weights[:, None] * x).sum(0) / weights.sum() if self.head == "mean" else x[0]
        return self.weights["head"] @ pooled

    def _hand_block(self, state: "_State", block: int, groups: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens after a block, its attention [H,T,T], its keys [T,D] averaged over heads."""
        x, w = state.x, {name: self.weights[f"{name}{block}"] for name in ("q", "k", "v", "o", "up", "down")}
        if self.table:
            rows = self.weights[f"table{block}"].expand(1, self.total, self.features)[0]
            x = x + torch.stack([state.mean(rows, group) for group in groups])
        norm = lambda y: (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()  # noqa: E731
        normed = x if self.post_norm else norm(x)
        q, k, v = (torch.stack((normed @ w[n].T).chunk(self.heads, 1)) for n in "qkv")
        scores = torch.einsum("htd,hsd->hts", q, k) * self.scale + state.sizes.log()
        if self.pairs:
            at = torch.tensor([group[0] for group in groups])
            scores = scores + self.weights[f"pair{block}"][:, at][:, :, at]
        if self.causal:
            scores = torch.stack([s + torch.full_like(s, -math.inf).triu(1) for s in scores])
        weights = scores.softmax(2)
        attended = torch.cat(list(torch.einsum("hts,hsd->htd", weights, v)), 1)
        x = x + attended @ w["o"].T
        x = norm(x) if self.post_norm else x
        x = x + F.gelu((x if self.post_norm else norm(x)) @ w["up"].T) @ w["down"].T
        return norm(x) if self.post_norm else x, weights, k.mean(0)


@dataclass
class _State:
    """Tokens of one sample while they get fewer; `original` is 1 for valid tokens and 0 for padding, `sizes` what each now stands for."""

    x: Tensor
    original: Tensor

    def __post_init__(self) -> None:
        self.sizes = self.original

    @property
    def valid(self) -> Tensor:
        """1 for tokens that are not padding."""
        return (self.sizes > 0).double()

    def mean(self, rows: Tensor, group: list[int]) -> Tensor:
        """The mean of the rows of a group of original tokens, the valid ones where there are any."""
        counted = [t for t in group if self.original[t] > 0] or group
        return rows[counted].mean(0)

    def join(self, parts: list[list[int]], groups: list[list[int]]) -> list[list[int]]:
        """Make one token of each part."""
        rows = []
        for part in parts:
            weights = self.sizes[part] if self.sizes[part].sum() > 0 else torch.ones(len(part), dtype=torch.float64)
            rows.append((weights[:, None] * self.x[part]).sum(0) / weights.sum())
        self.x, self.sizes = torch.stack(rows), torch.stack([self.sizes[part].sum() for part in parts])
        return [[t for member in part for t in groups[member]] for part in parts]


def most(scores: Tensor, keep: int, first: int) -> list[int]:
    """The first tokens and those of highest score, in order."""
    ranked = sorted(range(len(scores)), key=lambda t: (t >= first, -scores[t].item(), t))
    return sorted(ranked[:keep])


def paired(keys: Tensor, keep: int, first: int) -> list[list[int]]:
    """Tokens with those that are merged into them, by order of the former."""
    unit = keys / keys.norm(dim=1, keepdim=True)
    edges = []
    for a in range(0, len(keys), 2):
        likeness = {b: float(unit[a] @ unit[b]) for b in range(1, len(keys), 2) if b >= first}
        if a >= first and likeness:
            best = max(likeness, key=lambda b: (likeness[b], -b))
            edges.append((-likeness[best], a, best))
    into = {a: b for _, a, b in sorted(edges)[: len(keys) - keep]}
    return [[t, *(a for a, b in into.items() if b == t)] for t in range(len(keys)) if t not in into]
