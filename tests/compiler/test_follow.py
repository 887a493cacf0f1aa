"""What follows a run-time size, where that ends, and what of a graph depends on the size in a way that kernels cannot follow."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from sparsec.backends.cpu.access import layouts_of
from sparsec.doors.captured import Captured, InputSpec
from sparsec.doors.from_torch.capture import capture
from sparsec.ir.editor import Editor
from sparsec.ir.miss import Miss
from sparsec.ir.pipeline import Context, Form, run
from sparsec.ir.symbols import Signature, SymbolSpec
from sparsec.lower.follow import difference, followers, rearranged, smaller, unserved
from sparsec.lower.regions import Region, covers, extract, returned
from sparsec.passes import PIPELINE
from sparsec.run.affine import Affine, Count
from sparsec.tokens import ops as token_ops
from sparsec.tokens import pruning_ops
from tests.token_models import WIDTH, PostNorm, PreNorm, bert, sentences, tokens

# Whole compilations: the fast set has the parts.
pytestmark = pytest.mark.slow

aten = torch.ops.aten
MOST = 40


def free_axes() -> dict[int, Any]:
    return {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", min=1, max=MOST)}


def free(model: nn.Module, *inputs: Tensor) -> Captured:
    """Captured with batch and tokens free."""
    axes = free_axes()
    return capture(model.eval(), inputs, dynamic_shapes=tuple(axes for _ in inputs))


def function(body: Any) -> nn.Module:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            return body(self, x)

    return Module().eval()


def region_of(captured: Captured) -> tuple[Region, fx.GraphModule]:
    """The only region."""
    context = Context(offers=lambda spec: None, layouts=layouts_of, keep_dense=True)
    graph_module = run(captured.graph_module, PIPELINE, context).graph_module
    follows = followers(captured)
    assert not isinstance(follows, str)
    (region,) = extract(graph_module, follows)
    assert covers(region, graph_module)
    return region, graph_module


def simple(captured: Captured) -> fx.GraphModule:
    return run(captured.graph_module, tuple(each for each in PIPELINE if each.gives == Form.CAPTURED), Context()).graph_module


# Which inputs


def test_inputs_with_free_tokens_follow_their_size():
    captured = free(PostNorm(), tokens(2, 20), sentences(2, 20)[1])
    assert captured.sizes["tokens"] == MOST
    assert followers(captured) == {"x": Affine("tokens"), "mask": Affine("tokens")}


def test_a_length_may_be_the_size_and_some_more():
    captured = free(PostNorm(), tokens(2, 20), sentences(2, 20)[1])
    first, second = captured.inputs
    longer = replace(captured, inputs=(first, replace(second, dims=(second.dims[0], Affine("tokens", plus=3)))))
    assert followers(longer) == {"x": Affine("tokens"), "mask": Affine("tokens", 3)}


@pytest.mark.parametrize(
    ("dims", "position"),
    [
        ((2, MOST, Affine("tokens")), 2),
        ((Affine("tokens"), MOST, WIDTH), 0),
        ((2, Affine("tokens", times=2), WIDTH), 1),
        ((2, Affine("tokens"), 6, 6), 1),
        ((2, Affine("tokens"), 6, Affine("tokens")), 1),
    ],
)
@pytest.mark.slow
def test_other_axes_are_named(dims, position):
    shape = tuple(d if isinstance(d, int) else d.at(MOST) for d in dims)
    captured = replace(free(PreNorm(), tokens(2, 20)), inputs=(InputSpec("x", shape, torch.float32, dims),))
    found = followers(captured)
    assert isinstance(found, Miss)
    assert found.reason.startswith(f"axis {position} of x follows")


def test_fixed_inputs_follow_nothing():
    assert followers(capture(PreNorm(), (tokens(2, 20),))) == {}


def test_sizes_to_compare_with_are_smaller_odd_and_allowed():
    captured = free(PreNorm(), tokens(2, 20))
    follows = {"x": Affine("tokens")}
    assert smaller(captured, follows) == captured.sizes | {"tokens": 27}
    narrow = replace(captured, signature=Signature(symbols={**captured.symbols, "tokens": SymbolSpec("tokens", 39, MOST)}))
    assert smaller(narrow, follows)["tokens"] == 39
    assert smaller(captured, {}) == captured.sizes


# Which values


@pytest.mark.slow
def test_all_tokens_of_an_encoder_follow():
    region, graph_module = region_of(free(bert(depth=2), *sentences(2, 20)))
    hidden, pooled = returned(graph_module.graph)
    tokens_in = {n for n, spec in region.specs.items() if spec.op not in ("select_token",) and spec.output[0] == MOST}
    assert tokens_in <= set(region.follows)
    assert {region.follows[n] for n in tokens_in} == {Affine("tokens")}
    assert hidden in region.follows
    assert pooled not in region.follows
    assert isinstance(region.geometry(hidden).count, Count)
    assert region.geometry(hidden).count.at(5) == 5


class Front(nn.Module):
    """Constant tokens go before others."""

    def __init__(self, front: int) -> None:
        super().__init__()
        self.inner, self.front = PreNorm(), nn.Parameter(torch.randn(1, front, WIDTH))

    def forward(self, x):
        return self.inner(torch.cat([self.front.expand(len(x), -1, -1), x], 1))


@pytest.mark.parametrize("front", [1, 3])
def test_tokens_put_before_others_are_added_to_the_size(front):
    size = torch.export.Dim("tokens", min=1, max=MOST)
    region, graph_module = region_of(capture(Front(front).eval(), (tokens(2, 20),), dynamic_shapes=({1: size},)))
    assert {region.follows[n] for n in region.specs} == {Affine("tokens", front)}
    (result,) = returned(graph_module.graph)
    space = region.storage(result).index_space
    assert (space.width, space.follows) == (MOST + front, Affine("tokens", front))
    assert space.count.at(5) == 5 + front


@pytest.mark.parametrize(("order", "symbol"), [(1, "queries"), (-1, "keys")])
def test_attention_follows_its_queries(order, symbol):
    region, graph_module = region_of(captured_by_hand(order))
    (result,) = returned(graph_module.graph)
    assert region.follows[result] == Affine(symbol)


def captured_by_hand(order: int) -> Captured:
    """Attention of x to y, or of y to x."""
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    x.meta["val"], y.meta["val"] = torch.empty(2, 30, WIDTH), torch.empty(2, MOST, WIDTH)
    end = graph.output((x,))
    edit = Editor(fx.GraphModule(nn.Module(), graph))
    q, k = (x, y)[::order]
    end.args = ((edit.call(token_ops.attention, (q, k, k), {"heads": 2, "scale": 1.0, "causal": False}, before=end),),)
    inputs = tuple(
        InputSpec(n.name, tuple(n.meta["val"].shape), torch.float32, (2, Affine(s), WIDTH)) for n, s in ((x, "queries"), (y, "keys"))
    )
    symbols = {"queries": SymbolSpec("queries", 1, 30), "keys": SymbolSpec("keys", 1, MOST)}
    plain = capture(function(lambda m, a: a + 1), (tokens(2, 3),))
    dims = ((2, Affine("queries" if order == 1 else "keys"), WIDTH),)
    return replace(
        plain,
        graph_module=edit.graph_module,
        inputs=inputs,
        signature=Signature(symbols=symbols),
        sizes={"queries": 30, "keys": MOST},
        output_dims=dims,
    )


def test_choosing_among_tokens_fixes_their_number():
    captured = by_hand(lambda call, x: call(pruning_ops.gather_tokens, x, chosen(call, x)))
    region, graph_module = region_of(captured)
    (result,) = returned(graph_module.graph)
    following = {spec.op for n, spec in region.specs.items() if n in region.follows}
    assert following == {"token_scores"}
    assert result not in region.follows
    assert rearranged(region) == "keep_tokens makes something else of tokens"


def chosen(call: Any, x: fx.Node) -> fx.Node:
    scores = call(pruning_ops.token_scores, x, x, heads=2, scale=1.0, causal=False, cls=False)
    return call(pruning_ops.keep_tokens, scores, keep=5, first=1)


def by_hand(body: Any, size: int = MOST) -> Captured:
    """A graph on x [2,size,WIDTH] whose tokens are free; ``body(call, x)`` gives the result."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(2, size, WIDTH)
    end = graph.output((x,))
    edit = Editor(fx.GraphModule(nn.Module(), graph))

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        args = tuple(edit.add_constant(a, "c", before=end) if isinstance(a, Tensor) else a for a in args)
        return edit.call(target, args, kwargs, before=end)

    end.args = ((body(call, x),),)
    plain = capture(function(lambda m, a: a + 1), (tokens(2, 3),))
    return replace(
        plain,
        graph_module=edit.graph_module,
        inputs=(InputSpec("x", (2, size, WIDTH), torch.float32, (2, Affine("tokens"), WIDTH)),),
        signature=Signature(symbols={"tokens": SymbolSpec("tokens", 1, MOST)}),
        sizes={"tokens": size},
        output_dims=((2, Affine("tokens"), WIDTH),),
    )


# Differences between sizes

ALIKE = {
    "nothing of the size": lambda call, x, size: call(aten.add.Tensor, x, torch.ones(WIDTH)),
    "a longer table": lambda call, x, size: call(aten.add.Tensor, x, torch.arange(MOST * WIDTH).view(MOST, WIDTH)[:size].float()),
    "the same token": lambda call, x, size: call(aten.select.int, x, 1, 0),
}
PLANTED = {
    "a constant scaled by the size": (lambda call, x, size: call(aten.add.Tensor, x, torch.ones(WIDTH) * size), "constant"),
    "a table from its end": (
        lambda call, x, size: call(aten.add.Tensor, x, torch.arange(MOST * WIDTH).view(MOST, WIDTH)[-size:].float()),
        "constant",
    ),
    "a constant of another dtype": (lambda call, x, size: call(aten.mul.Tensor, x, torch.ones(WIDTH).to(dtype(size))), "constant"),
    "a constant of another rank": (lambda call, x, size: call(aten.add.Tensor, x, torch.ones([1] * (size == MOST) + [WIDTH])), "constant"),
    "another operator": (lambda call, x, size: call(aten.relu.default if size == MOST else aten.tanh.default, x), "for other sizes"),
    "the last token": (lambda call, x, size: call(aten.select.int, x, 1, size - 1), "arguments of select"),
    "a factor of the size": (lambda call, x, size: call(aten.mul.Tensor, x, 1 / size), "arguments of mul"),
    "a keyword": (lambda call, x, size: call(aten.add.Tensor, x, x, alpha=size), "arguments of add"),
    "more operators": (lambda call, x, size: call(aten.relu.default, x if size == MOST else call(aten.relu.default, x)), "other nodes"),
    "another operand": (lambda call, x, size: other_operand(call, x, size), "arguments of add"),
}


def dtype(size: int) -> torch.dtype:
    return torch.float32 if size == MOST else torch.float64


def other_operand(call: Any, x: fx.Node, size: int) -> fx.Node:
    y = call(aten.relu.default, x)
    return call(aten.add.Tensor, y, x if size == MOST else y)


@pytest.mark.parametrize("name", ALIKE)
@pytest.mark.slow
def test_graphs_that_differ_in_counts_only_are_alike(name):
    large, small = (by_hand(lambda call, x, s=size: ALIKE[name](call, x, s), size).graph_module for size in (MOST, 27))
    assert difference(large, small) == ""


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.slow
def test_a_planted_dependence_on_the_size_is_found(name):
    make, reason = PLANTED[name]
    large, small = (by_hand(lambda call, x, s=size: make(call, x, s), size).graph_module for size in (MOST, 27))
    assert reason in difference(large, small)


@pytest.mark.slow
def test_sizes_of_real_programs_are_alike():
    captured = free(bert(), *sentences(2, 20))
    other = captured.at(smaller(captured, {"input_ids": Affine("tokens")}))
    assert difference(simple(captured), simple(other)) == ""


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: m.one(x) * x.shape[1],
        lambda m, x: m.one(x) / x.shape[1] ** 0.5,
        lambda m, x: m.one(x) + torch.arange(x.shape[1])[:, None].flip(0),
    ],
    ids=["scaled", "root", "table from the end"],
)
def test_a_module_that_computes_with_its_size_is_found(body):
    captured = free(function(body), tokens(2, 20))
    other = captured.at(smaller(captured, {"x": Affine("tokens")}))
    assert "size" in difference(simple(captured), simple(other))


# Results


def test_a_region_that_serves_all_sizes():
    captured = free(bert(), *sentences(2, 20))
    region, graph_module = region_of(captured)
    assert unserved(region, captured, returned(graph_module.graph)) == ""


def test_a_result_of_another_length_is_named():
    captured = free(PreNorm(), tokens(2, 20))
    region, graph_module = region_of(captured)
    batch, _, width = captured.output_dims[0]
    for wrong in (Affine("tokens", plus=1), Affine("other"), Affine("tokens", times=2), None):
        changed = replace(captured, output_dims=((batch, wrong, width),))
        assert unserved(region, changed, returned(graph_module.graph)).startswith("axis 1 of the result")
    changed = replace(captured, output_dims=((batch, MOST, Affine("tokens")),))
    assert unserved(region, changed, returned(graph_module.graph)).startswith("axis 2 of the result")


def test_a_map_of_tokens_is_not_served():
    captured = by_hand(lambda call, x: call(token_ops.tokens_to_map, x, height=5, width=8))
    captured = replace(captured, output_dims=((2, WIDTH, 5, 8),))
    region, graph_module = region_of(captured)
    assert unserved(region, captured, returned(graph_module.graph)) == "tokens_to_map makes something else of tokens"


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.slow
def test_one_vector_of_all_tokens_is_served(pooling):
    captured = free(PreNorm(pooling), tokens(2, 20))
    region, graph_module = region_of(captured)
    assert unserved(region, captured, returned(graph_module.graph)) == ""
