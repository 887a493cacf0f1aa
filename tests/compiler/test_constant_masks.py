"""Attention with constant masks that hide pairs by -inf: a window, a part, all keys of a query."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsec
from sparsec.lower import inductor

TOKENS, WIDTH, HEADS = 9, 16, 2
X = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(3))


class Masked(nn.Module):
    """Pruned self-attention with a constant mask."""

    def __init__(self, mask: Tensor, spelled_out: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        with torch.no_grad():
            for layer in self.layers:
                layer.weight[torch.rand(layer.weight.shape) < 0.8] = 0
        self.register_buffer("mask", mask)
        self.spelled_out = spelled_out

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in self.layers[:3])
        if self.spelled_out:
            y = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(WIDTH // HEADS) + self.mask, -1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        return self.layers[3](y.transpose(1, 2).flatten(2))


def mask(kind: str) -> Tensor:
    apart = (torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)).abs()
    hidden = {"window": apart > 2, "one key": apart > 0, "query": (apart < 0) | (torch.arange(TOKENS) == 4)[:, None], "none": apart < 0}[
        kind
    ]
    made = torch.zeros(TOKENS, TOKENS).masked_fill(hidden, -math.inf)
    made[0, 0] = 0.5
    return torch.stack([made, made * 2])


@pytest.mark.parametrize("kind", ["window", "one key", "query", "none"])
@pytest.mark.parametrize("spelled_out", [False, True])
@pytest.mark.slow
@pytest.mark.turns(2)
def test_answers_are_those_of_eager_and_nothing_is_said(kind, spelled_out, kernels, monkeypatch):
    monkeypatch.setattr(inductor, "compile_dense", lambda graph_module, examples, **_: graph_module)
    model = Masked(mask(kind), spelled_out).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*compiled dense.*")
        fast = sparsec.compile(model, (X,), threads=1, cache_dir=kernels)
    assert fast._compiled.fully_compiled == (kind != "query" or not spelled_out)
    with torch.no_grad():
        exact = model.double()(X.double()).float()
    torch.testing.assert_close(fast(X), exact, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert bool(exact.isnan().any()) == (kind == "query" and spelled_out)


@pytest.mark.slow
def test_nan_in_weights_is_still_said(kernels, monkeypatch):
    monkeypatch.setattr(inductor, "compile_dense", lambda graph_module, examples, **_: graph_module)
    model = Masked(mask("none"), False).eval()
    with torch.no_grad():
        model.layers[0].weight[0, 0] = math.nan
    with pytest.warns(RuntimeWarning, match="infinite or NaN"):
        sparsec.compile(model, (X,), threads=1, cache_dir=kernels)
