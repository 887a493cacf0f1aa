"""CanonicaliseTokens: one spelling for layers on tokens, exactly the same values."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.ir.pipeline import Context, Result, run
from sparsec.passes.canonicalise_tokens import CanonicaliseTokens
from sparsec.tokens import ops as token_ops
from tests.strategies import Network, integers

aten = torch.ops.aten


def made(net: Network) -> Result:
    result = run(net.graph_module, (CanonicaliseTokens(),), Context())
    for expected, found in zip(net.run(), net.run(result.graph_module), strict=True):
        assert torch.equal(expected, found)
    again = run(net.graph_module, (CanonicaliseTokens(), CanonicaliseTokens()), Context())
    assert calls(again) == calls(result)
    return result


def calls(result: Result) -> list:
    return [node.target for node in result.graph_module.graph.nodes if node.op == "call_function"]


@settings(max_examples=30, deadline=None)
@given(sizes=st.tuples(*[st.integers(1, 5)] * 4), flat=st.booleans(), bias_first=st.booleans())
def test_products_with_constants_are_layers(sizes: tuple[int, ...], flat: bool, bias_first: bool) -> None:
    samples, tokens, inputs, outputs = sizes
    net = Network((samples * tokens, inputs) if flat else (samples, tokens, inputs), 0)
    weight, bias = net.constant(integers((inputs, outputs), 1)), net.constant(integers((outputs,), 2))
    net.add(aten.mm.default if flat else aten.matmul.default, net.last, weight)
    net.add(aten.add.Tensor, *((bias, net.last) if bias_first else (net.last, bias)))
    assert calls(made(net.returns(net.last))) == [aten.linear.default]


def test_addmm_is_a_layer() -> None:
    net = Network((6, 3), 0)
    net.add(aten.addmm.default, net.constant(integers((4,), 1)), net.last, net.constant(integers((3, 4), 2)))
    assert calls(made(net.returns(net.last))) == [aten.linear.default]


@pytest.mark.parametrize(("bias", "keywords"), [((4,), {"beta": 2}), ((4,), {"alpha": 3}), ((6, 4), {}), ((1,), {})])
def test_other_addmm_stays(bias: tuple[int, ...], keywords: dict[str, Any]) -> None:
    net = Network((6, 3), 0)
    net.add(aten.addmm.default, net.constant(integers(bias, 1)), net.last, net.constant(integers((3, 4), 2)), **keywords)
    assert calls(made(net.returns(net.last))) == [aten.addmm.default]


def test_products_of_values_stay() -> None:
    net = Network((2, 3, 3), 0)
    net.add(aten.matmul.default, net.last, net.last)
    net.add(aten.matmul.default, net.constant(integers((3, 3), 1)), net.last)
    assert calls(made(net.returns(net.last))) == [aten.matmul.default] * 2


@pytest.mark.parametrize("summand", [(5, 4), (2, 1, 4), (1,), (5, 1)])
def test_a_sum_that_is_no_bias_stays(summand: tuple[int, ...]) -> None:
    net = Network((2, 5, 3), 0)
    net.linear(integers((4, 3), 1))
    net.add(aten.add.Tensor, net.last, net.constant(integers(summand, 2)))
    assert calls(made(net.returns(net.last))) == [aten.linear.default, aten.add.Tensor]


def test_a_product_that_is_read_elsewhere_keeps_its_sum() -> None:
    net = Network((2, 5, 3), 0)
    product = net.linear(integers((4, 3), 1))
    net.add(aten.add.Tensor, product, net.constant(integers((4,), 2)))
    assert calls(made(net.returns(net.last, product))) == [aten.linear.default, aten.add.Tensor]


@settings(max_examples=30, deadline=None)
@given(sizes=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 4), st.integers(2, 4)), way=st.integers(0, 3))
def test_pixels_become_tokens(sizes: tuple[int, ...], way: int) -> None:
    net = Network(sizes, 0)
    samples, channels, rows, columns = sizes
    if way == 0:
        net.add(aten.transpose.int, net.add(aten.flatten.using_ints, net.last, 2), 1, 2)
    elif way == 1:
        net.add(aten.view.default, net.last, [samples, channels, rows * columns])
        net.add(aten.permute.default, net.last, [0, 2, 1])
    elif way == 2:
        net.add(aten.permute.default, net.last, [0, 2, 3, 1])
        net.add(aten.reshape.default, net.last, [samples, -1, channels])
    else:
        net.add(aten.permute.default, net.add(aten.flatten.using_ints, net.last, 2), [2, 0, 1])
    found = calls(made(net.returns(net.last)))
    assert found == [token_ops.map_to_tokens, *[aten.permute.default] * (way == 3)] or 1 in (samples, channels)


def test_a_flattened_map_stays() -> None:
    net = Network((2, 3, 4, 4), 0)
    net.add(aten.flatten.using_ints, net.last, 2)
    assert calls(made(net.returns(net.last))) == [aten.flatten.using_ints]


@pytest.mark.parametrize("target", [aten.add.Tensor, aten.mul.Tensor])
def test_constants_of_equal_rows_are_stored_once(target: Any) -> None:
    net = Network((3, 5, 4), 0)
    net.add(target, net.last, net.constant(integers((1, 5, 4), 1).expand(3, 5, 4)))
    result = made(net.returns(net.last))
    (constant,) = result.graph_module.buffers()
    assert constant.shape == (1, 5, 4)


def test_constants_that_make_the_batch_or_differ_stay() -> None:
    net = Network((1, 5, 4), 0)
    net.add(aten.add.Tensor, net.last, net.constant(integers((1, 5, 4), 1).expand(3, 5, 4)))
    net.add(aten.add.Tensor, net.last, net.constant(integers((3, 5, 4), 1)))
    assert sorted(buffer.shape[0] for buffer in made(net.returns(net.last)).graph_module.buffers()) == [3, 3]


def test_dimensions_are_counted_from_the_start() -> None:
    net = Network((2, 4, 3), 0)
    net.add(aten.cat.default, [net.constant(integers((2, 1, 3), 1)), net.last, net.last, net.last], -2)
    net.add(aten.cat.default, [net.last, net.last, net.last], -1)
    token, mean = net.add(aten.select.int, net.last, -2, 1), net.values[-1]
    mean = net.add(aten.sum.dim_IntList, net.add(aten.mean.dim, net.values[0], [-2], True), [0])
    nodes = [n for n in made(net.returns(token, mean)).graph_module.graph.nodes if n.op == "call_function"]
    dims = {node.target: node.args[1] for node in nodes if node.target is not aten.sum.dim_IntList}
    assert dims == {aten.cat.default: 2, aten.select.int: 1, aten.mean.dim: [1]}
