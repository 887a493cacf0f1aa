"""Networks with squeeze-and-excite: EfficientNet-B0 and MobileNetV3-Small."""

from torch import nn

from sparsec.models.blocks import ConvNorm, ConvolutionalClassifier, InvertedResidual, SqueezeExcite, divisible, seed_weights

EPSILON = 1e-3  # of BatchNorm, in both papers' published code

# EfficientNet-B0: (expansion, kernel, output channels, blocks, stride of the first block) of each stage.
B0_STAGES = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)

# MobileNetV3-Small: (kernel, expanded channels, output channels, squeeze-and-excite, hardswish, stride) of each block.
V3_BLOCKS = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)


def efficientnet_b0(num_classes: int = 1000, seed: int = 0) -> ConvolutionalClassifier:
    """EfficientNet-B0 (Tan & Le 2019, arXiv 1905.11946, table 1) with seeded weights, for [N,3,H,W] images.

    5.3 M parameters and 0.39 G multiply-adds at 224 pixels. Stochastic depth, which acts in training only, is left out.
    """
    channels = 32
    layers: list[nn.Module] = [ConvNorm(3, channels, 3, 2, activation=nn.SiLU, epsilon=EPSILON)]
    for expansion, kernel, outputs, blocks, first_stride in B0_STAGES:
        for stride in (first_stride, *[1] * (blocks - 1)):
            expanded = channels * expansion
            squeeze = SqueezeExcite(expanded, channels // 4, nn.SiLU, nn.Sigmoid)
            layers.append(InvertedResidual(channels, expanded, outputs, kernel, stride, nn.SiLU, squeeze, EPSILON))
            channels = outputs
    layers.append(ConvNorm(channels, 1280, activation=nn.SiLU, epsilon=EPSILON))
    classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))
    model = ConvolutionalClassifier(nn.Sequential(*layers), classifier)
    seed_weights(model, seed)
    return model


def mobilenet_v3_small(num_classes: int = 1000, seed: int = 0) -> ConvolutionalClassifier:
    """MobileNetV3-Small (Howard et al. 2019, arXiv 1905.02244, table 2) with seeded weights, for [N,3,H,W] images.

    2.5 M parameters and 56 M multiply-adds at 224 pixels. Squeezed channels are a quarter of the expanded ones; the
    last 1x1 convolution has no squeeze-and-excite, as in the authors' code.
    """
    channels = 16
    layers: list[nn.Module] = [ConvNorm(3, channels, 3, 2, activation=nn.Hardswish, epsilon=EPSILON)]
    for kernel, expanded, outputs, excite, hard, stride in V3_BLOCKS:
        activation = nn.Hardswish if hard else nn.ReLU
        squeeze = SqueezeExcite(expanded, divisible(expanded / 4), nn.ReLU, nn.Hardsigmoid) if excite else None
        layers.append(InvertedResidual(channels, expanded, outputs, kernel, stride, activation, squeeze, EPSILON))
        channels = outputs
    layers.append(ConvNorm(channels, 576, activation=nn.Hardswish, epsilon=EPSILON))
    classifier = nn.Sequential(nn.Linear(576, 1024), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1024, num_classes))
    model = ConvolutionalClassifier(nn.Sequential(*layers), classifier)
    seed_weights(model, seed)
    return model
