"""Our operators on tokens [N, T, F]. The bodies are what the operators mean; every backend is tested against them.

Plain functions, used as `call_function` targets of FX graphs, on real, fake and float64 tensors. Dimension 1 carries tokens.
"""

import torch
from torch import Tensor

from sparsec.errors import InvalidInput


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_bias: Tensor | None = None,
    pair_bias: Tensor | None = None,
    *,
    heads: int,
    scale: float,
    causal: bool = False,
) -> Tensor:
    """Scaled dot-product attention of `heads` heads (Vaswani et al. 2017), heads side by side in the features.

    query [N,Tq,H·D], key [N,Tk,H·D], value [N,Tk,H·E]; key_bias [N,Tk] is added to all scores of a key, pair_bias
    [H or 1,Tq,Tk] to the score of each pair; `causal` leaves query i the keys 0..i. → [N,Tq,H·E]. A query whose scores are all -inf gets 0.
    """
    q, k, v = (_split(x, heads) for x in (query, key, value))
    weights = _attention_weights(q, k, key_bias, pair_bias, scale, causal)
    return (weights @ v).transpose(1, 2).flatten(2)


def _split(x: Tensor, heads: int) -> Tensor:
    """[N,T,H·D] → [N,H,T,D]."""
    if x.dim() != 3 or x.shape[2] % heads:
        raise InvalidInput(f"Tokens of shape {tuple(x.shape)} do not split into {heads} heads.")
    return x.unflatten(2, (heads, x.shape[2] // heads)).transpose(1, 2)


def _attention_weights(
    q: Tensor, k: Tensor, key_bias: Tensor | None, pair_bias: Tensor | None, scale: float, causal: bool = False
) -> Tensor:
    """[N,H,Tq,Tk], rows sum to 1, or to 0 where all scores are -inf."""
    scores = q @ k.transpose(2, 3) * scale
    if key_bias is not None:
        scores = scores + key_bias[:, None, None]
    if pair_bias is not None:
        scores = scores + pair_bias
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[2:], dtype=torch.bool).triu(1), -torch.inf)
    empty = (scores == -torch.inf).all(3, keepdim=True)
    return scores.softmax(3).masked_fill(empty, 0.0)


def key_bias(mask: Tensor, *, on: float, off: float, affine: bool = False) -> Tensor:
    """Additive bias per key from a padding mask [N,T] of any dtype → float32 [N,T].

    `on` where the mask is not zero, `off` where it is; with `affine`, off·(1 - mask) + on·mask instead, without the term whose factor is 0:
    off may be the lowest number, and masks may hold more than 0 and 1.
    """
    if not affine:
        return torch.where(mask != 0, on, off).to(torch.float32)
    m = mask.to(torch.float32)
    if on == 0:
        return off * (1 - m)
    return on * m if off == 0 else off + (on - off) * m


def map_to_tokens(x: Tensor) -> Tensor:
    """One token per pixel, in rows: [N,C,H,W] → [N,H·W,C]."""
    return x.flatten(2).transpose(1, 2)


def tokens_to_map(x: Tensor, *, height: int, width: int) -> Tensor:
    """The inverse: [N,height·width,C] → [N,C,height,width]."""
    return x.transpose(1, 2).unflatten(2, (height, width))


FUNCTIONS = (attention, key_bias, map_to_tokens, tokens_to_map)
