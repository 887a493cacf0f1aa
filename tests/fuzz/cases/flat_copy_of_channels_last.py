# ruff: noqa: F821
"""A value in channels-last order and what flatten makes of it are two memories: a write to one leaves the other as it was."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        return y, y.flatten(1)


def inputs(number=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(number)
    return (torch.randn(2, 4, 5, 6, generator=g).to(dtype),)


def make(number):
    torch.manual_seed(number)
    return seeded(Model(), "90%", number).to(memory_format=torch.channels_last)


model = make(0)
fast = sparsec.compile(model, inputs(), threads=1)
check(fast, model, inputs, 0)
