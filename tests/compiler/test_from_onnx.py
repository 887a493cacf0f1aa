"""The ONNX door: each operator computes what onnxruntime computes, with inputs given and with all inputs constant."""

from typing import Any

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx.version_converter")
pytest.importorskip("onnx.reference")
onnxruntime = pytest.importorskip("onnxruntime")


from onnx import TensorProto, helper  # noqa: E402

from sparsec.doors.captured import Captured  # noqa: E402
from sparsec.doors.from_onnx import build  # noqa: E402
from sparsec.doors.from_onnx.capture import capture_onnx  # noqa: E402
from sparsec.doors.from_onnx.importing import OPERATORS  # noqa: E402
from sparsec.doors.from_onnx.nodes import OPSETS  # noqa: E402
from sparsec.ir.forms import Form  # noqa: E402
from sparsec.ir.verify import Verifier  # noqa: E402
from tests import onnx_files  # noqa: E402
from tests.compiler.onnx_operators import CASES, IMAGE, PARAMETERS, POSITIVE, Case, case, reals, whole  # noqa: E402


def built(each: Case, known: tuple[int, ...]) -> tuple[Any, dict[str, np.ndarray]]:
    """The model of a case and the inputs to give it; those at `known` positions are constants of the model."""
    names = ["" if value is None else f"i{position}" for position, value in enumerate(each.inputs)]
    outputs = [f"o{position}" for position in range(each.results)]
    node = helper.make_node(each.op, names, outputs, name="node", **each.attributes)
    arrays = {name: np.asarray(value) for name, value in zip(names, each.inputs, strict=True) if name}
    constants = {f"i{position}": arrays[f"i{position}"] for position in known if each.inputs[position] is not None}
    given = {name: value for name, value in arrays.items() if name not in constants}
    inputs = [(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape) for name, value in given.items()]
    model = onnx_files.model([node], inputs, [(name, TensorProto.UNDEFINED, None) for name in outputs], constants, each.opset)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    for value in model.graph.output:
        value.type.tensor_type.elem_type = value.type.tensor_type.elem_type or TensorProto.FLOAT
    return model, given


def expected(model: Any, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What onnxruntime computes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, given)


def computed(captured: Captured, given: dict[str, np.ndarray]) -> list[torch.Tensor]:
    """What the captured graph computes, verified first."""
    Verifier()(captured.graph_module, Form.CAPTURED)
    inputs = captured.flatten([torch.from_numpy(np.array(value)) for value in given.values()])
    with torch.no_grad():
        return list(captured.graph_module(*inputs))


def same(found: list[torch.Tensor], wanted: list[np.ndarray]) -> None:
    for tensor, array in zip(found, wanted, strict=True):
        reference = torch.from_numpy(np.asarray(array))
        assert tensor.dtype == reference.dtype and tensor.shape == reference.shape
        scale = float(reference.double().abs().max()) if reference.numel() else 0.0
        torch.testing.assert_close(tensor, reference, rtol=1e-5, atol=1e-6 * min(scale, 10.0), equal_nan=True)


@pytest.mark.parametrize("each", CASES, ids=str)
def test_an_operator_computes_what_onnxruntime_computes(each: Case) -> None:
    model, given = built(each, each.known)
    same(computed(capture_onnx(model), given), expected(model, given))


@pytest.mark.parametrize("each", CASES, ids=str)
def test_of_constants_nothing_is_left_to_compute(each: Case) -> None:
    every = tuple(range(len(each.inputs)))
    model, given = built(each, each.known)
    captured = capture_onnx(built(each, every)[0])
    assert not [node for node in captured.graph_module.graph.nodes if node.op == "call_function"]
    same(computed(captured, {}), expected(model, given))


def test_every_operator_of_the_tables_is_tested() -> None:
    assert {op for op in OPERATORS if "." not in op} - {"Upsample"} == {each.op for each in CASES}


#: Attributes that say nothing of the values: of training, of precisions above float32, of results and types that are refused.
HARMLESS = {
    "Attention": {"qk_matmul_output_mode", "softmax_precision"},
    "BatchNormalization": {"momentum"},
    **{key: {"round_mode", "saturate"} for key in ("Cast", "CastLike")},
    "Dropout": {"ratio", "seed"},
    **{key: {"stash_type"} for key in ("GroupNormalization", "LayerNormalization", "RMSNormalization", "Range")},
    "MaxPool": {"storage_order"},
    "QuantizeLinear": {"saturate"},
    **{key: {"activation_alpha", "activation_beta"} for key in ("LSTM", "GRU", "RNN")},
    "Resize": {"extrapolation_value"},
    "TopK": {"sorted"},
}


def test_every_attribute_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every operator at every opset: what is not read is not honoured, and nobody would say so."""
    read: dict[str, set[str]] = {"ConstantOfShape": {"value"}}
    attribute = build.Step._attribute

    def noted(self: build.Step, name: str, kind: type, default: Any) -> Any:
        read.setdefault(self.node.op, set()).add(name)
        return attribute(self, name, kind, default)

    monkeypatch.setattr(build.Step, "_attribute", noted)
    names = [op for op in OPERATORS if op.startswith("Reduce")]
    reductions = [case(op, POSITIVE, whole(), known=(1,), opset=18) for op in names]
    reductions += [case(op, POSITIVE, axes=[1], opset=13) for op in names if op != "ReduceSum"]
    for each in [*CASES, *reductions]:
        capture_onnx(built(each, each.known)[0])
    for op in sorted(op for op in {*OPERATORS} - {"Upsample"} if "." not in op):
        schemas = [onnx.defs.get_schema(op, opset, "") for opset in OPSETS if onnx.defs.has(op, opset, "")]
        known = read.get(op, set()) | HARMLESS.get(op, set())
        assert not {name for schema in schemas for name in schema.attributes} - known, op


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_blocks_in_either_order(mode: str) -> None:
    opset = next((opset for opset in OPSETS if "mode" in onnx.defs.get_schema("SpaceToDepth", opset, "").attributes), None)
    if opset is None:
        pytest.skip("this version of onnx has no mode of SpaceToDepth")
    model, given = built(case("SpaceToDepth", reals(1, 2, 4, 6), blocksize=2, mode=mode, opset=opset), ())
    same(computed(capture_onnx(model), given), onnx.reference.ReferenceEvaluator(model).run(None, given))


#: What operators were before opset 13: axes, splits and limits as attributes, a softmax of all that follows, other names.
OLD = [
    case("Upsample", IMAGE, np.array([1, 1, 2, 3], np.float32), known=(1,), opset=9, mode="nearest"),
    case("Upsample", IMAGE, np.array([1, 1, 2, 3], np.float32), known=(1,), opset=9, mode="linear"),
    case("Resize", IMAGE, np.array([1, 1, 2, 3], np.float32), known=(1,), opset=10, mode="nearest"),
    *(case("Squeeze", reals(1, 3, 1), opset=opset, axes=[0]) for opset in (7, 9, 11, 12)),
    *(case(op, reals(2, 3), reals(3), opset=7) for op in ("Add", "Mul", "Sub", "Div")),
    case("BatchNormalization", IMAGE, *PARAMETERS, opset=7),
    case("AveragePool", IMAGE, opset=7, kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("Dropout", reals(9), opset=7),
    case("Softmax", reals(2, 3, 4), opset=7),
    case("Upsample", IMAGE, opset=7, mode="nearest", scales=[1.0, 1.0, 2.0, 3.0]),
    case("Unsqueeze", reals(3, 2), opset=9, axes=[0, 2]),
    case("Split", reals(2, 6), opset=9, axis=1, split=[1, 5], results=2),
    case("ReduceSum", reals(2, 3, 4), opset=9, axes=[1], keepdims=0),
    case("ReduceMean", reals(2, 3, 4), opset=11, axes=[-1]),
    case("Softmax", reals(2, 3, 4), opset=9),
    case("LogSoftmax", reals(2, 3, 4), opset=12, axis=2),
    case("Clip", reals(9), opset=9, min=-0.5, max=0.5),
    case("Pad", reals(2, 3), opset=9, pads=[0, 1, 2, 0], value=3.0),
    case("Slice", reals(5, 6), opset=9, axes=[0, 1], starts=[1, -2], ends=[4, 99]),
    case("Dropout", reals(9), opset=9),
    case("BatchNormalization", IMAGE, *PARAMETERS, opset=9),
    case("Conv", IMAGE, reals(6, 4, 3, 3), reals(6), opset=9, pads=[1, 1, 1, 1]),
    case("MaxPool", IMAGE, opset=9, kernel_shape=[2, 2], strides=[2, 2]),
    case("Gemm", reals(3, 4), reals(5, 4), reals(5), known=(1, 2), opset=9, transB=1),
    case("Flatten", reals(2, 3, 4), opset=9),
]


@pytest.mark.parametrize("each", OLD, ids=str)
def test_older_opsets_mean_what_they_meant(each: Case) -> None:
    model, given = built(each, each.known)
    try:
        wanted = expected(model, given)
    except Exception as error:
        pytest.skip(f"onnxruntime does not run it: {error}")
    same(computed(capture_onnx(model), given), wanted)


@pytest.mark.parametrize("opset", [17, 18, 20, 21, 22, 23, 24, 25, 26, 27, 28])
def test_a_model_means_the_same_at_every_opset(opset: int) -> None:
    model, x = onnx_files.convolutional(), np.ones((1, 3, 12, 12), np.float32)
    converted = onnx.version_converter.convert_version(model, opset)
    assert converted.opset_import[0].version == opset
    same(computed(capture_onnx(converted), {"x": x}), expected(model, {"x": x}))
