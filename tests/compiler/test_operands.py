"""Which arguments of a node are activations, constants, residuals; which values are a number per token."""

import pytest
import torch
from torch import Tensor, fx

from sparsec.ir import ops
from sparsec.ir.arguments import operands, shape_of
from sparsec.ir.editor import Editor
from sparsec.ir.operands import is_row, residual, sources, weights
from sparsec.ir.operators import OPERATORS, operator_of
from sparsec.tokens import ops as token_ops
from sparsec.tokens import pruning_ops

aten = torch.ops.aten
N, T, F = 2, 6, 4
#: Numbers per token that each operator reads: positions of its arguments.
ROWS = {
    "embedding": (1,),
    "key_bias": (0,),
    "attention": (3,),
    "token_scores": (2,),
    "keep_tokens": (0,),
    "gather_tokens": (1,),
    "gather_keys": (0, 1),
    "merge_tokens": (1, 2),
    "merge_sizes": (0, 1),
    "log_sizes": (0,),
    "token_sizes": (0,),
    "mean_merged": (1,),
    "merge_plan": (),
}


class Graph:
    """Placeholders by name, and constants."""

    def __init__(self) -> None:
        graph = fx.Graph()
        self.x, self.y = (self._place(graph, name, torch.empty(N, T, F)) for name in "xy")
        self.bias, self.sizes = (self._place(graph, name, torch.empty(N, T)) for name in ("bias", "sizes"))
        self.ids, self.index = (self._place(graph, name, torch.zeros(N, T, dtype=torch.int64)) for name in ("ids", "index"))
        self.end = graph.output(())
        self.edit = Editor(fx.GraphModule(torch.nn.Module(), graph))

    @staticmethod
    def _place(graph: fx.Graph, name: str, value: Tensor) -> fx.Node:
        node = graph.placeholder(name)
        node.meta["val"] = value
        return node

    def constant(self, *shape: int) -> fx.Node:
        return self.edit.add_constant(torch.ones(shape), "c", before=self.end)

    def call(self, target, *args, **kwargs) -> fx.Node:
        return self.edit.call(target, args, kwargs, before=self.end)


@pytest.fixture
def g() -> Graph:
    return Graph()


def test_sources_keep_the_order_and_repeat_what_is_read_twice(g):
    node = g.call(token_ops.attention, g.y, g.x, g.x, g.bias, heads=2, scale=1.0)
    assert sources(node) == (g.y, g.x, g.x, g.bias)
    assert operands(node) == (g.y, g.x, g.bias)
    assert weights(node) == ()


def test_a_bias_per_pair_is_a_weight(g):
    pairs = g.constant(1, T, T)
    node = g.call(token_ops.attention, g.x, g.x, g.x, None, pairs, heads=2, scale=1.0)
    assert (sources(node), weights(node)) == ((g.x, g.x, g.x), (pairs,))


def test_the_prefix_of_a_cat_is_a_weight(g):
    prefix = g.constant(N, 1, F)
    node = g.call(aten.cat.default, [prefix, g.x], 1)
    assert (sources(node), operands(node), weights(node)) == ((g.x,), (g.x,), (prefix,))
    assert shape_of(node) == (T + 1, F)


def test_absent_weights_are_none(g):
    scale = g.constant(F)
    assert weights(g.call(aten.layer_norm.default, g.x, [F])) == (None, None)
    assert weights(g.call(aten.layer_norm.default, g.x, [F], scale)) == (scale, None)
    table = g.constant(9, F)
    node = g.call(aten.embedding.default, table, g.ids)
    assert (weights(node), sources(node)) == ((table,), (g.ids,))


def test_a_residual_is_an_operand_but_no_source(g):
    weight = g.constant(F, F)
    node = g.call(ops.linear, g.x, weight, None, g.y)
    assert (sources(node), operands(node), residual(node), weights(node)) == ((g.x,), (g.x, g.y), g.y, (weight, None))
    assert residual(g.call(ops.linear, g.x, weight, None)) is None
    assert residual(g.call(aten.add.Tensor, g.x, g.y)) is None


@pytest.mark.parametrize("constant_first", [False, True])
def test_tables_may_stand_on_either_side(g, constant_first):
    table = g.constant(T, F)
    node = g.call(aten.add.Tensor, *([table, g.x] if constant_first else [g.x, table]))
    assert (sources(node), weights(node)) == ((g.x,), (table,))


def made(g: Graph, name: str) -> fx.Node:
    """One call of each operator that reads numbers per token."""
    traits = {"heads": 2, "scale": 1.0}
    arguments = {
        "embedding": (aten.embedding.default, (g.constant(9, F), g.ids), {}),
        "key_bias": (token_ops.key_bias, (g.ids,), {"on": 0.0, "off": -1.0}),
        "attention": (token_ops.attention, (g.x, g.x, g.x, g.bias), traits),
        "token_scores": (pruning_ops.token_scores, (g.x, g.x, g.bias), traits | {"cls": True}),
        "keep_tokens": (pruning_ops.keep_tokens, (g.bias,), {"keep": 3, "first": 1}),
        "gather_tokens": (pruning_ops.gather_tokens, (g.x, g.index), {}),
        "gather_keys": (pruning_ops.gather_keys, (g.bias, g.index), {}),
        "merge_plan": (pruning_ops.merge_plan, (g.x,), {"heads": 2, "keep": 4, "first": 1}),
        "merge_tokens": (pruning_ops.merge_tokens, (g.x, g.index, g.sizes), {"keep": 4}),
        "merge_sizes": (pruning_ops.merge_sizes, (g.index, g.sizes), {"keep": 4}),
        "log_sizes": (pruning_ops.log_sizes, (g.sizes,), {}),
        "token_sizes": (pruning_ops.token_sizes, (g.bias,), {}),
        "mean_merged": (pruning_ops.mean_merged, (g.x, g.sizes), {}),
    }
    target, args, kwargs = arguments[name]
    return g.call(target, *args, **kwargs)


@pytest.mark.parametrize("name", ROWS)
def test_what_is_read_as_a_number_per_token_is_one(g, name):
    node = made(g, name)
    rows = {node.args[at] for at in ROWS[name]}
    assert {a for a in operands(node) if is_row(a)} == rows


def test_vectors_are_no_numbers_per_token(g):
    vector = g.call(aten.select.int, g.x, 1, 0)
    g.call(ops.linear, vector, g.constant(5, F), None)
    assert not is_row(vector)
    assert not is_row(g.call(aten.mean.dim, g.x, [1]))


@pytest.mark.parametrize("name", ["key_bias", "token_scores", "keep_tokens", "gather_keys", "merge_plan", "merge_sizes", "log_sizes"])
def test_results_are_numbers_per_token_without_readers(g, name):
    assert is_row(made(g, name))


@pytest.mark.parametrize("name", ["embedding", "attention", "gather_tokens", "merge_tokens", "mean_merged"])
def test_results_that_are_tokens_or_vectors(g, name):
    assert not is_row(made(g, name))


def test_every_operator_that_fixes_a_number_of_tokens_is_known():
    shrinking = {f for f in pruning_ops.FUNCTIONS if f not in (pruning_ops.token_scores, pruning_ops.log_sizes, pruning_ops.token_sizes)}
    fixing = {target for each in OPERATORS if each.tokens == "fixed" for target in each.targets}
    assert shrinking == fixing


def test_operators_with_other_dtypes_are_those_that_read_or_make_integers(g):
    for name in ROWS:
        node = made(g, name)
        integers = {v.meta["val"].dtype for v in (node, *operands(node))} - {torch.float32}
        dtypes = operator_of(node).dtypes
        assert integers <= set(dtypes)
        assert bool(integers) == bool(dtypes)
