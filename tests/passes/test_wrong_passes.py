"""A pass that is a little wrong does not get past the property tests, which draw networks of the kind that it works on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from sparsec.facts.lattice import Fact
from sparsec.ir.forms import constant
from sparsec.ir.pipeline import Context, Editor, Form, Miss, NodePass
from sparsec.passes import FoldConstants
from tests.passes.claims import (
    OF_PREFIXES,
    OF_THE_WHOLE,
    Claim,
    has_facts_that_hold,
    holds_for_all,
    is_once_what_it_is_twice,
    leaves_the_callers_graph,
    means_the_same,
    tells_why,
)
from tests.strategies import KINDS

aten = torch.ops.aten
Rewrite = Callable[[Editor, fx.Node], Any]


class Wrong(NodePass):
    """Rewrites the calls of one operator; `why` is what its author may have thought."""

    name = "wrong"

    def __init__(self, why: str, target: Any, rewrite: Rewrite, form: Form = Form.CAPTURED) -> None:
        self.why, self.target, self.change, self.takes, self.gives = why, target, rewrite, form, form

    def match(self, node: fx.Node, context: Context) -> dict[str, Any] | Miss | None:
        return {"node": node} if node.target is self.target else None

    def rewrite(self, edit: Editor, context: Context, node: fx.Node) -> str:
        self.change(edit, node)
        return self.why


class Silent(Wrong):
    """Refuses without a reason."""

    def match(self, node: fx.Node, context: Context) -> Miss | None:
        return Miss("", node) if node.target is self.target else None


def with_argument(position: int, value: Any) -> Rewrite:
    """Another value for an argument, where there is one."""

    def change(edit: Editor, node: fx.Node) -> None:
        if len(node.args) > position:
            edit.set_args(node, [*node.args[:position], value, *node.args[position + 1 :]])

    return change


def drop_if_square(edit: Editor, node: fx.Node) -> None:
    source = node.args[0]
    if source.meta["val"].shape == node.meta["val"].shape:
        edit.substitute(node, source)


def read_through(edit: Editor, node: fx.Node) -> None:
    source = node.args[0]
    if source.target in (aten.transpose.int, aten.permute.default):
        edit.set_args(node, [source.args[0], *node.args[1:]])


def softmax_of_queries(edit: Editor, node: fx.Node) -> None:
    shape = node.meta["val"].shape
    if shape[-1] == shape[-2]:
        edit.set_args(node, [node.args[0], -2])


def once_more(edit: Editor, node: fx.Node) -> None:
    edit.set_args(node, [edit.call(aten.mul.Tensor, (node.args[0], 1.0), before=node), *node.args[1:]])


def erase_the_weight(edit: Editor, node: fx.Node) -> None:
    constant(node.args[1]).zero_()  # type: ignore[union-attr]


def all_zero(edit: Editor, node: fx.Node) -> None:
    edit.note(node, fact=Fact.of(torch.zeros(node.meta["val"].shape)))


relu = aten.relu.default
CASES = [
    ("convolutions", means_the_same, Wrong("ReLU6 is a ReLU", aten.relu6.default, lambda e, n: e.replace(n, relu, n.args))),
    ("convolutions", means_the_same, Wrong("a norm comes after it", aten.conv2d.default, with_argument(2, None))),
    ("tokens", means_the_same, Wrong("all keys are there", aten.scaled_dot_product_attention.default, with_argument(5, False))),
    ("tokens", means_the_same, Wrong("rows or columns", aten.softmax.int, softmax_of_queries)),
    ("tokens", means_the_same, Wrong("epsilon is small", aten.layer_norm.default, with_argument(4, 1e-6))),
    ("tokens", means_the_same, Wrong("GELU is GELU", aten.gelu.default, lambda e, n: e.set_args(n, n.args, {}))),
    ("views", means_the_same, Wrong("it keeps the shape", aten.transpose.int, drop_if_square)),
    ("views", means_the_same, Wrong("a reshape makes its own order", aten.reshape.default, read_through)),
    ("convolutions", is_once_what_it_is_twice, Wrong("twice is safe", aten.conv2d.default, once_more)),
    ("tokens", is_once_what_it_is_twice, Wrong("twice is safe", aten.layer_norm.default, once_more)),
    ("views", is_once_what_it_is_twice, Wrong("twice is safe", aten.linear.default, once_more)),
    ("convolutions", has_facts_that_hold, Wrong("nothing is left", aten.batch_norm.default, all_zero)),
    ("tokens", has_facts_that_hold, Wrong("nothing is left", aten.layer_norm.default, all_zero)),
    ("views", has_facts_that_hold, Wrong("nothing is left", aten.linear.default, all_zero)),
    ("convolutions", leaves_the_callers_graph, Wrong("nobody needs it", aten.conv2d.default, erase_the_weight)),
    ("tokens", leaves_the_callers_graph, Wrong("nobody needs it", aten.linear.default, erase_the_weight)),
    ("tokens", tells_why, Silent("", aten.layer_norm.default, drop_if_square)),
]


@pytest.mark.parametrize(("kind", "claim", "wrong"), CASES, ids=lambda given: getattr(given, "why", getattr(given, "__name__", given)))
def test_it_is_caught(kind: str, claim: Claim, wrong: Wrong) -> None:
    """By no more networks than the last pass of the pipeline meets."""
    passes = (FoldConstants(), wrong)
    with pytest.raises(AssertionError):
        for tries in (OF_PREFIXES, OF_THE_WHOLE):
            if claim in tries:
                holds_for_all(claim, kind, passes, tries[claim], shrink=False)


@pytest.mark.parametrize("claim", OF_PREFIXES | OF_THE_WHOLE, ids=lambda claim: claim.__name__)
def test_one_that_changes_nothing_is_not(claim: Claim) -> None:
    for kind in KINDS:
        holds_for_all(claim, kind, (FoldConstants(), Wrong("it does nothing", relu, lambda edit, node: None)), 10)
