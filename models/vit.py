"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929; ViT-S of Touvron et al. 2021, arXiv 2012.12877)."""

from typing import Literal

import torch
from torch import Tensor, nn

from sparsec.models.attention import attend_packed, seed_transformer
from sparsec.models.errors import InvalidArgument

EPSILON = 1e-6  # of LayerNorm
Pooling = Literal["cls", "mean"]


class ViTBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)) with GELU. [N,T,width] → [N,T,width]."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, EPSILON)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.projection(attend_packed(self.qkv(self.norm1(x)), self.heads))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches, learned positions, pre-norm blocks, norm, one vector, head. [N,channels,image,image] → [N,classes] logits.

    The vector is the token CLS, put before the patches, or with `pooling="mean"` the mean of all tokens, without CLS
    (Beyer et al. 2022, arXiv 2205.01580). InvalidArgument where the patch does not divide the image or the heads the width.
    """

    def __init__(
        self,
        image: int = 224,
        patch: int = 16,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        hidden: int | None = None,
        channels: int = 3,
        num_classes: int = 1000,
        pooling: Pooling = "cls",
    ) -> None:
        super().__init__()
        _check_sizes(image, patch, width, heads, pooling)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width)) if pooling == "cls" else None
        tokens = (image // patch) ** 2 + (pooling == "cls")
        self.positions = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.Sequential(*(ViTBlock(width, heads, hidden or 4 * width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, EPSILON)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        x = self.norm(self.blocks(x + self.positions))
        return self.head(x.mean(1) if self.cls is None else x[:, 0])


def vit_s16(num_classes: int = 1000, image: int = 224, seed: int = 0, pooling: Pooling = "cls") -> VisionTransformer:
    """ViT-S/16 with seeded weights, for [N,3,image,image]: 384 wide, 12 blocks, 6 heads.

    22.1 M parameters and 4.6 G multiply-adds at 224 pixels. Dropout, which acts in training only, is left out.
    """
    model = VisionTransformer(image, num_classes=num_classes, pooling=pooling)
    seed_transformer(model, seed)
    return model


def _check_sizes(image: int, patch: int, width: int, heads: int, pooling: str) -> None:
    if patch < 1 or image < patch or image % patch:
        raise InvalidArgument(f"Patches of {patch} pixels do not tile an image of {image}.", hint=f"use a positive multiple of {patch}")
    if heads < 1 or width % heads:
        raise InvalidArgument(f"A width of {width} does not split into {heads} heads.")
    if pooling not in ("cls", "mean"):
        raise InvalidArgument(f"Unknown pooling {pooling!r}.", hint="use 'cls' or 'mean'")
