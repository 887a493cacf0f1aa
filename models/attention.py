"""Multi-head attention on tokens as both transformers use it, and their seeded initialisation."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEVIATION = 0.02  # of all weights, cut at two deviations (Devlin et al. 2019; Touvron et al. 2021 for images)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ/√D)·v for each of `heads` slices of the features: query [N,T,E], key and value [N,S,E] → [N,T,E].

    `mask` is true where a query may look, bool, broadcast to [N,heads,T,S].
    """
    q, k, v = (x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def attend_packed(qkv: Tensor, heads: int) -> Tensor:
    """The same where one linear layer made query, key and value, one after the other: [N,T,3E] → [N,T,E]."""
    n, tokens, packed = qkv.shape
    q, k, v = qkv.reshape(n, tokens, 3, heads, packed // 3 // heads).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def seed_transformer(model: nn.Module, seed: int, deviation: float = DEVIATION) -> nn.Module:
    """Draw all parameters from one generator: normal, cut at two deviations, around 1 for LayerNorm's scales.

    The deviation is 1/√fan-in for convolutions (patches) and `deviation` for all else. Biases are drawn as well, though
    published code starts them at 0: a trained network has some, and code that forgets one must not get away with it.
    The same seed gives the same weights whatever the global random state.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                patches = isinstance(module, nn.Conv2d) and name == "weight"
                _draw(parameter, 1 / math.sqrt(parameter[0].numel()) if patches else deviation, generator)
                if isinstance(module, nn.LayerNorm) and name == "weight":
                    parameter.add_(1.0)
    return model


def _draw(parameter: Tensor, deviation: float, generator: torch.Generator) -> None:
    """What lies beyond two deviations is drawn again, which takes a fifth of the time of inverting the distribution."""
    flat = parameter.view(-1).normal_(generator=generator)
    outside = (flat.abs() > 2).nonzero().flatten()
    while len(outside):
        again = torch.randn(len(outside), generator=generator)
        flat[outside] = again
        outside = outside[again.abs() > 2]
    parameter.mul_(deviation)
