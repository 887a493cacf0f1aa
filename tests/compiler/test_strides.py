"""Inputs that are not contiguous: answers, memory that is shared and writes as in eager mode, or a clear refusal, through both doors."""

import pytest
import torch
from torch import Tensor, nn

from sparsec.compiled_model import CompiledModel
from sparsec.doors.captured import Captured
from sparsec.doors.from_torch.capture import capture
from sparsec.errors import InvalidInput, UnsupportedModel
from sparsec.settings import Settings
from tests.compiler.test_aliasing import Net, eager_rest, structure, through_dynamo  # noqa: F401

# Whole compilations: the fast set has the parts.
pytestmark = pytest.mark.slow

SHAPE = (2, 4, 6, 5)
LAYOUTS = {
    "contiguous": lambda: torch.randn(SHAPE),
    "channels last": lambda: torch.randn(SHAPE).contiguous(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(2, 4, 5, 6).transpose(2, 3),
    "batch inside": lambda: torch.randn(4, 6, 5, 2).permute(3, 0, 1, 2),
    "sliced": lambda: torch.randn(2, 4, 12, 7)[:, :, ::2, 1:6],
    "one of many": lambda: torch.randn(6, 4, 6, 5)[3:5],
    "expanded": lambda: torch.randn(1, 4, 6, 5).expand(SHAPE),
    "negative": lambda: torch.view_as_complex(torch.randn(*SHAPE, 2)).conj().imag,
}
VIEWS = {
    "view of input": lambda y, x, m: (y, x[:, 1:3]),
    "split input": lambda y, x, m: (y, *x.split(2, 1)),
    "input": lambda y, x, m: (y, x),
    "turned input": lambda y, x, m: (y, x.permute(0, 2, 3, 1), x.unsqueeze(2)),
    "flat input": lambda y, x, m: (y, x.flatten(2), x.reshape(2, -1)),
    "raveled": lambda y, x, m: (y, x.ravel(), x[0, 0, 0].ravel(), torch.ravel(x[0, 0, :, 0])),
    "input where contiguous": lambda y, x, m: (y, x.contiguous()),
    "flat result": lambda y, x, m: (y, y.flatten(1)),
    "result where contiguous": lambda y, x, m: (y, y.contiguous()),
    "view of result": lambda y, x, m: (y, y[:, 1:], y.transpose(1, 2)),
}
READERS = {
    "stride": lambda y, x, m: y + x.stride(1),
    "stride of a result": lambda y, x, m: y + y.stride(1),
    "is contiguous": lambda y, x, m: y * 2 if x.is_contiguous() else y * 3,
    "channels last": lambda y, x, m: y * 2 if x.is_contiguous(memory_format=torch.channels_last) else y * 3,
    "as strided": lambda y, x, m: y[:1, :1, :1, :1] + x.as_strided((3, 5), (5, 1)),
    "as strided from": lambda y, x, m: y[:1, :1, :1, :1] + x.as_strided((3, 5), (5, 1), 2),
    "as strided result": lambda y, x, m: y.as_strided((3, 5), (5, 1)),
    "as strided scatter": lambda y, x, m: torch.as_strided_scatter(x, y[0, 0, 0, :3], (3,), (7,)) + y,
    "other dtype": lambda y, x, m: y + x.resolve_neg().view(torch.int32).clamp(0, 1),
    "storage offset": lambda y, x, m: y + x.storage_offset(),
}


def same(run, model: nn.Module, x: Tensor) -> None:
    """Values, which results share memory, and whom a write to each reaches."""
    sides = []
    for call in (run, model):
        given = twin(x)
        with torch.no_grad():
            results = call(given)
        sides.append([given, *(results if isinstance(results, tuple) else (results,))])
    ours, eager = sides
    assert structure(ours) == structure(eager)
    close(ours, eager)
    for mine, theirs in zip(ours, eager, strict=True):
        if writable(theirs) and writable(mine):
            mine.mul_(3)
            theirs.mul_(3)
            close(ours, eager)


def close(ours, eager) -> None:
    for mine, theirs in zip(ours, eager, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def writable(x: Tensor) -> bool:
    """Whether each element has memory of its own."""
    return 0 not in x.stride()


def twin(x: Tensor) -> Tensor:
    """A tensor that lies in memory of its own as this one does in its."""
    if x.is_neg():
        return torch.complex(torch.zeros(x.shape), x.resolve_neg().neg()).conj().imag
    storage = x.untyped_storage().clone()
    return torch.empty(0).set_(storage, x.storage_offset(), x.shape, x.stride())


@pytest.fixture
def quick(eager_rest):  # noqa: F811
    """What would be Inductor's runs in eager mode."""


class Plain:
    """A compiled graph that runs in eager mode."""

    any_batch = False

    def __init__(self, captured: Captured) -> None:
        self.graph_module, self.aliasing = captured.graph_module, captured.aliasing

    def __call__(self, inputs) -> list[Tensor]:
        assert all(tensor.is_contiguous() and not tensor.is_neg() for tensor in inputs)
        return list(self.graph_module(*inputs))


def compiled(function, x: Tensor):
    """A model and the object made of it for this example, None where it is refused."""
    model = Net(function).eval()
    try:
        captured = capture(model, (x,))
    except UnsupportedModel:
        return model, None
    return model, CompiledModel(captured, Plain(captured), Settings())  # type: ignore[arg-type]


def pairs(cases, share: int) -> list:
    """Every case with every layout, of which one in ``share`` is fast."""
    slow = pytest.mark.slow
    return [
        pytest.param(case, layout, marks=() if (i + j) % share == 0 else slow)
        for i, case in enumerate(cases)
        for j, layout in enumerate(LAYOUTS)
    ]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(("case", "layout"), pairs(VIEWS, 4))
@pytest.mark.turns(3)
def test_views_through_the_object(case, layout):
    x = LAYOUTS[layout]()
    model, run = compiled(VIEWS[case], x)
    same(run, model, x)


@pytest.mark.parametrize("case", VIEWS)
def test_views_of_other_inputs_than_the_example(case):
    model, run = compiled(VIEWS[case], LAYOUTS["contiguous"]())
    for make in LAYOUTS.values():
        answers_or_refuses(run, model, make())


@pytest.mark.parametrize(("case", "example"), pairs(READERS, 4))
@pytest.mark.turns(4)
def test_what_reads_strides_is_right_for_the_example_and_for_others_right_or_refused(case, example):
    model, run = compiled(READERS[case], LAYOUTS[example]())
    if run is None:
        assert "strided" in case or case == "storage offset"
        return
    same(run, model, LAYOUTS[example]())
    for make in LAYOUTS.values():
        answers_or_refuses(run, model, make())


def answers_or_refuses(run, model: nn.Module, x: Tensor) -> None:
    """What was compiled for another layout says so."""
    try:
        same(run, model, x)
    except InvalidInput as error:
        assert "in memory" in str(error)


@pytest.mark.parametrize(("case", "layout"), pairs(VIEWS | READERS, 8))
@pytest.mark.turns(6)
def test_through_torch_compile(case, layout, quick):
    torch._dynamo.reset()
    run, model = through_dynamo((VIEWS | READERS)[case])
    same(run, model, LAYOUTS[layout]())


@pytest.mark.parametrize("function", [torch.unique_consecutive, torch.nonzero, lambda x: x[x > 0], lambda x: x * x.max().item()])
@pytest.mark.parametrize("free", [False, True])
def test_sizes_that_depend_on_values_are_refused(function, free):
    model = Net(lambda y, x, m: (y, function(x))).eval()
    sizes = ({0: torch.export.Dim("batch", min=2, max=8)},) if free else None
    with pytest.raises(UnsupportedModel, match="depends on values"):
        capture(model, (torch.randn(SHAPE),), dynamic_shapes=sizes)
