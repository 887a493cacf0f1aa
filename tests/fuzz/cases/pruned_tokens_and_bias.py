# ruff: noqa: F821
"""An index left a region as float32, where a constant bias per pair is gathered by the tokens that stay."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 24)
        self.register_buffer("bias", torch.randn(1, 2, 4, 4))
        self.last = nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.first(x).reshape(x.shape[0], x.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        y = x + self.last(y.transpose(1, 2).flatten(2))
        q, k, v = self.first(y).reshape(x.shape[0], x.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        return self.last(y + z.transpose(1, 2).flatten(2)).mean(1)


def inputs(number=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(number)
    return (torch.randn(2, 4, 8, generator=g).to(dtype),)


def make(number):
    torch.manual_seed(number)
    return seeded(Model(), "none", number)


model = make(0)
fast = sparsec.compile(model, inputs(), token_pruning={"keep": 0.5, "after": [1]}, threads=1)
check(fast, model, inputs, values=False)
fast = sparsec.compile(model, inputs(), token_pruning={"keep": 1.0, "after": [1]}, threads=1)
check(fast, model, inputs)
