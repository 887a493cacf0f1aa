"""Vision models of transformers: classes, boxes, masks, depth, poses, images."""

from functools import partial
from typing import Any

import torch

from tests.models.heads.case import Case, Keywords, generator
from tests.models.heads.text import make

PIXELS = 64
TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VIT = {**TRANSFORMER, "image_size": PIXELS, "patch_size": 16, "num_labels": 3}
STAGES = {"num_labels": 3, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]}
SWIN = {"image_size": PIXELS, "embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4, "num_labels": 3}
PYRAMID = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32], "num_attention_heads": [1, 1, 2, 2], "num_labels": 3}
RESNET = {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1], "layer_type": "basic"}
BACKBONE = {"backbone_config": ("ResNetConfig", {**RESNET, "out_features": ["stage1", "stage2", "stage3", "stage4"]})}
WINDOWS = {**SWIN, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "out_features": ["stage1", "stage2", "stage3", "stage4"]}
PYRAMID_OF_WINDOWS = {"backbone_config": ("SwinConfig", WINDOWS)}
LAST = {"backbone_config": ("ResNetConfig", {**RESNET, "out_features": ["stage4"]})}
DETECTOR: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 7,
    "num_labels": 3,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
}

#: Model → (configuration, its fields; a pair of a configuration's name and fields stands for one inside).
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViTForImageClassification": ("ViTConfig", VIT),
    "ViTForMaskedImageModeling": ("ViTConfig", {**VIT, "encoder_stride": 16}),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", VIT),
    "BeitForImageClassification": ("BeitConfig", {**VIT, "use_relative_position_bias": True}),
    "BeitForSemanticSegmentation": (
        "BeitConfig",
        {
            **VIT,
            "num_hidden_layers": 4,
            "use_relative_position_bias": True,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
            "auxiliary_channels": 16,
        },
    ),
    "Data2VecVisionForImageClassification": ("Data2VecVisionConfig", {**VIT, "use_relative_position_bias": True}),
    "Dinov2ForImageClassification": ("Dinov2Config", {**VIT, "mlp_ratio": 2}),
    "Dinov2WithRegistersForImageClassification": ("Dinov2WithRegistersConfig", {**VIT, "mlp_ratio": 2}),
    "ViTMSNForImageClassification": ("ViTMSNConfig", VIT),
    "IJepaForImageClassification": ("IJepaConfig", VIT),
    "YolosForObjectDetection": ("YolosConfig", {**VIT, "image_size": [PIXELS, PIXELS], "num_detection_tokens": 7}),
    "SiglipForImageClassification": ("SiglipConfig", {"vision_config": {**VIT}, "text_config": TRANSFORMER, "num_labels": 3}),
    "CLIPForImageClassification": ("CLIPConfig", {"vision_config": {**VIT}, "text_config": TRANSFORMER, "num_labels": 3}),
    "DPTForDepthEstimation": (
        "DPTConfig",
        {
            **VIT,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 16, 16, 16],
            "fusion_hidden_size": 16,
        }
        | {"is_hybrid": False},
    ),
    "DepthAnythingForDepthEstimation": (
        "DepthAnythingConfig",
        {
            "backbone_config": (
                "Dinov2Config",
                {**VIT, "num_hidden_layers": 4, "mlp_ratio": 2, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False},
            ),
            "reassemble_hidden_size": 32,
            "neck_hidden_sizes": [8, 8, 16, 16],
            "fusion_hidden_size": 8,
            "head_hidden_size": 8,
            "patch_size": 16,
        },
    ),
    "GLPNForDepthEstimation": ("GLPNConfig", {**PYRAMID, "decoder_hidden_size": 16}),
    "SegformerForSemanticSegmentation": ("SegformerConfig", {**PYRAMID, "decoder_hidden_size": 16}),
    "SegformerForImageClassification": ("SegformerConfig", PYRAMID),
    "UperNetForSemanticSegmentation": ("UperNetConfig", {**BACKBONE, "hidden_size": 16, "num_labels": 3, "auxiliary_in_channels": 32}),
    "MobileViTForImageClassification": (
        "MobileViTConfig",
        {"image_size": PIXELS, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32], "num_labels": 3}
        | {"num_attention_heads": 2},
    ),
    "MobileViTForSemanticSegmentation": (
        "MobileViTConfig",
        {"image_size": PIXELS, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32], "num_labels": 3}
        | {"num_attention_heads": 2, "aspp_out_channels": 16},
    ),
    "MobileViTV2ForImageClassification": ("MobileViTV2Config", {"image_size": PIXELS, "width_multiplier": 0.25, "num_labels": 3}),
    "MobileNetV1ForImageClassification": ("MobileNetV1Config", {"image_size": PIXELS, "depth_multiplier": 0.25, "num_labels": 3}),
    "MobileNetV2ForImageClassification": ("MobileNetV2Config", {"image_size": PIXELS, "depth_multiplier": 0.25, "num_labels": 3}),
    "MobileNetV2ForSemanticSegmentation": ("MobileNetV2Config", {"image_size": PIXELS, "depth_multiplier": 0.25, "num_labels": 3}),
    "EfficientNetForImageClassification": (
        "EfficientNetConfig",
        {"image_size": PIXELS, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320, "num_labels": 3},
    ),
    "ResNetForImageClassification": ("ResNetConfig", {**RESNET, "num_labels": 3}),
    "RegNetForImageClassification": ("RegNetConfig", {**RESNET, "layer_type": "y", "groups_width": 8, "num_labels": 3}),
    "BitForImageClassification": ("BitConfig", {**RESNET, "layer_type": "preactivation", "num_groups": 4, "num_labels": 3}),
    "ConvNextForImageClassification": ("ConvNextConfig", STAGES),
    "ConvNextV2ForImageClassification": ("ConvNextV2Config", STAGES),
    "PoolFormerForImageClassification": ("PoolFormerConfig", STAGES),
    "PvtForImageClassification": (
        "PvtConfig",
        {**PYRAMID, "image_size": PIXELS, "num_attention_heads": [1, 1, 2, 2]},
    ),
    "PvtV2ForImageClassification": ("PvtV2Config", {**PYRAMID, "image_size": PIXELS}),
    "CvtForImageClassification": (
        "CvtConfig",
        {"embed_dim": [16, 32], "num_heads": [1, 2], "depth": [1, 2], "cls_token": [False, True], "num_labels": 3}
        | {
            name: [value, value]
            for name, value in {"mlp_ratio": 2.0, "drop_rate": 0.0, "attention_drop_rate": 0.0, "qkv_bias": True}.items()
        }
        | {"patch_sizes": [7, 3], "patch_stride": [4, 2], "patch_padding": [2, 1], "drop_path_rate": [0.0, 0.0]}
        | {"qkv_projection_method": ["dw_bn", "dw_bn"], "kernel_qkv": [3, 3], "padding_kv": [1, 1], "stride_kv": [2, 2]}
        | {"padding_q": [1, 1], "stride_q": [1, 1]},
    ),
    "LevitForImageClassification": (
        "LevitConfig",
        {"image_size": PIXELS, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1], "key_dim": [8, 8, 8]}
        | {"num_labels": 3},
    ),
    "SwinForImageClassification": ("SwinConfig", SWIN),
    "Swinv2ForImageClassification": ("Swinv2Config", SWIN),
    "SwinForMaskedImageModeling": ("SwinConfig", {**SWIN, "encoder_stride": 8}),
    "Swin2SRForImageSuperResolution": (
        "Swin2SRConfig",
        {"image_size": 16, "patch_size": 1, "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 4, "upscale": 2},
    ),
    "FocalNetForImageClassification": (
        "FocalNetConfig",
        {"image_size": PIXELS, "embed_dim": 8, "depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3], "num_labels": 3},
    ),
    "SwiftFormerForImageClassification": (
        "SwiftFormerConfig",
        {"image_size": PIXELS, "depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32], "num_labels": 3},
    ),
    "HieraForImageClassification": (
        "HieraConfig",
        {"image_size": [PIXELS, PIXELS], "embed_dim": 16, "depths": [1, 1, 1], "num_heads": [1, 1, 2], "num_labels": 3, "num_query_pool": 2}
        | {"masked_unit_size": [4, 4]},
    ),
    "TextNetForImageClassification": ("TextNetConfig", {"num_labels": 3}),
    "PPLCNetForImageClassification": ("PPLCNetConfig", {"num_labels": 3}),
    "DetrForObjectDetection": ("DetrConfig", {**DETECTOR, **LAST}),
    "TableTransformerForObjectDetection": ("TableTransformerConfig", {**DETECTOR, **LAST}),
    "ConditionalDetrForObjectDetection": ("ConditionalDetrConfig", {**DETECTOR, **LAST}),
    "DabDetrForObjectDetection": ("DabDetrConfig", {**DETECTOR, **LAST, "hidden_size": 32}),
    "DeformableDetrForObjectDetection": (
        "DeformableDetrConfig",
        {**DETECTOR, "backbone_config": ("ResNetConfig", {**RESNET, "out_features": ["stage2", "stage3", "stage4"]})}
        | {"num_feature_levels": 4, "encoder_n_points": 2, "decoder_n_points": 2},
    ),
    "RTDetrForObjectDetection": (
        "RTDetrConfig",
        {
            **DETECTOR,
            "backbone_config": ("RTDetrResNetConfig", {**RESNET, "out_features": ["stage2", "stage3", "stage4"]}),
            "encoder_hidden_dim": 32,
            "encoder_in_channels": [24, 32, 40],
            "feat_strides": [8, 16, 32],
            "decoder_in_channels": [32, 32, 32],
            "decoder_n_points": 2,
            "num_denoising": 0,
        },
    ),
    "MaskFormerForInstanceSegmentation": (
        "MaskFormerConfig",
        {
            **PYRAMID_OF_WINDOWS,
            "decoder_config": ("DetrConfig", {**DETECTOR, **LAST}),
            "fpn_feature_size": 32,
            "mask_feature_size": 32,
            "num_labels": 3,
        },
    ),
    "Mask2FormerForUniversalSegmentation": (
        "Mask2FormerConfig",
        {
            **PYRAMID_OF_WINDOWS,
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 32,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "num_attention_heads": 2,
            "dim_feedforward": 32,
            "num_queries": 7,
            "num_labels": 3,
        },
    ),
    "VitPoseForPoseEstimation": (
        "VitPoseConfig",
        {
            "backbone_config": (
                "VitPoseBackboneConfig",
                {**TRANSFORMER, "image_size": [PIXELS, 32], "patch_size": [16, 16], "out_features": ["stage2"]},
            ),
            "num_labels": 5,
            "use_simple_decoder": False,
        },
    ),
}
SIZES = {"Swin2SRForImageSuperResolution": (16, 16), "VitPoseForPoseEstimation": (PIXELS, 32)}


def photographs(batch: int, height: int, width: int) -> Keywords:
    """[batch, 3, height, width]."""
    return {"pixel_values": torch.randn(batch, 3, height, width, generator=generator(batch, height, width))}


def _case(name: str, configuration: str, given: dict[str, Any]) -> Case:
    height, width = SIZES.get(name, (PIXELS, PIXELS))
    return Case(partial(make, name, configuration, given), lambda batch, height: photographs(batch, height, width), (height, height))


CASES = {name: _case(name, *given) for name, given in MODELS.items()}
