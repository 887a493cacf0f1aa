"""Writes beside a reshape that is a view or a copy by the strides of a computed value: as in eager mode, or refused; both doors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsec.doors.from_torch.capture import capture
from sparsec.doors.from_torch.writes import UnfollowedWrite
from sparsec.errors import UnsupportedModel
from tests.compiler.stand_in import compiled


class Attention(nn.Module):
    """In eval mode eager runs one kernel of torch's, whose result is in rows; a trace has transposed ones."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class Called(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


#: Of tokens [N,6,4] and of maps [N,4,6,5].
TOKENS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 4),
    "batch norm": lambda: nn.BatchNorm1d(6),
    "attention": Attention,
    "attention, norm": lambda: nn.Sequential(Attention(), nn.BatchNorm1d(6)),
    "layer norm": lambda: nn.LayerNorm(4),
    "group norm": lambda: nn.GroupNorm(2, 6),
    "instance norm": lambda: nn.InstanceNorm1d(6),
    "convolution": lambda: nn.Conv1d(6, 6, 1),
    "softmax": lambda: nn.Softmax(-1),
    "pool": lambda: nn.MaxPool1d(2, 1, 1),
    "gelu": nn.GELU,
    "lstm": lambda: Called(nn.LSTM(4, 4, batch_first=True)),
    "sum": lambda: Called(lambda x: x + x.flip(1)),
    "scaled": lambda: Called(lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]),
    "product": lambda: Called(lambda x: torch.matmul(x.transpose(1, 2), torch.ones(6, 6)).transpose(1, 2)),
    "batched": lambda: Called(lambda x: torch.einsum("ntf,nsf->nts", x, x)),
    "cumsum": lambda: Called(lambda x: x.cumsum(1)),
    "where": lambda: Called(lambda x: torch.where(x > 0, x, 0.0)),
    "concatenation": lambda: Called(lambda x: torch.cat([x, x], 2)),
}
MAPS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "transposed convolution": lambda: nn.ConvTranspose2d(4, 4, 2),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "max pool": lambda: nn.MaxPool2d(2),
    "average pool": lambda: nn.AvgPool2d(2),
    "adaptive pool": lambda: nn.AdaptiveAvgPool2d(2),
    "upsample": lambda: nn.Upsample(scale_factor=2),
    "pad": lambda: nn.ZeroPad2d(1),
    "shuffle": lambda: nn.PixelShuffle(2),
    "relu": nn.ReLU,
    "hardswish": nn.Hardswish,
}
TURNED: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda x: x * 2,
    "turned": lambda x: (x.transpose(0, 1) * 2).transpose(0, 1),
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1) * 2,
    "axes of one": lambda x: (x.transpose(0, 1).contiguous() * 2).transpose(0, 1)[:1],
}
RESHAPED: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda y: y.flatten(1),
    "module": nn.Flatten(),
    "all": lambda y: y.reshape(-1),
    "turned": lambda y: y.transpose(1, -1).flatten(1),
    "contiguous": lambda y: y.contiguous(),
    "like": lambda y: y.reshape_as(y.flatten(1)),
    "layout": lambda y: y.to(memory_format=torch.channels_last) if y.dim() == 4 else y.to(memory_format=torch.contiguous_format),
}
WRITTEN: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "the reshape": lambda y, flat: (flat.zero_(), y.mean(1)),
    "the value": lambda y, flat: (y.zero_(), flat.sum()),
    "a part": lambda y, flat: (flat[:1].add_(1), y * 1),
}


class Beside(nn.Module):
    """A value, a reshape of it, a write to one of them, and the other."""

    def __init__(self, layer: nn.Module, turned: str, reshaped: str, write: str) -> None:
        super().__init__()
        self.layer, self.ways = layer, (TURNED[turned], RESHAPED[reshaped], WRITTEN[write])

    def forward(self, x: Tensor) -> Tensor:
        turned, reshaped, write = self.ways
        y = self.layer(turned(x))
        y = y[0] if isinstance(y, tuple) else y
        return write(y, reshaped(y))[1]


def answers(layer: nn.Module, turned: str, reshaped: str, write: str, shape: tuple[int, ...], door: str) -> bool:
    """Whether it is compiled, and not refused (in ``torch.compile`` it runs in eager mode then); AssertionError for a wrong answer."""
    torch.manual_seed(0)
    model, x = Beside(layer, turned, reshaped, write).eval(), torch.randn(shape)
    with torch.no_grad():
        wanted = model(x)
        if door == "torch.compile":
            found = compiled(model)(x)
        else:
            try:
                captured = capture(model, (x,))
            except UnfollowedWrite as error:
                assert "beside a reshape" in str(error)
                return False
            found = captured.restore(captured.graph_module(x), [x])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, msg=lambda text: f"{layer} {turned} {reshaped} {write} {door}: {text}")
    return True


#: Every two ways of two kinds meet.
WAYS = [
    (turned, reshaped, write)
    for i, turned in enumerate(TURNED)
    for j, reshaped in enumerate(RESHAPED)
    for k, write in enumerate(WRITTEN)
    if (i + j + k) % 3 == 0
]
CASES = [
    *((f"tokens {name}", make, (3, 6, 4)) for name, make in TOKENS.items()),
    *((f"map {name}", make, (3, 4, 6, 5)) for name, make in MAPS.items()),
]


@pytest.mark.parametrize("door", ["object", "torch.compile"])
def test_a_norm_after_attention(driver: Any, door: str) -> None:
    """Torch's fake norm keeps strides that the true one does not: torch.compile with any backend answers otherwise than eager mode."""
    assert answers(TOKENS["attention, norm"](), "rows", "flatten", "the reshape", (3, 6, 4), door) == (door == "torch.compile")


@pytest.mark.slow
@pytest.mark.turns(8)
@pytest.mark.parametrize("door", ["object", "torch.compile"])
@pytest.mark.parametrize(("make", "shape"), [pytest.param(make, shape, id=name) for name, make, shape in CASES])
def test_layers_of_torch(driver: Any, make: Callable[[], nn.Module], shape: tuple[int, ...], door: str) -> None:
    served = [answers(make(), *ways, shape, door) for ways in WAYS]
    assert sum(served) >= len(served) // 3


ASKED: dict[str, Callable[[Tensor], Tensor]] = {
    "a factor": lambda y: y.stride(0) * y,
    "a branch": lambda y: y.view(-1) if y.is_contiguous() else y.reshape(-1) * 3,
    "of another": lambda y: y + torch.empty_like(y).stride(0),
    "no matter": lambda y: y if y.is_contiguous() else y.contiguous(),
    "nor here": lambda y: y.sum(1) if y.stride(1) > 1 else y.transpose(0, 1).sum(0),
}


@pytest.mark.parametrize("layer", ["batch norm", "gelu", "pool", "attention, norm"])
@pytest.mark.parametrize("asked", ASKED)
def test_questions_for_strides_of_computed_values(driver: Any, asked: str, layer: str) -> None:
    """Of a trace that is told otherwise than eager mode the answers count: where they are others, it is refused."""
    torch.manual_seed(0)
    model, x = nn.Sequential(Called(TURNED["turned"]), TOKENS[layer](), Called(ASKED[asked])).eval(), torch.randn(3, 6, 4)
    with torch.no_grad():
        wanted = model(x)
    try:
        captured = capture(model, (x,))
    except UnsupportedModel as error:
        assert "how values lie in memory" in str(error) and asked in ("a factor", "a branch", "of another") and layer != "gelu"
        return
    torch.testing.assert_close(captured.restore(captured.graph_module(x), [x]), wanted, rtol=1e-5, atol=1e-5)


def test_what_is_not_used_afterwards_is_not_looked_into() -> None:
    """An activation in place on a flattened map, as classifiers have it, is no reason to run the model."""
    runs = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not isinstance(x, torch._subclasses.FakeTensor):
                runs.append(1)
            y = F.gelu(x.transpose(1, 2))
            return F.relu(y.flatten(1), inplace=True).sigmoid_()

    capture(Counting().eval(), (torch.randn(2, 3, 4),))
    assert not runs


def test_a_copy_that_a_stand_in_needs_not(driver: Any) -> None:
    """``contiguous`` of what torch takes for contiguous leaves nothing in a graph."""

    class Lying(nn.Module):
        """As rows where it is traced alone."""

        def forward(self, x: Tensor) -> Tensor:
            y = x * 2 if isinstance(x, torch._subclasses.FakeTensor) else (x.transpose(1, 2).contiguous() * 2).transpose(1, 2)
            flat = y.contiguous()
            flat.zero_()
            return y + 1

    with pytest.raises(UnfollowedWrite, match="beside a reshape"):
        capture(Lying().eval(), (torch.randn(3, 6, 4),))


def test_a_slice_of_everything_is_a_view() -> None:
    """A graph has an ``alias`` for it; beside it other reshapes are otherwise in eager mode, and ``contiguous`` is left out."""

    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.sin().contiguous()
            y[..., :4] += x
            turned = F.max_pool1d(x.transpose(0, 1), 2, 1, 1).transpose(0, 1).flatten(1)
            return y.sum() + turned.sum()

    model, x = Whole().eval(), torch.randn(3, 6, 4)
    captured = capture(model, (x,))
    torch.testing.assert_close(captured.restore(captured.graph_module(x), [x]), model(x))


def test_a_program_is_refused_where_it_does_not_tell() -> None:
    """One that splits axes alone is a view by any strides."""

    def split(y: Tensor) -> Tensor:
        y.reshape(3, 2, 2, 1, 6).zero_()
        return y + 1

    torch.manual_seed(0)
    x = torch.randn(3, 6, 4)
    for reshaped in ("flatten", "module"):
        program = torch.export.export(Beside(TOKENS["batch norm"](), "turned", reshaped, "the reshape").eval(), (x,))
        with pytest.raises(UnfollowedWrite, match="A program does not tell"):
            capture(program, (x,))
    of_split = torch.export.export(Called(lambda x: split(F.gelu(x.transpose(1, 2)))), (x,))
    capture(of_split, (x,))


def test_the_model_and_its_inputs_are_left_as_they_were(driver: Any) -> None:
    """It is run to see, and keeps a value that it writes to; one input's elements share memory."""

    class Keeping(nn.Module):
        last = None

        def forward(self, x: Tensor) -> Tensor:
            y = F.gelu(x.transpose(1, 2))
            y.flatten(1).zero_()
            self.last = y
            return y + 1

    model = Keeping().eval()
    for x in (torch.randn(3, 6, 4), torch.randn(3, 1, 4).expand(3, 6, 4)):
        before = x.clone()
        captured = capture(model, (x,))
        assert torch.equal(captured.restore(captured.graph_module(x), [x]), F.gelu(x.transpose(1, 2)) + 1)
        assert torch.equal(x, before) and model.last is None
