"""ONNX operators with operands and attributes, each as a case."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

RNG = np.random.default_rng(7)


def reals(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Case:
    """One node: its inputs, which of them are always constants, its attributes, its opset."""

    op: str
    inputs: tuple
    known: tuple[int, ...]
    attributes: dict[str, Any]
    opset: int
    results: int

    def __str__(self) -> str:
        return f"{self.op}-{self.opset}-{'-'.join(f'{k}={v}' for k, v in self.attributes.items())}"


def case(op: str, *inputs: Any, known: tuple[int, ...] = (), opset: int = 17, results: int = 1, **attributes: Any) -> Case:
    return Case(op, inputs, known, attributes, opset, results)


POSITIVE = np.abs(reals(2, 3, 4)) + 0.5
ODD = np.array([1, np.inf, -np.inf, np.nan], np.float32)
FLAGS = np.array([[True, False, True], [False, False, True]])
IMAGE, MAP = reals(2, 4, 7, 6), reals(1, 3, 6, 6)
PARAMETERS = (reals(4), reals(4), reals(4), np.abs(reals(4)) + 0.5)
ELEMENTWISE = [
    *(case(op, reals(2, 3, 4)) for op in ("Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Exp", "Erf", "Floor", "Ceil", "Round", "Identity")),
    *(case(op, reals(2, 3, 4)) for op in ("Softplus", "Sign", "Sin", "Cos", "Atan", "HardSwish", "Elu", "LeakyRelu", "HardSigmoid")),
    *(case(op, POSITIVE) for op in ("Sqrt", "Reciprocal", "Log")),
    *(case(op, reals(2, 3, 4)) for op in ("Asinh", "Cosh", "Sinh", "Tan", "Softsign", "Selu", "Celu", "Shrink", "ThresholdedRelu")),
    *(case(op, np.tanh(reals(2, 3, 4))) for op in ("Acos", "Asin", "Atanh")),
    case("Acosh", POSITIVE + 1),
    case("Selu", reals(9), alpha=1.5, gamma=0.7),
    case("Celu", reals(9), alpha=0.4),
    case("Shrink", reals(9), lambd=0.4, bias=0.2),
    case("ThresholdedRelu", reals(9), alpha=0.3),
    *(
        case("IsInf", np.array([1, np.inf, -np.inf, np.nan], np.float32), detect_positive=p, detect_negative=n)
        for p in (0, 1)
        for n in (0, 1)
    ),
    *(case(op, reals(2, 3, 4), reals(3, 1)) for op in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Less", "GreaterOrEqual")),
    *(case(op, reals(2, 3, 4), np.float32(0.7), known=(1,)) for op in ("Add", "Sub", "Mul", "Div", "Less", "Greater", "LessOrEqual")),
    *(case(op, np.float32(0.7), POSITIVE, known=(0,)) for op in ("Add", "Sub", "Mul", "Div", "Pow", "Less")),
    *(case(op, FLAGS, ~FLAGS[:1]) for op in ("And", "Or", "Xor", "Equal")),
    case("Not", FLAGS),
    *(case(op, whole(5, 3, -1), whole(6), opset=18) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    case("BitwiseNot", whole(5, -3), opset=18),
    case("Swish", reals(9), opset=24),
    case("Swish", reals(9), opset=24, alpha=0.5),
    case("Sum", reals(2, 3), reals(3), reals(1, 3)),
    case("Max", reals(2, 3), reals(3), reals(1, 3)),
    case("Mean", reals(2, 3), reals(3), reals(1, 3)),
    case("Mean", reals(2, 3)),
    case("Div", whole(7, -7, 9), whole(2, 2, -4)),
    case("Div", np.float32(1), POSITIVE, known=(0,)),
    case("Mod", whole(7, -7, 9), whole(2, 3, -4)),
    case("Mod", reals(5), POSITIVE[0, 0, :1], fmod=1),
    case("Equal", whole(1, 2, 3), whole(1), known=(1,)),
    case("Pow", POSITIVE, np.float32(3), known=(1,)),
    case("Pow", POSITIVE, reals(4)),
    case("Clip", reals(9), np.float32(-0.5), np.float32(0.5), known=(1, 2)),
    case("Clip", reals(9), np.float32(0), known=(1,)),
    case("Clip", reals(9), None, np.float32(0.5), known=(2,)),
    case("Clip", reals(9), np.float32(-0.5), np.float32(0.5)),
    case("Clip", whole(-3, 0, 9), whole(0)[0], whole(6)[0], known=(1, 2)),
    case("HardSigmoid", reals(9), alpha=1 / 6, beta=0.5),
    case("PRelu", reals(2, 3, 4), reals(3, 1)),
    case("Gelu", reals(9), opset=20),
    case("Gelu", reals(9), opset=20, approximate="tanh"),
    case("Mish", reals(9), opset=18),
    case("Where", FLAGS, reals(2, 3), reals(1)),
    case("Cast", reals(9), to=TensorProto.INT64),
    case("Cast", whole(0, 1, 5), to=TensorProto.BOOL),
    case("CastLike", whole(0, 1, 5), reals(1)),
    case("IsNaN", np.array([1.0, np.nan, np.inf], np.float32)),
    case("Dropout", reals(9)),
]
WINDOWS = [
    case("Conv", IMAGE, reals(6, 4, 3, 3), reals(6), pads=[1, 1, 1, 1]),
    case("Conv", IMAGE, reals(6, 4, 3, 3), pads=[0, 1, 2, 1], strides=[2, 2]),
    case("Conv", IMAGE, reals(4, 1, 3, 3), group=4, strides=[2, 1], auto_pad="SAME_UPPER"),
    case("Conv", IMAGE, reals(2, 4, 2, 2), dilations=[2, 3], pads=[2, 0, 1, 3]),
    case("Conv", IMAGE, reals(4, 2, 2, 2), group=2, strides=[2, 3], auto_pad="SAME_LOWER"),
    case("Conv", IMAGE, reals(4, 4, 2, 3), auto_pad="VALID"),
    case("Conv", reals(2, 3, 9), reals(5, 3, 4), pads=[1, 2]),
    case("Conv", reals(1, 2, 4, 5, 6), reals(3, 2, 2, 2, 2), reals(3)),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
    case("MaxPool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    case("MaxPool", IMAGE, kernel_shape=[2, 2], dilations=[2, 2]),
    case("MaxPool", IMAGE, kernel_shape=[3, 2], strides=[2, 1], auto_pad="SAME_UPPER"),
    case("MaxPool", reals(2, 3, 9), kernel_shape=[3], strides=[2]),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1),
    case("AveragePool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, opset=19),
    case("GlobalAveragePool", IMAGE),
    case("GlobalAveragePool", reals(1, 2, 3, 4, 5)),
    case("GlobalMaxPool", IMAGE),
]
TIED = RNG.integers(0, 3, (6, 9)).astype(np.float32)
NORMS = [
    case("BatchNormalization", IMAGE, *PARAMETERS, epsilon=1e-3),
    case("BatchNormalization", IMAGE, *PARAMETERS, opset=13),
    case("LayerNormalization", reals(2, 3, 4), reals(4), reals(4)),
    case("LayerNormalization", reals(2, 3, 4), reals(3, 4), axis=1, epsilon=1e-2),
    case("LayerNormalization", reals(2, 3, 4), reals(4), reals(4), results=3),
    case("LRN", IMAGE, size=3),
    case("LRN", reals(2, 7, 3, 1), size=5, alpha=0.3, beta=0.5, bias=2.0),
    case("InstanceNormalization", IMAGE, reals(4), reals(4)),
    case("GroupNormalization", IMAGE, reals(4), reals(4), num_groups=2, opset=21),
    case("RMSNormalization", reals(2, 3, 4), reals(4), opset=23),
    case("Softmax", reals(2, 3, 4)),
    case("Softmax", reals(2, 3, 4), axis=1, opset=13),
    case("LogSoftmax", reals(2, 3, 4), axis=-2),
    *(case(op, POSITIVE, axes=[-1], keepdims=0) for op in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2")),
    *(case(op, POSITIVE, whole(0, 2), known=(1,), opset=18) for op in ("ReduceMean", "ReduceMax", "ReduceLogSumExp", "ReduceSumSquare")),
    case("ReduceMean", POSITIVE),
    case("ReduceLogSum", POSITIVE, axes=[1]),
    case("ReduceLogSum", POSITIVE, whole(0, 2), known=(1,), opset=18, keepdims=0),
    case("Hardmax", np.array([[1, 3, 3, 2], [0, -1, 0, -2]], np.float32)),
    case("Hardmax", reals(2, 3, 4), axis=1),
    case("LpNormalization", reals(2, 3, 4)),
    case("LpNormalization", reals(2, 3, 4), axis=1, p=1),
    case("ReduceSum", POSITIVE, whole(1), known=(1,), keepdims=0),
    case("ReduceSum", POSITIVE, whole(), known=(1,), noop_with_empty_axes=1),
    case("ReduceSum", POSITIVE, whole(), known=(1,)),
    case("ArgMax", reals(2, 3, 4), axis=1),
    case("ArgMin", reals(2, 3, 4), axis=-1, keepdims=0),
    case("CumSum", reals(2, 5), whole(1)[0], known=(1,)),
    case("CumSum", reals(2, 5), whole(1)[0], known=(1,), exclusive=1, reverse=1),
    case("TopK", reals(2, 5), whole(3), known=(1,), results=2),
    case("TopK", TIED, whole(5), known=(1,), results=2),
    case("TopK", TIED, whole(4), known=(1,), results=2, largest=0, axis=0),
    *(case(op, TIED, axis=1, select_last_index=last) for op in ("ArgMax", "ArgMin") for last in (0, 1)),
    case("ArgMax", TIED, axis=0, keepdims=0, select_last_index=1),
]
SHAPES = [
    case("Reshape", reals(2, 3, 4), whole(0, -1), known=(1,)),
    case("Reshape", reals(2, 3, 4), whole(4, 3, 2), known=(1,)),
    case("Reshape", reals(1, 1), whole(), known=(1,)),
    case("Reshape", reals(0, 3), whole(0, 5), known=(1,), allowzero=1),
    case("Flatten", reals(2, 3, 4)),
    case("Flatten", reals(2, 3, 4), axis=0),
    case("Flatten", reals(2, 3, 4), axis=-1),
    case("Transpose", reals(2, 3, 4)),
    case("Transpose", reals(2, 3, 4), perm=[0, 2, 1]),
    case("Squeeze", reals(1, 3, 1)),
    case("Squeeze", reals(1, 3, 1), whole(-1), known=(1,)),
    case("Unsqueeze", reals(2, 3), whole(-1, 0), known=(1,)),
    case("Concat", reals(2, 3), reals(2, 1), axis=1),
    case("Concat", reals(2, 3), reals(0, 3), axis=-2),
    case("Split", reals(2, 6), whole(1, 2, 3), known=(1,), axis=1, results=3),
    case("Split", reals(2, 6), axis=1, results=3),
    case("Split", reals(7, 2), num_outputs=3, results=3, opset=18),
    case("Slice", reals(5, 6), whole(1, -2), whole(4, 99), known=(1, 2)),
    case("Slice", reals(5, 6), whole(-1), whole(-99), whole(1), whole(-2), known=(1, 2, 3, 4)),
    case("Slice", reals(5, 6), whole(-1), whole(-(1 << 62)), whole(0), whole(-1), known=(1, 2, 3, 4)),
    case("Slice", reals(5, 6), whole(4), whole(2), whole(0), known=(1, 2, 3)),
    case("Slice", reals(5, 6), whole(0), whole((1 << 63) - 1), whole(1), whole(3), known=(1, 2, 3, 4)),
    case("Expand", reals(3, 1), whole(2, 1, 4), known=(1,)),
    case("Tile", reals(2, 3), whole(2, 1), known=(1,)),
    case("Pad", reals(2, 3), whole(0, 1, 2, 0), np.float32(5), known=(1, 2)),
    case("Pad", reals(2, 3), whole(-1, 0, 0, 1), known=(1,)),
    case("Pad", reals(1, 2, 5), whole(1, 2), None, whole(-1), known=(1, 3), mode="reflect", opset=18),
    case("Pad", reals(1, 2, 5), whole(0, 0, 1, 0, 0, 2), known=(1,), mode="edge"),
    case("Shape", reals(2, 3, 4), start=1),
    case("Size", reals(2, 3, 4)),
    case("Range", whole(1)[0], whole(9)[0], whole(3)[0], known=(0, 1, 2)),
    case("Range", np.float32(1), np.float32(-1), np.float32(-0.25), known=(0, 1, 2)),
    case("ConstantOfShape", whole(2, 3), known=(0,)),
    case("Trilu", reals(4, 5), whole(1)[0], known=(1,)),
    case("Trilu", reals(4, 5), upper=0),
    case("DepthToSpace", reals(1, 8, 2, 3), blocksize=2),
    case("DepthToSpace", reals(1, 8, 2, 3), blocksize=2, mode="CRD"),
    case("SpaceToDepth", reals(1, 2, 4, 6), blocksize=2),
]
INDICES = [
    case("Gather", reals(5, 4), whole(4, 0, 2), known=(0,)),
    case("Gather", reals(5, 4), np.array([[4, -1], [0, 2]], np.int64), known=(1,)),
    case("Gather", reals(2, 5, 4), whole(-2)[0], known=(1,), axis=1),
    case("Gather", reals(2, 5, 4), whole(1, 2), known=(1,), axis=1),
    case("Gather", reals(2, 5, 4), np.array([[1, 3]], np.int32), axis=2),
    case("GatherElements", reals(3, 3), np.array([[1, 2, 0], [-1, 0, 0]], np.int64), known=(1,), axis=0),
    case("GatherND", reals(2, 3, 4), np.array([[0, 1], [1, 2]], np.int64)),
    case("GatherND", reals(2, 3, 4), np.array([[1], [0]], np.int64), batch_dims=1),
    case("ScatterND", reals(4, 3), np.array([[1], [3]], np.int64), reals(2, 3)),
    case("ScatterElements", reals(3, 3), np.array([[1, 0, 2]], np.int64), reals(1, 3), axis=0),
    case("OneHot", whole(1, -2, 7), whole(4)[0], np.array([0.5, 2], np.float32), known=(1,)),
    case("OneHot", np.array([[0, 2], [1, 1]], np.int64), whole(3)[0], np.array([1, 5], np.int64), known=(1, 2), axis=1),
    *(
        case("GridSample", IMAGE, np.tanh(2 * reals(2, 5, 3, 2)), opset=16, mode=mode, padding_mode=padding, align_corners=align)
        for mode, padding, align in (("bilinear", "zeros", 0), ("nearest", "border", 1), ("bicubic", "reflection", 0))
    ),
    case("GatherElements", reals(3, 3), np.array([[1, 2, 0], [-1, 0, 0]], np.int64), axis=0),
    case("GatherND", reals(2, 3, 4), np.array([[0, -1], [-1, 2]], np.int64)),
    case("Gather", reals(2, 5, 4), np.array([[1, -3]], np.int32), axis=2),
    case("ScatterElements", reals(3, 3), np.array([[1, -3, 2]], np.int64), reals(1, 3), axis=0),
    case("NonZero", FLAGS, known=(0,)),
]
PRODUCTS = [
    case("MatMul", reals(2, 3, 4), reals(4, 5), known=(1,)),
    case("MatMul", reals(2, 3, 4), reals(2, 4, 5)),
    case("MatMul", reals(4), reals(4, 5)),
    case("Gemm", reals(3, 4), reals(5, 4), reals(5), known=(1, 2), transB=1),
    case("Gemm", reals(4, 3), reals(4, 5), reals(1, 5), known=(1, 2), transA=1, alpha=0.5, beta=2.0),
    case("Gemm", reals(3, 4), reals(4, 5), reals(3, 1)),
    case("Gemm", reals(3, 4), reals(4, 5)),
    case("Einsum", reals(2, 3, 4), reals(2, 5, 4), equation="bij,bkj->bik"),
    case("Attention", reals(2, 3, 5, 4), reals(2, 3, 6, 4), reals(2, 3, 6, 4), opset=23),
    case("Attention", reals(2, 5, 8), reals(2, 6, 8), reals(2, 6, 8), reals(5, 6), opset=23, q_num_heads=2, kv_num_heads=2, scale=0.3),
    case("Attention", reals(2, 4, 5, 4), reals(2, 2, 5, 4), reals(2, 2, 5, 4), opset=23, is_causal=1),
]
STEPS, PREVIOUS, HIDDEN = reals(5, 2, 3), reals(1, 2, 4), {"hidden_size": 4}
LSTM, GRU = (reals(1, 16, 3), reals(1, 16, 4), reals(1, 32)), (reals(1, 12, 3), reals(1, 12, 4), reals(1, 24))
RECURRENT = [
    *(
        case(op, STEPS, reals(2, gates * 4, 3), reals(2, gates * 4, 4), reals(2, gates * 8), known=(1, 2, 3), results=2, **more)
        for op, gates, more in (
            ("LSTM", 4, {"direction": "bidirectional", "hidden_size": 4}),
            ("GRU", 3, {"direction": "bidirectional", "hidden_size": 4, "linear_before_reset": 1}),
            ("RNN", 1, {"direction": "bidirectional", "hidden_size": 4}),
        )
    ),
    case("LSTM", STEPS, reals(1, 16, 3), reals(1, 16, 4), known=(1, 2), results=3, **HIDDEN),
    case("LSTM", STEPS, *LSTM, None, PREVIOUS, PREVIOUS * 2, known=(1, 2, 3), results=3, **HIDDEN),
    case("LSTM", STEPS, *LSTM, known=(1, 2, 3), results=3, direction="reverse", **HIDDEN),
    case("GRU", STEPS, *GRU, None, PREVIOUS, known=(1, 2, 3), results=2, linear_before_reset=1, **HIDDEN),
    case("GRU", STEPS, *GRU[:2], known=(1, 2), results=2, linear_before_reset=1, direction="reverse", **HIDDEN),
    case("RNN", STEPS, reals(1, 4, 3), reals(1, 4, 4), reals(1, 8), known=(1, 2, 3), results=2, activations=["Relu"], **HIDDEN),
]
SCALES, ROI = np.array([1, 1, 2, 1.5], np.float32), np.zeros(0, np.float32)
HALVES = np.array([1, 1, 0.5, 0.7], np.float32)
PLACES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
RESIZES = [
    *(
        case("Resize", IMAGE, ROI, scales, known=(1, 2), opset=19, mode=mode, coordinate_transformation_mode=place)
        for scales in (SCALES, HALVES)
        for mode in ("nearest", "linear", "cubic")
        for place in PLACES
        if scales is SCALES or place != "align_corners"
    ),
    *(case("Resize", IMAGE, ROI, SCALES, known=(1, 2), opset=13, nearest_mode=rounding) for rounding in ROUNDINGS),
    *(case("Resize", IMAGE, None, None, whole(2, 4, 9, 3), known=(3,), opset=13, mode=mode) for mode in ("nearest", "linear", "cubic")),
    case("Resize", IMAGE, None, None, whole(14, 1), known=(3,), opset=18, axes=[2, 3], mode="linear"),
    case("Resize", IMAGE, None, None, whole(10, 20), known=(3,), opset=18, axes=[2, 3], keep_aspect_ratio_policy="not_larger"),
    case("Resize", IMAGE, ROI, SCALES, known=(1, 2), opset=13, mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1),
    case("Resize", reals(1, 2, 5), ROI, np.array([1, 1, 2], np.float32), known=(1, 2), mode="linear"),
]
TRANSPOSED = [
    case("ConvTranspose", IMAGE, reals(4, 5, 3, 3), reals(5), known=(1, 2), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    case("ConvTranspose", IMAGE, reals(4, 5, 2, 2), known=(1,), strides=[2, 2]),
    case("ConvTranspose", IMAGE, reals(4, 3, 3, 3), known=(1,), group=2, dilations=[2, 1], pads=[1, 0, 2, 1]),
    case("ConvTranspose", IMAGE, reals(4, 5, 3, 3), known=(1,), strides=[3, 2], auto_pad="SAME_UPPER"),
    case("ConvTranspose", IMAGE, reals(4, 5, 3, 3), known=(1,), strides=[3, 2], auto_pad="SAME_LOWER"),
    case("ConvTranspose", IMAGE, reals(4, 5, 3, 3), known=(1,), strides=[2, 2], output_shape=[14, 12]),
    case("ConvTranspose", reals(2, 3, 9), reals(3, 4, 4), reals(4), strides=[2], pads=[1, 2]),
    case("ConvTranspose", reals(1, 2, 3, 4, 5), reals(2, 3, 2, 2, 2), strides=[2, 1, 2]),
]
BYTES = RNG.integers(0, 256, (2, 4, 7, 6)).astype(np.uint8)
SIGNED, WORDS = BYTES.astype(np.int8), RNG.integers(-30000, 30000, (3, 4)).astype(np.int16)
# Weights of 7 bits: without VNNI onnxruntime adds two products of an unsigned and a signed byte in 16 bits, which saturate.
WEIGHTS = SIGNED // 2
STEP, MADE = (BYTES, np.float32(0.03), np.uint8(120)), (np.float32(0.4), np.uint8(100))
QUANTISED = [
    case("QuantizeLinear", reals(3, 4), np.float32(0.03), np.uint8(120), known=(1, 2)),
    case("QuantizeLinear", reals(3, 4), np.float32(0.01), np.int8(-3), known=(1, 2)),
    case("QuantizeLinear", reals(3, 4), np.float32(0.03)),
    case("QuantizeLinear", IMAGE, np.abs(reals(4)) + 0.01, BYTES[0, :4, 0, 0], known=(1, 2), axis=1),
    case("QuantizeLinear", reals(3, 4), np.float32(1e-4), np.int16(7), known=(1, 2), opset=21),
    case("DequantizeLinear", BYTES, np.float32(0.03), np.uint8(120), known=(1, 2)),
    case("DequantizeLinear", SIGNED, np.abs(reals(4)), SIGNED[0, :4, 0, 0], known=(1, 2), axis=1),
    case("DequantizeLinear", SIGNED, np.abs(reals(6)), known=(1,), axis=-1),
    case("DequantizeLinear", whole(1, -(1 << 30), 77).astype(np.int32), np.float32(0.5)),
    case("DequantizeLinear", WORDS, np.float32(0.5), np.int16(-9), known=(1, 2), opset=21),
    case("DynamicQuantizeLinear", reals(3, 4), results=3),
    case("DynamicQuantizeLinear", np.abs(reals(3, 4)) + 1, results=3),
    case("MatMulInteger", BYTES[0, 0], WEIGHTS[0, 1].T.copy(), np.uint8(12), np.int8(-3), known=(1, 2, 3)),
    case("MatMulInteger", BYTES[0, 0], BYTES[0, 1].T.copy()),
    case("ConvInteger", BYTES, BYTES[:, :4, :3, :2].copy(), np.uint8(12), np.uint8(7), known=(1, 2, 3), pads=[1, 0, 2, 1]),
    case("ConvInteger", BYTES, BYTES[:, :4, :3, :3].copy(), strides=[2, 1]),
    case(
        "QLinearConv",
        *STEP,
        WEIGHTS[:, :4, :3, :3].copy(),
        np.float32(0.02),
        np.int8(0),
        *MADE,
        known=(1, 2, 3, 4, 5, 6, 7),
        pads=[1, 1, 1, 1],
    ),
    case(
        "QLinearConv",
        *STEP,
        WEIGHTS[:, :2, :3, :3].copy(),
        np.array([0.02, 0.01], np.float32),
        np.zeros(2, np.int8),
        *MADE,
        np.array([90, -2000], np.int32),
        known=(1, 2, 3, 4, 5, 6, 7, 8),
        group=2,
        strides=[2, 2],
    ),
    case("QLinearMatMul", *STEP, WEIGHTS[:, :, :6, :5].copy(), np.float32(0.02), np.int8(3), *MADE, known=(1, 2, 3, 4, 5, 6, 7)),
    case("QLinearMatMul", *STEP, WEIGHTS[0, 0, :6].copy(), np.abs(reals(6)), np.zeros(6, np.int8), *MADE, known=(1, 2, 3, 4, 5, 6, 7)),
]
CLASSES, TARGETS = reals(3, 5, 2), RNG.integers(0, 5, (3, 2))
LOSSES = [
    *(
        case(op, values, targets, *weights, reduction=reduction, **more)
        for op in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
        for reduction in ("none", "mean", "sum")
        for values, targets, weights, more in (
            (CLASSES, TARGETS, (), {}),
            (CLASSES, TARGETS, (np.abs(reals(5)),), {"ignore_index": 1}),
            (CLASSES[:, :, 0].copy(), TARGETS[:, 0].astype(np.int32), (), {"ignore_index": int(TARGETS[1, 0])}),
            (reals(2, 4, 3, 2), RNG.integers(0, 4, (2, 3, 2)), (np.abs(reals(4)),), {}),
        )
    ),
    case("SoftmaxCrossEntropyLoss", CLASSES, TARGETS, results=2),
]
CASES = [*ELEMENTWISE, *WINDOWS, *NORMS, *SHAPES, *INDICES, *PRODUCTS, *RESIZES, *TRANSPOSED, *QUANTISED, *LOSSES, *RECURRENT]
