"""Bisection names the first pass that breaks the answer."""

from typing import Any

import pytest
import torch
from torch import fx

from sparsec.ir.editor import Editor
from sparsec.ir.forms import Form
from sparsec.ir.pipeline import Context, Miss, NodePass, Pass
from sparsec.passes import PIPELINE
from sparsec.report.bisect import bisect, differs
from sparsec.settings import Settings
from tests.strategies import Network, integers

aten = torch.ops.aten


@pytest.fixture
def net() -> Network:
    network = Network((1, 2, 4, 4), 0)
    network.conv(integers((3, 2, 3, 3), 1))
    network.add(aten.relu.default, network.last)
    return network.returns(network.last)


class ForgetsRelu(NodePass):
    name = "forgets_relu"
    takes = gives = Form.CAPTURED

    def match(self, node: fx.Node, context: Context) -> dict[str, Any] | Miss | None:
        return {"node": node} if node.target is aten.relu.default else None

    def rewrite(self, edit: Editor, context: Context, node: fx.Node) -> str:
        edit.substitute(node, node.args[0])
        return "forgotten"


class Fails(Pass):
    name = "fails"
    takes = gives = Form.CAPTURED

    def apply(self, edit: Editor, context: Context) -> None:
        raise RuntimeError("no")


def test_a_sound_pipeline_has_no_culprit(net: Network) -> None:
    assert bisect(net.graph_module, [net.input], PIPELINE, Context(), tolerance=0) is None


@pytest.mark.parametrize("culprit", [ForgetsRelu(), Fails()], ids=lambda step: step.name)
@pytest.mark.parametrize("place", [0, 2, 3])
def test_the_culprit_is_named_wherever_it_is(net: Network, culprit: Pass, place: int) -> None:
    passes = (*PIPELINE[:place], culprit, *PIPELINE[place:])
    context = Context(Settings(stop_after="fold_constants"))
    assert bisect(net.graph_module, [net.input], passes, context) is culprit


@pytest.mark.parametrize(
    ("a", "b", "tolerance", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.1], 0.1, False),
        ([1.0, 2.0], [1.0, 2.1], 0.01, True),
        ([float("nan"), 1.0], [float("nan"), 1.0], 0.0, False),
        ([float("nan"), 1.0], [0.0, 1.0], 0.1, True),
        ([float("inf")], [float("inf")], 0.0, False),
        ([0.0], [1e-9], 0.1, True),
        ([1.0], [1.0, 1.0], 0.1, True),
    ],
)
def test_differences(a: list, b: list, tolerance: float, expected: bool) -> None:
    assert differs(torch.tensor(a), torch.tensor(b), tolerance) is expected
