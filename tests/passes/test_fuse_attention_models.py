"""Models as people bring them: after the passes only tokens [N,T,F] are left, and they mean the same for any mask."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsec.doors.from_torch.capture import capture
from sparsec.ir.pipeline import Context, run
from sparsec.passes.canonicalise_tokens import CanonicaliseTokens
from sparsec.passes.fold_constants import FoldConstants
from sparsec.passes.fuse_attention import FuseAttention
from sparsec.passes.sink_views import SinkViews
from sparsec.tokens import ops as token_ops

pytestmark = pytest.mark.slow

aten = torch.ops.aten
PASSES = (FoldConstants(), CanonicaliseTokens(), FuseAttention(), SinkViews())
LINEAR, NORM, ADD, GELU = aten.linear.default, aten.layer_norm.default, aten.add.Tensor, aten.gelu.default
ATTENTION, KEY_BIAS = token_ops.attention, token_ops.key_bias
IDS = torch.tensor([[4, 9, 0, 7, 3], [1, 1, 8, 2, 5]])
MASKS = ([[1] * 5] * 2, [[1, 1, 1, 0, 0], [1] * 5], [[0] * 5, [1, 0, 0, 0, 0]], [[0, 7, -1, 1, 0], [2, 0, 1, 1, 3]])


def left(model: nn.Module, *calls: tuple[tuple, dict]) -> Counter:
    """How often each operator is left; the graph of the first call is checked on all of them."""
    captured = capture(model.eval(), *calls[0])
    result = run(captured.graph_module, PASSES, Context())
    assert not any(chapter.misses for chapter in result.story.chapters if chapter.name == "fuse_attention")
    for args, keywords in calls:
        with torch.no_grad():
            expected = model(*args, **keywords)
            found = captured.restore(result.graph_module(*captured.flatten(args, keywords)))
        for a, b in zip(_tensors(found), _tensors(expected), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-6)
    return Counter(node.target for node in result.graph_module.graph.nodes if node.op == "call_function")


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def masked_calls() -> list[tuple[tuple, dict]]:
    return [((IDS,), {"attention_mask": torch.tensor(mask)}) for mask in MASKS]


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed")


SIZES = {"vocab_size": 11, "max_position_embeddings": 8}
ENCODER = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
BERT = Counter({aten.embedding.default: 1, LINEAR: 13, NORM: 5, ADD: 6, GELU: 2, ATTENTION: 2, aten.select.int: 1, aten.tanh.default: 1})


@pytest.mark.parametrize("spelling", ["sdpa", "eager"])
def test_bert(transformers: Any, spelling: str) -> None:
    model = transformers.BertModel(transformers.BertConfig(**SIZES, **ENCODER, attn_implementation=spelling))
    assert left(model, *masked_calls()) == BERT + Counter({KEY_BIAS: 1})
    assert left(model, ((IDS,), {})) == BERT


@pytest.mark.parametrize("spelling", ["sdpa", "eager"])
def test_distilbert(transformers: Any, spelling: str) -> None:
    config = transformers.DistilBertConfig(**SIZES, dim=12, n_layers=2, n_heads=3, hidden_dim=20, attn_implementation=spelling)
    expected = {aten.embedding.default: 1, LINEAR: 12, NORM: 5, ADD: 5, GELU: 2, ATTENTION: 2, KEY_BIAS: 1}
    assert left(transformers.DistilBertModel(config), *masked_calls()) == Counter(expected)


@pytest.mark.parametrize("spelling", ["sdpa", "eager"])
def test_vit(transformers: Any, spelling: str) -> None:
    config = transformers.ViTConfig(image_size=6, patch_size=2, **ENCODER, attn_implementation=spelling)
    expected = {aten.conv2d.default: 1, token_ops.map_to_tokens: 1, aten.cat.default: 1, LINEAR: 13, NORM: 5, ADD: 5, GELU: 2, ATTENTION: 2}
    heads = {aten.select.int: 1, aten.tanh.default: 1}
    assert left(transformers.ViTModel(config), ((torch.randn(2, 3, 6, 6),), {})) == Counter(expected | heads)


TOKENS = torch.randn(2, 5, 12)
PADDING = torch.tensor([[False] * 5, [False, True, False, True, True]])
LAYER = Counter({LINEAR: 6, ATTENTION: 1, ADD: 2, NORM: 2, aten.relu.default: 1})


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_encoder_layer(batch_first: bool, norm_first: bool) -> None:
    model = nn.TransformerEncoderLayer(12, 3, 20, batch_first=batch_first, norm_first=norm_first)
    turns = Counter() if batch_first else Counter({aten.permute.default: 2})
    assert left(model, ((TOKENS,), {})) == LAYER + turns


def test_encoder_with_padding_and_triangle() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 3, 20, batch_first=True), 2, enable_nested_tensor=False)
    triangle = nn.Transformer.generate_square_subsequent_mask(5)

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.register_buffer("triangle", triangle)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            return self.model(x, mask=self.triangle, src_key_padding_mask=padding, is_causal=False)

    found = left(Masked(), *(((TOKENS, padding), {}) for padding in (torch.zeros_like(PADDING), PADDING)))
    assert found == Counter({operator: 2 * count for operator, count in LAYER.items()} | {KEY_BIAS: 1})


def test_time_first_encoder_of_several_layers() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 3, 20), 3, enable_nested_tensor=False)
    found = left(model, ((TOKENS,), {"src_key_padding_mask": torch.zeros(5, 2, dtype=torch.bool)}))
    assert found == Counter({operator: 3 * count for operator, count in LAYER.items()} | {KEY_BIAS: 1, aten.permute.default: 2})


def test_decoder_layer_attends_to_another_number_of_tokens() -> None:
    model = nn.TransformerDecoderLayer(12, 3, 20, batch_first=True)
    assert left(model, ((TOKENS, torch.randn(2, 7, 12)), {})) == Counter({LINEAR: 10, ATTENTION: 2, ADD: 3, NORM: 3, aten.relu.default: 1})


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention(need_weights: bool) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            return self.attention(x, x, x, key_padding_mask=padding, need_weights=need_weights)[0]

    found = left(Attention(), *(((TOKENS, padding), {}) for padding in (PADDING, torch.zeros_like(PADDING))))
    assert found == Counter({LINEAR: 4, ATTENTION: 1, KEY_BIAS: 1})
