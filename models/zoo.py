"""Pruned, calibrated models by name, and factories for the command line (`sparsec.models.zoo:mobilenet_v1_90`)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparsec.models.digits import pruned_digits_cnn
from sparsec.models.efficient import efficientnet_b0, mobilenet_v3_small
from sparsec.models.errors import InvalidArgument
from sparsec.models.mobilenet_v1 import mobilenet_v1
from sparsec.models.mobilenet_v2 import mobilenet_v2
from sparsec.models.patterns import NOfM, parse_pattern, resolve_sparsity
from sparsec.models.photographs import calibration_batch, sample_photographs
from sparsec.models.prune import calibrate_batchnorm, prune

Factory = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "efficientnet_b0": efficientnet_b0,
    "mobilenet_v3_small": mobilenet_v3_small,
}
NAMES = (*NETWORKS, "digits")
CALIBRATION_IMAGES = 16


def build(
    name: str, sparsity: float | None = 0.0, pattern: str = "unstructured", size: int = 224, seed: int = 0
) -> tuple[nn.Module, Tensor]:
    """A network of `NAMES` in evaluation mode, and one image for it as example input, float32 [1,C,size,size].

    Weights are seeded, pruned as by `prune` (stem, depthwise and classifier stay dense), then BatchNorm is calibrated
    on crops of the sample photographs, and the classifier rescaled so that logits on these have mean 0 and deviation
    1: without training, all images would otherwise share most of their logits. "digits" is trained instead, and its
    images are always 8x8. An N:M `pattern` decides the sparsity: leave it 0 or None. Needs scikit-learn and pillow.
    InvalidArgument for an unknown name, sparsity or pattern.
    """
    parsed = parse_pattern(pattern)
    asked = None if isinstance(parsed, NOfM) and not sparsity else sparsity
    share = resolve_sparsity(parsed, asked)
    if name == "digits":
        result = pruned_digits_cnn(share, seed, pattern=pattern)
        return result.model, result.test_images[:1]
    if name not in NETWORKS:
        raise InvalidArgument(f"Unknown model {name!r}.", hint=f"use one of {', '.join(NAMES)}")
    model = NETWORKS[name](seed=seed)
    prune(model, share, pattern)
    images = calibration_batch(size, CALIBRATION_IMAGES, seed)
    calibrate_batchnorm(model, images.split(8))
    _standardise_logits(model, images)
    return model, sample_photographs(size)[:1]


def _standardise_logits(model: nn.Module, images: Tensor) -> None:
    """Rescale the last linear layer in place: each logit gets mean 0 over `images`, all together deviation 1."""
    *_, classifier = (module for module in model.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        logits = model(images)
        mean = logits.mean(0)
        spread = (logits - mean).std()
        deviation = torch.where(spread > 0, spread, torch.ones_like(spread))
        classifier.weight.div_(deviation)
        classifier.bias.sub_(mean).div_(deviation)


def _factory(name: str, percent: int) -> Factory:
    def factory() -> tuple[nn.Module, tuple[Tensor, ...]]:
        model, example = build(name, percent / 100)
        return model, (example,)

    factory.__doc__ = f"{name} with {percent}% of its prunable weights zero, and one example image."
    return factory


mobilenet_v1_dense = _factory("mobilenet_v1", 0)
mobilenet_v1_80 = _factory("mobilenet_v1", 80)
mobilenet_v1_90 = _factory("mobilenet_v1", 90)
mobilenet_v1_95 = _factory("mobilenet_v1", 95)
mobilenet_v2_dense = _factory("mobilenet_v2", 0)
mobilenet_v2_80 = _factory("mobilenet_v2", 80)
mobilenet_v2_90 = _factory("mobilenet_v2", 90)
mobilenet_v2_95 = _factory("mobilenet_v2", 95)
efficientnet_b0_dense = _factory("efficientnet_b0", 0)
efficientnet_b0_90 = _factory("efficientnet_b0", 90)
mobilenet_v3_small_dense = _factory("mobilenet_v3_small", 0)
mobilenet_v3_small_90 = _factory("mobilenet_v3_small", 90)
digits_90 = _factory("digits", 90)
