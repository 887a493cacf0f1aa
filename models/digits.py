"""Training with pruning on scikit-learn's handwritten digits, so that the accuracy of small networks is real."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsec.models.patterns import NOfM, parse_pattern
from sparsec.models.prune import calibrate_batchnorm, prunable_layers, prune
from sparsec.tools.needs import require

TEST_SHARE = 0.25
RAMP = (0.2, 0.6)  # pruning runs between these shares of all epochs; the rest recovers


@dataclass(frozen=True)
class Recipe:
    """How to train: passes over the images, images per step, the peak of AdamW's one-cycle schedule.

    With `moves` the images of a step move together by up to one pixel. A transformer, whose patches a move cuts
    otherwise, learns little from that.
    """

    epochs: int = 32
    batch: int = 64
    rate: float = 4e-3
    moves: bool = True


DEFAULT = Recipe()


class Split(NamedTuple):
    """float32 images [N,1,8,8] in 0..1 and int64 labels [N], for training and held out."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class DigitsResult:
    """A trained network in evaluation mode, the images it never saw with their labels, its accuracy on them (0..1)."""

    model: nn.Module
    test_images: Tensor
    test_labels: Tensor
    accuracy: float


def train_digits(
    model: nn.Module,
    epochs: int | None = None,
    seed: int = 0,
    sparsity: float = 0.0,
    pattern: str = "unstructured",
    recipe: Recipe = DEFAULT,
) -> float:
    """Train in place and return the accuracy (0..1) on the held-out quarter; leaves `model` in evaluation mode.

    `model` maps images [N,1,8,8] to logits [N,10]; `epochs` defaults to the recipe's.
    Magnitude pruning rises to `sparsity` as s·(1 - (1 - t)³) (Zhu & Gupta 2017) while training goes on; pruned weights
    stay zero from then on. An N:M `pattern` comes whole, at the start of the ramp, unless `sparsity` is 0. The result
    depends on `seed`, the first weights of `model` and the thread count only. Needs scikit-learn.
    """
    split = load_digits_split()
    generator = torch.Generator().manual_seed(seed)
    epochs = recipe.epochs if epochs is None else epochs
    steps = epochs * -(-len(split.images) // recipe.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        masks = _prune_in_ramp(model, (epoch + 1) / epochs, sparsity, pattern)
        for images, labels in _shuffled(split, recipe, generator):
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            _apply(masks)
    calibrate_batchnorm(model, split.images.split(256))  # evaluation mode; nothing else where there is no BatchNorm
    return accuracy(model, split.test_images, split.test_labels)


def trained(model: nn.Module, recipe: Recipe, epochs: int | None, seed: int, sparsity: float, pattern: str) -> DigitsResult:
    """`train_digits`, and what it was judged by."""
    reached = train_digits(model, epochs, seed, sparsity, pattern, recipe)
    split = load_digits_split()
    return DigitsResult(model, split.test_images, split.test_labels, reached)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images, 0..1, whose largest logit is at the label."""
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


@cache
def load_digits_split() -> Split:
    """The 1797 digits, a fixed quarter of each class held out; shared, not to be written to."""
    require(("sklearn",))
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = digits.images[:, None].astype("float32") / 16
    parts = train_test_split(images, digits.target, test_size=TEST_SHARE, stratify=digits.target, random_state=0)
    train, test, train_labels, test_labels = (torch.from_numpy(part) for part in parts)
    return Split(train, train_labels.long(), test, test_labels.long())


def _shuffled(split: Split, recipe: Recipe, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one epoch in random order."""
    order = torch.randperm(len(split.images), generator=generator)
    for chosen in order.split(recipe.batch):
        images = split.images[chosen]
        yield _moved(images, generator) if recipe.moves else images, split.labels[chosen]


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
    return F.pad(images, (1, 1, 1, 1))[:, :, 1 + down : 9 + down, 1 + right : 9 + right]


def _prune_in_ramp(model: nn.Module, progress: float, sparsity: float, pattern: str) -> list[tuple[Tensor, Tensor]]:
    """Prune to the ramp's sparsity at `progress` (0..1); returns each pruned weight and where it is zero."""
    start, end = RAMP
    done = min(1.0, max(0.0, (progress - start) / (end - start)))
    if sparsity == 0 or progress < start:
        return []
    now = sparsity if isinstance(parse_pattern(pattern), NOfM) else sparsity * (1 - (1 - done) ** 3)
    prune(model, now, pattern)
    return [(layer.weight, layer.weight.detach() == 0) for layer in prunable_layers(model).values()]


def _apply(masks: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for weight, zero in masks:
            weight.masked_fill_(zero, 0.0)
