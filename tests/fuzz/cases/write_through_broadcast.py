# ruff: noqa: F821
"""A write through what broadcast_tensors shows of a value did not reach the value."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64)

    def forward(self, x):
        y = self.first(x)
        a, b = torch.broadcast_tensors(y, y[:, :1])
        b[:, :1].zero_()
        return [b, a]


def inputs(number=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(number)
    return (torch.randn(2, 1, 64, generator=g).to(dtype),)


def make(number):
    torch.manual_seed(number)
    return seeded(Model(), "90%", number)


model = make(0)
check(sparsec.compile(model, inputs(), threads=1), model, inputs)
