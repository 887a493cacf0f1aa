# ruff: noqa: F821
"""Nothing moves tokens in rows to a vector: an internal error."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 2)

    def forward(self, x):
        a, b = self.first(x).split(1, dim=-1)
        return a.squeeze(-1), b.squeeze(-1)


def inputs(number=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(number)
    return (torch.randn(2, 4, 8, generator=g).to(dtype),)


def make(number):
    torch.manual_seed(number)
    return seeded(Model(), "none", number)


model = make(0)
check(sparsec.compile(model, inputs(), threads=1), model, inputs)
check(torch.compile(model, backend="sparse"), model, inputs)
