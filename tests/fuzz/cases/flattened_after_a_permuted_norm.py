# ruff: noqa: F821
"""A rewrite gave a value other strides, and a captured view did not fit."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.down, self.up = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x):
        a, b = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).chunk(2, 1)
        s = self.up(self.down(a.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return (a * s).flatten(1), b


def inputs(number=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(number)
    return (torch.randn(2, 8, 5, 5, generator=g).to(dtype),)


def make(number):
    torch.manual_seed(number)
    return seeded(Model(), "none", number)


model = make(0)
check(sparsec.compile(model, inputs(), threads=1), model, inputs)
check(torch.compile(model, backend="sparse"), model, inputs)
