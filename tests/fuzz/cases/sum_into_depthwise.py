# ruff: noqa: F821
"""A sum into a depthwise convolution was dropped."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 8, 1)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x):
        return x + self.second(self.first(x))


def inputs(number=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(number)
    return (torch.randn(2, 8, 5, 5, generator=g).to(dtype),)


def make(number):
    torch.manual_seed(number)
    return seeded(Model(), "none", number)


model = make(0)
check(sparsec.compile(model, inputs(), threads=1), model, inputs)
check(torch.compile(model, backend="sparse"), model, inputs)
