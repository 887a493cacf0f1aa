"""A small CNN for scikit-learn's digits."""

from torch import nn

from sparsec.models.blocks import ConvNorm, ConvolutionalClassifier, seed_weights
from sparsec.models.digits import DEFAULT, DigitsResult, trained
from sparsec.models.mobilenet_v1 import SeparableBlock


def digits_cnn(seed: int = 0) -> ConvolutionalClassifier:
    """Untrained: 3x3 stem, four depthwise-separable blocks of 64 to 128 channels, classifier. [N,1,8,8] → [N,10]."""
    features = nn.Sequential(
        ConvNorm(1, 32, 3),
        SeparableBlock(32, 64, 1),
        SeparableBlock(64, 128, 2),
        SeparableBlock(128, 128, 1),
        SeparableBlock(128, 128, 1),
    )
    model = ConvolutionalClassifier(features, nn.Linear(128, 10))
    seed_weights(model, seed, smooth=True)
    return model


def pruned_digits_cnn(sparsity: float = 0.9, seed: int = 0, epochs: int | None = None, pattern: str = "unstructured") -> DigitsResult:
    """`digits_cnn` trained while its 1x1 convolutions are pruned to `sparsity`. About ten seconds on one core."""
    return trained(digits_cnn(seed), DEFAULT, epochs, seed, sparsity, pattern)
