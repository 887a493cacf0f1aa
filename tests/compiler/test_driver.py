"""From modules to answers: drawn networks against float64, whole compilations, and how often kernels are compiled."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import Tensor, fx, nn

import sparsec
from sparsec import driver
from sparsec.backends.x86.backend import X86
from sparsec.errors import InvalidInput
from sparsec.lower.regions import covers
from tests import convnets
from tests.machines import BY_LANES, LANES

SEEDS = {4: range(25, 29), 8: range(9), 16: range(9, 25)}
TOLERANCE = 1e-5


class Kept(fx.Interpreter):
    """Runs a graph and keeps every value by name."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.values: dict[str, Tensor] = {}

    def run_node(self, node: fx.Node) -> object:
        self.values[node.name] = value = super().run_node(node)
        return value


def error(found: Tensor, expected: Tensor) -> float:
    """Largest deviation relative to the largest number; NaN where anything is NaN."""
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max() / expected.abs().max().clamp_min(1e-3))


@pytest.fixture(scope="module", params=LANES)
def drawn(request, tmp_path_factory):
    """Regions of all drawn networks, with one library for all of them."""
    backend = X86(BY_LANES[request.param])
    parts = convnets.parts(SEEDS[request.param], backend)
    kernels = convnets.sources_of([part.lowered for part in parts])
    return parts, kernels, backend.build(kernels, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.slow
def test_drawn_networks_agree_with_float64(drawn, threads):
    parts, kernels, library = drawn
    whole = []
    for part in parts:
        model, x, _ = convnets.captured(part.seed)
        whole.append(covers(part.region, part.result.graph_module))
        if not whole[-1]:
            continue
        runner, exact = part.runner(kernels, library, threads), copy.deepcopy(model).double()
        for batch in (1, 3, 2):
            images = torch.randn(batch, *x.shape[1:], generator=torch.Generator().manual_seed(batch))
            with torch.no_grad():
                expected = exact(images.double())
            (found,) = runner(images.numpy())
            assert error(torch.from_numpy(found), expected) <= TOLERANCE, (part.seed, batch, model)
    assert sum(whole) > len(whole) / 2


@pytest.mark.slow
def test_regions_agree_with_the_graph_around_them(drawn):
    parts, kernels, library = drawn
    for part in parts:
        kept = Kept(part.result.graph_module)
        with torch.no_grad():
            kept.run(convnets.captured(part.seed)[1])
        inputs = [kept.values[node.name].contiguous().numpy() for node in part.region.inputs]
        for node, found in zip(part.region.outputs, part.runner(kernels, library)(*inputs), strict=True):
            assert error(torch.from_numpy(found), kept.values[node.name]) <= TOLERANCE, (part.seed, node.name)


@pytest.mark.slow
def test_margins_and_pads_of_flat_maps_stay_zero(drawn):
    """After any run, every element of a flat map's memory that is no pixel is zero: stencils read it as padding."""
    from sparsec.backends import arena

    parts, kernels, library = drawn
    for part in parts:
        runner = part.runner(kernels, library)
        images = [np.full((2, *port.shape), 3.0, np.float32) for port in runner.program.inputs]
        runner(*images)
        memory = runner._idle._kept[0].arena.view(np.float32)
        offsets, _ = arena.place(part.lowered.plan, 2)
        for buffer, offset in offsets.items():
            if buffer.storage.layout == "halo" and not buffer.slot:
                space = buffer.storage.index_space
                rows = memory[offset // 4 : offset // 4 + buffer.storage.elements].reshape(-1, space.stride)
                p = np.arange(space.stride) - space.front
                pixel = (p >= 0) & (p < space.pixels) & (p % space.pitch < space.width)
                assert not np.any(rows[:, ~pixel]), (part.seed, buffer.name)


class Stem(nn.Module):
    """A convolution, a 1x1 convolution with zeros and a classifier: one region."""

    def __init__(self, seed: int = 0, density: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.point, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 1), nn.Linear(16, 5)
        with torch.no_grad():
            self.point.weight.mul_(torch.rand(16, 8, 1, 1) < density)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.point(F.relu(self.stem(x))))
        return self.last(y.mean((2, 3)))


class Broken(Stem):
    """The same with an operator in the middle that no kernel computes."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cumsum(F.relu(self.stem(x)), 1)
        return self.last(F.relu(self.point(y)).mean((2, 3)))


IMAGES = torch.randn(3, 3, 6, 5, generator=torch.Generator().manual_seed(5))


def agrees(compiled, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        assert error(compiled(x), model(x)) <= TOLERANCE


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


def test_compile_runs_any_batch_of_a_network_that_is_one_region(cache):
    model = Stem()
    compiled = sparsec.compile(model, IMAGES[:2], threads=1, cache_dir=cache)
    for batch in (1, 2, 3):
        agrees(compiled, model, IMAGES[:batch])
    assert compiled.explain().uncovered == ()


def test_threads_do_not_change_the_answer(cache):
    model = Stem()
    one, two = (sparsec.compile(model, IMAGES, threads=threads, cache_dir=cache)(IMAGES) for threads in (1, 2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_a_second_instance_or_mask_of_the_same_shape_compiles_no_kernel(cache, monkeypatch, density):
    sparsec.compile(Stem(), (IMAGES,), threads=1, cache_dir=cache)
    compilations = []
    original = tvm.compile
    monkeypatch.setattr(tvm, "compile", lambda *args, **kwargs: compilations.append(1) or original(*args, **kwargs))
    model = Stem(seed=7, density=density)
    agrees(sparsec.compile(model, (IMAGES,), threads=1, cache_dir=cache), model, IMAGES)
    assert not compilations


@pytest.mark.slow
def test_an_unknown_operator_stays_dense_and_the_rest_does_not(cache):
    model = Broken()
    compiled = sparsec.compile(model, (IMAGES,), threads=1, cache_dir=cache)
    agrees(compiled, model, IMAGES)
    agrees(compiled, model, IMAGES * 2)
    uncovered = dict(compiled.explain().uncovered)
    assert "cumsum" in uncovered["cumsum"]
    # The layer without zeros before it gains nothing, the pruned one after it does.
    assert any("stays dense: predicted gain" in reason for reason in uncovered.values())
    assert any(layer.density is not None and layer.density < 0.5 for layer in compiled.explain().layers)
    with pytest.raises(InvalidInput, match="Compiled for"):
        compiled(IMAGES[:1])


def test_a_model_without_any_known_operator_runs_dense(cache):
    model = nn.Sequential(nn.Softmax(1)).eval()
    agrees(sparsec.compile(model, (IMAGES,), threads=1, cache_dir=cache), model, IMAGES)


def test_weights_are_those_at_the_time_of_compiling(cache):
    model = Stem()
    compiled = sparsec.compile(model, (IMAGES,), threads=1, cache_dir=cache)
    with torch.no_grad():
        before = model(IMAGES)
        model.point.weight.zero_()
    assert error(compiled(IMAGES), before) <= TOLERANCE


def test_drawing_is_reproducible():
    (a, x), (b, y) = convnets.draw(3), convnets.draw(3)
    assert torch.equal(x, y)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.slow
def test_a_sum_with_a_constant_of_the_same_size(tmp_path):
    class Shifted(nn.Linear):
        def __init__(self):
            super().__init__(8, 8)
            self.register_buffer("shift", torch.randn(2, 5, 8))

        def forward(self, x):
            return F.relu(super().forward(x) + self.shift)

    model, x = Shifted().eval(), torch.randn(2, 5, 8)
    with torch.no_grad():
        assert error(sparsec.compile(model, (x,), cache_dir=tmp_path)(x), model(x)) < TOLERANCE


def test_results_of_torch_come_apart_from_each_other_and_from_inputs():
    x, y = torch.ones(2, 3), torch.ones(2, 3)
    sparse = torch.eye(2).to_sparse()
    results = driver._apart([x, y, y[0], sparse, sparse], [x], {4})
    assert [result.layout for result in results] == [torch.strided] * 3 + [torch.sparse_coo] * 2
    assert results[0] is not x and results[1] is y and results[3] is sparse and results[4] is not sparse
    assert len({result.untyped_storage().data_ptr() for result in (x, *results[:3])}) == 4
