"""Programs of references through the driver, on drawn networks: what they mean is what eager computes."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sparsec
from sparsec.backends.assemble import assemble
from sparsec.backends.reference.backend import Reference
from sparsec.backends.x86.backend import X86
from sparsec.errors import MachineError
from sparsec.lower.regions import covers
from sparsec.lower.spec import KernelSpec
from sparsec.models.digits_cnn import digits_cnn
from sparsec.run.runtime import Runner
from tests import convnets
from tests.compiler.token_doors import free_axes
from tests.machines import WIDEST
from tests.strategies import KINDS, Drawn
from tests.token_models import bert, sentences, vit

#: Values are float32 between references, which compute in doubles.
TOLERANCE = 1e-5


class Graph(nn.Module):
    """A drawn graph in float32, as a model."""

    def __init__(self, drawn: Drawn) -> None:
        super().__init__()
        self.graph_module = drawn.graph_module.float()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self.graph_module(*inputs)
        return tuple(x + 0.0 for x in found)  # Results of a graph may be inputs, or each other.


def compiled(model: nn.Module, *inputs: Tensor, **options):
    return sparsec.compile(model.eval(), inputs, target="reference", **{"threads": 1, "tune": "off", **options})


def assert_close(found: Tensor, wanted: Tensor) -> None:
    """Relative to the largest number."""
    assert found.shape == wanted.shape
    error = (found.double() - wanted.double()).abs().max() if wanted.numel() else 0
    assert error <= TOLERANCE * max(1.0, float(wanted.abs().max() if wanted.numel() else 0))


@pytest.mark.usefixtures("without_inductor")
@pytest.mark.filterwarnings("ignore:No kernel of sparsec")
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(data=st.data(), threads=st.integers(1, 3))
@torch.no_grad()
def test_drawn_networks_mean_what_eager_computes(kind: str, data: st.DataObject, threads: int) -> None:
    drawn = data.draw(KINDS[kind])
    model, inputs = Graph(drawn), [x.float() if x.is_floating_point() else x for x in drawn.inputs]
    wanted = copy_in_double(drawn)
    found = compiled(model, *inputs, threads=threads)(*inputs)
    for mine, theirs in zip(found, wanted, strict=True):
        assert_close(mine, theirs)


def copy_in_double(drawn: Drawn) -> tuple[Tensor, ...]:
    """The results of the same float32 numbers in doubles."""
    drawn.graph_module.double()
    wanted = drawn.run()
    drawn.graph_module.float()
    return wanted


@torch.no_grad()
def test_layouts_planes_and_pads_of_another_backend() -> None:
    """Plans for a target, run without its kernels: what is wrong in them is not its kernels' fault."""
    backend, whole = Reference(like=X86(WIDEST)), 0
    for part in convnets.parts(range(16), backend):
        model, x, _ = convnets.captured(part.seed)
        if not covers(part.region, part.result.graph_module):
            continue
        whole += 1
        kernels = convnets.sources_of([part.lowered])
        names = [n.name for n in part.region.inputs], [n.name for n in part.region.outputs]
        program = assemble(part.lowered.plan, kernels, names, 2, executor=backend.executor)
        (found,) = backend.runner(program, backend.build(kernels, None), 2)(x.numpy())
        assert_close(torch.from_numpy(found), model(x))
    assert whole > 8


@torch.no_grad()
def test_any_number_of_tokens() -> None:
    """Units, scalars and shapes follow: what is left of a table and of the memory is not read."""
    model, axes = bert(), free_axes()
    fast = compiled(model, *sentences(2, 20), dynamic_shapes=(axes, axes), threads=2)
    for batch, count in ((2, 20), (3, 40), (1, 2), (3, 7)):
        ids, mask = sentences(batch, count)
        for mine, theirs in zip(fast(ids, mask), model(ids, mask), strict=True):
            assert_close(mine, theirs)
    assert fast._compiled.programs[0].program.patches


@torch.no_grad()
def test_padding_that_is_removed() -> None:
    model, (ids, mask) = bert(), sentences(3, 17)
    hidden, _ = compiled(model, ids, mask, remove_padding=True)(ids, mask)
    valid = mask.bool() | ~mask.bool().any(1, keepdim=True)
    assert_close(hidden[valid], model(ids, mask)[0][valid])
    assert not hidden[~valid].any()


@torch.no_grad()
@pytest.mark.parametrize("strategy", ["prune", "merge"])
def test_fewer_tokens(strategy: str) -> None:
    """Positions are int64 values of the program; kernels for this machine leave out the same tokens."""
    model, x = vit(depth=2), torch.randn(2, 3, 32, 32)
    fast = compiled(model, x, token_pruning={"keep": 0.5, "after": [1], "strategy": strategy})
    other = sparsec.compile(model, (x,), threads=1, tune="off", token_pruning={"keep": 0.5, "after": [1], "strategy": strategy})
    assert_close(fast(x), other(x))


@pytest.fixture(scope="module")
def small():
    """A compiled network, its program and an input."""
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 3, 1), nn.Flatten(), nn.Linear(60, 4)),
        torch.randn(2, 2, 4, 5),
    )
    return compiled(model.eval(), x)._compiled.programs[0].program, x.numpy()


def run(program, x: np.ndarray) -> np.ndarray:
    return Reference().runner(program, Reference().build((), None), 1)(x)[0]


def test_addresses_and_units_are_those_of_the_tables(small) -> None:
    """A program with another address, fewer units or one that lies elsewhere is another program."""
    program, x = small
    right = run(program, x)
    arena = [i for i, r in enumerate(program.relocations) if r.segment == "arena"]
    assert arena
    for index in arena:
        moved = dataclasses.replace(program.relocations[index], offset=program.relocations[index].offset + 4)
        changed = (*program.relocations[:index], moved, *program.relocations[index + 1 :])
        assert not np.array_equal(run(dataclasses.replace(program, relocations=changed), x), right)
    for row in range(len(program.groups)):
        groups = program.groups.copy()
        groups[row, 2] -= 1
        assert not np.array_equal(run(dataclasses.replace(program, groups=groups), x), right)
    np.testing.assert_array_equal(run(program, x), right)


def test_each_refuses_the_programs_of_the_other(small) -> None:
    program, _ = small
    with pytest.raises(MachineError, match=r"needs the executor 'reference', this one is 'cpu'\.\n.*\n.*--target native"):
        Runner(program, Reference().build((), None))
    with pytest.raises(MachineError, match="needs the executor 'cpu', this one is 'reference'"):
        run(dataclasses.replace(program, executor="cpu"), np.zeros(1))


def test_it_cannot_be_saved(small, tmp_path) -> None:
    model, x = digits_cnn().eval(), torch.zeros(1, 1, 8, 8)
    with pytest.raises(sparsec.errors.ArtifactError, match="executor 'reference' cannot be saved"):
        compiled(model, x).save(tmp_path / "net.sparsec")


REFUSED = {
    "no such operator": (KernelSpec("erf", ((8,),), (8,)), "does not compute erf"),
    "an unknown attribute": (KernelSpec("activate", ((8,),), (8,), attributes=(("activation", "relu7"),)), "relu7"),
    "another shape": (KernelSpec("linear", ((8,),), (4,), ((5, 8),)), r"gives \(5,\), not \(4,\)"),
    "an unknown dtype": (KernelSpec("add", ((8,), (8,)), (8,), dtypes=(("x", "float8"),)), "float8 is no dtype; known: float32"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_reference_computes_is_refused(name: str) -> None:
    spec, reason = REFUSED[name]
    refused = Reference().offers(spec)
    assert refused is not None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(refused.reason)
