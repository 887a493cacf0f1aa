# ruff: noqa: F821
"""Flattened tokens were written feature by feature."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(32, 5)

    def forward(self, x):
        return self.second(self.first(x).flatten(1))


def inputs(number=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(number)
    return (torch.randn(2, 4, 8, generator=g).to(dtype),)


def make(number):
    torch.manual_seed(number)
    return seeded(Model(), "none", number)


model = make(0)
check(sparsec.compile(model, inputs(), threads=1), model, inputs)
check(torch.compile(model, backend="sparse"), model, inputs)
