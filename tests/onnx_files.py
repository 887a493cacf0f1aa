"""Small ONNX models, written by hand, and mutations of their bytes and fields."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NUMBERS = (0, 1, -1, 2, 3, 7, 16, 255, 1 << 15, 1 << 31, (1 << 31) - 1, -(1 << 31), 1 << 40, (1 << 63) - 1, -(1 << 63))
REALS = (0.0, 1.0, -1.0, 1e-30, 1e38, float("inf"), float("nan"))
WORDS = ("", "x", "y", "Conv", "MatMul", "Reshape", "Range", "Expand", "ConstantOfShape", "ai.onnx.ml", "\u00e9", "SAME_UPPER", "none")


def model(nodes: list, inputs: list, outputs: list, constants: dict[str, np.ndarray], opset: int = 17, **more: Any) -> onnx.ModelProto:
    """A model; inputs and outputs are (name, type, shape)."""
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    values = [[helper.make_tensor_value_info(*entry) for entry in entries] for entries in (inputs, outputs)]
    functions, sparse = more.get("functions", []), more.get("sparse", [])
    graph = helper.make_graph(nodes, "net", *values, initializer=stored, sparse_initializer=sparse)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(function.domain, 1) for function in functions)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)


def sparse(name: str, dense: np.ndarray, linear: bool = True) -> onnx.SparseTensorProto:
    """The nonzeros of an array."""
    places = np.flatnonzero(dense)
    indices = places if linear else np.argwhere(dense)
    values = numpy_helper.from_array(dense.reshape(-1)[places], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(indices.astype(np.int64), name + "_indices"), list(dense.shape))


def convolutional() -> onnx.ModelProto:
    """Convolutions, normalisation, pooling, classifier."""
    rng = np.random.default_rng(0)
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], name="stem", pads=[1, 1, 1, 1], strides=[2, 2], kernel_shape=[3, 3]),
        node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"], name="norm"),
        node("Relu", ["n"], ["r"], name="act"),
        node("MaxPool", ["r"], ["p"], name="pool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
        node("Conv", ["p", "d"], ["e"], name="depthwise", group=4, auto_pad="SAME_UPPER"),
        node("Clip", ["e", "zero", "six"], ["f"], name="clip"),
        node("AveragePool", ["f"], ["g"], name="mean", kernel_shape=[2, 2], ceil_mode=1),
        node("GlobalAveragePool", ["g"], ["h"], name="all"),
        node("Flatten", ["h"], ["i"], name="flat"),
        node("Gemm", ["i", "k", "l"], ["y"], name="last", transB=1, alpha=0.5),
    ]
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "d": (4, 1, 3, 3), "scale": (4,), "shift": (4,), "mean": (4,), "k": (5, 4), "l": (5,)}
    constants = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    constants |= {"var": np.ones(4, np.float32), "zero": np.float32(0), "six": np.float32(6)}
    return model(nodes, [("x", TensorProto.FLOAT, ["N", 3, 12, 12])], [("y", TensorProto.FLOAT, ["N", 5])], constants)


def tokens() -> onnx.ModelProto:
    """Embedding, attention spelled out with computed shapes, GELU by erf, sparse weights, a local function."""
    rng = np.random.default_rng(1)
    node = helper.make_node
    half = helper.make_function(
        "local",
        "Half",
        ["a"],
        ["b"],
        [node("Constant", [], ["h"], value_float=0.5), node("Mul", ["a", "h"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    weight = rng.standard_normal((8, 24)).astype(np.float32)
    weight[rng.random(weight.shape) < 0.8] = 0
    inner = rng.standard_normal((8, 8)).astype(np.float32)
    inner[rng.random(inner.shape) < 0.7] = 0
    nodes = [
        node("Gather", ["table", "ids"], ["e"], name="embedding"),
        node("LayerNormalization", ["e", "scale", "shift"], ["n"], name="norm", axis=-1),
        node("MatMul", ["n", "qkv"], ["m"], name="qkv"),
        node("Split", ["m", "sizes"], ["q", "k", "v"], name="split", axis=2),
        node("Shape", ["q"], ["s"], name="shape"),
        node("Slice", ["s", "zero", "two"], ["nt"], name="leading"),
        node("Concat", ["nt", "heads"], ["hs"], name="sizes", axis=0),
        *(node("Reshape", [name, "hs"], [f"{name}h"], name=f"{name}_heads") for name in "qkv"),
        node("Transpose", ["qh"], ["qt"], name="q_turned", perm=[0, 2, 1, 3]),
        node("Transpose", ["kh"], ["kt"], name="k_turned", perm=[0, 2, 3, 1]),
        node("Transpose", ["vh"], ["vt"], name="v_turned", perm=[0, 2, 1, 3]),
        node("MatMul", ["qt", "kt"], ["a"], name="scores"),
        node("Half", ["a"], ["as"], name="halved", domain="local"),
        node("Softmax", ["as"], ["p"], name="softmax", axis=-1),
        node("MatMul", ["p", "vt"], ["o"], name="mixed"),
        node("Transpose", ["o"], ["ot"], name="o_turned", perm=[0, 2, 1, 3]),
        node("Reshape", ["ot", "flat"], ["of"], name="o_flat"),
        node("Constant", [], ["inner"], name="inner", sparse_value=sparse("inner_values", inner, linear=False)),
        node("MatMul", ["of", "inner"], ["u"], name="inner_product"),
        node("Div", ["u", "root"], ["ur"], name="scaled"),
        node("Erf", ["ur"], ["ue"], name="erf"),
        node("Add", ["ue", "one"], ["ua"], name="plus"),
        node("Mul", ["u", "ua"], ["um"], name="times"),
        node("Half", ["um"], ["g"], name="gelu", domain="local"),
        node("Range", ["start", "count", "stride"], ["positions"], name="range"),
        node("Expand", ["row", "grid"], ["bias"], name="expand"),
        node("Add", ["g", "bias"], ["gb"], name="biased"),
        node("Where", ["hit", "gb", "g"], ["w"], name="where"),
        node("ReduceMean", ["w"], ["y"], name="mean", axes=[1], keepdims=0),
        node("Cast", ["positions"], ["z"], name="cast", to=TensorProto.FLOAT),
    ]
    whole = {"sizes": [8, 8, 8], "zero": [0], "two": [2], "heads": [2, 4], "flat": [0, 0, -1], "grid": [1, 6, 8]}
    constants: dict[str, Any] = {name: np.array(value, np.int64) for name, value in whole.items()}
    constants |= {name: np.array(value, np.int64) for name, value in (("start", 0), ("count", 6), ("stride", 1))}
    constants |= {"root": np.float32(2**0.5), "one": np.float32(1), "row": np.ones((1, 8), np.float32), "hit": np.array([True] * 8)}
    constants |= {
        "scale": np.ones(8, np.float32),
        "shift": np.zeros(8, np.float32),
        "table": rng.standard_normal((11, 8)).astype(np.float32),
    }
    outputs = [("y", TensorProto.FLOAT, [2, 8]), ("z", TensorProto.FLOAT, [6])]
    return model(nodes, [("ids", TensorProto.INT64, [2, 6])], outputs, constants, functions=[half], sparse=[sparse("qkv", weight)])


# Mutations


def messages(proto: Any) -> Iterator[Any]:
    """A message and all messages in it."""
    yield proto
    for field, value in proto.ListFields():
        if field.message_type is not None:
            for child in value if field.is_repeated else [value]:
                yield from messages(child)


def mutate_field(proto: Any, draw: random.Random) -> None:
    """Change one field of one message: another value, one element more or less, or nothing there."""
    found = draw.choice(list(messages(proto)))
    fields = found.DESCRIPTOR.fields
    present = [field for field, _ in found.ListFields()]
    field = draw.choice(present if present and draw.random() < 0.8 else list(fields))
    if field.is_repeated:
        _mutate_list(getattr(found, field.name), field, draw)
    elif field.message_type is not None or draw.random() < 0.15:
        found.ClearField(field.name)
    else:
        setattr(found, field.name, _other(field, getattr(found, field.name), draw))


def _mutate_list(values: Any, field: Any, draw: random.Random) -> None:
    action = draw.random()
    if values and action < 0.3:
        del values[draw.randrange(len(values))]
    elif field.message_type is not None:
        _mutate_messages(values, draw)
    elif values and action < 0.8:
        place = draw.randrange(len(values))
        values[place] = _other(field, values[place], draw)
    else:
        values.append(_other(field, None, draw))


def _mutate_messages(values: Any, draw: random.Random) -> None:
    if not values:
        values.add()
        return
    first, second = (draw.randrange(len(values)) for _ in range(2))
    if draw.random() < 0.5:
        values.add().CopyFrom(values[first])
    else:
        kept = type(values[first])()
        kept.CopyFrom(values[first])
        values[first].CopyFrom(values[second])
        values[second].CopyFrom(kept)


def _other(field: Any, value: Any, draw: random.Random) -> Any:
    if field.enum_type is not None:
        return draw.choice([entry.number for entry in field.enum_type.values])
    if field.type == field.TYPE_STRING:
        return draw.choice(WORDS)
    if field.type == field.TYPE_BYTES:
        return (value or b"")[: draw.randrange(8)] + bytes(draw.randrange(256) for _ in range(draw.randrange(8)))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return draw.choice(REALS)
    number = draw.choice(NUMBERS) if draw.random() < 0.7 else (value or 0) + draw.choice((-2, -1, 1, 2))
    limit = 63 if field.type == field.TYPE_INT64 else 31
    return max(0 if field.type == field.TYPE_UINT64 else -(1 << limit), min(number, (1 << limit) - 1))
