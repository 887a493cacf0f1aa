"""FoldConstants: computed weights become constants, copies and dead code go."""

import operator

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from sparsec.doors.from_torch.capture import capture
from sparsec.ir import budget
from sparsec.ir.pipeline import Context, Result, run
from sparsec.passes import FoldConstants
from tests.strategies import Network, integers

aten = torch.ops.aten


def folded(net: Network) -> Result:
    result = run(net.graph_module, (FoldConstants(),), Context())
    for expected, found in zip(net.run(), net.run(result.graph_module), strict=True):
        assert torch.equal(expected, found)
    return result


def targets(result: Result) -> list:
    return [node.target for node in result.graph_module.graph.nodes if node.op == "call_function"]


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def test_pruned_and_parametrized_weights_become_plain() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3)).eval()
    prune.l1_unstructured(model[0], "weight", 0.5)
    parametrize.register_parametrization(model[2], "weight", Doubled())
    x = torch.randn(1, 2, 4, 4)
    captured = capture(model, (x,))
    result = run(captured.graph_module, (FoldConstants(),), Context())
    assert aten.mul.Tensor in {node.target for node in captured.graph_module.graph.nodes}
    assert aten.mul.Tensor not in targets(result)
    with torch.no_grad():
        assert torch.equal(captured.restore(result.graph_module(x)), model(x))
    buffers = dict(result.graph_module.named_buffers()) | dict(result.graph_module.named_parameters())
    assert any(torch.equal(tensor, model[0].weight) for tensor in buffers.values())
    assert not any("mask" in name or "orig" in name for name in buffers)


def test_copies_and_inactive_dropout_go() -> None:
    net = Network((2, 3), 0)
    net.add(aten.neg.default, net.last)
    for target, args in ((aten.dropout.default, (0.5, False)), (aten.clone.default, ()), (aten.detach.default, ())):
        net.add(target, net.last, *args)
    net.add(aten.expand.default, net.last, [2, 3])
    net.add(aten.relu.default, net.last)
    assert targets(folded(net.returns(net.last))) == [aten.neg.default, aten.relu.default]


def test_a_copy_between_input_and_output_stays() -> None:
    net = Network((2, 3), 0)
    net.add(aten.clone.default, net.last)
    result = folded(net.returns(net.last))
    assert targets(result) == [aten.clone.default]
    assert "separates an output from an input" in str(result.story)


def test_a_copy_that_orders_memory_for_a_view_stays() -> None:
    net = Network((2, 3), 0)
    net.add(aten.transpose.int, net.last, 0, 1)
    net.add(aten.contiguous.default, net.last)
    net.add(aten.view.default, net.last, [6])
    result = folded(net.returns(net.last))
    assert aten.contiguous.default in targets(result)
    assert "changes the order in memory" in str(result.story)


def test_an_expand_that_repeats_stays() -> None:
    net = Network((1, 3), 0)
    net.add(aten.expand.default, net.last, [2, 3])
    assert targets(folded(net.returns(net.last))) == [aten.expand.default]


def test_random_numbers_are_not_folded() -> None:
    net = Network((2, 3), 0)
    noise = net.add(aten.bernoulli.default, net.constant(torch.ones(2, 3).double()))
    net.add(aten.add.Tensor, net.values[0], noise)
    assert aten.bernoulli.default in targets(folded(net.returns(net.last)))


def test_operators_with_several_results_are_folded() -> None:
    net = Network((2, 3), 0)
    parts = net.edit.call(aten.split.Tensor, (net.constant(integers((4, 3), 1)), 2), before=net.last.next.next)
    first, second = (net.add(operator.getitem, parts, i) for i in (0, 1))
    net.add(aten.add.Tensor, net.values[0], first)
    net.add(aten.mul.Tensor, net.last, second)
    assert targets(folded(net.returns(net.last))) == [aten.add.Tensor, aten.mul.Tensor]


def test_what_raises_stays() -> None:
    net = Network((2, 3), 0)
    rows = net.constant(integers((4, 3), 1))
    net.add(aten.index_select.default, rows, 0, net.constant(torch.tensor([0, 3])))
    net.add(aten.add.Tensor, net.values[0], net.last)
    net.returns(net.last)
    (places,) = [value for value in net.graph_module.buffers() if value.dtype == torch.int64]
    places[1] = 4
    result = run(net.graph_module, (FoldConstants(),), Context())
    assert aten.index_select.default in targets(result)
    assert "cannot be computed: IndexError" in str(result.story)


def test_large_created_values_stay_computed() -> None:
    net = Network((1, 1), 0)
    net.add(aten.zeros.default, [5000, 4000], dtype=torch.float64)
    net.add(aten.select.int, net.last, 0, 0)
    result = folded(net.returns(net.last))
    assert aten.zeros.default in targets(result)
    assert "20000000 created values" in str(result.story)


def test_dead_code_and_its_constants_go() -> None:
    net = Network((2, 3), 0)
    net.linear(integers((4, 3), 1))
    result = folded(net.returns(net.values[0]))
    assert targets(result) == []
    assert not list(result.graph_module.buffers())


class Grown(nn.Module):
    """A weight that is joined with itself, and one that is multiplied by itself."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.weight = steps, nn.Parameter(torch.rand(64, 64) / 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grown = product = self.weight
        for _ in range(self.steps):
            grown, product = torch.cat([grown, grown]), product @ self.weight
        return x @ product + grown.mean(0)


@pytest.mark.parametrize(("limit", "value"), [("SPARE_BYTES", 1 << 18), ("MOST_FLOPS", 1 << 22), ("", 0)])
def test_what_is_computed_is_bounded_in_all(monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    """Beyond the budget the graph computes at run time what it would, and says so."""
    monkeypatch.setattr(budget, "GROWTH", 0)
    if limit:
        monkeypatch.setattr(budget, limit, value)
    model, x = Grown(10).eval(), torch.randn(2, 64)
    captured = capture(model, (x,))
    result = run(captured.graph_module, (FoldConstants(),), Context())
    left = {aten.mm.default, aten.cat.default} & {*targets(result)}
    assert bool(left - {aten.mm.default}) == (limit == "SPARE_BYTES")
    assert ("constants would take" in str(result.story)) == bool(limit)
    with torch.no_grad():
        torch.testing.assert_close(captured.restore(result.graph_module(x)), model(x))
