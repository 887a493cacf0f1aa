"""MobileNetV1 (Howard et al. 2017, arXiv 1704.04861, table 1)."""

from torch import nn

from sparsec.models.blocks import Activation, ConvNorm, ConvolutionalClassifier, divisible, seed_weights

# (output channels, stride) of the 13 depthwise-separable blocks at width 1.
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


class SeparableBlock(nn.Sequential):
    """3x3 depthwise, then 1x1 convolution, each with BatchNorm and activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation = nn.ReLU) -> None:
        super().__init__(ConvNorm(inputs, inputs, 3, stride, inputs, activation), ConvNorm(inputs, outputs, activation=activation))


def mobilenet_v1(num_classes: int = 1000, width: float = 1.0, seed: int = 0, activation: Activation = nn.ReLU) -> ConvolutionalClassifier:
    """MobileNetV1 with seeded weights, for [N,3,H,W] images (224 pixels as published).

    At width 1: 4.2 M parameters and 569 M multiply-adds. `activation` may be `nn.ReLU6`, which many later
    implementations use; the paper has ReLU.
    """
    channels = divisible(32 * width)
    layers: list[nn.Module] = [ConvNorm(3, channels, 3, 2, activation=activation)]
    for outputs, stride in BLOCKS:
        layers.append(SeparableBlock(channels, divisible(outputs * width), stride, activation))
        channels = divisible(outputs * width)
    model = ConvolutionalClassifier(nn.Sequential(*layers), nn.Linear(channels, num_classes))
    seed_weights(model, seed, smooth=True)
    return model
