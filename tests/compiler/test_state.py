"""A model whose call depends on the calls before it is refused, by attribute and reason; one that only keeps tables is not."""

from collections import deque
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import sparsec
from sparsec.errors import UnsupportedModel


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.hidden, self.by_name, self.rows, self.count = None, {"sum": torch.zeros(4, 16)}, [], 0
        self.queue, self.box, self.first = deque(maxlen=3), SimpleNamespace(last=torch.zeros(4, 16)), True


class Hidden(Model):
    def forward(self, x: Tensor) -> Tensor:
        self.hidden = self.layer(x) if self.hidden is None else self.layer(x) + self.hidden
        return self.hidden.tanh()


class InDictionary(Model):
    def forward(self, x: Tensor) -> Tensor:
        self.by_name["sum"] = self.layer(x) + self.by_name["sum"]
        return self.by_name["sum"] * 2


class Listed(Model):
    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(self.layer(x))
        return torch.cat(self.rows).sum(0)


class Queue(Model):
    def forward(self, x: Tensor) -> Tensor:
        self.queue.append(self.layer(x))
        return sum(self.queue)


class InObject(Model):
    def forward(self, x: Tensor) -> Tensor:
        self.box.last = self.layer(x) * 0.9 + self.box.last * 0.1
        return self.box.last + 1


class Returned(Model):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        before, self.hidden = self.hidden, self.layer(x)
        return self.hidden, self.hidden if before is None else before


class Counted(Model):
    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.layer(x) / self.count


class CountedInCondition(Model):
    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.layer(x) if self.count % 2 else self.layer(x).relu()


class FirstOnly(Model):
    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.first:
            self.first, y = False, y * 2
        return y


class CountReturned(Model):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        self.count += 1
        return self.layer(x), self.count


class CountInTensor(Model):
    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.layer(x) + torch.full((16,), float(self.count))


class OnceOnly(Model):
    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(self.layer(x))
        return torch.stack(self.rows).view(4, 16)


STATE = {
    OnceOnly: "rows: the next call raises RuntimeError",
    Hidden: "hidden: add takes", InDictionary: "by_name: add takes", Listed: "rows: cat takes", Queue: "queue: add takes",
    InObject: "box.last: mul takes", Returned: "hidden: a result takes", Counted: "count: div of a number",
    CountedInCondition: "count: other functions", FirstOnly: "first: other functions", CountReturned: "count: a result of a number",
    CountInTensor: "count: add of a number",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")
@pytest.mark.parametrize("kind", STATE, ids=lambda kind: kind.__name__)
def test_what_one_call_leaves_for_the_next_is_refused(kind: type[Model]) -> None:
    with pytest.raises(UnsupportedModel, match="keeps something of a call") as caught:
        sparsec.compile(kind().eval(), (torch.randn(4, 16),), threads=1)
    assert f"{caught.value.where}: {caught.value.why}".startswith(STATE[kind])


class Mask(Model):
    """Made of the input's type, size and device alone."""

    def forward(self, x: Tensor) -> Tensor:
        if self.hidden is None:
            self.hidden = x.new_ones(x.shape[-1]).cumsum(0).to(x)
            self.rows = [torch.ones_like(x[0])]
        return self.layer(x) + self.hidden * self.rows[0]


class Fused(Model):
    """Computed of weights once."""

    def forward(self, x: Tensor) -> Tensor:
        if self.hidden is None:
            self.hidden = self.layer.weight @ self.layer.weight
        return x @ self.hidden


class Watched(Model):
    """Kept for whoever looks."""

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.hidden = self.layer(x)
        self.rows.append(self.hidden)
        self.queue.append(self.hidden)
        return self.hidden * 2


class WithinACall(Model):
    def forward(self, x: Tensor) -> Tensor:
        self.box.last = self.layer(x)
        return self.box.last + self.box.last.relu()


@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")
@pytest.mark.parametrize("kind", [Mask, Fused, Watched, WithinACall])
def test_what_is_kept_and_changes_nothing_is_not(without_inductor: None, kind: type[Model]) -> None:
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(4, 16)
    fast = sparsec.compile(model, (x,), threads=1)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
