"""Token pruning of whole models, from torch.export to the pass, against their own layers called by hand with tokens left out."""

import pytest
import torch
from torch import Tensor, nn

from sparsec.doors.from_torch.capture import capture
from sparsec.ir.pipeline import Context, run
from sparsec.models.attention import seed_transformer
from sparsec.models.bert import Bert
from sparsec.models.vit import VisionTransformer
from sparsec.passes import PIPELINE, InsertTokenPruning
from sparsec.settings import Settings
from tests.token_networks import most

pytestmark = pytest.mark.slow

PASSES = PIPELINE[: [step.name for step in PIPELINE].index(InsertTokenPruning.name) + 1]


def pruned(model: nn.Module, inputs: tuple[Tensor, ...], **option: object) -> tuple:
    """What the model's graph returns when pruned, and the story of that."""
    result = run(capture(model, inputs).graph_module, PASSES, Context(Settings(token_pruning=option)))
    with torch.no_grad():
        return result.graph_module(*inputs), str(result.story.chapters[-1])


def kept(x: Tensor, scores: Tensor, keep: int, first: int) -> tuple[Tensor, list[list[int]]]:
    """The tokens [N,T,F] of highest score [N,T], and where they were."""
    places = [most(row, keep, first) for row in scores]
    return torch.stack([tokens[at] for tokens, at in zip(x, places, strict=True)]), places


def heads_of(x: Tensor, heads: int) -> Tensor:
    return torch.stack(x.chunk(heads, 2), 1)


def vit_by_hand(model: VisionTransformer, images: Tensor, keeps: dict[int, int]) -> Tensor:
    x = model.patches(images).flatten(2).transpose(1, 2)
    if model.cls is not None:
        x = torch.cat([model.cls.repeat(len(x), 1, 1), x], 1)
    x = x + model.positions
    for number, block in enumerate(model.blocks, start=1):
        q, k, v = (heads_of(each, block.heads) for each in block.qkv(block.norm1(x)).chunk(3, 2))
        weights = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(3)
        x = x + block.projection(torch.cat(list((weights @ v).unbind(1)), 2))
        x = x + block.mlp(block.norm2(x))
        if number in keeps:
            received = weights.mean((1, 2)) if model.cls is None else weights[:, :, 0].mean(1)
            x, _ = kept(x, received, keeps[number], int(model.cls is not None))
    x = model.norm(x)
    return model.head(x.mean(1) if model.cls is None else x[:, 0])


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_vision_transformer(pooling: str) -> None:
    model = VisionTransformer(image=20, patch=4, width=24, depth=5, heads=3, channels=2, num_classes=7, pooling=pooling)  # type: ignore[arg-type]
    seed_transformer(model, 1)
    model = model.eval().double()
    images = torch.randn(3, 2, 20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (found,), story = pruned(model, (images,), keep=0.5, after=[2, 4])
    tokens = 25 + (pooling == "cls")
    assert f"13 of {tokens} tokens stay after block 2" in story and "7 of 13 tokens stay after block 4" in story
    with torch.no_grad():
        torch.testing.assert_close(found, vit_by_hand(model, images, {2: 13, 4: 7}))


class Pooled(nn.Module):
    """BERT without its hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = Bert(vocabulary=50, positions=32, width=24, depth=4, heads=3, hidden=32)
        seed_transformer(self, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.bert(ids, mask)[1]


def bert_by_hand(model: Bert, ids: Tensor, mask: Tensor, keeps: dict[int, int]) -> Tensor:
    x = model.embeddings(ids)
    for number, layer in enumerate(model.layers, start=1):
        q, k, v = (heads_of(each(x), layer.heads) for each in (layer.query, layer.key, layer.value))
        scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
        weights = scores.masked_fill(mask[:, None, None] == 0, -torch.inf).softmax(3)
        x = layer.norm1(x + layer.projection(torch.cat(list((weights @ v).unbind(1)), 2)))
        x = layer.norm2(x + layer.contract(nn.functional.gelu(layer.expand(x))))
        if number in keeps:
            x, places = kept(x, weights[:, :, 0].mean(1), keeps[number], 1)
            mask = torch.stack([row[at] for row, at in zip(mask, places, strict=True)])
    return torch.tanh(model.pooler(x[:, 0]))


def test_bert_with_padding() -> None:
    model = Pooled().eval().double()
    generator = torch.Generator().manual_seed(0)
    ids, mask = torch.randint(0, 50, (3, 16), generator=generator), torch.ones(3, 16, dtype=torch.int64)
    mask[1, 9:], mask[2, 3:] = 0, 0
    (found,), story = pruned(model, (ids, mask), keep=[0.75, 0.5], after=[1, 2])
    assert "12 of 16 tokens stay after block 1" in story and "6 of 12 tokens stay after block 2" in story
    with torch.no_grad():
        torch.testing.assert_close(found, bert_by_hand(model.bert, ids, mask, {1: 12, 2: 6}))


def test_berts_hidden_state_is_not_shortened_unasked() -> None:
    model = Pooled().bert.eval()
    inputs = (torch.zeros(2, 16, dtype=torch.int64), torch.ones(2, 16, dtype=torch.int64))
    (hidden, _), story = pruned(model, inputs, keep=0.5, after=[1])
    assert hidden.shape[1] == 16 and "the graph returns its tokens" in story
    (hidden, _), story = pruned(model, inputs, keep=0.5, after=[1], allow_shorter=True)
    assert hidden.shape[1] == 8 and "8 of 16 tokens stay" in story
