"""Operators on tokens as specs whose reference is the operator, and the reason wherever there is none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from sparsec.ir.editor import Editor
from sparsec.ir.miss import Miss
from sparsec.lower.describe import spec_of
from sparsec.lower.spec import KernelSpec
from sparsec.tokens import ops as token_ops
from sparsec.tokens import pruning_ops

aten = torch.ops.aten
N, T, F, HEADS, KEEP = 2, 7, 8, 2, 5
RANDOM = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=RANDOM)


class Graph:
    """A graph with one operator; ``values`` are those of its placeholders and constants."""

    def __init__(self) -> None:
        graph = fx.Graph()
        self.values: dict[fx.Node, Tensor] = {}
        self.end = graph.output(())
        self.edit = Editor(fx.GraphModule(torch.nn.Module(), graph))

    def value(self, tensor: Tensor) -> fx.Node:
        with self.edit.graph.inserting_before(next(iter(self.edit.graph.nodes))):
            node = self.edit.graph.placeholder(f"x{len(self.values)}")
        node.meta["val"] = torch.empty(tensor.shape, dtype=tensor.dtype)
        self.values[node] = tensor
        return node

    def constant(self, tensor: Tensor) -> fx.Node:
        node = self.edit.add_constant(tensor, "c", before=self.end)
        self.values[node] = tensor
        return node

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.edit.call(target, args, kwargs, before=self.end)


def mask() -> Tensor:
    return torch.tensor([[1] * T, [1, 0, 1, 0, 0, 0, 0]])


def ids(most: int = 11, count: int = T) -> Tensor:
    return torch.randint(most, (N, count), generator=RANDOM)


def positions() -> Tensor:
    return torch.tensor([[0, 1, 3, 4, 6], [0, 2, 3, 4, 5]])


def plan() -> Tensor:
    return torch.tensor([[0, 1, 1, 2, 3, 4, 4], [0, 1, 2, 2, 2, 3, 4]])


def attention(g: Graph, *rest: Any, queries: int = T, causal: bool = False) -> fx.Node:
    q, k, v = g.value(normal(N, queries, F)), g.value(normal(N, T, F)), g.value(normal(N, T, 2 * F))
    return g.call(token_ops.attention, q, k, v, *rest, heads=HEADS, scale=0.3, causal=causal)


def prepend(g: Graph, prefix: Tensor) -> fx.Node:
    return g.call(aten.cat.default, [g.constant(prefix), g.value(normal(N, T, F))], 1)


def with_constant(g: Graph, op: Callable[..., Any], *shape: int) -> fx.Node:
    return g.call(op, g.value(normal(N, T, F)), g.constant(normal(*shape)))


#: What makes the node, the spec's name, shapes of its weights.
DESCRIBED: dict[str, tuple[Callable[[Graph], fx.Node], str, tuple]] = {
    "layer_norm": (
        lambda g: g.call(aten.layer_norm.default, g.value(normal(N, T, F)), [F], g.constant(normal(F)), g.constant(normal(F)), 1e-3),
        "layer_norm",
        ((F,), (F,)),
    ),
    "layer_norm without weights": (
        lambda g: g.call(aten.layer_norm.default, g.value(normal(N, T, F)), [F]),
        "layer_norm",
        (None, None),
    ),
    "embedding": (lambda g: g.call(aten.embedding.default, g.constant(normal(11, F)), g.value(ids())), "embedding", ((11, F),)),
    "embedding of int32": (
        lambda g: g.call(aten.embedding.default, g.constant(normal(11, F)), g.value(ids().int())),
        "embedding",
        ((11, F),),
    ),
    "table of positions": (lambda g: with_constant(g, aten.add.Tensor, 1, T, F), "add_table", ((T, F),)),
    "table without a batch": (lambda g: with_constant(g, aten.add.Tensor, T, F), "add_table", ((T, F),)),
    "table of one row": (lambda g: with_constant(g, aten.add.Tensor, 1, 1, F), "add_table", ((F,),)),
    "vector": (lambda g: with_constant(g, aten.add.Tensor, F), "add_table", ((F,),)),
    "constant before tokens": (
        lambda g: g.call(aten.add.Tensor, g.constant(normal(1, T, F)), g.value(normal(N, T, F))),
        "add_table",
        ((T, F),),
    ),
    "prepend": (lambda g: prepend(g, normal(1, 2, F).repeat(N, 1, 1)), "prepend", ((2, F),)),
    "prepend an expanded token": (lambda g: prepend(g, normal(1, 1, F).expand(N, -1, -1)), "prepend", ((1, F),)),
    "prepend to one sample": (
        lambda g: g.call(aten.cat.default, [g.constant(normal(1, 2, F)), g.value(normal(1, T, F))], 1),
        "prepend",
        ((2, F),),
    ),
    "select_token": (lambda g: g.call(aten.select.int, g.value(normal(N, T, F)), 1, 3), "select_token", ()),
    "mean_tokens": (lambda g: g.call(aten.mean.dim, g.value(normal(N, T, F)), [1]), "mean_tokens", ()),
    "mean_tokens from the end": (lambda g: g.call(aten.mean.dim, g.value(normal(N, T, F)), [-2]), "mean_tokens", ()),
    "attention": (lambda g: attention(g), "attention", ()),
    "cross attention": (lambda g: attention(g, queries=3), "attention", ()),
    "causal attention": (lambda g: attention(g, causal=True), "attention", ()),
    "attention with key bias": (lambda g: attention(g, g.value(normal(N, T))), "attention", ()),
    "attention with pair bias": (lambda g: attention(g, None, g.constant(normal(HEADS, T, T))), "attention", ((HEADS, T, T),)),
    "attention with both": (lambda g: attention(g, g.value(normal(N, T)), g.constant(normal(1, T, T))), "attention", ((1, T, T),)),
    "key_bias": (lambda g: g.call(token_ops.key_bias, g.value(mask()), on=0.0, off=-1e9), "key_bias", ()),
    "key_bias of bool": (lambda g: g.call(token_ops.key_bias, g.value(mask().bool()), on=-1.0, off=0.0), "key_bias", ()),
    "affine key_bias": (lambda g: g.call(token_ops.key_bias, g.value(mask().float()), on=0.0, off=-1e9, affine=True), "key_bias", ()),
    "map_to_tokens": (lambda g: g.call(token_ops.map_to_tokens, g.value(normal(N, F, 3, 4))), "map_to_tokens", ()),
    "tokens_to_map": (lambda g: g.call(token_ops.tokens_to_map, g.value(normal(N, 12, F)), height=3, width=4), "tokens_to_map", ()),
    "token_scores": (
        lambda g: g.call(
            pruning_ops.token_scores, g.value(normal(N, T, F)), g.value(normal(N, T, F)), heads=HEADS, scale=0.3, causal=False, cls=True
        ),
        "token_scores",
        (),
    ),
    "token_scores with biases": (
        lambda g: g.call(
            pruning_ops.token_scores,
            *(g.value(normal(N, T, F)), g.value(normal(N, T, F)), g.value(normal(N, T)), g.constant(normal(1, T, T))),
            heads=HEADS,
            scale=0.3,
            causal=False,
            cls=False,
        ),
        "token_scores",
        ((1, T, T),),
    ),
    "keep_tokens": (lambda g: g.call(pruning_ops.keep_tokens, g.value(normal(N, T)), keep=KEEP, first=1), "keep_tokens", ()),
    "gather_tokens": (lambda g: g.call(pruning_ops.gather_tokens, g.value(normal(N, T, F)), g.value(positions())), "gather_tokens", ()),
    "gather_keys": (lambda g: g.call(pruning_ops.gather_keys, g.value(normal(N, T)), g.value(positions())), "gather_keys", ()),
    "merge_plan": (
        lambda g: g.call(pruning_ops.merge_plan, g.value(normal(N, T, F)), heads=HEADS, keep=KEEP, first=1),
        "merge_plan",
        (),
    ),
    "merge_tokens": (
        lambda g: g.call(pruning_ops.merge_tokens, g.value(normal(N, T, F)), g.value(plan()), keep=KEEP),
        "merge_tokens",
        (),
    ),
    "merge_sizes": (lambda g: g.call(pruning_ops.merge_sizes, g.value(plan()), g.value(mask().float()), keep=KEEP), "merge_sizes", ()),
    "log_sizes": (lambda g: g.call(pruning_ops.log_sizes, g.value(mask().float())), "log_sizes", ()),
    "token_sizes": (lambda g: g.call(pruning_ops.token_sizes, g.value(normal(N, T))), "token_sizes", ()),
    "mean_merged": (lambda g: g.call(pruning_ops.mean_merged, g.value(normal(N, T, F)), g.value(mask().float())), "mean_merged", ()),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_the_reference_of_a_spec_is_what_the_operator_computes(name):
    make, op, weights = DESCRIBED[name]
    graph = Graph()
    node = make(graph)
    spec = spec_of(node)
    assert isinstance(spec, KernelSpec), spec
    assert (spec.op, spec.weights) == (op, weights)
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), graph.values.__getitem__)
    expected = node.target(*args, **kwargs)
    assert spec.output == tuple(expected.shape[1:])
    torch.testing.assert_close(spec.reference(*tensors_of(op, args)), expected, rtol=0, atol=0)


def tensors_of(op: str, args: Any) -> list[Any]:
    """The tensors of a call as a reference takes them: activations before tables, nothing else."""
    if op == "prepend":
        return [args[0][1], args[0][0]]
    if op == "embedding":
        return [args[1], args[0]]
    if op == "add_table":
        return sorted(args, key=lambda x: x.dim() < 3 or len(x) < N)
    if op == "layer_norm":
        return [args[0], *(args[2:4] or (None, None))]
    return [a for a in args if isinstance(a, Tensor | None)]


@pytest.mark.parametrize("name", DESCRIBED)
def test_specs_are_plain_data_with_a_stable_key(name):
    keys = {spec_of(DESCRIBED[name][0](Graph())).key for _ in range(2)}
    assert len(keys) == 1


def test_attributes_tell_specs_apart():
    made = [spec_of(attention(Graph(), causal=causal)) for causal in (False, True)]
    made += [spec_of(attention(g, g.value(normal(N, T)))) for g in [Graph()]]
    assert len({spec.key for spec in made}) == 3


#: What makes the node, and a part of the reason why there is no kernel.
REFUSED: dict[str, tuple[Callable[[Graph], fx.Node], str]] = {
    "norm of a map": (lambda g: g.call(aten.layer_norm.default, g.value(normal(N, F, 3, 4)), [4]), "normalise the features of tokens"),
    "norm over tokens too": (lambda g: g.call(aten.layer_norm.default, g.value(normal(N, T, F)), [T, F]), "normalise the features"),
    "norm of a vector": (lambda g: g.call(aten.layer_norm.default, g.value(normal(N, F)), [F]), "normalise the features"),
    "norm with a computed weight": (
        lambda g: g.call(aten.layer_norm.default, g.value(normal(F, T, F)), [F], g.value(normal(F, 1)[:, 0])),
        "shape [8]; kernels take",
    ),
    "embedding of vectors": (lambda g: g.call(aten.embedding.default, g.constant(normal(11, F)), g.value(ids()[:, 0])), "kernels take"),
    "embedding with a computed table": (lambda g: g.call(aten.embedding.default, g.value(normal(N, F)), g.value(ids(N))), "not constant"),
    "scaled table": (
        lambda g: g.call(aten.add.Tensor, g.value(normal(N, T, F)), g.constant(normal(T, F)), alpha=2),
        "add that broadcasts or scales a constant",
    ),
    "table over features": (lambda g: with_constant(g, aten.add.Tensor, T, 1), "add that broadcasts or scales a constant"),
    "table per sample": (lambda g: with_constant(g, aten.add.Tensor, N, T, F), "add that broadcasts or scales a constant"),
    "tokens times a table": (lambda g: with_constant(g, aten.mul.Tensor, T, F), "constant operand"),
    "add of one token": (
        lambda g: g.call(aten.add.Tensor, g.value(normal(N, T, F)), g.value(normal(N, 1, F))),
        "broadcasts",
    ),
    "append": (lambda g: g.call(aten.cat.default, [g.value(normal(N, T, F)), g.constant(normal(N, 2, F))], 1), "cat other than"),
    "cat of tokens": (lambda g: g.call(aten.cat.default, [g.value(normal(N, T, F)), g.value(normal(N, T, F))], 1), "cat other than"),
    "cat of features": (lambda g: g.call(aten.cat.default, [g.constant(normal(N, T, F)), g.value(normal(N, T, F))], 2), "cat other than"),
    "three parts": (
        lambda g: g.call(aten.cat.default, [g.constant(normal(N, 1, F)), g.constant(normal(N, 1, F)), g.value(normal(N, T, F))], 1),
        "cat other than",
    ),
    "prefix per sample": (
        lambda g: prepend(g, normal(N, 1, F)),
        "differ from sample to sample",
    ),
    "select from the end": (lambda g: g.call(aten.select.int, g.value(normal(N, T, F)), 1, -1), "from the front"),
    "select a feature": (lambda g: g.call(aten.select.int, g.value(normal(N, T, F)), 2, 0), "dimension 2"),
    "select of a map": (lambda g: g.call(aten.select.int, g.value(normal(N, F, 3, 4)), 1, 0), "from the front"),
    "mean over features": (lambda g: g.call(aten.mean.dim, g.value(normal(N, T, F)), [2]), "a mean other than over tokens"),
    "mean that keeps": (lambda g: g.call(aten.mean.dim, g.value(normal(N, T, F)), [1], True), "a mean other than over tokens"),
    "mean of a map": (lambda g: g.call(aten.mean.dim, g.value(normal(N, F, 3, 4)), [2]), "a mean other than over tokens"),
    "attention with a computed pair bias": (lambda g: attention(g, None, g.value(normal(N, T, T))), "computed bias of pairs"),
    "attention with a constant key bias": (lambda g: attention(g, g.constant(normal(N, T))), "constant operand"),
    "attention on a constant": (
        lambda g: g.call(
            token_ops.attention, g.constant(normal(N, T, F)), g.value(normal(N, T, F)), g.value(normal(N, T, F)), heads=1, scale=1.0
        ),
        "constant operand",
    ),
    "key_bias of float64": (lambda g: g.call(token_ops.key_bias, g.value(mask().double()), on=0.0, off=-1.0), "float64"),
    "pairs of tokens left": (
        lambda g: g.call(pruning_ops.gather_pairs, g.value(normal(N, 1, T, T)), g.value(positions())),
        "no kernel family computes gather_pairs",
    ),
    "gather of a constant": (
        lambda g: g.call(pruning_ops.gather_tokens, g.constant(normal(1, T, F)), g.value(positions())),
        "gather_tokens of constant or computed operands",
    ),
    "scores with a computed pair bias": (
        lambda g: g.call(
            pruning_ops.token_scores,
            *(g.value(normal(N, T, F)), g.value(normal(N, T, F)), None, g.value(normal(N, 1, T, T))),
            heads=HEADS,
            scale=0.3,
            cls=False,
        ),
        "token_scores of constant or computed operands",
    ),
    "no activation": (lambda g: g.call(aten.select.int, g.constant(normal(N, T, F)), 1, 0), "it reads constants only"),
    "five axes": (lambda g: g.call(aten.mean.dim, g.value(normal(N, 1, 2, T, F)), [1]), "kernels take [N, C], [N, T, F]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_kernel_is_refused_with_the_reason(name):
    make, reason = REFUSED[name]
    node = make(Graph())
    found = spec_of(node)
    assert isinstance(found, Miss)
    assert found.where is node
    assert found.reason
    assert reason in found.reason
