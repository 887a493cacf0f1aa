# ruff: noqa: F821
"""A write to an expanded view was added once for every element that shows a place: torch's functional form of it is another program."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        a, b = torch.broadcast_tensors(y, y[:, :1])
        b.fill_(0.5)
        return {"a": a, "b": b}


def inputs(number=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(number)
    return (torch.randn(2, 12, 14, 3, generator=g).to(dtype),)


model = seeded(Model(), "mixed", 0)
check(torch.compile(model, backend="sparse"), model, inputs)
with contextlib.suppress(sparsec.errors.UnsupportedModel):
    check(sparsec.compile(model, inputs(), threads=1), model, inputs)
