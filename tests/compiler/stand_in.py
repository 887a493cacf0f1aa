"""The torch.compile door with a stand-in compiler that bakes copies of the weights in: a stale weight is a wrong result."""

import weakref

import torch
import torch.nn.functional as F
from torch import nn

from sparsec.run.explanation import Explanation


class Baked:
    """A compiled graph that keeps its own copy of every constant and checks what it is given."""

    fully_compiled = True
    held: dict[int, int] = {}  # noqa: RUF012
    explanation = Explanation()

    def __init__(self, captured, any_batch, nothing_sparse, reasons) -> None:
        self.graph_module = captured.graph_module
        for name, value in self.graph_module.named_buffers():
            setattr(self.graph_module, name, value.clone())
        self.any_batch, self.nothing_sparse, self.reasons = any_batch, nothing_sparse, reasons
        self.seen: list[torch.Tensor] = []

    def forget_origins(self) -> None:
        """There are none."""

    def __call__(self, inputs):
        assert all(tensor.is_contiguous() and tensor.data_ptr() % 64 == 0 for tensor in inputs)
        self.seen = inputs
        return list(self.graph_module(*inputs))


class StandIn:
    """What `sparsec.driver` is for these tests; counts compilations."""

    def __init__(self) -> None:
        self.made: list[weakref.ref] = []
        self.any_batch = self.nothing_sparse = False
        self.reasons: list[str] = []
        self.error: Exception | None = None

    def compile_graph(self, captured, settings, rest=True):
        self.settings = settings
        if self.error:
            raise self.error
        baked = Baked(captured, self.any_batch, self.nothing_sparse, self.reasons)
        self.made.append(weakref.ref(baked))
        return baked

    @property
    def count(self) -> int:
        return len(self.made)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        y = F.relu(self.norm(self.convolution(x)))
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8)


def agrees(fast, model, *args, **kwargs) -> None:
    with torch.no_grad():
        torch.testing.assert_close(fast(*args, **kwargs), model(*args, **kwargs), rtol=1e-5, atol=1e-6)


def compiled(model: nn.Module):
    return torch.compile(model, backend="sparse")


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "sparsec"]
