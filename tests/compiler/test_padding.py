"""Which mask says what is padding, which inputs follow it, and why padding may have to stay."""

import pytest
import torch
from torch import nn

from sparsec.backends.cpu.access import layouts_of
from sparsec.doors.from_torch.capture import capture
from sparsec.errors import InvalidInput
from sparsec.ir.miss import Miss
from sparsec.ir.pipeline import Context, run
from sparsec.lower.padding import SYMBOL, follows_of, mask_of, removable
from sparsec.lower.regions import Region, extract
from sparsec.models.attention import attend
from sparsec.passes import PIPELINE
from sparsec.run.affine import Affine
from sparsec.settings import Settings
from tests.token_models import PostNorm, PreNorm, bert, images, sentences, tokens, vit

# Whole compilations: the fast set has the parts.
pytestmark = pytest.mark.slow

IDS, MASK = sentences(2, 9)


def region(model: nn.Module, *inputs: torch.Tensor, **options) -> Region:
    context = Context(Settings(**options), offers=lambda spec: None, layouts=layouts_of, keep_dense=True)
    (found,) = extract(run(capture(model, inputs).graph_module, PIPELINE, context).graph_module)
    return found


class Biased(nn.Module):
    """A mask that only makes keys less likely: ``off`` is added to the scores of padding."""

    def __init__(self, off: float) -> None:
        super().__init__()
        self.last, self.off = nn.Linear(32, 32), off
        self.eval()

    def forward(self, x, mask):
        bias = torch.where(mask != 0, 0.0, self.off)[:, None, None, :]
        heads = x.unflatten(2, (2, 16)).transpose(1, 2)
        looked = nn.functional.scaled_dot_product_attention(heads, heads, heads, bias)
        return self.last(looked.transpose(1, 2).flatten(2))


def test_the_mask_of_all_attentions_is_found():
    found = region(bert(depth=2), IDS, MASK)
    mask = mask_of(found)
    assert mask is found.inputs[1]
    assert follows_of(found.inputs, mask) == {"input_ids": Affine(SYMBOL), "attention_mask": Affine(SYMBOL)}


def test_inputs_with_another_number_of_tokens_do_not_follow():
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.other = PostNorm(), nn.Linear(32, 32)
            self.eval()

        def forward(self, x, mask, more):
            return self.inner(x, mask), self.other(more)

    found = region(Added(), tokens(2, 9), MASK, tokens(2, 7))
    mask = mask_of(found)
    assert follows_of(found.inputs, mask) == {"x": Affine(SYMBOL), "mask": Affine(SYMBOL)}


@pytest.mark.parametrize(("off", "hidden"), [(-10.0, False), (-9999.0, False), (-1e4, True), (float("-inf"), True), (-3e38, True)])
def test_a_bias_hides_tokens_only_where_nothing_of_them_is_left(off, hidden):
    found = mask_of(region(Biased(off), tokens(2, 9), MASK))
    if hidden:
        assert not isinstance(found, Miss)
        assert found.name == "mask"
    else:
        assert found.reason == "attention has no mask that hides padding"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: region(bert(), IDS), "attention has no mask that hides padding"),
        (lambda: region(PreNorm(), tokens(2, 9)), "attention has no mask that hides padding"),
        (lambda: region(vit(), images(1)), "attention has no mask that hides padding"),
        (lambda: region(PostNorm(mean=True), tokens(2, 9), MASK), "mean averages over all tokens, padding included"),
        (
            lambda: region(bert(depth=2), IDS, MASK, token_pruning={"keep": 0.5, "after": [1], "allow_shorter": True}),
            "chooses among all tokens, padding included",
        ),
        (lambda: region(nn.Linear(32, 32).eval(), tokens(2, 9)), "there are 0 padding masks"),
    ],
    ids=["no mask", "no mask of a block", "images", "mean", "pruning", "no attention"],
)
def test_why_padding_stays(make, reason):
    found = mask_of(make())
    assert isinstance(found, Miss)
    assert reason in found.reason


def test_two_masks_are_no_mask():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = PostNorm(), PostNorm(seed=1)
            self.eval()

        def forward(self, x, mask, other):
            return self.two(self.one(x, mask), other)

    assert mask_of(region(Pair(), tokens(2, 9), MASK, MASK)).reason == "there are 2 padding masks"


class Looked(nn.Module):
    """Queries x look at other tokens, of which a mask hides some."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(32, 32), nn.Linear(32, 32)
        self.eval()

    def forward(self, x, other, mask):
        return attend(self.query(x), self.key(other), other, 2, mask[:, None, None, :] != 0)


def test_a_mask_of_keys_says_nothing_of_queries():
    refusal = mask_of(region(Looked(), tokens(2, 9), tokens(2, 9), MASK))
    assert refusal.reason == "x has as many tokens as mask, which says nothing of them"
    found = region(Looked(), tokens(2, 7), tokens(2, 9), MASK)
    assert follows_of(found.inputs, mask_of(found)) == {"other": Affine(SYMBOL), "mask": Affine(SYMBOL)}


@pytest.mark.parametrize("index", [0, 3])
def test_a_token_that_may_be_padding_is_not_read(index):
    class Selected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = PostNorm()
            self.eval()

        def forward(self, x, mask):
            return self.inner(x, mask)[:, index]

    found = mask_of(region(Selected(), tokens(2, 9), MASK))
    reason = found.reason if isinstance(found, Miss) else ""
    assert reason == (f"select reads token {index}, which may be padding" if index else "")


def test_a_map_made_of_tokens_keeps_them_all():
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = PostNorm(), nn.Conv2d(32, 32, 3, padding=1)
            self.eval()

        def forward(self, x, mask):
            return self.last(self.inner(x, mask).transpose(1, 2).unflatten(2, (3, 3)))

    found = region(Mapped(), tokens(2, 9), MASK)
    graph_module = next(iter(found.specs)).graph.owning_module
    with pytest.raises(InvalidInput, match=r"tokens_to_map makes something else of tokens"):
        removable(graph_module, {})
