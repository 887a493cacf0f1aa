"""Tensors of ONNX files as torch tensors, sizes checked against the data before anything is allocated."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsec.errors import UnsupportedModel

# TensorProto.DataType → torch, by number: the numbers are part of the file format.
DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
_FIELDS = {1: "float_data", 11: "double_data", 7: "int64_data"}
_BITS = {9: np.uint8, 10: np.uint16, 16: np.uint16}
EXTERNAL = 1
LARGEST = 1 << 31
# A dense tensor up to this size is made whatever a sparse one holds; a larger one must hold at least one value in 4096.
SPARSE_FREE, SPARSE_RATIO = 1 << 24, 1 << 12


def dtype_of(number: int, where: str) -> torch.dtype:
    """The torch dtype of a TensorProto.DataType. UnsupportedModel for strings, complex numbers and narrow types."""
    if number not in DTYPES:
        raise UnsupportedModel("A tensor has a type that is not supported.", where=where, why=f"TensorProto.DataType {number}")
    return DTYPES[number]


def attribute_tensor(proto: Any, folder: Path | None, where: str) -> Tensor:
    """A TensorProto or SparseTensorProto as a dense tensor."""
    return sparse_tensor(proto, folder, where) if hasattr(proto, "indices") else dense_tensor(proto, folder, where)


def dense_tensor(proto: Any, folder: Path | None, where: str) -> Tensor:
    """A TensorProto as a tensor; `folder` holds external data. UnsupportedModel where shape, type and data do not fit."""
    dtype, shape = dtype_of(proto.data_type, where), _shape(proto.dims, where)
    if proto.data_location == EXTERNAL:
        raw = _external_bytes(proto, folder, math.prod(shape) * dtype.itemsize, where)
        return _from_bytes(raw, dtype, shape, where)
    if proto.HasField("raw_data"):
        return _from_bytes(bytearray(proto.raw_data), dtype, shape, where)
    return _from_field(proto, dtype, shape, where)


def sparse_tensor(proto: Any, folder: Path | None, where: str) -> Tensor:
    """A SparseTensorProto as a dense tensor. UnsupportedModel for positions outside, given twice, or of no proportion to the size."""
    shape = _shape(proto.dims, where)
    values = dense_tensor(proto.values, folder, where)
    indices = dense_tensor(proto.indices, folder, where)
    size, count = math.prod(shape), values.numel()
    if size > SPARSE_FREE and size > SPARSE_RATIO * count:
        raise UnsupportedModel("A sparse tensor is too large for what it holds.", where=where, why=f"{list(shape)}, {count} values")
    places = _linear(indices, shape, count, where)
    if count and (int(places.min()) < 0 or int(places.max()) >= size):
        raise UnsupportedModel("A sparse tensor has an index outside its shape.", where=where, why=f"shape {list(shape)}")
    if np.unique(places).size != count:
        raise UnsupportedModel("A sparse tensor gives a position twice.", where=where)
    dense = torch.zeros(size, dtype=values.dtype)
    dense[torch.from_numpy(places)] = values
    return dense.reshape(shape)


def _linear(indices: Tensor, shape: Sequence[int], count: int, where: str) -> np.ndarray:
    """Positions in the flat tensor, -1 for a coordinate outside: indices [nnz] as they are, [nnz, rank] by strides."""
    array = indices.numpy().astype(np.int64, copy=False)
    if array.shape == (count,):
        return array
    if array.shape != (count, len(shape)):
        raise UnsupportedModel("The indices of a sparse tensor do not fit its values.", where=where, why=f"{array.shape}, {count} values")
    outside = ((array < 0) | (array >= np.array(shape, np.int64))).any(axis=1)
    strides = np.array([math.prod(shape[axis + 1 :]) for axis in range(len(shape))], np.int64)
    return np.where(outside, -1, array @ strides)


def _shape(dims: Sequence[int], where: str) -> tuple[int, ...]:
    shape = tuple(int(size) for size in dims)
    if any(size < 0 for size in shape) or math.prod(shape) > LARGEST or len(shape) > 32:
        raise UnsupportedModel("A tensor has an impossible shape.", where=where, why=str(shape[:32]))
    return shape


def _from_bytes(raw: bytearray, dtype: torch.dtype, shape: tuple[int, ...], where: str) -> Tensor:
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise UnsupportedModel("A tensor's data does not fit its shape.", where=where, why=f"{len(raw)} bytes, {expected} expected")
    if not raw:
        return torch.empty(shape, dtype=dtype)
    if dtype == torch.bool:
        return torch.frombuffer(raw, dtype=torch.uint8).reshape(shape) != 0
    return torch.frombuffer(raw, dtype=dtype).reshape(shape)


def _from_field(proto: Any, dtype: torch.dtype, shape: tuple[int, ...], where: str) -> Tensor:
    """Typed fields: half types as bit patterns and small integers travel in int32_data."""
    field = getattr(proto, _FIELDS.get(proto.data_type, "int32_data"))
    if len(field) != math.prod(shape):
        raise UnsupportedModel("A tensor's data does not fit its shape.", where=where, why=f"{len(field)} values for {list(shape)}")
    if proto.data_type in _FIELDS:
        return torch.tensor(list(field), dtype=dtype).reshape(shape)
    wide = np.array(list(field), np.int64)
    narrow = wide.astype(_BITS.get(proto.data_type, np.int64))
    return _from_bytes(bytearray(narrow.tobytes()), dtype, shape, where) if dtype.is_floating_point else _cast(wide, dtype, shape, where)


def _cast(wide: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...], where: str) -> Tensor:
    limits = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    if wide.size and (wide.min() < limits[0] or wide.max() > limits[1]):
        raise UnsupportedModel(f"A tensor holds values outside {dtype}.", where=where)
    return torch.from_numpy(wide).to(dtype).reshape(shape)


def _external_bytes(proto: Any, folder: Path | None, expected: int, where: str) -> bytearray:
    """The bytes of a tensor kept in a file beside the model; the file must lie in the model's folder."""
    entries = {entry.key: entry.value for entry in proto.external_data}
    if folder is None:
        raise UnsupportedModel("A model in memory has its weights in a file.", where=where, hint="Give the path of the .onnx file.")
    root = folder.resolve()
    path = (root / entries.get("location", "")).resolve()
    if not path.is_relative_to(root):
        raise UnsupportedModel("A weight file lies outside the model's folder.", where=where, why=entries.get("location", ""))
    if not path.is_file():
        raise UnsupportedModel("A weight file is missing.", where=where, why=str(path), hint="Keep it beside the .onnx file.")
    offset = _count(entries.get("offset", "0"), where)
    length = _count(entries.get("length", str(expected)), where)
    if length != expected or offset + length > path.stat().st_size:
        why = f"{length} bytes at {offset} of {path.stat().st_size} in {path.name}, {expected} expected"
        raise UnsupportedModel("A tensor's external data does not fit its shape.", where=where, why=why)
    raw = bytearray(length)
    with path.open("rb") as file:
        file.seek(offset)
        file.readinto(raw)
    return raw


def _count(text: str, where: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise UnsupportedModel("The place of external data is not a number.", where=where, why=text[:40])
    return int(text)
