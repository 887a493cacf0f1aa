"""What functions make of tensors without data is what they make of data, but for the values."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from sparsec.doors.from_torch.dry_run import run_without_data


def made(function, x, *given, **named):
    """Shape, strides and dtype of what a function makes, or how it fails."""
    try:
        result = function(x, *given, **named)
    except Exception as error:
        return type(error)
    return result.shape, result.stride(), result.dtype


@given(
    shape=st.lists(st.integers(1, 5), max_size=5),
    wrong=st.sampled_from([None, *range(4)]),
    odd=st.sampled_from([None, *range(4)]),
    absent=st.sets(st.sampled_from([2, 3])),
    training=st.booleans(),
    permuted=st.booleans(),
)
def test_normalisation_by_statistics_makes_a_tensor_like_its_input(shape, wrong, odd, absent, training, permuted):
    x = torch.rand(shape)
    x = x.to(memory_format=torch.channels_last) if permuted and x.dim() == 4 else x
    channels = shape[1] if len(shape) > 1 else 1
    others = [torch.rand(channels + (i == wrong), dtype=torch.float64 if i == odd else torch.float32) for i in range(4)]
    others = [None if i in absent else each for i, each in enumerate(others)]
    for arguments, named in (
        (others, {"training": training}),
        ([*others, training], {}),
        (others[:2], {"weight": others[2], "bias": others[3]}),
    ):
        wanted = made(functional.batch_norm, x, *arguments, **named)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            seen = made(functional.batch_norm, mode.from_tensor(x), *arguments, **named)
            found = made(lambda *a, **k: run_without_data(functional.batch_norm, a, k), mode.from_tensor(x), *arguments, **named)
        assert found == seen
        assert isinstance(wanted, type) or found == wanted


@pytest.mark.parametrize("function", [functional.relu, torch.sigmoid])
def test_other_functions_are_torchs_own(function):
    x = torch.rand(3, 4)
    assert torch.equal(run_without_data(function, (x,), {}), function(x))
