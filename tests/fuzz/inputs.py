"""What programs take: the text that makes each kind of input, and the sizes of a call."""

from __future__ import annotations

import random

#: Of sizes n, h, w, t, f and the generator ``g``; later entries may speak of ``x``, the first input.
KINDS = {
    "map": "torch.randn(n, f, h, w, generator=g).to(dtype)",
    "image": "torch.randn(n, 3, h, w, generator=g).to(dtype)",
    "one map": "torch.randn(f, h, w, generator=g).to(dtype)",
    "tokens": "torch.randn(n, t, f, generator=g).to(dtype)",
    "vector": "torch.randn(n, f, generator=g).to(dtype)",
    "ids": "torch.randint(0, 50, (n, t), generator=g)",
    "valid": "torch.arange(t) < torch.randint(1, t + 1, (n, 1), generator=g)",
    "lengths": "(torch.arange(t) < torch.randint(1, t + 1, (n, 1), generator=g)).long()",
    "positive": "torch.rand(n, f, generator=g).to(dtype)",
    "other map": "torch.randn(n, f, h, w, generator=g).to(dtype)",
    "other tokens": "torch.randn(n, t, f, generator=g).to(dtype)",
    "same": "x",
    "view": "x[:, :1]",
    "flat view": "x.flatten(1)",
}
#: Sets of inputs and how often they are drawn.
SETS = {
    ("map",): 10,
    ("image",): 5,
    ("one map",): 1,
    ("tokens",): 10,
    ("vector",): 2,
    ("ids",): 3,
    ("ids", "valid"): 2,
    ("ids", "lengths"): 2,
    ("tokens", "valid"): 4,
    ("map", "other map"): 2,
    ("tokens", "other tokens"): 2,
    ("map", "positive"): 1,
    ("tokens", "positive"): 1,
    ("map", "same"): 1,
    ("map", "view"): 1,
    ("tokens", "flat view"): 1,
}


def draw_sizes(draw: random.Random) -> tuple[int, ...]:
    """Batch, height, width, tokens, features."""
    height = draw.choice((7, 8, 14, 5, 4, 3, 2, 1, 9, 16))
    width = height if draw.random() < 0.7 else draw.choice((7, 8, 5, 3, 2, 1, 10))
    tokens = draw.choice((8, 16, 17, 5, 3, 2, 1, 12, 33))
    return draw.choice((1, 2, 2, 3, 4, 5)), height, width, tokens, draw.choice((8, 16, 32, 4, 24, 12, 64, 5, 1))


def other_sizes(draw: random.Random, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Another batch, and sometimes another image and number of tokens."""
    _, height, width, tokens, features = sizes
    if draw.random() < 0.4:
        height, width, tokens, _ = draw_sizes(draw)[1:]
    return draw.choice((1, 2, 3, 4, 5)), height, width, tokens, features


def lines(kinds: tuple[str, ...], sizes: tuple[tuple[int, ...], ...]) -> list[str]:
    """The function ``inputs`` of a script."""
    names = ["x", "y", "z"][: len(kinds)]
    return [
        "def inputs(number=0, dtype=torch.float32):",
        "    g = torch.Generator().manual_seed(number)",
        f"    n, h, w, t, f = {list(sizes)}[number]",
        *(f"    {name} = {KINDS[kind]}" for name, kind in zip(names, kinds, strict=True)),
        f"    return ({', '.join(names)},)",
    ]
