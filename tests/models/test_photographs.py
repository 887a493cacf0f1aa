"""The sample photographs as inputs, and seeded crops of them."""

import pytest
import torch

from sparsec.models.photographs import calibration_batch, sample_photographs

torch.set_num_threads(1)


@pytest.mark.parametrize("size", [32, 160, 224])
def test_two_photographs_normalised(size):
    images = sample_photographs(size)
    assert images.shape == (2, 3, size, size)
    assert images.dtype == torch.float32
    # 0 and 1 after normalisation, over all channels.
    assert images.min() >= -0.485 / 0.229 - 0.01
    assert images.max() <= (1 - 0.406) / 0.225 + 0.01
    assert images.std() > 0.5
    assert not torch.allclose(images[0], images[1])


def test_photographs_are_not_shared_between_callers():
    sample_photographs(427).zero_()
    assert sample_photographs(427).std() > 0.5


def test_crops_are_seeded_and_differ():
    crops = calibration_batch(48, 5, seed=1)
    assert crops.shape == (5, 3, 48, 48)
    assert torch.equal(crops, calibration_batch(48, 5, seed=1))
    assert not torch.equal(crops, calibration_batch(48, 5, seed=2))
    assert not torch.equal(crops[0], crops[2])


@pytest.mark.parametrize(("size", "count"), [(0, 1), (-3, 1), (8, 0)])
def test_sizes_and_counts_must_be_positive(size, count):
    with pytest.raises(ValueError, match=r"positive|at least one"):
        calibration_batch(size, count)
