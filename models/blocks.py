"""Building blocks shared by the convolutional networks, and their seeded initialisation."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = type[nn.Module]


def divisible(channels: float, divisor: int = 8) -> int:
    """Round a channel count to a multiple of `divisor`, never below 90% of it (Sandler et al. 2018)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class ConvNorm(nn.Sequential):
    """Convolution without bias, BatchNorm, activation; "same" padding for odd kernels. [N,C,H,W] → [N,C',H/s,W/s]."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: Activation | None = nn.ReLU,
        epsilon: float = 1e-5,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs, eps=epsilon),
        ]
        if activation is not None:
            layers.append(activation())
        super().__init__(*layers)


class SqueezeExcite(nn.Module):
    """x · gate(W2 · act(W1 · mean(x))): one factor per channel (Hu et al. 2018). [N,C,H,W] → [N,C,H,W]."""

    def __init__(self, channels: int, squeezed: int, activation: Activation, gate: Activation) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.activation = activation()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.activation(self.reduce(F.adaptive_avg_pool2d(x, 1)))
        return x * self.gate(self.expand(squeezed))


class InvertedResidual(nn.Module):
    """1x1 expand → depthwise → optional squeeze-and-excite → linear 1x1 project, plus the input where shapes agree.

    The block of MobileNetV2 and, with `squeeze`, of MobileNetV3 and EfficientNet (MBConv). The expansion is left out
    where `expanded == inputs`. [N,inputs,H,W] → [N,outputs,H/stride,W/stride].
    """

    def __init__(
        self,
        inputs: int,
        expanded: int,
        outputs: int,
        kernel: int,
        stride: int,
        activation: Activation,
        squeeze: SqueezeExcite | None = None,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expanded != inputs:
            layers.append(ConvNorm(inputs, expanded, activation=activation, epsilon=epsilon))
        layers.append(ConvNorm(expanded, expanded, kernel, stride, expanded, activation, epsilon))
        if squeeze is not None:
            layers.append(squeeze)
        layers.append(ConvNorm(expanded, outputs, activation=None, epsilon=epsilon))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


class ConvolutionalClassifier(nn.Module):
    """Feature layers, global average pool, classifier. [N,C,H,W] → [N,classes] logits."""

    def __init__(self, features: nn.Sequential, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(pooled, 1))


def seed_weights(model: nn.Module, seed: int, smooth: bool = False) -> nn.Module:
    """Draw all weights from one generator: He normal by fan-out for convolutions, variance 1/fan-in for linear layers.

    `smooth` gives depthwise filters a mean as large as their deviation: filters of mean 0 sharpen, layer after layer, and
    so blow up float32 rounding against the smooth image (measured 10-fold over MobileNetV1). Networks with
    squeeze-and-excite do without: their rounding stays small, and smooth filters make images hard to tell apart.
    Biases become 0. The same seed gives the same weights whatever the global random state.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.normal_(*_moments(module, smooth), generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
    return model


def _moments(module: nn.Conv2d | nn.Linear, smooth: bool) -> tuple[float, float]:
    """Mean and deviation of the weights."""
    if isinstance(module, nn.Linear):
        return 0.0, 1 / math.sqrt(module.in_features)
    fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
    if smooth and module.groups > 1:
        return 1 / math.sqrt(fan_out), 1 / math.sqrt(fan_out)  # mean² + deviation² = 2 / fan_out
    return 0.0, math.sqrt(2 / fan_out)
