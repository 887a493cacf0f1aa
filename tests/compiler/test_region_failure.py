"""Internal errors: one costs the region or the rewrite where it happens, never the answer, and is always reported."""

import logging

import pytest
import torch
from torch import Tensor, nn

import sparsec
from sparsec import driver
from sparsec.backends.x86.backend import X86
from sparsec.doors.torch_compile import backend as torch_backend
from sparsec.errors import InvalidInput, MachineError, PassRefused, VerificationError, internal
from sparsec.ir import pipeline
from sparsec.lower import inductor
from sparsec.passes.assign_layouts import AssignLayouts
from sparsec.passes.delete_dead_channels import DeleteDeadChannels
from sparsec.passes.fold_batchnorm import FoldBatchNorm
from sparsec.passes.fuse_epilogue import FuseEpilogue
from sparsec.passes.infer_activation_facts import InferActivationFacts

# Whole compilations: the fast set has the parts.
pytestmark = pytest.mark.slow

IMAGES = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(1))


class TwoRegions(nn.Module):
    """Two pruned layers with an operator between them that no kernel computes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 1)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight[torch.rand(layer.weight.shape) < 0.9] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)).relu().cumsum(2))


@pytest.fixture
def tolerant(monkeypatch):
    """As a user has it; what no region takes runs in torch as it is."""
    monkeypatch.delenv("SPARSEC_STRICT", raising=False)
    monkeypatch.setattr(inductor, "compile_dense", lambda graph_module, examples, **_: graph_module)
    monkeypatch.setattr(torch_backend, "retrace_dense", lambda graph_module: graph_module)
    monkeypatch.setattr(torch_backend, "_said", set())
    torch._dynamo.reset()


def made(kernels):
    """The compiled model, checked, and what it warned of."""
    model = TwoRegions().eval()
    with pytest.warns(RuntimeWarning) as said:
        fast = sparsec.compile(model, (IMAGES,), threads=1, cache_dir=kernels)
    with torch.no_grad():
        torch.testing.assert_close(fast(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)
    return fast, [str(warning.message) for warning in said if "internal error" in str(warning.message)]


def failing(function, error: Exception, applies):
    """The function, which raises where ``applies`` is true of its arguments."""

    def call(*args, **kwargs):
        if applies(*args):
            raise error
        return function(*args, **kwargs)

    return call


def is_second(work, *_) -> bool:
    return any(task.spec.output[0] == 16 for task in getattr(work, "tasks", work))


PLANTS = {
    "lowering": (driver, "lower", is_second, ValueError("no kernel moves it")),
    "kernel family": (X86, "lower", lambda self, task, *_: task.spec.output[0] == 16, AttributeError("residual")),
    "tuning": (driver.tune, "choose", is_second, IndexError("no candidate")),
    "verification": (driver, "lower", is_second, VerificationError("The graph is not well formed.")),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_failure_costs_its_region(plant, tolerant, kernels, monkeypatch):
    place, name, applies, error = PLANTS[plant]
    monkeypatch.setattr(place, name, failing(getattr(place, name), error, applies))
    fast, said = made(kernels)
    assert len(fast._compiled.programs) == 1 and len(said) == 1
    assert type(error).__name__ in said[0] and "stay dense" in said[0]
    uncovered = dict(fast.explain().uncovered)
    (failed,) = [node for node, reason in uncovered.items() if "internal error" in reason]
    assert failed not in {node.name for node in fast._compiled.programs[0].region.specs}


@pytest.mark.parametrize(("place", "name"), [(driver, "assemble"), (X86, "runner")])
def test_failures_of_all_regions_leave_a_dense_graph(place, name, tolerant, kernels, monkeypatch):
    monkeypatch.setattr(place, name, failing(None, RuntimeError("a compiler is broken"), lambda *_: True))
    fast, said = made(kernels)
    assert fast._compiled.nothing_sparse and len(said) == 2 and all("a compiler is broken" in line for line in said)


def test_a_kernel_library_that_cannot_be_built_costs_its_regions(tolerant, kernels, monkeypatch):
    monkeypatch.setattr(X86, "build", failing(None, RuntimeError("LLVM ERROR"), lambda *_: True))
    fast, said = made(kernels)
    assert fast._compiled.nothing_sparse and all("LLVM ERROR" in line for line in said)


def breaks_the_graph(self, edit, context):
    """Half a rewrite: a value of another shape than it says."""
    node = next(node for node in edit.nodes() if node.op == "call_function")
    node.meta["val"] = torch.empty(1, device="meta")


def raises(self, edit, context):
    for node in edit.nodes():
        edit.note(node, fact="nonsense")
    raise ZeroDivisionError("planted")


@pytest.mark.parametrize("apply", [breaks_the_graph, raises])
@pytest.mark.parametrize("step", [FoldBatchNorm, DeleteDeadChannels])
def test_a_rewrite_that_fails_is_left_out(step, apply, tolerant, kernels, monkeypatch):
    monkeypatch.setattr(step, "apply", apply)
    fast, (said,) = made(kernels)
    assert fast._compiled.programs and f"the pass {step.name} is left out" in said


@pytest.mark.parametrize("step", [InferActivationFacts, FuseEpilogue, AssignLayouts])
def test_without_a_form_that_regions_need_the_graph_is_dense(step, tolerant, kernels, monkeypatch):
    monkeypatch.setattr(step, "apply", raises)
    fast, (said,) = made(kernels)
    assert said.startswith("Compiled dense: internal error") and "planted" in said
    assert fast._compiled.nothing_sparse
    assert all("planted" in reason for _, reason in fast.explain().uncovered)


def test_the_torch_compile_door_says_it_once_and_goes_on(tolerant, kernels, monkeypatch, caplog):
    place, name, applies, error = PLANTS["lowering"]
    monkeypatch.setattr(place, name, failing(getattr(place, name), error, applies))
    model, options = TwoRegions().eval(), {"cache_dir": kernels, "threads": 1}
    fast, other = torch.compile(model, backend="sparse", options=options), nn.Sequential(model.first).eval()
    also = torch.compile(other, backend="sparse", options=options)
    with caplog.at_level(logging.WARNING, "sparsec"), torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fast(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(also(IMAGES), other(IMAGES), rtol=1e-4, atol=1e-5)
    assert len([record for record in caplog.records if "internal error" in record.getMessage()]) == 1


@pytest.mark.parametrize("error", [InvalidInput("too many threads"), MachineError("no AVX2")])
def test_what_a_user_causes_is_raised(error, tolerant, kernels, monkeypatch):
    monkeypatch.setattr(driver, "lower", failing(None, error, lambda *_: True))
    with pytest.raises(type(error), match=str(error)):
        sparsec.compile(TwoRegions().eval(), (IMAGES,), threads=1, cache_dir=kernels)


@pytest.mark.parametrize("place", ["region", "pass"])
def test_strict_raises_everything(place, kernels, monkeypatch):
    monkeypatch.setenv("SPARSEC_STRICT", "1")
    if place == "region":
        monkeypatch.setattr(driver, "lower", failing(None, ZeroDivisionError("planted"), lambda *_: True))
    else:
        monkeypatch.setattr(FoldBatchNorm, "apply", raises)
    with pytest.raises(ZeroDivisionError, match="planted"):
        sparsec.compile(TwoRegions().eval(), (IMAGES,), threads=1, cache_dir=kernels)


def test_which_errors_are_our_own(tolerant):
    assert internal(PassRefused("Another shape.\n  why: x")) == "internal error, please report it: PassRefused: Another shape."
    assert internal(ValueError()) == "internal error, please report it: ValueError"
    with pytest.raises(InvalidInput):
        internal(InvalidInput("yours"))


def test_passes_alone_raise_unless_told_otherwise(tolerant, monkeypatch):
    monkeypatch.setattr(FoldBatchNorm, "apply", raises)
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(1, device="meta")
    graph.output((x,))
    module = torch.fx.GraphModule(nn.Module(), graph)
    with pytest.raises(ZeroDivisionError):
        pipeline.run(module, (FoldBatchNorm(),), pipeline.Context())
    assert pipeline.run(module, (FoldBatchNorm(),), pipeline.Context(), tolerant=True).failures
