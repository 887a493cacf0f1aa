"""ONNX If whose condition is known when compiling: the branch that it takes stands in its place."""

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import sparsec  # noqa: E402
from sparsec.errors import InvalidInput, UnsupportedModel  # noqa: E402
from tests import onnx_files  # noqa: E402

pytestmark = [pytest.mark.usefixtures("without_inductor"), pytest.mark.filterwarnings("ignore:No kernel of sparsec:RuntimeWarning")]
FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
node = helper.make_node
X = np.random.default_rng(3).standard_normal((3, 8)).astype(np.float32)


def graph(nodes: list, outputs: list[str], constants: dict[str, np.ndarray] | None = None) -> Any:
    stored = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    return helper.make_graph(
        nodes, "branch", [], [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs], initializer=stored
    )


DOUBLED = graph([node("Mul", ["x", "two"], ["t"])], ["t"], {"two": np.float32(2)})
NEGATED = graph([node("Neg", ["x"], ["t"])], ["t"])


def model(condition: list, then: Any = DOUBLED, other: Any = NEGATED, **more: Any) -> Any:
    """y = If(c, then, other) + x, where nodes before say what c is."""
    nodes = [*condition, node("If", ["c"], ["r"], name="choice", then_branch=then, else_branch=other), node("Add", ["r", "x"], ["y"])]
    inputs = [("x", FLOAT, ["n", 8]), *more.pop("inputs", [])]
    return onnx_files.model(nodes, inputs, [("y", FLOAT, None)], more.pop("constants", {}), **more)


@pytest.mark.parametrize(("c", "factor"), [(True, 3), (False, 0)])
def test_constant_conditions(c: bool, factor: int) -> None:
    fast = sparsec.compile(model([], constants={"c": np.array(c)}), (X,))
    for x in (X, X[:1]):
        np.testing.assert_array_equal(fast(x), factor * x)


def test_conditions_of_shapes() -> None:
    """As torch's older exporter writes a squeeze."""
    asked = [node("Shape", ["x"], ["s"], start=1), node("Equal", ["s", "eight"], ["c"])]
    fast = sparsec.compile(model(asked, constants={"eight": np.array([8])}), (X,))
    np.testing.assert_array_equal(fast(X[:2]), 3 * X[:2])


def test_conditions_of_the_number_of_samples_serve_that_number() -> None:
    asked = [node("Shape", ["x"], ["s"], end=1), node("Equal", ["s", "three"], ["c"])]
    fast = sparsec.compile(model(asked, constants={"three": np.array([3])}), (X,))
    np.testing.assert_array_equal(fast(X), 3 * X)
    try:
        found = fast(X[:2])
    except InvalidInput:
        return
    np.testing.assert_array_equal(found, 0 * X[:2])


def test_a_condition_that_is_an_input_is_compiled_in() -> None:
    fast = sparsec.compile(model([], inputs=[("c", BOOL, [])]), (X, np.array(True)))
    np.testing.assert_array_equal(fast(X, np.array(True)), 3 * X)
    with pytest.raises(InvalidInput, match="compiled for the argument"):
        fast(X, np.array(False))


def test_conditions_of_data_are_refused() -> None:
    asked = [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Cast", ["m"], ["c"], to=BOOL)]
    wide = np.ones((9, 8), np.float32)
    with pytest.raises(UnsupportedModel, match="If cannot be translated: input 0 depends on") as caught:
        sparsec.compile(model(asked), (wide,))
    assert caught.value.where == "choice"


def test_branches_within_branches_and_within_functions() -> None:
    inner = node("If", ["c"], ["t"], then_branch=DOUBLED, else_branch=NEGATED)
    # Both branches of the outer one use the names of the inner ones.
    then = graph([helper.make_node("Relu", ["x"], ["z"]), _renamed(inner, "z", "u"), node("Identity", ["u"], ["w"])], ["w"])
    function = helper.make_function(
        "local",
        "F",
        ["x", "c"],
        ["r"],
        [node("If", ["c"], ["r"], then_branch=then, else_branch=NEGATED)],
        [helper.make_opsetid("", 17)],
    )
    calls = [node("F", ["x", "c"], ["a"], domain="local"), node("F", ["a", "c"], ["y"], domain="local")]
    made = onnx_files.model(calls, [("x", FLOAT, ["n", 8])], [("y", FLOAT, None)], {"c": np.array(True)}, functions=[function])
    np.testing.assert_array_equal(sparsec.compile(made, (X,))(X), 4 * np.maximum(X, 0))


def _renamed(choice: Any, given: str, made: str) -> Any:
    """The node on another value."""
    copy = onnx.NodeProto()
    copy.CopyFrom(choice)
    copy.output[0] = made
    for attribute in copy.attribute:
        attribute.g.node[0].input[0] = given
    return copy


def test_functions_within_branches() -> None:
    double = helper.make_function("local", "G", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)])
    then = graph([node("G", ["x"], ["t"], domain="local")], ["t"])
    made = model([], then=then, constants={"c": np.array(True)}, functions=[double])
    np.testing.assert_array_equal(sparsec.compile(made, (X,))(X), 3 * X)


def test_only_the_branch_taken_has_to_be_known() -> None:
    unknown = graph([node("TfIdfVectorizer", ["x"], ["t"])], ["t"])
    made = model([], other=unknown, constants={"c": np.array(True)})
    np.testing.assert_array_equal(sparsec.compile(made, (X,))(X), 3 * X)
    with pytest.raises(UnsupportedModel, match="TfIdfVectorizer cannot be translated: the operator is not supported"):
        sparsec.compile(model([], other=unknown, constants={"c": np.array(False)}), (X,))


def test_what_only_a_branch_reads_is_kept() -> None:
    then = graph([node("Sub", ["before", "x"], ["t"])], ["t"])
    made = model([node("Exp", ["x"], ["before"])], then=then, constants={"c": np.array(True)})
    np.testing.assert_allclose(sparsec.compile(made, (X,))(X), np.exp(X), rtol=1e-5)


@pytest.mark.parametrize(
    ("then", "said"),
    [
        (graph([node("Neg", ["nowhere"], ["t"])], ["t"]), "which nothing before it computes"),
        (graph([node("Neg", ["x"], ["c"])], ["c"]), "computed twice"),
        (graph([], ["t"], {"x": np.float32(1), "t": np.float32(1)}), "names twice"),
        (graph([node("Neg", ["x"], ["t"])], ["t", "x"]), "does not fit"),
        (graph([node("Neg", ["x"], ["t"])], ["later"]), "which nothing before it computes"),
    ],
)
def test_malformed_branches_are_refused(then: Any, said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        sparsec.compile(model([], then=then, constants={"c": np.array(True)}), (X,))
