"""Which views are specs, and which keep samples apart for one batch size only; captured graphs that run at any strides."""

import pytest
import torch
from torch import nn

from sparsec.doors.from_torch.capture import capture
from sparsec.errors import UnsupportedModel
from sparsec.ir.miss import Miss
from sparsec.lower import views
from sparsec.lower.describe import spec_of
from sparsec.lower.spec import KernelSpec
from tests.compiler.test_describe import fused, last

aten = torch.ops.aten


def spec(function, *shape: int) -> KernelSpec | Miss:
    """Of the last node of a function of one value: views of inputs are in no graph."""
    return spec_of(last(fused(lambda x: function(x.relu()), torch.zeros(shape))))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: x.flatten(1), (2, 3)),
        (lambda x: x.reshape(len(x), -1), (1, 3)),
        (lambda x: x.squeeze(-1), (5, 1)),
        (lambda x: x.squeeze((2, 3)), (5, 1, 1)),
        (lambda x: x.unsqueeze(2), (5,)),
        (lambda x: x.unflatten(1, (2, -1)), (6, 2)),
    ],
)
def test_shapes_in_the_same_order(batch, function, shape):
    found = spec(function, batch, *shape)
    assert isinstance(found, KernelSpec) and found.op == "alias"


def test_turned_axes():
    assert spec(lambda x: x.permute(0, 3, 1, 2), 2, 4, 5, 6)["dims"] == (2, 0, 1)
    assert spec(lambda x: x.transpose(-1, 1), 2, 4, 5)["dims"] == (1, 0)


@pytest.mark.parametrize(
    ("function", "shape", "reason"),
    [
        (lambda x: x.squeeze(0), (1, 1, 5), "for a batch of one only"),
        (lambda x: x.unsqueeze(0), (1, 5), "for a batch of one only"),
        (lambda x: x.transpose(0, 1), (2, 2, 5), "turns the batch"),
        (lambda x: x.transpose(0, 1), (1, 1, 5), "turns the batch"),
        (lambda x: x.unsqueeze(1).unsqueeze(1), (2, 3, 5), "kernels take"),
        (lambda x: x.transpose(0, 1), (2, 3, 5), "batch sizes"),
    ],
)
def test_views_of_the_batch_are_refused(function, shape, reason):
    found = spec(function, *shape)
    assert isinstance(found, Miss) and reason in found.reason


def test_what_is_moved_one_by_one_has_a_limit(monkeypatch):
    monkeypatch.setattr(views, "MOST", 19)
    assert "one by one" in spec(lambda x: x.transpose(1, 2), 2, 4, 5).reason  # type: ignore[union-attr]
    assert isinstance(spec(lambda x: x.flatten(1), 2, 4, 5), KernelSpec)


class Strided(nn.Module):
    """A function of a linear layer's result."""

    def __init__(self, function) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(6, 8), function

    def forward(self, x):
        return self.function(self.linear(x))


X = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))


def runs_at_any_strides(function) -> None:
    """The captured graph, with the result of the layer in another order in memory, gives what eager gives."""
    model = Strided(function).eval()
    module = capture(model, (X,)).graph_module
    for node in list(module.graph.nodes):
        if node.target is aten.linear.default:
            with module.graph.inserting_after(node):
                turned = module.graph.call_function(lambda y: y.transpose(1, 2).contiguous().transpose(1, 2), (node,))
            node.replace_all_uses_with(turned, lambda user, made=turned: user is not made)
    module.recompile()
    with torch.no_grad():
        assert torch.equal(module(X)[0], model(X))


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y.view(2, 32),
        lambda y: y.view(2, 4, 2, 4).flatten(2),
        lambda y: y.view(torch.int32),
        lambda y: y.view(torch.int16),
        lambda y: torch.view_as_real(torch.view_as_complex(y.view(2, 4, 4, 2))),
        lambda y: y.as_strided((2, 3), (5, 1), 2),
    ],
)
def test_what_depends_on_strides_does_so_no_more(function):
    runs_at_any_strides(function)


def test_memory_around_a_tensor_is_refused():
    with pytest.raises(UnsupportedModel, match="memory around a tensor"):
        capture(Strided(lambda y: y[:, 1:].as_strided((2, 3), (5, 1))).eval(), (X,))


def test_memory_of_an_input_is_known_as_such():
    from sparsec.doors.from_torch.lower import lower

    class Window(nn.Module):
        def forward(self, x):
            return x.as_strided((2, 3), (5, 1)), (x + 1).as_strided((2, 3), (5, 1))

    assert len(lower(torch.export.export(Window().eval(), (X,)).run_decompositions({})).views) == 1
