"""Fewer tokens through every door with the real compiler: padding that is not computed, tokens that are left out or merged."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparsec
from sparsec.doors.from_torch.capture import capture
from sparsec.errors import InvalidInput
from sparsec.ir.pipeline import Context, run
from sparsec.models.vit import VisionTransformer
from sparsec.models.zoo import build_with_inputs
from sparsec.passes import PIPELINE
from sparsec.settings import Settings
from tests import token_models as small
from tests.compiler.token_doors import LIMIT, door, free_axes, program_of, said
from tests.token_models import bert, error, exact, images, leaves, sentences, tokens, vit

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("strict")]


# Padding that is not computed


@pytest.fixture(scope="module")
def unpadded(kernels):
    model = bert()
    return model, sparsec.compile(model, sentences(1, 17), threads=1, cache_dir=kernels, remove_padding=True)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_valid_tokens_are_exact_without_padding(unpadded, batch):
    model, fast = unpadded
    ids, mask = sentences(batch, 17)
    (hidden, pooled), expected = fast(ids, mask), exact(model, ids, mask)
    valid = mask.bool() | ~mask.bool().any(1, keepdim=True)
    assert error([hidden[valid], pooled], [expected[0][valid], expected[1]]) < LIMIT
    assert not hidden[~valid].any()


def test_padding_inside_a_sentence_is_computed(unpadded):
    model, fast = unpadded
    ids, mask = sentences(2, 17)
    mask = torch.tensor([[0, 1, 0, 0, 1] + [0] * 12, [0] * 16 + [1]])
    expected = exact(model, ids, mask)
    found = fast(ids, mask)[0]
    assert error([found[0, :5], found[1]], [expected[0][0, :5], expected[0][1]]) < LIMIT
    assert not found[0, 5:].any()


def test_padding_is_removed_at_any_number_of_tokens(kernels):
    model, axes = bert(), free_axes()
    fast = sparsec.compile(model, sentences(2, 20), dynamic_shapes=(axes, axes), threads=1, cache_dir=kernels, remove_padding=True)
    for batch, count in ((3, 17), (1, 1), (3, 40), (2, 5)):
        ids, mask = sentences(batch, count)
        hidden, pooled = fast(ids, mask)
        valid = mask.bool() | ~mask.bool().any(1, keepdim=True)
        expected = exact(model, ids, mask)
        assert error([hidden[valid], pooled], [expected[0][valid], expected[1]]) < LIMIT, (batch, count)
        assert hidden.shape == expected[0].shape


def test_torch_compile_removes_padding(kernels):
    model = bert()
    fast, (ids, mask) = door(model, kernels, remove_padding=True), sentences(3, 17)
    with torch.no_grad():
        hidden, _ = fast(ids, mask)
    valid = mask.bool() | ~mask.bool().any(1, keepdim=True)
    assert error(hidden[valid], [exact(model, ids, mask)[0][valid]]) < LIMIT
    assert not hidden[~valid].any()
    assert not said()


class Looking(nn.Module):
    """Queries that look at other tokens, of which a mask hides some."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(small.WIDTH, small.WIDTH)

    def forward(self, x: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        return self.last(small.attend(x, other, other, small.HEADS, mask[:, None, None, :] != 0))


REFUSED = {
    "no mask": (lambda: (bert(), sentences(2, 17)[:1]), "has no mask that hides padding"),
    "a mean over tokens": (lambda: (small.PostNorm(mean=True), (tokens(2, 17), sentences(2, 17)[1])), "averages over all tokens"),
    "images": (lambda: (vit(), (images(1),)), "has no mask that hides padding"),
    "a mask of keys only": (lambda: (Looking().eval(), (tokens(2, 17), tokens(2, 17), sentences(2, 17)[1])), "says nothing of them"),
    "less queries than keys": (lambda: (Looking().eval(), (tokens(2, 7), tokens(2, 17), sentences(2, 17)[1])), "something else of tokens"),
    "no tokens": (lambda: (small.Classifier(), (tokens(2, 17)[:, 0],)), "0 padding masks"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.turns(2)
def test_padding_that_cannot_be_removed_is_refused_with_the_reason(kernels, name):
    make, reason = REFUSED[name]
    model, inputs = make()
    with pytest.raises(InvalidInput, match=f"(?s)Padding cannot be removed.*{reason}.*without remove_padding"):
        sparsec.compile(model, inputs, threads=1, cache_dir=kernels, remove_padding=True)


def test_a_fixed_program_says_what_it_was_compiled_for(unpadded):
    with pytest.raises(InvalidInput, match=r"17\] torch.int64"):
        unpadded[1](*sentences(1, 16))


# Token pruning

HALF = {"keep": 0.5, "after": [1]}


def pruned_in_torch(model: nn.Module, inputs: tuple[Tensor, ...], option: dict[str, Any]) -> list[Tensor]:
    """Results of the graph after InsertTokenPruning, in float32."""
    captured = capture(model, inputs)
    passes = PIPELINE[: 1 + next(n for n, step in enumerate(PIPELINE) if step.name == "insert_token_pruning")]
    graph_module = run(captured.graph_module, passes, Context(Settings(token_pruning=option))).graph_module
    return leaves(captured.restore(graph_module(*captured.flatten(inputs))))


@pytest.mark.parametrize("strategy", ["prune", "merge"])
@pytest.mark.turns(2)
def test_half_of_the_tokens_as_in_torch(kernels, strategy):
    model, option = vit(depth=2), {**HALF, "strategy": strategy}
    fast = sparsec.compile(model, (images(1),), threads=1, cache_dir=kernels, token_pruning=option)
    assert program_of(fast)
    assert {(17, 32), (9, 32)} <= {spec.output for spec in fast._compiled.programs[0].region.specs.values()}
    for batch in (1, 3):
        found, expected = fast(images(batch)), pruned_in_torch(model, (images(batch),), option)
        assert error(found, expected) < LIMIT
        assert error(found, exact(model, images(batch))) > 1e-3


def pruned_by_hand(model: VisionTransformer, x: Tensor, keep: float, after: tuple[int, ...]) -> Tensor:
    """The model's own modules, with CLS and the tokens it looks at most going on after some blocks, counted from 1."""
    x = model.patches(x).flatten(2).transpose(1, 2)
    x = torch.cat([model.cls.expand(len(x), -1, -1), x], 1) + model.positions
    for number, block in enumerate(model.blocks, 1):
        q, k, _ = block.qkv(block.norm1(x)).unflatten(2, (3, block.heads, -1)).unbind(2)
        looks = (torch.einsum("nhd,nthd->nht", q[:, 0], k) / math.sqrt(q.shape[3])).softmax(2).mean(1)
        x = block(x)
        if number in after:
            best = looks[:, 1:].topk(math.ceil(keep * x.shape[1]) - 1).indices.sort(1).values + 1
            x = torch.stack([torch.cat([mine[:1], mine[at]]) for mine, at in zip(x, best, strict=True)])
    return model.head(model.norm(x)[:, 0])


def test_a_published_transformer_equals_the_one_pruned_by_hand(kernels):
    model, (image,) = build_with_inputs("vit_s16", 0.9)
    fast = sparsec.compile(model, (image,), threads=1, cache_dir=kernels, token_pruning={"keep": 0.5, "after": [3, 6]})
    assert {(197, 384), (99, 384), (50, 384)} <= {spec.output for spec in fast._compiled.programs[0].region.specs.values()}
    x = image + 0.3 * torch.randn(3, *image.shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pruned_by_hand(model, x, 0.5, (3, 6))
        assert error(fast(x), [expected]) < 1e-4
        assert (fast(x) - expected).abs().max() < 1e-4
        assert error(fast(x), [model(x)]) > 1e-2


@pytest.mark.parametrize("keep", [1.0, [1.0]])
@pytest.mark.turns(2)
def test_keeping_all_tokens_is_bit_identical(kernels, keep):
    model = vit(depth=2)
    plain, same = (
        sparsec.compile(model, (images(1),), threads=1, cache_dir=kernels, token_pruning=option)
        for option in (None, {"keep": keep, "after": [1]})
    )
    assert torch.equal(plain(images(3)), same(images(3)))
    assert np.array_equal(program_of(plain).records, program_of(same).records)


def test_torch_compile_leaves_tokens_out(kernels):
    model = vit(depth=2)
    fast = door(model, kernels, token_pruning=HALF)
    with torch.no_grad():
        assert error(fast(images(1)), pruned_in_torch(model, (images(1),), HALF)) < LIMIT
    assert not said()


@pytest.mark.parametrize("keep", [0, -0.5, 1.5, float("nan"), "half", [0.5, 0.5]])
def test_shares_out_of_range_are_refused(keep):
    with pytest.raises(InvalidInput, match="keep"):
        sparsec.compile(vit(depth=2), (images(1),), token_pruning={"keep": keep, "after": [1]})


def test_a_model_without_tokens_has_none_to_leave_out(kernels):
    with pytest.raises(InvalidInput, match=r"(?i)token"):
        sparsec.compile(small.Classifier(), (tokens(2, 17)[:, 0],), threads=1, cache_dir=kernels, token_pruning=HALF)
