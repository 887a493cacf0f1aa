"""The records of operators: complete, free of contradictions, and sound, each target of a rule on a small network of its own."""

import ast
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import fx

from sparsec.backends.cpu.families import FAMILIES
from sparsec.facts.lattice import NOTHING
from sparsec.facts.propagation import forward, reads_of
from sparsec.ir import ops
from sparsec.ir.miss import Miss
from sparsec.ir.operators import OPERATORS, operator_named, operator_of
from sparsec.ir.operators.checks import checked
from sparsec.ir.operators.record import Operand, Operator, X
from sparsec.ir.pipeline import Context, run
from sparsec.lower import describe
from sparsec.lower.describe import spec_of
from sparsec.passes import InferActivationFacts, InferWeightFacts
from sparsec.tokens import ops as token_ops
from sparsec.tokens import pruning_ops, token_rules
from sparsec.tokens.token_axis import TokenSets, follow
from sparsec.tokens.token_rules import Followed
from tests.compiler.test_describe import COMPUTED
from tests.compiler.test_describe_tokens import DESCRIBED
from tests.passes.claims import FactCheck, is_read_where_it_matters
from tests.strategies import Network, integers
from tests.test_imports import MODULES
from tests.test_imports import layer as layer_of_module

aten = torch.ops.aten


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def named(target: Any) -> str:
    """The same in every process."""
    return str(target) if isinstance(target, torch._ops.OpOverload) else target.__name__


def targets(wanted: Callable[[Operator], bool]) -> list[Any]:
    return sorted((target for each in OPERATORS if wanted(each) for target in each.targets), key=named)


def test_the_records_hold() -> None:
    assert checked(OPERATORS) == OPERATORS


#: Records that do not hold beside the others, and what is said of them.
PLANTED: dict[str, tuple[list[Operator], str]] = {
    "a name twice": ([Operator("linear", (aten.erf.default,))], "2 records are named linear"),
    "a target twice": ([Operator("erf", (aten.add.Tensor,), (X, Operand("y")))], "2 records have the target aten.add.Tensor"),
    "no reference": ([Operator("erf", (aten.erf.default,), describe=lambda node, operator: ("erf", {}))], "erf has no reference"),
    "a spec without a record": (
        [Operator("erf", (aten.erf.default,), describe=lambda node, operator: ("curve", {}), becomes=("curve",))],
        "erf becomes curve, of which no record has a reference",
    ),
    "a spec that nothing makes": ([Operator("erf", reference=same)], "nothing becomes erf, and it has no target"),
    "an operand without a role": ([Operator("atan2", (aten.atan2.default,))], "atan2 gives 1 operands a role, aten.atan2.default reads 2"),
    "a role without an operand": ([Operator("erf", (aten.erf.default,), (X, Operand("y")))], "erf gives 2 operands a role"),
    "a name of two operands": ([Operator("atan2", (aten.atan2.default,), (X, X))], "two operands of atan2 have one name"),
    "a reference of other operands": (
        [Operator("atan2", (aten.atan2.default,), (X, Operand("y")), reference=same)],
        "the reference of atan2 takes 1 operands, not x, y",
    ),
    "padding that is not hidden": (
        [Operator("erf", (aten.erf.default,), reference=same, tokens="ends")],
        "erf mixes tokens, and does not say what hides padding from it",
    ),
    "a product with no weight": ([Operator("erf", (aten.erf.default,), products=("weight",))], "erf multiplies with weight, which is no"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_record_that_does_not_hold_is_an_error(name: str) -> None:
    records, message = PLANTED[name]
    with pytest.raises(ValueError, match=message):
        checked((*OPERATORS, *records))


def test_a_record_that_makes_other_specs_than_it_says_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    node = net.add(aten.max_pool2d.default, net.last, [2, 2])
    node.meta["val"] = node.meta["val"].float()
    node.args[0].meta["val"] = node.args[0].meta["val"].float()
    wrong = replace(operator_of(node), describe=lambda node, operator: ("activate", {}))
    monkeypatch.setattr(describe, "operator_of", lambda node: wrong)
    with pytest.raises(ValueError, match="max_pool2d does not say that it becomes activate"):
        spec_of(node)


def test_an_operator_without_a_record_is_refused_and_proves_nothing() -> None:
    net = Network((2, 3, 4), 0)
    x, node = net.last, net.add(aten.cumsum.default, net.last, 2)
    found = spec_of(node)
    assert operator_of(node) is None
    assert isinstance(found, Miss) and found.reason == "cumsum.default is an operator without a record"
    assert forward(node) == NOTHING
    assert reads_of(node, frozenset()) == ((x, frozenset(range(3))),)
    assert follow(x).reason == "aten.cumsum.default is not known to treat tokens one by one"


def test_our_operators_have_records() -> None:
    ours = {*ops.FUNCTIONS, *token_ops.FUNCTIONS, *pruning_ops.FUNCTIONS}
    found = {target for each in OPERATORS for target in each.targets if not isinstance(target, torch._ops.OpOverload)}
    assert found == ours | {operator.getitem}


def test_no_name_of_an_operator_decides_outside_of_the_records() -> None:
    """In the core and in passes, that is; kernels of a backend are chosen by name."""
    names = {each.name for each in OPERATORS}
    for module, path in MODULES.items():
        if layer_of_module(module) in ("core", "passes"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == "op":
                    texts = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
                    assert not texts & names, f"{module}: {ast.unparse(node)}"


def test_families_name_the_operands_as_records_do() -> None:
    for family in FAMILIES:
        for name in family.ops:
            record = operator_named(name)
            order = [*record.activations, *record.constants, *(each for each in record.operands if each.role == "residual")]
            assert family.operands.split() == [each.name for each in order], name


def test_what_specs_are_made_of_has_kernels_and_is_held_against_its_reference() -> None:
    """`gather_pairs` has a reference for torch only: no kernel is asked for."""
    meant = {each.name for each in OPERATORS if each.reference is not None} - {"gather_pairs"}
    assert meant == {name for family in FAMILIES for name in family.ops}
    tried = {op for _, op, _ in DESCRIBED.values()} | {name.split()[0] for name in COMPUTED} | {"convert"}
    assert meant == tried


# Facts


def network() -> Network:
    """A convolution of which channel 1 is constant 2 and channel 2 is zero."""
    net = Network((2, 4, 4, 4), 0)
    weight, bias = integers((4, 4, 1, 1), 1, 1, 3), torch.tensor([1.0, 2.0, 0.0, -3.0]).double()
    weight[1:3] = 0
    net.conv(weight, bias)
    return net


Step = Callable[[Network, Any], object]


def plain(*args: Any) -> Step:
    """The operator of the latest value and these arguments."""
    return lambda net, target: net.add(target, net.last, *args)


def of_two(net: Network, target: Any) -> None:
    """Of the latest value and one pixel of each channel; of the latest value twice."""
    net.add(target, net.last, net.part(aten.adaptive_avg_pool2d.default, net.last, [1, 1]))
    net.add(target, net.last, net.last)


def into(net: Network, target: Any) -> None:
    """Written to a value that nobody else reads."""
    fresh = net.part(aten.relu.default, net.last)
    net.add(target, fresh, net.values[-1])


def layer(net: Network, target: Any, *rest: Any) -> None:
    """Input 3 is not read, output 2 is its bias, output 0 reads a constant channel that is not zero."""
    weight = integers((4, 4, *[1] * (len(net.size()) - 2)), 3)
    weight[:, 3], weight[2], weight[0] = 0, 0, 0
    weight[0, 1] = 2
    net.add(target, net.last, net.constant(weight), net.constant(integers((4,), 4)), *rest)


def linear(net: Network, target: Any) -> None:
    net.add(aten.mean.dim, net.last, [2, 3])
    layer(net, target)


def pair_of_layers(net: Network, target: Any) -> None:
    parameters = [net.constant(integers(shape, 5)) for shape in ((4, 1, 3, 3), (4,), (4, 4, 1, 1), (4,))]
    net.add(target, net.last, *parameters, padding=(1, 1), activation="clamp", lo=0.0, hi=6.0)


def norm(net: Network, target: Any) -> None:
    net.norm(3)


def joined(net: Network, target: Any) -> None:
    net.add(target, [net.last, net.part(aten.relu.default, net.last)], 1)


def item(net: Network, target: Any) -> None:
    parameters = [net.constant(tensor) for tensor in (integers((4,), 3, 0, 1), *(integers((4,), seed, 1, 3) for seed in (4, 5, 6)))]
    net.add(target, net.part(aten._native_batch_norm_legit_no_training.default, net.last, *parameters, 0.1, 1.0), 0)


STEPS: dict[Any, Step] = {
    **dict.fromkeys((ops.conv2d, aten.conv2d.default), layer),
    aten.conv2d.padding: lambda net, target: layer(net, target, [1, 1], "same"),
    **dict.fromkeys((ops.linear, aten.linear.default), linear),
    ops.depthwise_pointwise: pair_of_layers,
    ops.activate: lambda net, target: net.add(target, net.last, activation="clamp", lo=-1.0, hi=1.5),
    **dict.fromkeys((aten.clamp.default, aten.hardtanh.default), plain(-1.0, 1.5)),
    aten.clamp_min.default: plain(1.0),
    aten.clamp_.default: lambda net, target: net.add(target, net.part(aten.relu.default, net.last), 0.5, 1.5),
    aten.hardtanh_.default: lambda net, target: net.add(target, net.part(aten.relu.default, net.last), 0.5, 1.5),
    **dict.fromkeys((aten.add.Tensor, aten.mul.Tensor), of_two),
    **dict.fromkeys((aten.add_.Tensor, aten.mul_.Tensor), into),
    **dict.fromkeys((aten.max_pool2d.default, aten.avg_pool2d.default), plain([2, 2])),
    aten.adaptive_avg_pool2d.default: plain([2, 2]),
    aten.mean.dim: plain([2, 3], True),
    aten.batch_norm.default: norm,
    operator.getitem: item,
    aten.cat.default: joined,
    **dict.fromkeys((aten.view.default, aten.reshape.default, aten._unsafe_view.default), plain([2, 16, 2, 2])),
    aten.flatten.using_ints: plain(1),
    aten.permute.default: plain([0, 2, 3, 1]),
    aten.transpose.int: plain(1, 2),
}
RULED = targets(lambda each: each.forward is not None or each.backward is not None)


def in_place(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


@pytest.mark.parametrize("target", RULED, ids=named)
def test_rules_hold_for_each_target(target: Any) -> None:
    """Facts hold of the values, and what nobody is said to read may be anything."""
    net = network()
    if target in STEPS:
        STEPS[target](net, target)
    else:
        net.add(target, net.part(aten.mul.Tensor, net.last, net.last) if in_place(target) else net.last)
    made = net.last
    assert made.target is target
    if made.meta["val"].dim() == 4:
        channels = net.size()[1]
        weight = integers((2, channels, 1, 1), 7, 1, 2)
        weight[:, ::2] = 0
        net.conv(weight)
    net.returns(net.last)
    FactCheck(run(net.graph_module, (InferWeightFacts(), InferActivationFacts()), Context()).graph_module).run(*net.inputs)
    is_read_where_it_matters(net, ())


def test_a_call_is_known_by_its_target() -> None:
    graph = fx.Graph()
    for each in OPERATORS:
        for target in each.targets:
            assert operator_of(graph.call_function(target)) is each
    assert operator_of(graph.placeholder("x")) is None


# Tokens

TOKEN_ARGUMENTS: dict[Any, tuple] = {
    **dict.fromkeys((aten.clamp.default, aten.clamp_.default, aten.hardtanh.default, aten.hardtanh_.default), (-1.0, 1.5)),
    aten.clamp_min.default: (0.5,),
    aten.linear.default: (integers((3, 4), 1),),
    aten.layer_norm.default: ([4],),
    **dict.fromkeys((aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default), (0.5, False)),
    aten.to.dtype: (torch.float32,),
    **dict.fromkeys((aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.mul_.Tensor), (integers((4,), 2),)),
    aten.div.Tensor: (2.0 ** integers((4,), 2),),
}
CARRYING = (token_rules.EACH, token_rules.FEATURES, token_rules.IF_INACTIVE, token_rules.ELEMENTWISE)


@pytest.mark.parametrize("target", targets(lambda each: each.by_token in CARRYING), ids=named)
def test_operators_that_carry_tokens_treat_them_one_by_one(target: Any) -> None:
    net, given, keywords = Network((2, 5, 4), 0), TOKEN_ARGUMENTS.get(target, ()), {"layout": "halo"} if target is ops.to_layout else {}
    x = net.part(aten.mul.Tensor, net.last, net.last)
    node = net.add(target, x, *(net.constant(a) if isinstance(a, torch.Tensor) else a for a in given), **keywords)
    found = follow(x)
    assert isinstance(found, Followed) and found.carriers == [x, node]
    assert TokenSets(net.edit.graph).of(node) == TokenSets(net.edit.graph).of(x)
    kept = [0, 2, 3]
    whole, part = (target(value.clone(), *given, **keywords) for value in (net.input, net.input[:, kept]))
    assert torch.equal(whole[:, kept], part)
