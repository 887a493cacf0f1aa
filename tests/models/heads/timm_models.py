"""Image models of timm, small, with their heads."""

import sys
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from tests.models.heads.case import Case, Keywords, generator

#: Name of an architecture, or of its module and class and what is special → (pixels, what makes it small; ".X" is X of its module).
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet18": (64, {"channels": (16, 24, 32, 40)}),
    "resnet26d": (64, {"channels": (8, 12, 16, 24)}),
    "regnetx_002": (64, {}),
    "regnety_002": (64, {}),
    "densenet121": (64, {"growth_rate": 8, "block_config": (2, 2, 2, 2)}),
    "mobilenetv2_035": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "mobilenetv4_conv_small_050": (64, {}),
    "mnasnet_small": (64, {}),
    "lcnet_035": (64, {}),
    "tinynet_e": (64, {}),
    "ghostnet_050": (64, {}),
    "convnext_atto": (64, {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}),
    "convnextv2_atto": (64, {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}),
    "vit_tiny_patch16_224": (64, {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "vit_relpos_small_patch16_224": (64, {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "deit_tiny_distilled_patch16_224": (64, {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "deit3_small_patch16_224": (64, {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "beit_base_patch16_224": (64, {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "cait_xxs24_224": (64, {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "xcit_nano_12_p16_224": (64, {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "swin_tiny_patch4_window7_224": (
        56,
        {"img_size": 56, "embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2)},
    ),
    "swinv2_tiny_window8_256": (64, {"img_size": 64, "embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2)}),
    "mlp_mixer.MlpMixer": (64, {"img_size": 64, "embed_dim": 32, "num_blocks": 2}),
    "mlp_mixer.MlpMixer with gates": (
        64,
        {"img_size": 64, "embed_dim": 32, "num_blocks": 2, "mlp_ratio": 4, "block_layer": ".SpatialGatingBlock", "mlp_layer": ".GatedMlp"},
    ),
    "mlp_mixer.MlpMixer without norms": (
        64,
        {"img_size": 64, "embed_dim": 32, "num_blocks": 2, "mlp_ratio": 4, "block_layer": ".ResBlock", "norm_layer": ".Affine"},
    ),
    "metaformer.MetaFormer": (64, {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
    "convmixer.ConvMixer": (63, {"dim": 32, "depth": 3, "kernel_size": 5}),
    "starnet_s050": (64, {"depths": (1, 1, 2, 1)}),
    "repvit_m0_9": (64, {"embed_dim": (8, 16, 24, 32), "depth": (1, 1, 2, 1)}),
    "repghostnet_050": (64, {}),
    "mobileone_s0": (64, {}),
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
    "coatnet_0_rw_224": (64, {"img_size": 64, "embed_dim": (16, 32, 64, 64), "depths": (1, 1, 1, 1), "stem_width": 8}),
    "maxvit_nano_rw_256": (64, {"img_size": 64, "embed_dim": (32, 32), "depths": (1, 1), "block_type": ("M", "M"), "stem_width": 8}),
    "pvt_v2_b0": (64, {"depths": (1, 1, 1, 1)}),
    "twins_svt_small": (
        64,
        {
            "img_size": 64,
            "embed_dims": (16, 32),
            "depths": (2, 2),
            "num_heads": (1, 2),
            "mlp_ratios": (2, 2),
            "wss": (4, 4),
            "sr_ratios": (4, 2),
        },
    ),
    "levit_128s": (64, {"img_size": 64, "embed_dim": (32, 48, 64), "num_heads": (2, 3, 4), "depth": (1, 1, 1)}),
    "efficientformer_v2.EfficientFormerV2": (64, {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32)}),
    "efficientvit_b0": (64, {}),
    "efficientvit_m0": (64, {}),
    "edgenext_xx_small": (64, {}),
    "fastvit_t8": (64, {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128)}),
    "hrnet_w18_small": (64, {}),
    "inception_v3": (96, {}),
    "inception_next_atto": (64, {}),
    "dpn48b": (64, {}),
    "dla46_c": (64, {}),
    "skresnet18": (64, {"channels": (16, 24, 32, 40)}),
    "tresnet.TResNet": (64, {"layers": (1, 1, 1, 1), "width_factor": 0.25}),
    "volo.VOLO": (64, {"img_size": 64, "layers": (1, 1, 1, 1), "embed_dims": (32, 32, 32, 32), "num_heads": (1, 2, 2, 2)}),
    "focalnet.FocalNet": (64, {"depths": (1, 1, 1, 1), "embed_dim": 8}),
    "davit_tiny": (64, {"depths": (1, 1), "embed_dims": (16, 32), "num_heads": (1, 2)}),
    "hiera_tiny_224": (
        64,
        {"img_size": (64, 64), "embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1), "q_pool": 2, "mask_unit_size": (4, 4)},
    ),
    "tnt_s_patch16_224": (
        64,
        {"img_size": 64, "embed_dim": 32, "inner_dim": 8, "depth": 2, "num_heads_inner": 2, "num_heads_outer": 2},
    ),
    "pit_ti_224": (64, {"img_size": 64}),
    "ese_vovnet19b_slim": (64, {}),
    "hardcorenas_a": (64, {}),
    "cs3darknet_s": (64, {}),
    "rexnet_100": (64, {"width_mult": 0.5}),
    "shvit_s1": (64, {}),
    "swiftformer_xs": (64, {}),
    "ghostnetv3_050": (64, {}),
    "hgnetv2_b0": (64, {}),
    "mambaout_femto": (64, {}),
    "test_byobnet": (64, {}),
    "test_convnext": (64, {}),
    "test_convnext2": (64, {}),
    "test_efficientnet": (64, {}),
    "test_efficientnet_gn": (64, {}),
    "test_efficientnet_ln": (64, {}),
    "test_mambaout": (64, {}),
    "test_nfnet": (64, {}),
    "test_resnet": (64, {}),
    "test_vit": (64, {"img_size": 64}),
    "test_vit2": (64, {"img_size": 64}),
    "test_vit3": (64, {"img_size": 64}),
    "test_vit4": (64, {"img_size": 64}),
    "naflexvit_base_patch16_gap": (64, {"embed_dim": 32, "depth": 2, "num_heads": 2}),
}

#: Each layer of GhostNetV3 is a sum of five branches; a head of attention in EfficientViT takes the sum of those before it.
GAINS = {"ghostnetv3_050": 0.4, "efficientvit_m0": 0.7}

_torchvision = torch.library.Library("torchvision", "FRAGMENT")


def photographs(batch: int, pixels: int) -> Keywords:
    """[batch, 3, pixels, pixels]."""
    return {"x": torch.randn(batch, 3, pixels, pixels, generator=generator(batch, pixels))}


@cache
def _timm() -> Any:
    """The package. Skips the test where it is missing.

    timm wants torchvision, whose compiled operators do not load beside a CPU build of torch: for what is used here their names are enough.
    """
    place = Path(sys.prefix, "vision")
    if place.is_dir():
        sys.path.append(str(place))
        if torch.version.cuda is None:
            _torchvision.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _torchvision.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return pytest.importorskip("timm", reason="make installs timm and torchvision into .venv/vision")


def _make(name: str, given: dict[str, Any]) -> nn.Module:
    timm = _timm()
    if "." not in name:
        return timm.create_model(name, pretrained=False, num_classes=7, **given)
    place, kind = name.split()[0].split(".")
    module = import_module(f"timm.models.{place}")
    found = pytree.tree_map_only(str, lambda value: getattr(module, value[1:]) if value[0] == "." else value, given)
    return getattr(module, kind)(num_classes=7, **found)


CASES = {
    name: Case(partial(_make, name, given), photographs, (pixels, pixels), gain=GAINS.get(name, 1.0))
    for name, (pixels, given) in MODELS.items()
}
