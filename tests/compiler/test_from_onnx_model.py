"""Whole ONNX models: how they are called, where their constants lie, what is put back together, what is dropped."""

from pathlib import Path

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from sparsec.doors.captured import Captured  # noqa: E402
from sparsec.doors.from_onnx.capture import capture_onnx  # noqa: E402
from sparsec.doors.open import open_model  # noqa: E402
from sparsec.errors import InvalidInput, UnsupportedModel  # noqa: E402
from sparsec.ir.forms import Form, constant, notes  # noqa: E402
from sparsec.ir.verify import Verifier  # noqa: E402
from sparsec.run.affine import Affine  # noqa: E402
from tests import onnx_files  # noqa: E402

aten = torch.ops.aten
FLOAT = TensorProto.FLOAT
node = helper.make_node


def targets(captured: Captured) -> list:
    Verifier()(captured.graph_module, Form.CAPTURED)
    return [each.target for each in captured.graph_module.graph.nodes if each.op == "call_function"]


def run(captured: Captured, *args, **kwargs):
    with torch.no_grad():
        return captured.restore(captured.graph_module(*captured.flatten(args, kwargs)))


def reference(model, **given: np.ndarray) -> list[torch.Tensor]:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(np.asarray(value)) for value in session.run(None, given)]


def close(found, wanted) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def small(nodes, constants=None, inputs=(("x", FLOAT, [2, 8]),), outputs=(("y", FLOAT, [2, 8]),), **more):
    return onnx_files.model(nodes, list(inputs), list(outputs), constants or {}, **more)


# Whole models


def test_a_convolutional_model_stays_whole() -> None:
    model, x = onnx_files.convolutional(), torch.randn(3, 3, 12, 12)
    captured = capture_onnx(model, x)
    close(run(captured, x), reference(model, x=x.numpy())[0])
    kept = {aten.conv2d.default, aten.batch_norm.default, aten.max_pool2d.default, aten.hardtanh.default, aten.linear.default}
    assert kept <= set(targets(captured))


def test_a_token_model_with_sparse_weights_and_functions() -> None:
    model, ids = onnx_files.tokens(), torch.tensor([[1, 2, 3, 4, 5, 6], [0, 10, 0, 10, 0, 10]])
    captured = capture_onnx(model)
    found = run(captured, ids)
    assert isinstance(found, tuple)
    close(list(found), reference(model, ids=ids.numpy()))
    assert {aten.embedding.default, aten.layer_norm.default, aten.gelu.default, aten.linear.default} <= set(targets(captured))
    weight = next(each for each in captured.graph_module.graph.nodes if each.target == "qkv")
    assert 0.1 < (constant(weight) != 0).float().mean() < 0.3


def test_nodes_carry_the_names_of_the_file() -> None:
    captured = capture_onnx(onnx_files.convolutional())
    sources = [notes(each).get("source") for each in captured.graph_module.graph.nodes if each.op == "call_function"]
    assert sources[0] == "stem" and sources[-1] == "last" and all(sources)


# Calls


def two_inputs():
    pair = (("a.1", FLOAT, ["n", 4]), ("b", FLOAT, ["n", 4]))
    return small([node("Sub", ["a.1", "b"], ["y"])], inputs=pair, outputs=[("y", FLOAT, ["n", 4])])


def test_inputs_by_position_and_by_name() -> None:
    captured = capture_onnx(two_inputs())
    a, b = torch.randn(2, 1, 4).unbind()
    assert [spec.shape for spec in captured.inputs] == [(1, 4), (1, 4)]
    for found in (run(captured, a, b), run(captured, a, b=b), run(captured, **{"b": b, "a.1": a})):
        assert torch.equal(found, a - b)


@pytest.mark.parametrize(("args", "kwargs"), [((1,), {}), ((1, 1, 1), {}), ((1, 1), {"b": 1}), ((1,), {"c": 1}), ((), {"b": 1})])
def test_other_arguments_are_refused(args, kwargs) -> None:
    captured = capture_onnx(two_inputs())
    with pytest.raises(InvalidInput, match=r"a\.1, b"):
        captured.flatten([torch.ones(1, 4) for _ in args], {name: torch.ones(1, 4) for name in kwargs})


def test_examples_give_symbols_their_sizes() -> None:
    arrays = np.ones((3, 4), np.float32), np.ones((3, 4), np.float32)
    for examples in (arrays, {"b": arrays[1], "a.1": arrays[0]}):
        assert capture_onnx(two_inputs(), examples).inputs[1].shape == (3, 4)
    with pytest.raises(InvalidInput, match="Symbolic dimension mismatch"):
        capture_onnx(two_inputs(), (arrays[0], arrays[1][:2]))
    with pytest.raises(InvalidInput, match="'b' does not fit"):
        capture_onnx(two_inputs(), (arrays[0], arrays[1][:, :2]))
    with pytest.raises(InvalidInput, match="not those of the model"):
        capture_onnx(two_inputs(), arrays[:1])
    with pytest.raises(InvalidInput, match="float64"):
        capture_onnx(two_inputs(), (arrays[0], np.ones((3, 4))))


def test_examples_by_name_are_a_mapping_or_keywords() -> None:
    given = {"b": torch.ones(3, 4), "a.1": torch.ones(3, 4)}
    for opened in (open_model(two_inputs(), given), open_model(two_inputs(), None, given), open_model(two_inputs(), (), given)):
        assert [spec.shape for spec in opened.inputs] == [(3, 4), (3, 4)]
    with pytest.raises(InvalidInput, match="in order or by name"):
        open_model(two_inputs(), (given["b"],), {"b": given["b"]})
    with pytest.raises(InvalidInput, match="free axes already"):
        open_model(two_inputs(), given, dynamic_shapes={})


def test_only_a_symbolic_batch_has_a_default() -> None:
    model = small([node("Relu", ["x"], ["y"])], inputs=[("x", FLOAT, ["n", "tokens", None])], outputs=[("y", FLOAT, None)])
    with pytest.raises(InvalidInput, match=r"x: \[n, tokens, \?\]"):
        capture_onnx(model)
    captured = capture_onnx(model, torch.ones(2, 5, 3))
    assert captured.sizes == {"n": 2, "tokens": 64, "x_2": 3} and captured.inputs[0].shape == (2, 64, 3)
    assert captured.inputs[0].dims == captured.output_dims[0] == (Affine("n"), Affine("tokens"), Affine("x_2"))


def pieces(*nodes, dims=("n", "t", 8), constants=None, results=("y",)):
    """A model of tokens with free batch and length."""
    outputs = [(name, TensorProto.UNDEFINED, None) for name in results]
    return small(list(nodes), constants, inputs=[("x", FLOAT, list(dims))], outputs=outputs)


def test_results_follow_sizes_as_the_graph_says() -> None:
    number = {"minus": np.array([0, -1, 16]), "one": np.array([1]), "end": np.array([1 << 40]), "two": np.array([2])}
    model = pieces(
        node("Slice", ["x", "one", "end", "one"], ["cut"]),
        node("Concat", ["x", "x", "cut"], ["long"], axis=1),
        node("Slice", ["x", "one", "end", "one", "two"], ["half"]),
        node("Reshape", ["cut", "minus"], ["mixed"]),
        node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=0),
        node("Shape", ["x"], ["sizes"]),
        constants=number,
        results=("long", "half", "mean", "sizes"),
    )
    captured = capture_onnx(model, torch.ones(2, 10, 8))
    n = Affine("n")
    assert captured.output_dims == ((n, Affine("t", -1, 3), 8), (n, None, 8), (n, 8), (3,))
    assert captured.batch == "" and set(captured.symbols) == {"n", "t"}


def test_a_batch_that_everything_follows_is_the_batch() -> None:
    captured = capture_onnx(pieces(node("Relu", ["x"], ["y"])), torch.ones(3, 10, 8))
    assert (captured.batch, captured.sizes) == ("n", {"n": 3, "t": 64})
    assert capture_onnx(pieces(node("Transpose", ["x"], ["y"])), torch.ones(3, 10, 8)).batches == frozenset()


def test_batches_of_several_names_are_changed_together() -> None:
    inputs = [("a", FLOAT, ["n", "t", 8]), ("b", FLOAT, [None, "t", 1])]
    model = small([node("Add", ["a", "b"], ["y"])], inputs=inputs, outputs=[("y", FLOAT, None)])
    captured = capture_onnx(model, (torch.ones(3, 10, 8), torch.ones(3, 10, 1)))
    assert captured.batches == {"n", "b_0"} and captured.output_dims == ((Affine("n"), Affine("t"), 8),)
    assert captured.at({"n": 5, "b_0": 5, "t": 7}).inputs[1].shape == (5, 7, 1)


def test_one_model_serves_all_sizes_that_it_can_be_made_for() -> None:
    table = np.random.default_rng(0).standard_normal((1, 40, 8)).astype(np.float32)
    bounds = {"zero": np.array([0]), "axis": np.array([1]), "weight": np.eye(8, dtype=np.float32), "table": table}
    model = pieces(
        node("Shape", ["x"], ["length"], start=1, end=2),
        node("Slice", ["table", "zero", "length", "axis"], ["positions"]),
        node("MatMul", ["x", "weight"], ["u"]),
        node("Add", ["u", "positions"], ["y"]),
        constants=bounds,
    )
    captured = capture_onnx(model, torch.ones(1, 10, 8))
    # More than 40 tokens have no positions.
    assert captured.sizes == {"n": 1, "t": 40} and captured.symbols["t"].most == 40 and captured.symbols["n"].most is None
    for sizes in ((1, 10), (4, 40), (2, 1)):
        x = torch.randn(*sizes, 8)
        made = captured.at(captured.sizes_of([x]))
        assert made.inputs[0].shape == tuple(x.shape)
        close(run(made, x), x + torch.from_numpy(table[:, : sizes[1]]))
    with pytest.raises(UnsupportedModel, match="Add"):
        captured.at({"n": 1, "t": 41})
    with pytest.raises(InvalidInput, match="t 1 to 40"):
        captured.sizes_of([torch.ones(1, 41, 8)])
    with pytest.raises(InvalidInput, match="Axis 2"):
        captured.sizes_of([torch.ones(1, 10, 9)])
    with pytest.raises(InvalidInput, match="fixed sizes"):
        capture_onnx(onnx_files.tokens()).at({})


def test_outputs_that_are_inputs_constants_or_repeated() -> None:
    outputs = [(name, FLOAT, None) for name in ("x", "c", "y", "y")]
    captured = capture_onnx(small([node("Neg", ["x"], ["y"])], {"c": np.ones(3, np.float32)}, outputs=outputs))
    x = torch.randn(2, 8)
    close(list(run(captured, x)), [x, torch.ones(3), -x, -x])


def test_what_no_output_needs_is_not_looked_at() -> None:
    captured = capture_onnx(small([node("NoSuchOperator", ["x"], ["u"]), node("Neg", ["x"], ["y"])]))
    assert targets(captured) == [aten.neg.default]


# Constants


def test_a_shared_weight_is_stored_once() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    captured = capture_onnx(small([node("MatMul", ["x", "w"], ["u"]), node("MatMul", ["u", "w"], ["y"])], {"w": weight}))
    assert targets(captured) == [aten.linear.default] * 2
    assert [name for name, _ in captured.graph_module.named_buffers()] == ["w"]


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_])
@pytest.mark.parametrize("raw", [True, False])
def test_constants_of_every_type_keep_their_values(kind, raw: bool) -> None:
    values = np.array([[0, 1, 3], [1, 0, 2]]).astype(kind)
    proto = numpy_helper.from_array(values, "c")
    if not raw:
        proto = helper.make_tensor("c", proto.data_type, values.shape, values.reshape(-1))
    model = small([node("Identity", ["c"], ["y"])], outputs=[("y", proto.data_type, [2, 3])])
    model.graph.initializer.append(proto)
    assert torch.equal(run(capture_onnx(model), torch.ones(2, 8)), torch.from_numpy(values))


def test_external_data_beside_the_file(tmp_path: Path) -> None:
    x, path = torch.randn(1, 3, 12, 12), tmp_path / "net.onnx"
    want = run(capture_onnx(onnx_files.convolutional()), x)
    onnx.save_model(onnx_files.convolutional(), path, save_as_external_data=True, location="net.bin", size_threshold=0)
    close(run(capture_onnx(path), x), want)
    close(run(capture_onnx(str(path)), x), want)
    with pytest.raises(UnsupportedModel, match="Give the path"):
        capture_onnx(onnx.load(path, load_external_data=False))


def test_external_data_elsewhere_missing_or_cut(tmp_path: Path) -> None:
    path, data = tmp_path / "net.onnx", tmp_path / "net.bin"
    onnx.save_model(onnx_files.convolutional(), path, save_as_external_data=True, location="net.bin", size_threshold=0)
    data.write_bytes(data.read_bytes()[:40])
    with pytest.raises(UnsupportedModel, match="does not fit its shape"):
        capture_onnx(path)
    data.unlink()
    with pytest.raises(UnsupportedModel, match=r"net\.bin"):
        capture_onnx(path)
    model = onnx.load(path, load_external_data=False)
    for proto in model.graph.initializer:
        next(entry for entry in proto.external_data if entry.key == "location").value = "../../etc/passwd"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedModel, match="outside"):
        capture_onnx(path)


# Put back together


def written_out(*nodes, root: float = 2**0.5) -> Captured:
    numbers = {"half": 0.5, "one": 1, "two": 2, "three": 3, "root": root, "cube": 0.044715, "pi": (2 / np.pi) ** 0.5, "eps": 1e-5}
    numbers |= {"six": 6, "zero": 0}
    constants = {name: np.float32(value) for name, value in numbers.items()}
    constants |= {"w": np.linspace(1, 2, 8).astype(np.float32), "b": np.linspace(-1, 1, 8).astype(np.float32)}
    model = small([node(op, inputs.split(), [output], **attributes) for op, inputs, output, attributes in nodes], constants)
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(3))
    captured = capture_onnx(model)
    close(run(captured, x), reference(model, x=x.numpy())[0])
    return captured


def ops(text: str):
    """ "Op a b > c; ..." as nodes, ReduceMean over the last axis."""
    for line in text.split(";"):
        left, right = line.split(">")
        op, _, inputs = left.strip().partition(" ")
        yield op, inputs, right.strip(), {"axes": [-1]} if op == "ReduceMean" else {}


ERF = "Div x root > a; Erf a > e; Add e one > p"
CUBIC = "Mul x c > d; Tanh d > t; Add t one > p"
NORM = "ReduceMean x > m; Sub x m > d; Pow d two > q; ReduceMean q > v; Add v eps > ve; Sqrt ve > s"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"{ERF}; Mul x p > q; Mul q half > y", [aten.gelu.default]),
        (f"{ERF}; Mul x half > q; Mul q p > y", [aten.gelu.default]),
        (f"{ERF}; Mul half p > q; Mul x q > y", [aten.gelu.default]),
        (f"Mul x half > h; {ERF}; Mul p h > y", [aten.gelu.default]),
        ("Pow x three > u; Mul u cube > v; Add x v > w0; Mul w0 pi > d0; Tanh d0 > t; Add t one > p; Mul x p > q; Mul q half > y",
         [aten.gelu.default]),
        ("Mul x x > u; Mul u x > u3; Mul cube u3 > v; Add v x > k; Mul pi k > j; Tanh j > t; Add one t > p; Mul x half > q; Mul q p > y",
         [aten.gelu.default]),
        ("Sigmoid x > s; Mul x s > y", [aten.silu.default]),
        ("HardSigmoid x > s; Mul s x > y", [aten.mul.Tensor, aten.add.Tensor, aten.hardtanh.default, aten.mul.Tensor]),
        ("Add x three > a; Clip a zero six > c; Mul x c > d; Div d six > y", [aten.hardswish.default]),
        (f"{NORM}; Div d s > n; Mul n w > nw; Add nw b > y", [aten.layer_norm.default]),
        (f"{NORM}; Reciprocal s > r; Mul d r > n; Mul w n > nw; Add b nw > y", [aten.layer_norm.default]),
        (f"{NORM}; Div d s > n; Add n b > y", [aten.layer_norm.default]),
        (f"{NORM}; Div d s > n; Mul n w > y", [aten.layer_norm.default]),
        (f"{NORM}; Div d s > y", [aten.layer_norm.default]),
        ("ReduceMean x > m; Sub x m > d; Mul d d > q; ReduceMean q > v; Add v eps > ve; Sqrt ve > s; Div d s > y",
         [aten.layer_norm.default]),
    ],
)  # fmt: skip
def test_what_exporters_write_out_is_one_operator_again(text: str, wanted: list) -> None:
    assert targets(written_out(*ops(text))) == wanted


def test_what_only_resembles_it_is_left_alone() -> None:
    other_root = written_out(*ops(f"{ERF}; Mul x p > q; Mul q half > y"), root=1.5)
    assert aten.gelu.default not in targets(other_root)
    read_twice = written_out(*ops(f"{NORM}; Div d s > n; Mul n w > nw; Add nw n > y"))
    assert targets(read_twice) == [aten.layer_norm.default, aten.mul.Tensor, aten.add.Tensor]
    not_the_mean = written_out(*ops("Pow x two > q; ReduceMean q > v; Add v eps > ve; Sqrt ve > s; Div x s > y"))
    assert aten.layer_norm.default not in targets(not_the_mean)


def test_a_bias_after_a_product_joins_it() -> None:
    weight, bias = np.eye(8, dtype=np.float32), np.arange(8, dtype=np.float32)
    model = small([node("MatMul", ["x", "w"], ["u"]), node("Add", ["b", "u"], ["y"])], {"w": weight, "b": bias})
    captured, x = capture_onnx(model), torch.randn(2, 8)
    assert targets(captured) == [aten.linear.default]
    close(run(captured, x), x + torch.arange(8.0))


# Functions


def test_functions_in_functions_with_attributes_and_opsets_of_their_own() -> None:
    opset = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    mean = node("ReduceMean", ["a", "axes"], ["b"])
    keep = mean.attribute.add()
    keep.name, keep.ref_attr_name, keep.type = "keepdims", "keep", onnx.AttributeProto.INT
    axes = node("Constant", [], ["axes"], value_ints=[-1])
    inner = helper.make_function("f", "Inner", ["a"], ["b"], [axes, mean], opset, ["keep"])
    call = node("Inner", ["a"], ["c"], domain="f", keep=0)
    outer = helper.make_function("f", "Outer", ["a"], ["c", "a"], [call], opset)
    outputs = [("y", FLOAT, [2]), ("z", FLOAT, [2, 8])]
    model = small([node("Outer", ["x"], ["y", "z"], domain="f", name="call")], functions=[inner, outer], outputs=outputs)
    x = torch.randn(2, 8)
    found = run(capture_onnx(model), x)
    close(found[0], x.mean(1))
    assert torch.equal(found[1], x)


def test_functions_that_call_themselves_are_refused() -> None:
    again = helper.make_function("f", "Again", ["a"], ["b"], [node("Again", ["a"], ["b"], domain="f")], [helper.make_opsetid("f", 1)])
    with pytest.raises(UnsupportedModel, match="without end"):
        capture_onnx(small([node("Again", ["x"], ["y"], domain="f")], functions=[again]))
