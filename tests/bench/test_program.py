"""Inputs, outputs and the error that a rival is judged by."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsec.bench.program import arrays, load_program, relative_error, with_batch


def test_batch_repeats_or_cuts_rows_and_leaves_scalars() -> None:
    rows = torch.arange(6).reshape(3, 2)
    assert with_batch(rows, 5).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    assert with_batch(rows, 1).tolist() == [[0, 1]]
    assert with_batch(torch.tensor(7), 4).item() == 7


def test_the_same_model_is_made_every_time(tmp_path: Path) -> None:
    first, second = (load_program("tests.bench.factories:tiny", 1, tmp_path, 1, "off") for _ in range(2))
    np.testing.assert_array_equal(first.expected[0], second.expected[0])


def test_nested_outputs_become_flat_float32_arrays() -> None:
    flat = arrays({"a": torch.ones(2, dtype=torch.bfloat16), "b": (np.float64(3), None, [torch.tensor(4)])})
    assert [value.tolist() for value in flat] == [[1, 1], 3, 4]
    assert {value.dtype for value in flat} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("got", "expected", "error"),
    [
        ([[1.0, -4.0]], [[1.0, -4.0]], 0.0),
        ([[1.5, -4.0]], [[1.0, -4.0]], 0.125),
        ([[1.0], [3.0]], [[1.0], [2.0]], 0.5),
        ([[0.0]], [[0.0]], 0.0),
        ([[1e-9]], [[0.0]], float("inf")),
        ([[float("nan")]], [[1.0]], float("inf")),
        ([[1.0, 2.0]], [[1.0]], float("inf")),
        ([], [[1.0]], float("inf")),
    ],
)
def test_relative_error(got: list, expected: list, error: float) -> None:
    assert relative_error(tuple(map(np.array, got)), tuple(map(np.array, expected))) == error
