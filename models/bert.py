"""The encoder BERT (Devlin et al. 2019, arXiv 1810.04805)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsec.models.attention import attend, seed_transformer
from sparsec.models.errors import InvalidArgument

EPSILON = 1e-12  # of LayerNorm
TOKEN_TYPES = 2
CLS, SEP = 101, 102  # first and last of a sentence, in the published vocabulary
FIRST_WORD = 1000  # ids below are special, unused or single characters


class BertEmbeddings(nn.Module):
    """norm(word + position + type). ids and types int64 [N,T] → [N,T,width]; without types all are of type 0."""

    def __init__(self, vocabulary: int, positions: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.types = nn.Embedding(TOKEN_TYPES, width)
        self.norm = nn.LayerNorm(width, EPSILON)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        positions = self.positions.weight[: input_ids.shape[1]]
        types = self.types.weight[0] if token_type_ids is None else self.types(token_type_ids)
        return self.norm(self.words(input_ids) + positions + types)


class BertLayer(nn.Module):
    """norm(x + attention(x)), then norm(x + MLP(x)) with GELU. [N,T,width] → [N,T,width]; mask bool [N,1,1,T]."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.projection = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width, EPSILON)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.norm1(x + self.projection(attend(self.query(x), self.key(x), self.value(x), self.heads, mask)))
        return self.norm2(x + self.contract(F.gelu(self.expand(x))))


class Bert(nn.Module):
    """Embeddings, post-norm layers, pooler. (input_ids, attention_mask, token_type_ids) → (last hidden state, pooled).

    `input_ids` int64 [N,T], T at most `positions`; `attention_mask` [N,T] of any dtype, 0 at padding, which no token
    looks at (everyone looks at everything without it); `token_type_ids` int64 [N,T], 0 or 1 (0 without it). The hidden
    state is [N,T,width], also at padding; pooled is tanh of a linear layer on the first token, [N,width].
    InvalidArgument where the heads do not divide the width.
    """

    def __init__(
        self,
        vocabulary: int = 30522,
        positions: int = 512,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 3072,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise InvalidArgument(f"A width of {width} does not split into {heads} heads.")
        self.embeddings = BertEmbeddings(vocabulary, positions, width)
        self.layers = nn.ModuleList(BertLayer(width, heads, hidden) for _ in range(depth))
        self.pooler = nn.Linear(width, width)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        mask = None if attention_mask is None else attention_mask[:, None, None, :] != 0
        x = self.embeddings(input_ids, token_type_ids)
        for layer in self.layers:
            x = layer(x, mask)
        return x, torch.tanh(self.pooler(x[:, 0]))


def bert_base(vocabulary: int = 30522, positions: int = 512, seed: int = 0) -> Bert:
    """BERT-base with seeded weights: 768 wide, 12 layers, 12 heads; 109,482,240 parameters with the pooler.

    Dropout, which acts in training only, is left out.
    """
    with torch.device("meta"):  # every parameter is drawn below; torch would draw them all before
        model = Bert(vocabulary, positions)
    model.to_empty(device="cpu")
    seed_transformer(model, seed)
    return model


def sentence(tokens: int = 128, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids int64 [1,tokens] for the published vocabulary, random words between CLS and SEP, and a mask of ones.

    InvalidArgument for fewer than 3 tokens.
    """
    if tokens < 3:
        raise InvalidArgument(f"A sentence of {tokens} tokens has no word.", why="CLS and SEP take two")
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST_WORD, 30522, (1, tokens), generator=generator)
    ids[:, 0], ids[:, -1] = CLS, SEP
    return ids, torch.ones_like(ids)
