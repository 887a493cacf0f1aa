# ruff: noqa: F821
"""Two samples of two are all of them, and two of four are not; nor is the number of samples that of the first call."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64)

    def forward(self, x):
        return self.first(x)[:2], x.shape[0]


def inputs(number=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(number)
    return (torch.randn((4, 2, 6, 3)[number], 64, generator=g).to(dtype),)


def make(number):
    torch.manual_seed(number)
    return seeded(Model(), "90%", number)


model = make(0)
for dynamic in (None, True):
    fast = torch.compile(model, backend="sparse", dynamic=dynamic)
    for number in (0, 1, 2, 3):
        check(fast, model, inputs, number)
    torch._dynamo.reset()
