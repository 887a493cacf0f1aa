# ruff: noqa: F821
"""After a step of a fused optimizer, which raises no version, the old weights answered."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)

    def forward(self, x):
        return self.first(x)


def inputs(number=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(number)
    return (torch.randn(2, 4, 8, generator=g).to(dtype),)


def make(number):
    torch.manual_seed(number)
    return seeded(Model(), "none", number)


model = make(0)
fast = torch.compile(model, backend="sparse")
check(fast, model, inputs)
train(model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True), model, inputs)
check(fast, model, inputs)
