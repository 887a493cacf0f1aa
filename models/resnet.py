"""ResNet-50 (He et al. 2016, arXiv 1512.03385, table 1) in its version 1.5."""

from torch import Tensor, nn
from torch.nn import functional as F

from sparsec.models.blocks import ConvNorm, ConvolutionalClassifier, seed_weights

# (width, blocks, stride of the first block) of each stage.
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
EXPANSION = 4
# Scale of the last BatchNorm of each branch. It starts training at 0 (Goyal et al. 2017), where the branch would be dead; at 1,
# 16 branches in a row blow up float32 rounding to 7e-5 of the largest logit.
BRANCH_SCALE = 0.25


class Bottleneck(nn.Module):
    """relu(x + 1x1(3x3(1x1(x)))); the shortcut is a 1x1 convolution where shapes differ. [N,C,H,W] → [N,4·width,H/s,W/s].

    Version 1.5: the stride is in the 3x3 convolution, not in the first 1x1 as in the paper.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        last = ConvNorm(width, outputs, activation=None)
        nn.init.constant_(last[1].weight, BRANCH_SCALE)  # type: ignore[arg-type]
        self.branch = nn.Sequential(ConvNorm(inputs, width), ConvNorm(width, width, 3, stride), last)
        reshapes = inputs != outputs or stride != 1
        self.shortcut = ConvNorm(inputs, outputs, 1, stride, activation=None) if reshapes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


def resnet50(num_classes: int = 1000, seed: int = 0) -> ConvolutionalClassifier:
    """ResNet-50 v1.5 with seeded weights, for [N,3,H,W] images (224 pixels as published).

    25,557,032 parameters and 4.09 G multiply-adds.
    """
    channels = 64
    layers: list[nn.Module] = [ConvNorm(3, channels, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for width, blocks, first_stride in STAGES:
        for stride in (first_stride, *[1] * (blocks - 1)):
            layers.append(Bottleneck(channels, width, stride))
            channels = EXPANSION * width
    model = ConvolutionalClassifier(nn.Sequential(*layers), nn.Linear(channels, num_classes))
    seed_weights(model, seed)
    return model
