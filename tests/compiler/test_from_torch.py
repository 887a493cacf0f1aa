"""The torch door: what is captured computes what the model computes, and the model stays as it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune

from sparsec.doors.captured import Captured
from sparsec.doors.from_torch.capture import capture
from sparsec.doors.open import open_model
from sparsec.errors import InvalidInput, UnsupportedModel
from sparsec.ir.forms import Form, notes
from sparsec.ir.verify import Verifier

aten = torch.ops.aten
torch.set_num_threads(1)


class Convolutional(nn.Module):
    """Every operator that must stay whole, two of them in place."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        y = F.silu(F.hardswish(self.features(x), inplace=True))
        y += 1
        return self.head(F.dropout(F.adaptive_avg_pool2d(y, 1).flatten(1), training=self.training))


class Structured(nn.Module):
    """Nested arguments, results of several kinds, buffers, a plain attribute, a write into a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.arange(4.0))
        self.register_buffer("scratch", torch.full((4,), 2.0), persistent=False)
        self.constant = torch.tensor([3.0])

    def forward(self, x, flag, *, scale, table):
        y = x.clone()
        y[:, 0] = 7.0
        return {"sum": y + self.offset * self.scratch, "pair": (y * scale + self.constant, flag), "none": table["t"]}


class OneWeight(nn.Module):
    def __init__(self, weight) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8, bias=False)
        self.linear.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x):
        return self.linear(x)


def targets(captured: Captured) -> list:
    return [node.target for node in captured.graph_module.graph.nodes if node.op == "call_function"]


def run(captured: Captured, *args, **kwargs):
    with torch.no_grad():
        return captured.restore(captured.graph_module(*captured.flatten(args, kwargs)))


def agrees(captured: Captured, model: nn.Module, *args, **kwargs) -> None:
    Verifier()(captured.graph_module, Form.CAPTURED)
    with torch.no_grad():
        torch.testing.assert_close(run(captured, *args, **kwargs), model(*args, **kwargs), rtol=1e-5, atol=1e-6)


def sparse_weight() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(8, 8) * (torch.rand(8, 8) < 0.3)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_operators_stay_whole_and_functional(mode):
    model, x = Convolutional().eval(), torch.randn(2, 3, 8, 8)
    with mode():
        captured = capture(model, (x,))
    assert targets(captured) == [
        aten.conv2d.default,
        aten.batch_norm.default,
        aten.hardtanh.default,
        aten.hardswish.default,
        aten.silu.default,
        aten.add.Tensor,
        aten.adaptive_avg_pool2d.default,
        aten.reshape.default,
        aten.linear.default,
    ]
    agrees(captured, model, x)


def test_attention_and_norms_stay_whole():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(8)

        def forward(self, x):
            return F.gelu(F.scaled_dot_product_attention(*[self.norm(x)] * 3))

    captured = capture(Block().eval(), (torch.randn(2, 3, 5, 8),))
    assert aten.layer_norm.default in targets(captured)
    assert {aten.scaled_dot_product_attention.default, aten.gelu.default} < set(targets(captured))


def test_nodes_know_module_and_line():
    captured = capture(Convolutional().eval(), (torch.randn(2, 3, 8, 8),))
    sources = {node.target: notes(node).get("source", "") for node in captured.graph_module.graph.nodes}
    assert sources[aten.conv2d.default].startswith("features.0 (test_from_torch.py:")
    assert sources[aten.silu.default].startswith("(test_from_torch.py:")


def test_nested_arguments_and_results():
    model, x, scale = Structured().eval(), torch.randn(3, 4), torch.tensor(2.0)
    captured = capture(model, (x, True), {"scale": scale, "table": {"t": None}})
    assert [spec.shape for spec in captured.inputs] == [(3, 4), ()]
    agrees(captured, model, x, True, scale=scale, table={"t": None})
    agrees(captured, model, x, True, table={"t": None}, scale=scale)


def test_other_structure_or_constant_is_refused():
    x, scale = torch.randn(3, 4), torch.tensor(2.0)
    captured = capture(Structured().eval(), (x, True), {"scale": scale, "table": {"t": None}})
    with pytest.raises(InvalidInput, match="Positional arguments: compiled for 2, got 1"):
        captured.flatten((x,), {"scale": scale, "table": {"t": None}})
    with pytest.raises(InvalidInput, match="compiled for the argument True"):
        captured.flatten((x, False), {"scale": scale, "table": {"t": None}})
    with pytest.raises(InvalidInput, match="tensor is expected"):
        captured.flatten((3, True), {"scale": scale, "table": {"t": None}})


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_coo])
def test_sparse_layouts_become_dense_and_the_model_keeps_its_own(layout):
    dense = sparse_weight()
    sparse = dense.to_sparse(layout=layout, blocksize=(2, 2) if layout == torch.sparse_bsr else None)
    model = OneWeight(sparse).eval()
    own = model.linear.weight
    captured = capture(model, (torch.randn(3, 8),))
    assert model.linear.weight is own and own.layout == layout
    assert torch.equal(captured.graph_module.linear_weight, dense)
    agrees(captured, OneWeight(dense).eval(), torch.randn(3, 8))


def test_model_is_unchanged_after_a_failure():
    class Branching(OneWeight):
        def forward(self, x):
            return self.linear(x) if x.sum() > 0 else x

    model = Branching(sparse_weight().to_sparse_csr()).eval()
    own = model.linear.weight
    with pytest.raises(UnsupportedModel, match=r"(?s)cannot capture.*where: Branching.*next:"):
        capture(model, (torch.randn(3, 8),))
    assert model.linear.weight is own and own.layout == torch.sparse_csr


def test_training_mode_is_refused_by_name():
    model = Convolutional().eval()
    model.features[1].train()
    with pytest.raises(UnsupportedModel, match=r"(?s)training mode.*features\.1"):
        capture(model, (torch.randn(2, 3, 8, 8),))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return x * self.count


class WritesInput(nn.Module):
    def forward(self, x):
        return x.add_(1) * 2


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_parameters_without_a_shape_are_refused_by_name():
    model = nn.Sequential(nn.ReLU(), nn.LazyLinear(4)).eval()
    with pytest.raises(UnsupportedModel, match=r"(?s)without a shape.*1\.weight"):
        capture(model, (torch.randn(2, 3),))
    model(torch.randn(2, 3))
    capture(model, (torch.randn(2, 3),))


@pytest.mark.parametrize(("model", "what"), [(Counting(), "count"), (WritesInput(), "'x'"), (Noisy(), "random numbers")], ids=str)
def test_effects_are_refused(model, what):
    with pytest.raises(UnsupportedModel, match=what):
        capture(model.eval(), (torch.randn(3),))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_captured(dtype):
    model, x = Convolutional().eval().to(dtype), torch.randn(2, 3, 8, 8, dtype=dtype)
    captured = capture(model, (x,))
    assert captured.inputs[0].dtype == dtype
    agrees(captured, model, x)


def test_a_shared_parameter_is_one_constant():
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    model = nn.Sequential(first, nn.ReLU(), second).eval()
    captured = capture(model, (torch.randn(3, 8),))
    constants = captured.graph_module.graph.find_nodes(op="get_attr")
    assert sorted(len(node.users) for node in constants) == [1, 1, 2]
    agrees(captured, model, torch.randn(3, 8))


def test_views_of_a_parameter_are_right_and_contiguous():
    model = OneWeight(sparse_weight()).eval()
    model.register_buffer("view", model.linear.weight.detach().t())
    model.forward = lambda x: model.linear(x) @ model.view
    agrees(capture(model, (torch.randn(3, 8),)), model, torch.randn(3, 8))


def test_channels_last_weights_do_not_leak_strides():
    class Reshaping(Convolutional):
        def forward(self, x):
            return self.features(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1)

    model = Reshaping().eval().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    agrees(capture(model, (x,)), model, x.contiguous())
    assert model.features[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_pruned_and_parametrized_weights_are_captured_with_their_mask():
    class Half(nn.Module):
        def forward(self, weight):
            return weight * 0.5

    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    prune.l1_unstructured(model[0], "weight", amount=0.7)
    parametrize.register_parametrization(model[1], "weight", Half())
    model.eval()
    agrees(capture(model, (torch.randn(3, 8),)), model, torch.randn(3, 8))


def test_parameters_made_in_inference_mode():
    with torch.inference_mode():
        model, x = Convolutional().eval(), torch.randn(2, 3, 8, 8)
    captured = capture(model, (x,))
    agrees(captured, model, x)


def test_an_exported_program_with_static_sizes():
    model, x = Convolutional().eval(), torch.randn(2, 3, 8, 8)
    captured = capture(torch.export.export(model, (x,)), (x,))
    assert aten.batch_norm.default in targets(captured)
    agrees(captured, model, x)
    with pytest.raises(InvalidInput, match="does not fit"):
        capture(torch.export.export(model, (x,)), (torch.randn(3, 3, 8, 8),))


def test_an_exported_program_with_a_free_batch_is_captured_at_one_size():
    model, x = Convolutional().eval(), torch.randn(2, 3, 8, 8)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    other = torch.randn(5, 3, 8, 8)
    captured = capture(program, (other,))
    assert captured.inputs[0].shape == (5, 3, 8, 8)
    agrees(captured, model, other)


def test_dynamos_graph_is_captured_without_being_changed():
    seen = []

    def backend(graph_module, example_inputs):
        seen.append((graph_module, example_inputs, str(graph_module.graph)))
        return graph_module

    torch._dynamo.reset()
    model, x = Convolutional().eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.compile(model, backend=backend)(x)
    [(graph_module, example_inputs, text)] = seen
    captured = capture(graph_module, example_inputs)
    assert str(graph_module.graph) == text
    assert {"features_0_weight", "head_bias"} < set(dict(captured.graph_module.named_buffers()))
    sources = {node.target: notes(node).get("source", "") for node in captured.graph_module.graph.nodes}
    assert sources[aten.conv2d.default].startswith("features.0 (test_from_torch.py:")
    with torch.no_grad():
        torch.testing.assert_close(run(captured, x)[0], model(x), rtol=1e-5, atol=1e-6)
    Verifier()(captured.graph_module, Form.CAPTURED)


def test_no_model_and_a_sparse_input_are_refused():
    with pytest.raises(UnsupportedModel, match="is no model"):
        capture(lambda x: x, (torch.randn(3),))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModel, match="sparse_csr"):
        capture(nn.Linear(8, 8).eval(), (torch.eye(8).to_sparse_csr(),))


def test_autocast_is_refused_and_the_model_left_as_it_was() -> None:
    model, x = nn.Linear(8, 4).eval(), torch.randn(2, 8)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        with pytest.raises(UnsupportedModel, match="Autocast is on"):
            open_model(model, (x,))
        assert type(model(x)) is torch.Tensor
