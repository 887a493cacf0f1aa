# ruff: noqa: F821
"""Two equal features, normalised twice: what rounding tells apart is all that is left. Eager rounds both alike; no fault of anyone's."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.again = nn.LayerNorm(2, elementwise_affine=False), nn.LayerNorm(2)
        self.wide, self.narrow = nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, x):
        y = self.conv(x) + self.conv(x.flip(3))
        tokens = self.again(self.norm(y.reshape(y.shape[0], -1, y.shape[-1])))
        return self.narrow(F.gelu(self.wide(tokens))), y


def inputs(number=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(number)
    return (torch.randn(4, 3, 5, 2, generator=g).to(dtype),)


torch.manual_seed(31000057)
model = seeded(Model(), "mixed", 31000057)
check(sparsec.compile(model, inputs(), threads=1), model, inputs)
