"""Small pruned transformers, their inputs, and how far a result is from eager float64."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from sparsec.models.attention import attend, attend_packed, seed_transformer
from sparsec.models.bert import Bert
from sparsec.models.prune import prune
from sparsec.models.vit import VisionTransformer

VOCABULARY, POSITIONS, WIDTH, HEADS, HIDDEN, PIXELS = 50, 64, 32, 2, 64, 32
DEVIATION = 0.2


def bert(seed: int = 0, depth: int = 1, sparsity: float = 0.9) -> Bert:
    """An encoder of ids, with a pooler."""
    made = Bert(VOCABULARY, POSITIONS, WIDTH, depth, HEADS, HIDDEN)
    return prune(seed_transformer(made, seed, DEVIATION), sparsity).eval()


def vit(seed: int = 0, pooling: Any = "cls", depth: int = 1) -> VisionTransformer:
    """16 patches of 8 x 8 pixels to 5 classes."""
    made = VisionTransformer(PIXELS, 8, WIDTH, depth, HEADS, HIDDEN, num_classes=5, pooling=pooling)
    return prune(seed_transformer(made, seed, DEVIATION), 0.9).eval()


class PreNorm(nn.Module):
    """One block in ViT's order on float tokens [N,T,WIDTH] → the same; ``pooling``: their mean, or token 0, [N,WIDTH]."""

    def __init__(self, pooling: str = "", seed: int = 0) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.last, self.pooling = nn.Linear(WIDTH, WIDTH), pooling
        prune(seed_transformer(self, seed, DEVIATION), 0.9).eval()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(attend_packed(self.qkv(self.norm(x)), HEADS))
        x = self.last(x)
        return {"": x, "mean": x.mean(1), "first": x[:, 0]}[self.pooling]


class PostNorm(nn.Module):
    """One block in BERT's order on float tokens with a padding mask [N,T] of any dtype → [N,T,WIDTH]."""

    def __init__(self, mean: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm, self.last, self.mean = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), mean
        prune(seed_transformer(self, seed, DEVIATION), 0.9).eval()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        looked = attend(self.query(x), self.key(x), self.value(x), HEADS, mask[:, None, None, :] != 0)
        x = self.last(self.norm(x + looked))
        return x.mean(1) if self.mean else x


class Classifier(nn.Module):
    """Two linear layers on vectors [N,WIDTH]: a model without tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)
        prune(seed_transformer(self, 0, DEVIATION), 0.9).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x)))


def _generator(*seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(part * 1009**place for place, part in enumerate(seed)))


def tokens(batch: int, count: int, seed: int = 0) -> Tensor:
    """Float tokens [batch,count,WIDTH]."""
    return torch.randn(batch, count, WIDTH, generator=_generator(batch, count, seed))


def images(batch: int, seed: int = 0) -> Tensor:
    """[batch,3,PIXELS,PIXELS]."""
    return torch.randn(batch, 3, PIXELS, PIXELS, generator=_generator(batch, seed))


def sentences(batch: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and a mask [batch,count] with padding behind, row 0 full, from three rows on row 1 without any valid token."""
    ids = torch.randint(VOCABULARY, (batch, count), generator=_generator(batch, count, seed))
    lengths = torch.tensor([max(1, count - 4 * n) for n in range(batch)])
    mask = (torch.arange(count) < lengths[:, None]).long()
    if batch > 2:
        mask[1] = 0
    return ids, mask


def leaves(value: Any) -> list[Tensor]:
    """The tensors of a nested result."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def exact(model: nn.Module, *args: Any, **kwargs: Any) -> list[Tensor]:
    """The tensors of the model's result, computed in float64."""
    wide = lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x  # noqa: E731
    with torch.no_grad():
        return leaves(copy.deepcopy(model).double()(*pytree.tree_map(wide, args), **pytree.tree_map(wide, kwargs)))


def error(found: Any, expected: list[Tensor]) -> float:
    """Largest deviation of any result over its largest magnitude; infinite for NaN or another shape."""
    worst = 0.0
    for a, b in zip(leaves(found), expected, strict=True):
        if a.shape != b.shape or not torch.isfinite(a).all():
            return float("inf")
        worst = max(worst, float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30)))
    return worst


#: Modules with the inputs of one batch of 1, by name.
BLOCKS: dict[str, Callable[[], tuple[nn.Module, Callable[[int], tuple[Tensor, ...]]]]] = {
    "pre-norm block": lambda: (PreNorm(), lambda n: (tokens(n, 17),)),
    "first token": lambda: (PreNorm("first"), lambda n: (tokens(n, 17),)),
    "mean of tokens": lambda: (PreNorm("mean"), lambda n: (tokens(n, 17),)),
    "post-norm block with a mask": lambda: (PostNorm(), lambda n: (tokens(n, 17), sentences(n, 17)[1])),
    "embedding": lambda: (bert(), lambda n: sentences(n, 17)),
    "patches with CLS": lambda: (vit(), lambda n: (images(n),)),
    "patches with a mean": lambda: (vit(pooling="mean"), lambda n: (images(n),)),
}
