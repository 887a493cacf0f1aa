"""ONNX inputs that must be known when compiling: compiled in with the example's values, and calls with others are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

import sparsec  # noqa: E402
from sparsec.doors.open import open_model, with_shapes  # noqa: E402
from sparsec.errors import InvalidInput, UnsupportedModel  # noqa: E402
from tests import onnx_files  # noqa: E402

pytestmark = [pytest.mark.usefixtures("without_inductor"), pytest.mark.filterwarnings("ignore:No kernel of sparsec:RuntimeWarning")]
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
node = helper.make_node
RNG = np.random.default_rng(3)
X, AXES = RNG.standard_normal((3, 8, 4)).astype(np.float32), np.array([1])


def reduced(rows: Any = "n") -> Any:
    """The sum over axes that are an input."""
    return onnx_files.model(
        [node("ReduceSum", ["x", "axes"], ["y"], keepdims=0, name="total")],
        [("x", FLOAT, [rows, 8, 4]), ("axes", INT, [1])],
        [("y", FLOAT, None)],
        {},
    )


def test_what_must_be_known_is_taken_from_the_example() -> None:
    fast = sparsec.compile(reduced(), (X, AXES))
    for x in (X, X[:1], np.concatenate([X, X])):
        np.testing.assert_allclose(fast(x, AXES), x.sum(1), rtol=1e-6)
        np.testing.assert_allclose(fast(axes=AXES, x=x), x.sum(1), rtol=1e-6)
    assert "'axes' is compiled in as [1]" in str(fast.explain())
    other = sparsec.compile(reduced(), {"axes": np.array([2]), "x": X})
    np.testing.assert_allclose(other(X, np.array([2])), X.sum(2), rtol=1e-6)


@pytest.mark.parametrize(
    "axes", [np.array([2]), np.array([-2]), np.array([1, 1]), np.array([1], np.int32), np.array([], np.int64), np.float32(1)]
)
def test_calls_with_another_value_are_refused(axes: Any) -> None:
    fast = sparsec.compile(reduced(), (X, AXES))
    with pytest.raises(InvalidInput, match="compiled for the argument"):
        fast(X, axes)
    np.testing.assert_allclose(fast(X, AXES), X.sum(1), rtol=1e-6)


def test_the_example_may_change_afterwards() -> None:
    axes = AXES.copy()
    fast = sparsec.compile(reduced(), (X, axes))
    axes[0] = 2
    with pytest.raises(InvalidInput):
        fast(X, axes)
    np.testing.assert_allclose(fast(X, AXES), X.sum(1), rtol=1e-6)


def test_without_values_the_node_is_named() -> None:
    with pytest.raises(UnsupportedModel, match="input 1 depends on inputs") as caught:
        open_model(reduced(1))
    assert caught.value.where == "total" and "example inputs with values" in str(caught.value.hint)


def test_random_examples_have_no_values(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(reduced().SerializeToString())
    model, examples, _ = with_shapes(path, ["x=2,8,4", "axes=1"])
    with pytest.raises(UnsupportedModel, match="must be known"):
        open_model(model, examples)


def test_values_from_files_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(reduced().SerializeToString())
    np.save(tmp_path / "axes.npy", np.array([2]))
    model, examples, _ = with_shapes(path, ["x=3,8,4", f"axes={tmp_path / 'axes.npy'}"])
    np.testing.assert_allclose(sparsec.compile(model, examples)(X, np.array([2])), X.sum(2), rtol=1e-6)
    for texts, said in ((["other=x.npy"], "No such file"), ([f"{tmp_path / 'axes.npy'}"], "needs the name of its input")):
        with pytest.raises(InvalidInput, match=said):
            with_shapes(path, texts)
    with pytest.raises(InvalidInput, match="no input named other"):
        with_shapes(path, [f"other={tmp_path / 'axes.npy'}"])


def test_data_are_no_parameters() -> None:
    """A scale that follows from all of a large input is nothing to compile in."""
    model = onnx_files.model(
        [node("ReduceMax", ["x"], ["scale"], keepdims=0), node("Range", ["zero", "scale", "one"], ["y"])],
        [("x", FLOAT, [3, 8, 4])],
        [("y", FLOAT, None)],
        {"zero": np.float32(0), "one": np.float32(1)},
    )
    with pytest.raises(UnsupportedModel, match="Range cannot be translated: input 1"):
        sparsec.compile(model, (X,))


def test_what_is_computed_of_an_input_is_known_too() -> None:
    """A shape put together from an input and from the shape of another, whose batch stays free."""
    model = onnx_files.model(
        [
            node("Shape", ["x"], ["first"], end=1),
            node("Mul", ["rows", "two"], ["more"]),
            node("Concat", ["first", "more", "rest"], ["shape"], axis=0),
            node("Reshape", ["x", "shape"], ["y"]),
        ],
        [("x", FLOAT, ["n", 8, 4]), ("rows", INT, [1])],
        [("y", FLOAT, None)],
        {"two": np.array([2]), "rest": np.array([-1])},
    )
    fast = sparsec.compile(model, (X, np.array([8])))
    for x in (X, X[:2]):
        np.testing.assert_array_equal(fast(x, np.array([8])), x.reshape(len(x), 16, 2))


def test_a_program_whose_inputs_are_all_compiled_in() -> None:
    model = onnx_files.model([node("Range", ["a", "b", "c"], ["y"])], [(name, INT, []) for name in "abc"], [("y", INT, None)], {})
    given = np.int64(2), np.int64(11), np.int64(3)
    assert sparsec.compile(model, given)(*given).tolist() == [2, 5, 8]


def test_a_saved_artifact_takes_no_such_input(tmp_path: Path) -> None:
    weight = np.where(RNG.random((16, 32)) < 0.1, RNG.standard_normal((16, 32)), 0).astype(np.float32)
    model = onnx_files.model(
        [node("Reshape", ["x", "shape"], ["flat"]), node("MatMul", ["flat", "w"], ["y"])],
        [("x", FLOAT, ["n", 4, 4]), ("shape", INT, [2])],
        [("y", FLOAT, None)],
        {"w": weight},
    )
    x = RNG.standard_normal((3, 4, 4)).astype(np.float32)
    fast = sparsec.compile(model, (x, np.array([-1, 16])))
    wanted = x.reshape(3, 16) @ weight
    np.testing.assert_allclose(fast(x, np.array([-1, 16])), wanted, rtol=1e-4, atol=1e-5)
    loaded = sparsec.load(fast.save(tmp_path / "model.sparsec"))
    assert [port.name for port in loaded.inputs] == ["x"]
    np.testing.assert_allclose(loaded(x), wanted, rtol=1e-4, atol=1e-5)
