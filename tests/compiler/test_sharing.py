"""Results that are one memory or several by the strides of computed values: as in eager mode, or refused."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import sparsec
from sparsec.doors.from_torch.capture import capture
from sparsec.errors import UnsupportedModel
from tests.compiler.stand_in import compiled

REST: dict[str, Callable[[Tensor], Any]] = {
    "flatten": lambda y: y.flatten(1),
    "all": lambda y: y.flatten(),
    "reshape": lambda y: y.reshape(len(y), -1),
    "pixels": lambda y: y.flatten(2),
    "turned": lambda y: y.permute(0, 2, 3, 1).reshape(len(y), -1, y.shape[1]),
    "contiguous": lambda y: y.contiguous(),
    "twice": lambda y: y,
    "copied": lambda y: y.clone(),
    "slice": lambda y: y[:, :1],
    "slice, flat": lambda y: y[:, :1].flatten(1),
    "slice and flat": lambda y: [y[:, 0], y.flatten(1)],
    "flat twice": lambda y: [y.flatten(1), y.reshape(len(y), -1)],
}
BEFORE: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "turned": lambda x: x.permute(0, 3, 1, 2),
    "transposed": lambda x: x.transpose(1, 2) * 2,
    "swapped": lambda x: (x.transpose(2, 3) + 1).relu(),
}
LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "conv": lambda c: nn.Conv2d(c, 3, 3, padding=1),
    "depthwise": lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c),
    "norm": nn.BatchNorm2d,
    "relu": lambda _: nn.ReLU(),
}
SHAPES = [(2, 4, 5, 6), (5, 2, 2, 1), (1, 4, 1, 6), (2, 1, 3, 1), (1, 1, 1, 4)]


class Several(nn.Module):
    """A layer's value, and what another function makes of it."""

    def __init__(self, before: str, layer: str, rest: str, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.layer, self.rest = BEFORE[before], LAYERS[layer](channels), REST[rest]

    def forward(self, x: Tensor) -> Any:
        y = self.layer(self.before(x))
        return y, self.rest(y)


def groups(results: Any, inputs: Sequence[Tensor]) -> list[int]:
    """For each result the first of inputs and results that has its memory."""
    memory = [x.untyped_storage().data_ptr() for x in (*inputs, *pytree.tree_leaves(results))]
    return [memory.index(each) for each in memory]


def made(before: str, layer: str, rest: str, shape: tuple[int, ...], memory_format: torch.memory_format) -> tuple[Several, Tensor]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    model = Several(before, layer, rest, BEFORE[before](x).shape[1]).eval().to(memory_format=memory_format)
    return model, x


def agrees(before: str, layer: str, rest: str, shape: tuple[int, ...], memory_format: torch.memory_format) -> bool:
    """Whether the model is captured, and not refused; AssertionError where its results are others than in eager mode."""
    model, x = made(before, layer, rest, shape, memory_format)
    with torch.no_grad():
        wanted = model(x)
        try:
            captured = capture(model, (x,))
        except UnsupportedModel as error:
            assert "clones of results" in str(error)
            return False
        found = captured.restore(captured.graph_module(x), [x])
    assert groups(found, [x]) == groups(wanted, [x]), (before, layer)
    for y, right in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
        torch.testing.assert_close(y, right, rtol=1e-5, atol=1e-5)
    return True


ORDERS = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"])


@ORDERS
@pytest.mark.parametrize("rest", REST)
def test_a_value_and_what_a_reshape_makes_of_it(rest: str, memory_format: torch.memory_format) -> None:
    assert agrees("", "conv", rest, (2, 4, 5, 6), memory_format)


@pytest.mark.slow
@pytest.mark.turns(12)
@ORDERS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rest", REST)
def test_results_share_memory_as_in_eager_mode(rest: str, shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    served = [agrees(before, layer, rest, shape, memory_format) for before in BEFORE for layer in LAYERS]
    assert sum(served) >= len(served) // 2


#: One memory or a copy of it, whatever is written to it afterwards.
SHAPED: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda y: y.flatten(1),
    "all": lambda y: y.flatten(),
    "reshape": lambda y: y.reshape(len(y), 1, -1),
    "like another": lambda y: y.transpose(0, 1).reshape_as(y),
    "split again": lambda y: y.flatten(1).unflatten(1, (-1, 1)),
    "contiguous": lambda y: y.contiguous(),
    "copied": lambda y: y.clone(),
}
WRITES: dict[str, Callable[[Tensor], Any]] = {
    "relu": lambda y: nn.functional.relu(y, inplace=True),
    "sum": lambda y: y.add_(1),
    "a part": lambda y: y[:1].mul_(2),
    "an element": lambda y: y[-1].fill_(0.5),
    "another": lambda y: y.copy_(y * 3),
    "by its mean": lambda y: y.__iadd__(y.mean()),
}
SHOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda y: y,
    "first": lambda y: y[0],
    "slice": lambda y: y[..., 1:],
    "chunk": lambda y: y.chunk(2, -1)[0],
    "turned": lambda y: y.transpose(0, -1),
    "flat": lambda y: y.flatten(),
}


class Written(nn.Module):
    """What is written to a reshape of a layer's value, a view of that, and the layer's own value."""

    def __init__(self, before: str, shaped: str, write: str, shown: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.ways = nn.Linear(4, 4), (BEFORES[before], SHAPED[shaped], WRITES[write], SHOWN[shown])

    def forward(self, x: Tensor) -> Any:
        before, shaped, write, shown = self.ways
        value = before(self.layer(x))
        y = shaped(value)
        write(y)
        return shown(y), y, value


BEFORES: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "turned": lambda x: x.transpose(1, 2),
    "permuted": lambda x: x.permute(2, 0, 1),
    "sliced": lambda x: x[..., :3],
}


@pytest.mark.parametrize("door", ["object", "torch.compile"])
@pytest.mark.parametrize("shaped", SHAPED)
@pytest.mark.parametrize(
    ("before", "write", "shown"),
    [
        ("turned", "relu", "chunk"),
        *(
            pytest.param(*ways, marks=[pytest.mark.slow, pytest.mark.turns(40)])
            for ways in itertools.product(BEFORES, WRITES, SHOWN)
            if ways != ("turned", "relu", "chunk")
        ),
    ],
)
def test_what_is_written_to_a_reshape(driver: Any, before: str, shaped: str, write: str, shown: str, door: str) -> None:
    """Where the reshape was a copy, torch's functional form has views that say nothing of memory."""
    model, x = Written(before, shaped, write, shown).eval(), torch.randn(2, 3, 4)
    with torch.no_grad():
        wanted = model(x)
        if door == "object":
            captured = capture(model, (x,))
            found = captured.restore(captured.graph_module(x), [x])
        else:
            found = compiled(model)(x)
        assert groups(found, [x]) == groups(wanted, [x])
        for y, right in zip(found, wanted, strict=True):
            torch.testing.assert_close(y, right, rtol=1e-5, atol=1e-5)
            y.add_(1), right.add_(1)
        for y, right in zip(found, wanted, strict=True):
            torch.testing.assert_close(y, right, rtol=1e-5, atol=1e-5)


def test_what_is_refused_is_one_memory_in_eager_mode_alone() -> None:
    """Torch's stand-ins have other strides of axes of size one, by which its convolutions choose."""
    model, x = made("transposed", "conv", "flatten", (5, 2, 2, 1), torch.contiguous_format)
    with torch.no_grad():
        y, flat = model(x)
    assert y.data_ptr() == flat.data_ptr()
    with pytest.raises(UnsupportedModel, match="without running it"):
        capture(model, (x,))


@pytest.mark.slow
@pytest.mark.parametrize("rest", ["flatten", "contiguous"])
def test_of_channels_last_a_flat_map_is_a_copy_at_every_batch(rest: str) -> None:
    model, x = made("", "conv", rest, (2, 4, 5, 6), torch.channels_last)
    fast = sparsec.compile(model, (x,), threads=1)
    for batch in (2, 3):
        given = torch.randn(batch, 4, 5, 6)
        with torch.no_grad():
            y, other = fast(given)
            right = model(given)[1]
            y.zero_()
        torch.testing.assert_close(other, right, rtol=1e-4, atol=1e-5)


def test_free_sizes_and_copies_by_strides_are_refused() -> None:
    model, x = made("", "conv", "flatten", (2, 4, 5, 6), torch.channels_last)
    with pytest.raises(UnsupportedModel, match="sizes are free"):
        sparsec.compile(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))


def test_a_model_that_shares_nothing_is_not_run() -> None:
    """Nor one of which a view alone is returned, or parts that are no copies whatever the strides."""
    runs = []

    class Counting(nn.Module):
        def __init__(self, parts: Callable[[Tensor], Any]) -> None:
            super().__init__()
            self.layer, self.parts = nn.Linear(8, 8), parts

        def forward(self, x: Tensor) -> Any:
            if not torch._C._len_torch_dispatch_stack() and not isinstance(x, torch._subclasses.FakeTensor):
                runs.append(1)
            return self.parts(self.layer(x))

    for parts in (lambda y: y, lambda y: y.flatten(), lambda y: (y[0], y[1]), lambda y: (y.relu(), y.flatten())):
        capture(Counting(parts).eval(), (torch.randn(2, 8),))
    assert not runs


def test_a_model_that_eager_mode_cannot_run_is_refused_with_its_error() -> None:
    model, x = made("", "conv", "flatten", (2, 4, 5, 6), torch.contiguous_format)
    model.layer.weight = nn.Parameter(model.layer.weight.detach().to_sparse())
    with pytest.raises(UnsupportedModel, match=r"(?s)without running it.*Eager mode cannot run it"):
        capture(model, (x,))


def test_values_that_are_no_tensors_stand_among_the_results() -> None:
    class Named(Several):
        def forward(self, x: Tensor) -> Any:
            y, other = super().forward(x)
            return {"name": "y", "y": y, "none": None, "size": (y.shape[1], 0.5), "other": other}

    x = torch.randn(2, 4, 5, 6)
    model = Named("", "conv", "flatten", 4).eval().to(memory_format=torch.channels_last)
    captured = capture(model, (x,))
    found, wanted = captured.restore(captured.graph_module(x), [x]), model(x)
    assert (found["name"], found["none"], found["size"]) == (wanted["name"], wanted["none"], wanted["size"])
    assert found["y"].data_ptr() != found["other"].data_ptr()
    assert wanted["y"].data_ptr() != wanted["other"].data_ptr()
