"""Our operators on tokens mean what torch's own mean."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsec.errors import InvalidInput
from sparsec.tokens import ops as token_ops


def tensor(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_attention_is_torchs(causal: bool, biased: bool) -> None:
    q, k, v = tensor(2, 5, 12), tensor(2, 5, 12) + 1, tensor(2, 5, 6)
    key_bias, pair_bias = tensor(2, 5), tensor(3, 5, 5)
    mask = torch.zeros(2, 3, 5, 5, dtype=torch.float64)
    if biased:
        mask = mask + key_bias[:, None, None] + pair_bias
    if causal:
        mask = mask.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -math.inf)
    split = [x.unflatten(2, (3, -1)).transpose(1, 2) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*split, attn_mask=mask, scale=0.3).transpose(1, 2).flatten(2)
    biases = (key_bias, pair_bias) if biased else (None, None)
    found = token_ops.attention(q, k, v, *biases, heads=3, scale=0.3, causal=causal)
    torch.testing.assert_close(found, expected)


def test_a_query_without_keys_gets_zero() -> None:
    bias = torch.full((2, 4), -math.inf, dtype=torch.float64)
    bias[1, 2] = 0
    v = tensor(2, 4, 6)
    found = token_ops.attention(tensor(2, 4, 6), tensor(2, 4, 6), v, bias, heads=2, scale=1.0)
    assert not found[0].any()
    torch.testing.assert_close(found[1], v[1, 2].expand(4, 6))


def test_heads_must_divide_the_features() -> None:
    with pytest.raises(InvalidInput, match="do not split into 5 heads"):
        token_ops.attention(tensor(1, 2, 6), tensor(1, 2, 6), tensor(1, 2, 6), heads=5, scale=1.0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_key_bias(dtype: torch.dtype) -> None:
    mask = torch.tensor([[1, 0, 1]]).to(dtype)
    assert token_ops.key_bias(mask, on=0.0, off=-math.inf).tolist() == [[0.0, -math.inf, 0.0]]
    assert token_ops.key_bias(mask, on=1.0, off=-3.0, affine=True).tolist() == [[1.0, -3.0, 1.0]]
    assert token_ops.key_bias(torch.tensor([[2]]), on=1.0, off=-3.0, affine=True).tolist() == [[5.0]]


def test_maps_and_tokens() -> None:
    x = tensor(2, 3, 4, 5)
    tokens = token_ops.map_to_tokens(x)
    assert torch.equal(tokens[1, 7], x[1, :, 1, 2])
    assert torch.equal(token_ops.tokens_to_map(tokens, height=4, width=5), x)
