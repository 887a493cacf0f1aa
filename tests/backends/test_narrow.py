"""int8 and bfloat16 from a model to its result, on kernels of their own and on references: the bits that torch gives."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparsec
from sparsec import backends
from sparsec.backends import lowering
from sparsec.backends.plan import Buffer
from sparsec.backends.reference.backend import Reference
from sparsec.backends.values import Value, lies_as
from sparsec.backends.x86.backend import X86
from sparsec.lower.layouts import Geometry, Storage
from sparsec.lower.regions import Region
from sparsec.lower.spec import KernelSpec
from tests.machines import WIDEST
from tests.narrow.backend import DTYPES, Narrow

TARGETS = ("narrow", "reference")
KINDS = {name: getattr(torch, name) for name in DTYPES}


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "BACKENDS", (*backends.BACKENDS, backends.Target("narrow", (), "tests.narrow")))


class Sums(nn.Module):
    """Twice a map, moved into another order, plus another one; the first value again as it is."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        twice = x + x
        return twice.flatten(2).transpose(1, 2) + y, twice + x


def drawn(dtype: torch.dtype, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return tuple((100 * torch.randn(batch, *shape, generator=generator)).clamp(-128, 127).to(dtype) for shape in ((3, 5, 7), (35, 3)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_and_copies_give_the_bits_of_torch(dtype: str, target: str, threads: int, tmp_path: Path) -> None:
    model, inputs = Sums().eval(), drawn(KINDS[dtype])
    fast = sparsec.compile(model, inputs, target=target, tune="off", threads=threads, cache_dir=tmp_path)
    program = fast._compiled.programs[0].program
    assert fast._compiled.fully_compiled and {port.dtype for port in (*program.inputs, *program.outputs)} == {dtype}
    for batch in (2, 1, 3):
        inputs = drawn(KINDS[dtype], batch)
        for found, wanted in zip(fast(*inputs), model(*inputs), strict=True):
            assert found.dtype == wanted.dtype and torch.equal(found, wanted)
    assert 0 < program.arena_bytes < 4 * 4 * 3 * 64 * KINDS[dtype].itemsize


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cpu_computes_none_of_it_and_says_so(dtype: str) -> None:
    with pytest.warns(RuntimeWarning, match=rf"is torch\.{dtype}.*kernels compute in float32"):
        fast = sparsec.compile(Sums().eval(), drawn(KINDS[dtype]), threads=1)
    for found, wanted in zip(fast(*drawn(KINDS[dtype])), Sums()(*drawn(KINDS[dtype])), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("make", [lambda: X86(WIDEST), Reference, Narrow])
@pytest.mark.parametrize("dtype", ["float64", "float8", "complex64"])
def test_a_dtype_that_no_backend_has_is_refused_by_name(dtype: str, make) -> None:
    plain = KernelSpec("add", ((8,), (8,)), (8,))
    assert make().offers(plain) is None
    for operand in ("x", "y", "output"):
        assert dtype in make().offers(replace(plain, dtypes=((operand, dtype),))).reason


def test_a_float_and_a_bfloat16_view_of_a_value_are_two_values() -> None:
    space = Geometry(1, 6, 0, 4)
    wide, narrow = (Storage("tiled", 3, space, dtype) for dtype in ("float32", "bfloat16"))
    value = Value.whole(Buffer("x", wide), (6, 3))
    assert lies_as(value, wide) and not lies_as(value, narrow)
    state = lowering._State(Region(0, {}, (), ()), Reference())
    found = [lowering._as(state, value, storage) for storage in (narrow, wide, narrow)]
    assert found[0] is found[2] and found[1] is value.buffer
    assert len({buffer.memory for buffer in found}) == 2 and len(state.steps) == 1


def test_the_dtypes_of_operands_are_part_of_a_specs_key() -> None:
    plain = KernelSpec("add", ((8,), (8,)), (8,))
    made = [plain, *(replace(plain, dtypes=((operand, dtype),)) for operand in ("x", "y") for dtype in DTYPES)]
    assert len({spec.key for spec in made}) == len(made)
    assert [KernelSpec.restored(spec.json()) for spec in made] == made
    assert "dtypes" not in plain.json()
