# ruff: noqa: F821
"""A pooled map, squeezed axis by axis before a linear layer: an internal error."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 5)

    def forward(self, x):
        return self.first(F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1))


def inputs(number=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(number)
    return (torch.randn(2, 8, 5, 5, generator=g).to(dtype),)


def make(number):
    torch.manual_seed(number)
    return seeded(Model(), "none", number)


model = make(0)
check(sparsec.compile(model, inputs(), threads=1), model, inputs)
check(torch.compile(model, backend="sparse"), model, inputs)
