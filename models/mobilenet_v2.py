"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, table 2)."""

from torch import nn

from sparsec.models.blocks import ConvNorm, ConvolutionalClassifier, InvertedResidual, divisible, seed_weights

# (expansion, output channels, blocks, stride of the first block) of each stage at width 1.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(num_classes: int = 1000, width: float = 1.0, seed: int = 0) -> ConvolutionalClassifier:
    """MobileNetV2 with seeded weights, for [N,3,H,W] images (224 pixels as published).

    At width 1: 3.5 M parameters and 300 M multiply-adds. The last convolution has 1280 channels, more only
    where width > 1.
    """
    channels, last = divisible(32 * width), divisible(1280 * max(1.0, width))
    layers: list[nn.Module] = [ConvNorm(3, channels, 3, 2, activation=nn.ReLU6)]
    for expansion, base, blocks, first_stride in STAGES:
        outputs = divisible(base * width)
        for stride in (first_stride, *[1] * (blocks - 1)):
            layers.append(InvertedResidual(channels, channels * expansion, outputs, 3, stride, nn.ReLU6))
            channels = outputs
    layers.append(ConvNorm(channels, last, activation=nn.ReLU6))
    model = ConvolutionalClassifier(nn.Sequential(*layers), nn.Linear(last, num_classes))
    seed_weights(model, seed, smooth=True)
    return model
