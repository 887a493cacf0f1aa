# ruff: noqa: F821
"""A view that writes the number of samples out was taken for one that keeps them: another batch got other answers."""


class Model(nn.Module):
    def forward(self, x):
        return x.view(2, 1, -1).mean(1)


def inputs(number=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(number)
    return (torch.randn((2, 3)[number], 264, generator=g).to(dtype),)


model = Model().eval()
fast = sparsec.compile(model, inputs(), threads=1)
check(fast, model, inputs)
with contextlib.suppress(sparsec.errors.InvalidInput):
    check(fast, model, inputs, 1)
