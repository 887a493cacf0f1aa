# ruff: noqa: F821
"""A result and a view of it shared no memory."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        y = self.first(x)
        return y, y.flatten(1)


def inputs(number=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(number)
    return (torch.randn(2, 8, 5, 5, generator=g).to(dtype),)


def make(number):
    torch.manual_seed(number)
    return seeded(Model(), "none", number)


model = make(0)
check(torch.compile(model, backend="sparse"), model, inputs)
