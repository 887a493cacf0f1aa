"""Results that share memory: values, who shares with whom, and whom a write reaches, as in eager mode, through every door."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import sparsec
from sparsec.doors.from_torch.capture import capture, capture_graph
from sparsec.doors.torch_compile import backend as torch_backend
from sparsec.errors import ArtifactError, UnsupportedModel
from tests.compiler.stand_in import warnings_in

# Whole compilations: the fast set has the parts.
pytestmark = pytest.mark.slow


class Net(nn.Module):
    """A convolution with zeros; a function of its result, the input and the module gives the results."""

    def __init__(self, function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.function = nn.Conv2d(4, 4, 1), function
        with torch.no_grad():
            self.conv.weight[::2] = 0

    def forward(self, x: Tensor):
        return self.function(self.conv(x), x, self)


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, 6, 5, generator=torch.Generator().manual_seed(batch))


OF_RESULTS = {
    "same": lambda y, x, m: (y, y),
    "flatten": lambda y, x, m: (y, y.flatten(1)),
    "transpose": lambda y, x, m: (y.transpose(1, 2), y),
    "slice": lambda y, x, m: (y, y[:, 1:, ::2], y[:, 0]),
    "unsqueeze": lambda y, x, m: [y.unsqueeze(1), y.squeeze(1)],
    "detach": lambda y, x, m: {"a": y, "b": y.detach()},
    "chunk": lambda y, x, m: y.chunk(2, 1),
    "split of a hidden value": lambda y, x, m: torch.split(y.relu(), [1, 3], 1),
    "unsafe chunk": lambda y, x, m: torch.unsafe_chunk(y, 2, 1),
    "unsafe split": lambda y, x, m: (*torch.unsafe_split(y, 2, 1), *torch.unsafe_split_with_sizes(y, [1, 3], 1)),
    "unbind": lambda y, x, m: y.unbind(1),
    "diagonal": lambda y, x, m: (y.diagonal(0, 2, 3), y),
    "expand": lambda y, x, m: (y[:, :1].expand(-1, 3, -1, -1), y),
    "other dtype": lambda y, x, m: (y, y.view(torch.int32)),
    "no copy": lambda y, x, m: (y, y.contiguous(), y.float(), y.reshape(y.shape)),
    "written": lambda y, x, m: (y.relu_(), y),
    "view written": lambda y, x, m: (y, y.flatten(1).mul_(3)),
    "part written": lambda y, x, m: (y, y[:, 0].mul_(2)),
    "turned in place": lambda y, x, m: (y, y.transpose_(2, 3)),
    "dropout": lambda y, x, m: (y, F.dropout(y, 0.5, False)),
    "channels dropped out": lambda y, x, m: (y, F.dropout2d(y, 0.5, False).flatten(1)),
    "mesh": lambda y, x, m: (*torch.meshgrid(y[0, 0, 0], y[0, 0, :, 0], indexing="ij"), y),
    "broadcast": lambda y, x, m: torch.broadcast_tensors(y, y[:, :1]),
    "at least a vector": lambda y, x, m: (y, *torch.atleast_1d(y[0, 0, 0, 0], y[0])),
    "sum to its own size": lambda y, x, m: (y.sum_to_size(y.shape), y),
    "einsum of one": lambda y, x, m: (torch.einsum("abcd->abdc", y), y),
    "einsum of an input": lambda y, x, m: (torch.einsum("abcd->abdc", x), y),
    "nothing dropped out": lambda y, x, m: (torch.dropout(y, 0.0, True), y),
}
#: What may show its argument's memory; then it is written to.
WRITTEN_THROUGH = {
    "mesh": lambda y: torch.meshgrid(y[0, 0, 0], y[0, 0, :, 0], indexing="ij")[0][:, :1],
    "broadcast": lambda y: torch.broadcast_tensors(y, y[:, :1])[0],
    "broadcast of one row": lambda y: torch.broadcast_tensors(y, y[:, :1])[1][:, :1],
    "at least a vector": torch.atleast_1d,
    "at least a volume": lambda y: torch.atleast_3d(y[0, 0])[0],
    "sum to its own size": lambda y: y.sum_to_size(y.shape),
    "nothing dropped out": lambda y: torch.dropout(y, 0.0, True),
    "dropout": lambda y: F.dropout(y, 0.5, False),
    "channels dropped out": lambda y: F.dropout2d(y, 0.5, False),
    "ravel": torch.ravel,
    "reshape": lambda y: y.reshape(y.shape[0], -1),
    "no reshape": lambda y: y.transpose(1, 3).reshape(y.shape[0], -1),
    "as another": lambda y: y.reshape_as(y),
    "view as another": lambda y: y.view_as(y),
    "expand as another": lambda y: y.expand_as(y),
    "moved": lambda y: y.movedim(1, 2),
    "swapped": lambda y: y.swapaxes(1, 2),
    "adjoint": torch.adjoint,
    "matrix": lambda y: y.mT,
    "parts": lambda y: y.tensor_split(2, 1)[1],
    "rows": lambda y: y.hsplit(2)[0],
    "columns": lambda y: y.dsplit([2])[1],
    "chunk": lambda y: y.chunk(2, 1)[0],
    "narrow": lambda y: y.narrow(1, 1, 2),
    "unflatten": lambda y: y.unflatten(1, (2, 2)),
    "flatten": lambda y: y.flatten(1),
    "squeeze": lambda y: y[:, :1].squeeze(1),
    "windows": lambda y: y.unfold(2, 2, 2),
    "diagonal": lambda y: y.diagonal(0, 2, 3),
    "same type": lambda y: y.type_as(y),
    "same dtype": lambda y: y.to(torch.float32),
    "float": lambda y: y.float(),
    "contiguous": lambda y: y.contiguous(),
    "not contiguous": lambda y: y.transpose(1, 2).contiguous(),
    "detach": lambda y: y.detach(),
    "no padding": lambda y: F.pad(y, (0, 0, 0, 0)),
    "real": torch.real,
    "alias": lambda y: y[...],
    "positive": lambda y: +y,
    "pooled by one": lambda y: F.avg_pool2d(y, 1),
    "resized to its size": lambda y: F.adaptive_avg_pool2d(y, y.shape[2:]),
}
APART = {
    "clone": lambda y, x, m: (y, y.clone()),
    "view of a clone": lambda y, x, m: (y, y.clone().flatten(1)),
    "equal": lambda y, x, m: (y + 1, y + 1),
    "clone of the input": lambda y, x, m: (y, x.clone().flatten(1)),
    "of weights": lambda y, x, m: (y, m.conv.weight * 2),
}
OF_INPUTS = {
    "input": lambda y, x, m: (y, x),
    "dropped out input": lambda y, x, m: (F.dropout(x, 0.5, False), y),
    "view of input": lambda y, x, m: (y, x.flatten(1)),
    "parts of input": lambda y, x, m: (*x.chunk(2, 1), y),
    "mesh of the input": lambda y, x, m: (y, *torch.meshgrid(x[0, 0, 0], x[0, 0, :, 0], indexing="ij")),
    "nothing else": lambda y, x, m: x,
    "input and results": lambda y, x, m: (x[:, 1], y, y[:, 0], x),
}
WRITTEN = {
    "input written": lambda y, x, m: (x.mul_(2), y),
    "only written": lambda y, x, m: (x[:, 0].fill_(1) * 0, y)[1],
    "statistics written": lambda y, x, m: F.instance_norm(y, x[0, :, 0, 0], x[1, :, 1, 1], use_input_stats=True),
    "view of input written": lambda y, x, m: (y, x.view(-1).add_(1), x),
}
SHARED = OF_RESULTS | APART | OF_INPUTS


def writes(show):
    """The shown value written to, and what it may be seen in."""
    return lambda y, x, m: (show(y).mul_(3), y + 1)


def structure(tensors) -> list[int]:
    """For each tensor the first with the same memory."""
    addresses = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    return [addresses.index(address) for address in addresses]


def behaves(run, model, batch: int = 2) -> None:
    """The same results, of the same structure of memory, with and without one written to; earlier results stay."""
    given, expected_given = images(batch), images(batch)
    with torch.no_grad():
        found, expected = [given, *tree_leaves(run(given))], [expected_given, *tree_leaves(model(expected_given))]
        assert structure(found) == structure(expected)
        same(found, expected)
        kept = [tensor.clone() for tensor in found]
        run(images(batch) + 1)
        same(found, kept)
        for position, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
            if mine.is_floating_point() and 0 not in theirs.stride():
                assert mine.add_(position + 1).data_ptr() == mine.data_ptr()
                theirs.add_(position + 1)
                same(found, expected)
        fresh = images(batch)
        same([fresh, *tree_leaves(run(fresh))][1:], tree_leaves(model(images(batch))))


def same(found, expected) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("case", WRITTEN_THROUGH)
def test_writes_through_what_shows_a_value(case):
    model = Net(writes(WRITTEN_THROUGH[case])).eval()
    captured = capture(model, (images(),))
    inputs = captured.flatten((images(),))
    with torch.no_grad():
        same(tree_leaves(captured.restore(captured.graph_module(*inputs), inputs)), tree_leaves(model(images())))


@pytest.mark.parametrize("case", SHARED)
@pytest.mark.turns(2)
def test_a_captured_graph(case):
    model = Net(SHARED[case]).eval()
    captured = capture(model, (images(),))
    returned = captured.graph_module.graph.output_node().all_input_nodes

    def run(x):
        inputs = captured.flatten((x,))
        return captured.restore([value.clone() for value in captured.graph_module(*inputs)], inputs)

    behaves(run, model)
    assert case in APART or len(returned) == len({node.name for node in returned}) <= 1 + (case == "unsqueeze")


def test_results_that_share_nothing_need_nothing():
    captured = capture(Net(lambda y, x, m: (y, y.relu(), y.mean())).eval(), (images(),))
    assert captured.aliasing is None and not captured.shares_results


FOLLOWING = {"flatten": True, "chunk": True, "slice": True, "detach": True, "first": False, "turned": False, "all": False}
ODD = {
    "first": lambda y, x, m: (y, y[0]),
    "turned": lambda y, x, m: (y, y.transpose(0, 1)),
    "all": lambda y, x, m: (y, y.flatten()),
}


@pytest.mark.parametrize("case", FOLLOWING)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.slow
def test_views_that_keep_the_batch_serve_all_its_sizes(case, batch):
    model = Net((OF_RESULTS | ODD)[case]).eval()
    captured = capture(model, (images(batch),))
    assert captured.aliasing.follows_batch == FOLLOWING[case]
    if FOLLOWING[case]:
        results = captured.aliasing.restore([model.conv(images(5)).detach()], [images(5)])
        same(results, tree_leaves(model(images(5))))


def test_a_channel_is_not_taken_for_the_batch():
    """y[0] of one image with one channel has the shape of a batch of one."""
    captured = capture(Net(lambda y, x, m: (z := y[:, :1] * 2, z[0])).eval(), (images(1),))
    assert not captured.aliasing.follows_batch


def test_bases_are_stored_as_they_were_when_captured():
    """A view that exists of channels that lie innermost."""
    model = Net(lambda y, x, m: (z := y.permute(0, 2, 3, 1) + 1, z.permute(0, 3, 1, 2).view(len(y), -1))).eval()
    captured = capture(model, (images(),))
    behaves(lambda x: captured.restore([v.contiguous() for v in captured.graph_module(x)], [x]), model)


@pytest.mark.parametrize("case", WRITTEN)
def test_models_that_write_to_their_input_are_refused(case):
    with pytest.raises(UnsupportedModel, match="writes to 'x'"):
        capture(Net(WRITTEN[case]).eval(), (images(),))


@pytest.fixture
def eager_rest(driver, monkeypatch):
    """What is compiled dense runs as it is."""
    monkeypatch.setattr(torch_backend, "retrace_dense", lambda graph_module: graph_module)
    return driver


def through_dynamo(function):
    model = Net(function).eval()
    return torch.compile(copy.deepcopy(model), backend="sparse"), model


DOOR = ("same", "flatten", "slice", "chunk", "view written", "dropout", "view of a clone", "view of input", "input", *WRITTEN)


@pytest.mark.parametrize("case", DOOR)
@pytest.mark.turns(2)
def test_one_graph_of_dynamo(case, eager_rest, caplog):
    behaves(*through_dynamo((SHARED | WRITTEN)[case]))
    dense = case in WRITTEN or case == "view of input"
    assert bool(warnings_in(caplog)) == dense and (dense or eager_rest.count)


def broken_flatten(y, x, m):
    v = y.flatten(1)
    torch._dynamo.graph_break()
    v.mul_(3)
    return y.relu(), v


def broken_chunk(y, x, m):
    a, b = y.chunk(2, 1)
    torch._dynamo.graph_break()
    a.add_(1)
    torch._dynamo.graph_break()
    return y * 2, b, a


def broken_input(y, x, m):
    v = x[:, 0]
    torch._dynamo.graph_break()
    v.mul_(2)
    return m.conv(x), v


@pytest.mark.parametrize("function", [broken_flatten, *(pytest.param(f, marks=pytest.mark.slow) for f in (broken_chunk, broken_input))])
def test_graphs_around_a_break(function, eager_rest):
    behaves(*through_dynamo(function))


@pytest.mark.slow
def test_numbers_of_tokens_whose_results_share_memory(driver):
    model = nn.Linear(4, 4).eval()
    fast = torch.compile(lambda x: (y := model(x), y[:, 1:]), backend="sparse", dynamic=True)
    for tokens in (5, 6, 9):
        with torch.no_grad():
            y, view = fast(torch.randn(2, tokens, 4))
            view.fill_(7)
        assert (y[:, 1:] == 7).all() and not (y[:, 0] == 7).any()


@pytest.mark.parametrize("case", ["flatten", "chunk", "input and results", "view of a clone"])
def test_a_compiled_object(case, kernels):
    model = Net(SHARED[case]).eval()
    fast = sparsec.compile(model, (images(),), threads=1, cache_dir=kernels)
    assert fast._compiled.fully_compiled
    for batch in (2, 3) if case != "input and results" else (2,):
        behaves(fast, model, batch)


@pytest.mark.parametrize("case", ["same", "flatten", "input"])
def test_results_that_share_memory_cannot_be_saved(case, kernels, tmp_path):
    fast = sparsec.compile(Net(SHARED[case]).eval(), (images(),), threads=1, cache_dir=kernels)
    with pytest.raises(ArtifactError, match="view of one"):
        fast.save(tmp_path / "net.sparsec")


def test_programs_share_what_their_modules_do(kernels):
    program = torch.export.export(Net(OF_RESULTS["slice"]).eval(), (images(),))
    behaves(sparsec.compile(program, threads=1, cache_dir=kernels), program.module())


@pytest.mark.slow
def test_free_sizes_compile_again_where_results_share_memory(kernels):
    model = nn.Linear(4, 4).eval()
    free = {1: torch.export.Dim("tokens", min=4, max=16)}

    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = model

        def forward(self, x):
            y = self.linear(x)
            return y, y[:, 2:]

    fast = sparsec.compile(Views().eval(), (torch.randn(2, 8, 4),), dynamic_shapes={"x": free}, threads=1, cache_dir=kernels)
    for tokens in (16, 7):
        x = torch.randn(2, tokens, 4)
        y, view = fast(x)
        torch.testing.assert_close(y, model(x).detach())
        view.fill_(7)
        assert (y[:, 2:] == 7).all() and not (y[:, :2] == 7).any()
    assert "results share memory" in str(fast.explain())


@pytest.mark.slow
@pytest.mark.parametrize("case", SHARED)
@pytest.mark.turns(3)
def test_every_kind_through_the_object(case, kernels):
    model = Net(SHARED[case]).eval()
    behaves(sparsec.compile(model, (images(),), threads=1, cache_dir=kernels), model)


@pytest.mark.slow
@pytest.mark.parametrize("function", [*WRITTEN.values(), OF_INPUTS["view of input"], broken_chunk], ids=[*WRITTEN, "view", "chunk"])
def test_through_torch_compile(function, strict):
    behaves(*through_dynamo(function))


def test_the_capture_of_dynamos_graphs_refuses_views_of_inputs_and_weights():
    graph = torch.fx.symbolic_trace(Net(lambda y, x, m: (y, m.conv.weight.flatten())).eval())
    with pytest.raises(UnsupportedModel, match="view of an input"):
        capture_graph(graph, (images(),), [])
