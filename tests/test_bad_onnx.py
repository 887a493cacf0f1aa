"""ONNX files that are truncated, mutated or ask for what is not there: an error of ours, nothing else, and soon."""

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from sparsec.doors.from_onnx.capture import capture_onnx  # noqa: E402
from sparsec.errors import InvalidInput, SparsecError, UnsupportedModel  # noqa: E402
from tests import onnx_files  # noqa: E402

FLOAT = TensorProto.FLOAT
node = helper.make_node
MODELS = (onnx_files.convolutional(), onnx_files.tokens())
CONTENTS = tuple(model.SerializeToString() for model in MODELS)
SHARE = settings(max_examples=500)
which = st.integers(0, len(MODELS) - 1)


def survives(model: "onnx.ModelProto | Path") -> None:
    """Captured, or refused with words: what, and what else is known."""
    try:
        captured = capture_onnx(model)
    except SparsecError as error:
        assert error.what.endswith(".") and isinstance(error, InvalidInput | UnsupportedModel)
    else:
        assert captured.graph_module.graph.output_node().all_input_nodes


def written(folder: Path, content: bytes) -> Path:
    path = folder / "mutated.onnx"
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


# 2,000 mutations


@pytest.mark.slow
@SHARE
@given(which=which, share=st.floats(0, 1))
def test_truncated_files(folder: Path, which: int, share: float) -> None:
    content = CONTENTS[which]
    survives(written(folder, content[: int(share * (len(content) - 1))]))


@pytest.mark.slow
@SHARE
@given(which=which, flips=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=6))
def test_flipped_bytes(folder: Path, which: int, flips: list[tuple[int, int]]) -> None:
    content = bytearray(CONTENTS[which])
    for place, value in flips:
        content[place % len(content)] = value
    survives(written(folder, bytes(content)))


@pytest.mark.slow
@settings(max_examples=1000)
@given(which=which, seed=st.integers(0, 1 << 32), count=st.integers(1, 4))
def test_mutated_fields(which: int, seed: int, count: int) -> None:
    model, draw = onnx.ModelProto(), random.Random(seed)
    model.CopyFrom(MODELS[which])
    for _ in range(count):
        onnx_files.mutate_field(model, draw)
    survives(model)


@pytest.mark.parametrize("seed", range(60))
def test_some_mutated_fields(seed: int) -> None:
    test_mutated_fields.hypothesis.inner_test(seed % 2, seed, 1 + seed % 3)


# What is said


def small(nodes, constants=None, opset: int = 17, shape=(2, 8), **more) -> "onnx.ModelProto":
    return onnx_files.model(nodes, [("x", FLOAT, list(shape))], [("y", FLOAT, None)], constants or {}, opset, **more)


def refused(model, match: str) -> str:
    with pytest.raises(UnsupportedModel, match=match) as raised:
        capture_onnx(model)
    return str(raised.value)


def test_every_unsupported_operator_is_named_with_its_nodes() -> None:
    nodes = [
        node("Scan", ["x", "w", "w"], ["a"], name="first"),
        node("Relu", ["a"], ["b"]),
        node("Scan", ["b", "w", "w"], ["c"], name="second"),
        node("FusedConv", ["c"], ["y"], name="third", domain="com.example"),
    ]
    said = refused(small(nodes, {"w": np.ones((1, 8, 8), np.float32)}), "2 operators")
    assert all(word in said for word in ("Scan: first, second", "com.example.FusedConv: third"))


@pytest.mark.parametrize("opset", [0, 5, 29, 1000])
def test_unknown_opsets(opset: int) -> None:
    assert "6 to 28" in refused(small([node("Relu", ["x"], ["y"])], opset=opset), f"opset {opset}")


def test_a_model_without_opset() -> None:
    model = small([node("Relu", ["x"], ["y"])])
    del model.opset_import[:]
    refused(model, "no version")


@pytest.mark.parametrize(
    ("nodes", "match"),
    [
        ([node("Relu", ["nothing"], ["y"])], "'nothing'"),
        ([node("Relu", ["b"], ["y"]), node("Relu", ["x"], ["b"])], "'b', which nothing before"),
        ([node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["y"])], "computed twice"),
        ([node("Relu", ["x"], ["z"])], "'y' is never computed"),
        ([node("Conv", ["x", "c"], ["y"], name="here")], "Conv cannot be translated"),
        ([node("Reshape", ["x", "x"], ["y"], name="here")], "depends on inputs of the model"),
        ([node("Softmax", ["x"], ["y"], name="here", axis=5)], "axis 5"),
        ([node("BatchNormalization", ["x", "c", "c", "c", "c"], ["y"], name="here", training_mode=1)], "training mode"),
        ([node("Relu", [], ["y"], name="here")], "input 0 is missing"),
        ([node("Relu", ["x"], ["y", "m"], name="here"), node("Neg", ["m"], ["z"])], "'m' of Relu"),
    ],
)
def test_malformed_graphs(nodes: list, match: str) -> None:
    said = refused(small(nodes, {"c": np.ones(8, np.float32)}), match)
    assert "here" in said or not nodes[0].name


HUGE = (1 << 20, 1 << 20)


@pytest.mark.parametrize(
    ("nodes", "match"),
    [
        ([node("ConstantOfShape", ["huge"], ["y"])], "too large"),
        ([node("ConstantOfShape", ["huge"], ["u"]), node("Shape", ["u"], ["y"])], "too large"),
        ([node("Expand", ["one", "huge"], ["y"])], "too large"),
        ([node("Tile", ["one", "huge"], ["y"])], "too large"),
        ([node("Pad", ["one", "wide"], ["y"])], "too large"),
        ([node("Range", ["zero", "many", "step"], ["y"])], "too large"),
    ],
)
def test_sizes_are_checked_before_memory_is_taken(nodes: list, match: str) -> None:
    constants = {"huge": np.array(HUGE), "one": np.ones((1, 1), np.float32), "wide": np.array([0, 0, 1 << 30, 1 << 10])}
    constants |= {"zero": np.array(0), "many": np.array(1 << 40), "step": np.array(1)}
    refused(small(nodes, constants), match)


def doubled(op: str, times: int) -> list:
    """A constant of 1024 x 1024 that is joined with itself again and again, or multiplied."""
    inputs = ["c", *(f"v{i}" for i in range(times - 1))]
    attributes = {"axis": 0} if op == "Concat" else {}
    return [node(op, [name, name], [f"v{i}" if i < times - 1 else "y"], **attributes) for i, name in enumerate(inputs)]


@pytest.mark.parametrize("nodes", [doubled("Concat", 40), doubled("Add", 200), doubled("MatMul", 300)], ids=["joined", "sums", "products"])
def test_what_is_computed_from_constants_is_bounded_in_all(nodes: list) -> None:
    """Each step is within what one may do; together they would take all memory or hours."""
    before = time.monotonic()
    refused(small(nodes, {"c": np.ones((1024, 1024), np.float32)}), "too large")
    assert time.monotonic() - before < 20


def test_a_file_does_not_make_more_constants_than_it_holds() -> None:
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    constant = node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones((512, 1024), np.float32)))
    body = [constant, node("ReduceMax", ["c"], ["m"], keepdims=0), node("Add", ["a", "m"], ["b"])]
    function = helper.make_function("f", "F", ["a"], ["b"], body, opset)
    calls = [node("F", [f"v{i}" if i else "x"], [f"v{i + 1}" if i < 999 else "y"], domain="f") for i in range(1000)]
    refused(small(calls, functions=[function]), "constants are too large")
    sparse = onnx_files.sparse("w", np.diag(np.ones(2048, np.float32)))
    several = [type(sparse).FromString(sparse.SerializeToString()) for _ in range(40)]
    for number, proto in enumerate(several):
        proto.values.name = f"w{number}"
    nodes = [node("ReduceMax", [f"w{i}"], [f"m{i}"], keepdims=0) for i in range(40)]
    nodes += [node("Add", [f"s{i - 1}" if i else "x", f"m{i}"], [f"s{i}" if i < 39 else "y"]) for i in range(40)]
    refused(small(nodes, sparse=several), "constants are too large")


def test_one_file_of_weights_for_many_constants_is_counted_once(tmp_path: Path) -> None:
    content = np.ones((1024, 1024), np.float32)
    (tmp_path / "weights").write_bytes(content.tobytes())
    nodes = [node("ReduceMax", [f"c{i}"], [f"m{i}"], keepdims=0) for i in range(100)]
    model = small(
        [*nodes, *(node("Add", [f"s{i - 1}" if i else "x", f"m{i}"], [f"s{i}" if i < 99 else "y"]) for i in range(100))],
        {f"c{i}": np.ones((1, 1), np.float32) for i in range(100)},
    )
    for proto in model.graph.initializer:
        proto.ClearField("raw_data")
        proto.dims[:] = content.shape
        proto.data_location = TensorProto.EXTERNAL
        entry = proto.external_data.add()
        entry.key, entry.value = "location", "weights"
    refused(written(tmp_path, model.SerializeToString()), "constants are too large")


def test_functions_without_outputs_are_counted_too() -> None:
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]

    def level(number: int):
        calls = [node(f"F{number - 1}", [], [], domain="f") for _ in range(3)] if number else []
        return helper.make_function("f", f"F{number}", [], [], calls, opset)

    model = small([node("F40", [], [], domain="f"), node("Relu", ["x"], ["y"])], functions=[level(number) for number in range(41)])
    refused(model, "calls local functions more than")


def claims(change) -> "onnx.ModelProto":
    model = small([node("Add", ["x", "c"], ["y"])], {"c": np.ones((2, 8), np.float32)})
    change(model.graph.initializer[0])
    return model


def test_tensors_whose_data_does_not_fit() -> None:
    refused(claims(lambda proto: proto.dims.__setitem__(0, 1 << 40)), "impossible shape")
    refused(claims(lambda proto: proto.dims.__setitem__(0, -2)), "impossible shape")
    refused(claims(lambda proto: proto.dims.append(1 << 10)), "does not fit its shape")
    refused(claims(lambda proto: setattr(proto, "data_type", TensorProto.STRING)), "not supported")
    refused(claims(lambda proto: setattr(proto, "data_type", TensorProto.DOUBLE)), "does not fit its shape")


def test_sparse_tensors_with_bad_indices() -> None:
    dense = np.diag(np.ones(8, np.float32))

    def changed(change) -> "onnx.ModelProto":
        proto = onnx_files.sparse("w", dense)
        change(proto)
        return small([node("MatMul", ["x", "w"], ["y"])], sparse=[proto])

    def index(value: int):
        return lambda proto: setattr(proto.indices, "raw_data", np.array([0, 9, 18, 27, 36, 45, 54, value]).tobytes())

    capture_onnx(changed(index(63)))
    for value in (64, -1, 1 << 62):
        refused(changed(index(value)), "outside its shape")
    refused(changed(index(9)), "twice")
    refused(changed(lambda proto: proto.dims.__setitem__(0, 1 << 26)), "too large for what it holds")
    refused(changed(lambda proto: proto.indices.dims.__setitem__(0, 7)), "does not fit")


def test_functions_that_grow_without_bound() -> None:
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    double = [node("F{}", ["a"], ["t"], domain="f"), node("F{}", ["t"], ["b"], domain="f")]

    def level(number: int):
        calls = [onnx.NodeProto.FromString(each.SerializeToString()) for each in double]
        for call in calls:
            call.op_type = f"F{number - 1}"
        return helper.make_function("f", f"F{number}", ["a"], ["b"], calls if number else [node("Relu", ["a"], ["b"])], opset)

    refused(small([node("F40", ["x"], ["y"], domain="f")], functions=[level(number) for number in range(41)]), "more than")


def test_files_that_are_no_models(tmp_path: Path) -> None:
    for content in (b"", b"\0" * 100, b"PK\3\4", bytes(range(256)) * 40):
        refused(written(tmp_path, content), "no ONNX model|no outputs|no version|malformed")
    for path in (tmp_path / "missing.onnx", tmp_path, "a\0b"):
        with pytest.raises(InvalidInput, match="cannot be read"):
            capture_onnx(path)
    with pytest.raises(InvalidInput, match="int is no ONNX model"):
        capture_onnx(7)


@pytest.mark.slow
def test_without_the_package_the_error_says_what_to_install() -> None:
    program = """
import sys
sys.modules["onnx"] = None
from sparsec.errors import MachineError
from sparsec.doors.from_onnx.capture import capture_onnx
try:
    capture_onnx("model.onnx")
except MachineError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install" in done.stdout
