"""BERT and ViT: published counts, what masks, types and positions do, seeds, capture, rounding and which layers stay dense."""

import pytest
import torch
from torch import nn

from sparsec.models.attention import DEVIATION, attend, seed_transformer
from sparsec.models.bert import CLS, SEP, Bert, bert_base, sentence
from sparsec.models.count import count
from sparsec.models.prune import prunable_layers, prune
from sparsec.models.vit import VisionTransformer, vit_s16

torch.set_num_threads(1)


def small_bert(seed=0):
    return seed_transformer(Bert(vocabulary=60, positions=20, width=32, depth=2, heads=4, hidden=64), seed, 0.2).eval()


def small_vit(seed=0, pooling="cls"):
    made = VisionTransformer(image=12, patch=4, width=24, depth=2, heads=3, num_classes=5, pooling=pooling)
    return seed_transformer(made, seed, 0.2).eval()


def ids(batch=2, tokens=9):
    return torch.randint(60, (batch, tokens), generator=torch.Generator().manual_seed(tokens))


def images(batch=2):
    return torch.randn(batch, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def bert_multiply_adds(tokens, width=768, depth=12, hidden=3072):
    """Four square layers and two wide ones per token, two products of attention, and the pooler on one token."""
    per_layer = tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width
    return depth * per_layer + width**2


def test_bert_base_is_the_published_one():
    model = bert_base().eval()
    assert count(model, (1, 8), torch.int64) == (109_482_240, bert_multiply_adds(8))
    assert list(prunable_layers(model)) == [name for name, layer in model.named_modules() if is_linear(layer) and name != "pooler"]
    assert len(prunable_layers(model)) == 12 * 6
    weights = torch.cat([layer.weight.detach().flatten()[:1000] for layer in model.layers.modules() if is_linear(layer)])
    assert weights.abs().max() <= 2 * DEVIATION
    # A normal cut at two deviations keeps 0.8796 of its deviation.
    assert abs(weights.std() / DEVIATION - 0.8796) < 0.02


def is_linear(module):
    return isinstance(module, nn.Linear)


# Touvron et al. 2021, table 1 and their list of models: 22 M parameters, 4.6 G multiply-adds.
def test_vit_s16_is_the_published_one():
    counted = count(vit_s16(), (1, 3, 224, 224))
    assert counted.parameters == 22_050_664
    assert f"{counted.multiply_adds / 1e9:.1f}" == "4.6"


@pytest.mark.parametrize(
    ("pooling", "width", "depth", "heads", "parameters"),
    [("cls", 192, 12, 3, 5_717_416), ("cls", 768, 12, 12, 86_567_656), ("mean", 384, 12, 6, 22_050_664 - 2 * 384)],
)
def test_other_sizes_have_their_published_parameters(pooling, width, depth, heads, parameters):
    with torch.device("meta"):
        model = VisionTransformer(width=width, depth=depth, heads=heads, pooling=pooling)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_attention_is_a_weighted_mean_by_hand():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 5, 6, dtype=torch.float64)
    mask = torch.tensor([True, True, True, False, False])
    got = attend(q, k, v, 2, mask[None, None, None])
    for head in (slice(0, 3), slice(3, 6)):
        weights = (q[..., head] @ k[:, :3, head].mT / 3**0.5).softmax(-1)
        torch.testing.assert_close(got[..., head], weights @ v[:, :3, head])


def test_padding_reaches_no_valid_token():
    model, words = small_bert(), ids()
    mask = (torch.arange(9) < 6).long().expand(2, 9)
    other = torch.where(mask == 0, 1, words)
    with torch.no_grad():
        hidden, pooled = model(words, mask)
        hidden_other, pooled_other = model(other, mask)
        alone, pooled_alone = model(words[:, :6])
        unmasked, _ = model(words)
    torch.testing.assert_close(hidden[:, :6], hidden_other[:, :6], rtol=0, atol=1e-6)
    torch.testing.assert_close(hidden[:, :6], alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(pooled, pooled_other, rtol=0, atol=1e-6)
    torch.testing.assert_close(pooled, pooled_alone, rtol=0, atol=1e-6)
    assert (unmasked[:, :6] - alone).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.float32])
def test_a_mask_of_ones_of_any_dtype_changes_nothing(dtype):
    model, words = small_bert(), ids()
    with torch.no_grad():
        masked, plain = model(words, torch.ones_like(words).to(dtype)), model(words)
    assert [value.shape for value in plain] == [(2, 9, 32), (2, 32)]
    for a, b in zip(masked, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_types_default_to_zero_and_matter_and_so_do_positions():
    model, words = small_bert(), ids()
    with torch.no_grad():
        plain, _ = model(words)
        zeros, _ = model(words, token_type_ids=torch.zeros_like(words))
        ones, _ = model(words, token_type_ids=torch.ones_like(words))
        turned, _ = model(words.flip(1))
    assert torch.equal(plain, zeros)
    assert (plain - ones).abs().max() > 1e-2
    assert (plain - turned.flip(1)).abs().max() > 1e-2


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_vit_reads_positions_and_cls_stands_first(pooling):
    model, x = small_vit(pooling=pooling), images()
    assert model.positions.shape == (1, 9 + (pooling == "cls"), 24)
    with torch.no_grad():
        logits, turned = model(x), model(x.flip(2, 3))
    assert logits.shape == (2, 5)
    assert (logits[0] - logits[1]).abs().max() > 1e-2
    assert (logits - turned).abs().max() > 1e-2


CASES = {
    "bert": (small_bert, lambda: (ids(),)),
    "masked bert": (small_bert, lambda: (ids(), torch.ones(2, 9, dtype=torch.int64), torch.ones(2, 9, dtype=torch.int64))),
    "vit": (small_vit, lambda: (images(),)),
    "vit by mean": (lambda seed=0: small_vit(seed, "mean"), lambda: (images(),)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.slow
def test_export_and_dynamo_take_the_whole_network(case):
    model, inputs = CASES[case][0](), CASES[case][1]()
    with torch.no_grad():
        expected = model(*inputs)
        exported = torch.export.export(model, inputs).module()(*inputs)
        traced = torch.compile(model, backend="eager", fullgraph=True)(*inputs)
    torch.testing.assert_close(exported, expected, rtol=0, atol=0)
    torch.testing.assert_close(traced, expected, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_seed_decides_every_parameter(case):
    make = CASES[case][0]
    torch.manual_seed(1)
    first = make(3)
    torch.manual_seed(2)
    same, other = make(3), make(4)
    for (name, a), b, c in zip(first.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert not torch.equal(a, c), name


def test_heads_of_image_models_and_patches_stay_dense():
    assert list(prunable_layers(small_vit())) == [f"blocks.{i}.{name}" for i in (0, 1) for name in ("qkv", "projection", "mlp.0", "mlp.2")]


@pytest.mark.parametrize(("pattern", "share"), [("unstructured", 0.75), ("8x1", 0.75), ("32x32", 0.5), ("2:4", 0.5), ("1:4", 0.75)])
def test_patterns_reach_every_layer_of_the_encoder(pattern, share):
    model = prune(small_bert(), share, pattern)
    for name, layer in prunable_layers(model).items():
        zeros = (layer.weight == 0).double().mean().item()
        assert abs(zeros - share) <= (1024 if pattern == "32x32" else 8) / layer.weight.numel(), name
    assert (model.pooler.weight != 0).all()
    assert (model.embeddings.words.weight != 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_bert_base_rounds_little_and_reads_its_input(sparsity):
    model = prune(bert_base(), sparsity).eval()
    words = torch.cat([sentence(64, seed)[0] for seed in range(2)])
    with torch.no_grad():
        got, exact = model(words), model.double()(words)
    for a, b in zip(got, exact, strict=True):
        assert (a - b).abs().max() <= 5e-6 * b.abs().max()
    assert (exact[0][0] - exact[0][1]).std() > 0.3
    assert (exact[1][0] - exact[1][1]).std() > 5e-3


def test_sentences_are_seeded_and_framed():
    words, mask = sentence(16, seed=3)
    assert words.shape == mask.shape == (1, 16)
    assert (words.dtype, mask.dtype) == (torch.int64, torch.int64)
    assert (words[0, 0], words[0, -1]) == (CLS, SEP)
    assert (mask == 1).all()
    assert torch.equal(words, sentence(16, seed=3)[0])
    assert not torch.equal(words, sentence(16, seed=4)[0])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: VisionTransformer(image=30, patch=16), "do not tile"),
        (lambda: VisionTransformer(image=0, patch=16), "do not tile"),
        (lambda: VisionTransformer(image=8, patch=2, width=10, heads=4), "does not split into 4 heads"),
        (lambda: VisionTransformer(image=8, patch=2, pooling="max"), "'cls' or 'mean'"),
        (lambda: Bert(vocabulary=10, width=10, heads=3), "does not split into 3 heads"),
        (lambda: sentence(2), "has no word"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()
