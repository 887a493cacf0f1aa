"""Pruned, calibrated models by name, and factories for the command line (`sparsec.models.zoo:mobilenet_v1_90`).

A factory takes no argument and returns a model in evaluation mode with its example inputs. There is one for every
`NAME_dense`, `NAME_PERCENT` such as `resnet50_90`, `NAME_PERCENT_BLOCK` such as `bert_base_90_8x1`, and `NAME_NofM`
such as `vit_s16_2of4`, for NAME in `NAMES`; they are attributes of this module that are made when asked for.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparsec.models.bert import bert_base, sentence
from sparsec.models.digits import DigitsResult
from sparsec.models.digits_cnn import pruned_digits_cnn
from sparsec.models.digits_vit import pruned_digits_vit
from sparsec.models.efficient import efficientnet_b0, mobilenet_v3_small
from sparsec.models.errors import InvalidArgument
from sparsec.models.mobilenet_v1 import mobilenet_v1
from sparsec.models.mobilenet_v2 import mobilenet_v2
from sparsec.models.patterns import NOfM, parse_pattern, resolve_sparsity
from sparsec.models.photographs import calibration_batch, sample_photographs
from sparsec.models.prune import calibrate_batchnorm, prune
from sparsec.models.resnet import resnet50
from sparsec.models.vit import vit_s16

Inputs = tuple[Tensor, ...]
Factory = Callable[[], tuple[nn.Module, Inputs]]

#: Networks with BatchNorm, for images of any size.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "efficientnet_b0": efficientnet_b0,
    "mobilenet_v3_small": mobilenet_v3_small,
    "resnet50": resnet50,
}
TRAINED: dict[str, Callable[..., DigitsResult]] = {"digits": pruned_digits_cnn, "digits_vit": pruned_digits_vit}
NAMES = (*NETWORKS, "vit_s16", "bert_base", *TRAINED)
CALIBRATION_IMAGES = 16
PIXELS, TOKENS = 224, 128  # of an example input, unless asked for


def build(
    name: str, sparsity: float | None = 0.0, pattern: str = "unstructured", size: int | None = None, seed: int = 0
) -> tuple[nn.Module, Tensor]:
    """`build_with_inputs`, and the first of its inputs alone: one image, or ids. The models do without the others."""
    model, inputs = build_with_inputs(name, sparsity, pattern, size, seed)
    return model, inputs[0]


def build_with_inputs(
    name: str, sparsity: float | None = 0.0, pattern: str = "unstructured", size: int | None = None, seed: int = 0
) -> tuple[nn.Module, Inputs]:
    """A network of `NAMES` in evaluation mode, and example inputs for it.

    These are one image, float32 [1,C,size,size] (224 pixels by default; the digits always 8), or for BERT ids and mask,
    int64 [1,size] (128 tokens by default). Weights are seeded and pruned as by `prune`. Dense stay: what reads the
    image (stem, patches), depthwise convolutions, tables of words and positions, the last linear layer (classifier,
    head, pooler). Then BatchNorm, where there is any, is calibrated on crops of the sample photographs, and a
    classifier of images rescaled so that logits on these have mean 0 and deviation 1: without training, all images
    would otherwise share most of their logits. The digits networks are trained instead. An N:M `pattern` decides the
    sparsity: leave it 0 or None. Needs scikit-learn and pillow, but for BERT. InvalidArgument for an unknown name, sparsity,
    pattern or a size that does not fit.
    """
    parsed = parse_pattern(pattern)
    share = resolve_sparsity(parsed, None if isinstance(parsed, NOfM) and not sparsity else sparsity)
    if name in TRAINED:
        result = TRAINED[name](share, seed, pattern=pattern)
        return result.model, (result.test_images[:1],)
    if name == "bert_base":
        return prune(bert_base(seed=seed), share, pattern).eval(), sentence(TOKENS if size is None else size, seed)
    pixels = PIXELS if size is None else size
    model = prune(_seeded(name, pixels, seed), share, pattern).eval()
    _calibrate(model, calibration_batch(pixels, CALIBRATION_IMAGES, seed))
    return model, (sample_photographs(pixels)[:1],)


def _seeded(name: str, pixels: int, seed: int) -> nn.Module:
    if name == "vit_s16":
        return vit_s16(image=pixels, seed=seed)
    if name not in NETWORKS:
        raise InvalidArgument(f"Unknown model {name!r}.", hint=f"use one of {', '.join(NAMES)}")
    return NETWORKS[name](seed=seed)


def _calibrate(model: nn.Module, images: Tensor) -> None:
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        calibrate_batchnorm(model, images.split(8))
    _standardise_logits(model, images)


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


def _factory(name: str, percent: int, pattern: str) -> Factory:
    def factory() -> tuple[nn.Module, Inputs]:
        return build_with_inputs(name, percent / 100, pattern)

    what = f"{percent}% of its prunable weights zero, {pattern}" if percent else f"pattern {pattern}"
    factory.__doc__ = f"{name} with {what}, and example inputs."
    return factory


def __getattr__(attribute: str) -> Factory:
    """The factory of a name such as `resnet50_90`; AttributeError for one that does not parse."""
    names = "|".join(NAMES)
    found = re.fullmatch(rf"({names})_(?:(dense)|(\d\d?)(?:_(\d+x\d+))?|(\d+)of(\d+))", attribute)
    if found is None:
        raise AttributeError(f"{__name__} has no {attribute!r}; factories are named like {NAMES[0]}_dense, _90, _90_8x1 or _2of4.")
    name, dense, percent, block, n, m = found.groups()
    if n is not None:
        return _factory(name, 0, f"{n}:{m}")
    return _factory(name, 0 if dense else int(percent), block or "unstructured")
