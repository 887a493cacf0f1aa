"""The two sample photographs that ship with scikit-learn, as network inputs."""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsec.models.errors import InvalidArgument
from sparsec.tools.needs import require

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, per channel, of values in 0..1
DEVIATION = (0.229, 0.224, 0.225)
LEAST_CROP = 0.4  # of the shorter side of a photograph


def sample_photographs(size: int = 224) -> Tensor:
    """china.jpg and flower.jpg, center-cropped to squares and resized. Normalised float32 [2,3,size,size].

    Needs scikit-learn and pillow (the `models` extra): MachineError where they are missing. InvalidArgument where `size` is not positive.
    """
    images = _photographs()
    side = min(images.shape[-2:])
    top, left = (images.shape[-2] - side) // 2, (images.shape[-1] - side) // 2
    return _resized(images[..., top : top + side, left : left + side], size)


def calibration_batch(size: int = 224, count: int = 8, seed: int = 0) -> Tensor:
    """`count` random square crops, flipped at random, taken from the photographs in turn. float32 [count,3,size,size].

    The same seed gives the same crops.
    """
    if count < 1:
        raise InvalidArgument(f"A calibration batch needs at least one image, got count={count}.")
    generator = torch.Generator().manual_seed(seed)
    photographs = _photographs()
    return torch.cat([_random_crop(photographs[i % 2], size, generator) for i in range(count)])


def _random_crop(image: Tensor, size: int, generator: torch.Generator) -> Tensor:
    scale, down, right, flip = torch.rand(4, generator=generator).tolist()
    side = int(min(image.shape[-2:]) * (LEAST_CROP + (1 - LEAST_CROP) * scale))
    top, left = int(down * (image.shape[-2] - side)), int(right * (image.shape[-1] - side))
    crop = image[None, :, top : top + side, left : left + side]
    return _resized(crop.flip(-1) if flip < 0.5 else crop, size)


def _resized(images: Tensor, size: int) -> Tensor:
    if size < 1:
        raise InvalidArgument(f"The size of an image must be positive, got {size}.")
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


@cache
def _photographs() -> Tensor:
    """Both photographs whole and normalised, [2,3,427,640]; shared, never written to."""
    require(("sklearn", "PIL"))
    from sklearn.datasets import load_sample_images

    images = torch.stack([torch.tensor(image) for image in load_sample_images().images])
    scaled = images.permute(0, 3, 1, 2).float() / 255
    return ((scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)).contiguous()
