"""The table of dtypes: one row says the same of torch, numpy and TensorIR."""

import numpy as np
import pytest
import torch

from sparsec.lower.layouts import Geometry, Storage
from sparsec.run.dtypes import DTYPES, dtype_of


@pytest.mark.parametrize("name", DTYPES)
def test_a_row_is_one_kind_of_number(name: str) -> None:
    row, kind = dtype_of(name), getattr(torch, name)
    assert row.name == str(kind).removeprefix("torch.") and row.nbytes == kind.itemsize == row.numpy.itemsize
    bits = "".join(filter(str.isdecimal, row.tir))
    assert row.tir == "bool" or int(bits) == 8 * row.nbytes
    held = torch.ones(3, dtype=kind)
    assert name == "bfloat16" or held.numpy().dtype == row.numpy


def test_bits_that_numpy_does_not_know_travel_in_its_carrier() -> None:
    value = torch.tensor([1.5, -2.0, 3.25], dtype=torch.bfloat16)
    carried = value.view(torch.uint16).numpy()
    assert carried.dtype == dtype_of("bfloat16").numpy
    assert torch.equal(torch.from_numpy(carried.copy()).view(torch.bfloat16), value)


def test_a_dtype_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no dtype 'float8'; known: float32, float16, bfloat16"):
        dtype_of("float8")


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("layout", ["halo", "tiled"])
def test_a_storage_has_as_many_bytes_as_its_elements(layout: str, name: str) -> None:
    storage = Storage(layout, 3, Geometry(5, 7, 1), name)  # type: ignore[arg-type]
    assert storage.nbytes == np.empty(storage.elements, dtype_of(name).numpy).nbytes
