"""Modules on tokens as one region each: what the plan holds, and that its program gives what eager float64 gives."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsec
from sparsec.compiled_model import CompiledModel
from sparsec.run.affine import Count
from tests.token_models import BLOCKS, HEADS, PostNorm, PreNorm, error, exact, sentences, tokens

LIMIT = 1e-5
BATCHES = (1, 3)
FAST = ("pre-norm block", "post-norm block with a mask", "embedding", "patches with CLS")
EACH = [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in BLOCKS]


@pytest.fixture(scope="module")
def compiled(kernels):
    """Compiles one of BLOCKS, once."""
    made: dict[str, tuple] = {}

    def get(name: str) -> tuple[nn.Module, object, CompiledModel]:
        if name not in made:
            model, inputs = BLOCKS[name]()
            made[name] = model, inputs, compile_whole(model, inputs(1), kernels)
        return made[name]

    return get


def compile_whole(model: nn.Module, inputs: tuple[Tensor, ...], kernels, **options) -> CompiledModel:
    fast = sparsec.compile(model, inputs, threads=1, cache_dir=kernels, **options)
    assert fast._compiled.fully_compiled
    assert fast.explain().uncovered == ()
    return fast


def plan_of(fast: CompiledModel):
    return fast._compiled.programs[0].lowered.plan


def program_of(fast: CompiledModel):
    return fast._compiled.programs[0].program


@pytest.mark.parametrize("name", EACH)
@pytest.mark.turns(3)
@pytest.mark.slow
def test_a_block_is_one_region_that_gives_what_float64_gives(compiled, name):
    model, inputs, fast = compiled(name)
    for batch in BATCHES:
        given = inputs(batch)
        assert error(fast(*given), exact(model, *given)) < LIMIT, batch


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.turns(4)
def test_what_was_captured_with_several_samples_runs_any_number(kernels, name):
    model, inputs = BLOCKS[name]()
    fast = compile_whole(model, inputs(3), kernels)
    for batch in (3, 1):
        assert error(fast(*inputs(batch)), exact(model, *inputs(batch))) < LIMIT, batch


@pytest.mark.parametrize("name", EACH)
@pytest.mark.slow
def test_fixed_sizes_patch_nothing(compiled, name):
    program = program_of(compiled(name)[2])
    assert (program.sizes, program.patches, program.padding) == ((), (), None)
    assert all(port.follows is None for port in (*program.inputs, *program.outputs))


@pytest.mark.slow
def test_ports_of_ids_and_masks_have_dtypes_and_limits(compiled):
    model, _, fast = compiled("embedding")
    ids, mask = program_of(fast).inputs
    assert (ids.dtype, ids.shape, ids.limit) == ("int64", (17,), model.embeddings.words.num_embeddings)
    assert (mask.dtype, mask.shape, mask.limit) == ("int64", (17,), None)
    hidden, pooled = program_of(fast).outputs
    assert (hidden.dtype, hidden.shape, pooled.shape) == ("float32", (17, 32), (32,))


@pytest.mark.slow
def test_tokens_of_the_caller_are_converted_once(compiled):
    calls = [call for group in plan_of(compiled("pre-norm block")[2]).groups for call in group.calls]
    reading = [call for call in calls if any(b.port == ("input", 0) for b in call.buffers.values())]
    writing = [call for call in calls if any(b.port == ("output", 0) for b in call.buffers.values())]
    assert [call.kind for call in (*reading, *writing)] == ["convert", "convert"]


@pytest.mark.slow
def test_a_mask_is_read_by_its_bias_only(compiled):
    calls = [call for group in plan_of(compiled("post-norm block with a mask")[2]).groups for call in group.calls]
    assert sum(any(b.port == ("input", 1) for b in call.buffers.values()) for call in calls) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.bool, torch.float32])
@pytest.mark.turns(2)
def test_masks_of_every_dtype(kernels, kind):
    model, (x, mask) = PostNorm(), (tokens(1, 17), sentences(1, 17)[1].to(kind))
    fast = compile_whole(model, (x, mask), kernels)
    assert program_of(fast).inputs[1].dtype == str(kind).removeprefix("torch.")
    x, mask = tokens(3, 17), sentences(3, 17)[1].to(kind)
    assert error(fast(x, mask), exact(model, x, mask)) < LIMIT


# Sizes at run time


@pytest.fixture(scope="module")
def free(kernels):
    """PostNorm with batch and number of tokens free."""
    model, given, axes = PostNorm(), (tokens(2, 20), sentences(2, 20)[1]), free_axes()
    return model, compile_whole(model, given, kernels, dynamic_shapes=(axes, axes))


def free_axes() -> dict[int, Any]:
    return {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", min=1, max=40)}


@pytest.mark.slow
def test_patches_are_the_counts_of_the_plan(free):
    program, plan = program_of(free[1]), plan_of(free[1])
    units = [group.calls[0].units for group in plan.groups]
    patched = {patch.index // 5: patch for patch in program.patches if patch.table == "groups"}
    assert set(patched) == {n for n, count in enumerate(units) if isinstance(count, Count)}
    for n, patch in patched.items():
        for size in (1, 5, 33, 40):
            assert patch.value({"tokens": size}) == units[n].at(size)
    assert any(patch.table == "records" for patch in program.patches)


@pytest.mark.slow
def test_less_tokens_are_never_more_work(free):
    program = program_of(free[1])
    for patch in program.patches:
        values = [patch.value({"tokens": size}) for size in range(1, 41)]
        assert values == sorted(values)
    assert any(patch.value({"tokens": 1}) < patch.value({"tokens": 40}) for patch in program.patches)


@pytest.mark.slow
def test_attention_has_units_that_follow_the_tokens_of_every_head(free):
    (call,) = [call for group in plan_of(free[1]).groups for call in group.calls if call.kind == "attention"]
    assert isinstance(call.units, Count)
    assert call.units.follows.symbol == "tokens"
    assert call.units.follows.scale % HEADS == 0


@pytest.mark.parametrize("count", [1, 5, 17, 33, 40])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.slow
def test_one_program_serves_every_number_of_tokens(free, batch, count):
    model, fast = free
    given = tokens(batch, count), sentences(batch, count)[1]
    assert error(fast(*given), exact(model, *given)) < LIMIT
    assert fast._by_size.notes == ()


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.turns(2)
def test_pooled_tokens_of_any_number(kernels, pooling):
    model = PreNorm(pooling)
    fast = compile_whole(model, (tokens(2, 20),), kernels, dynamic_shapes=(free_axes(),))
    for count in (40, 1, 33, 2):
        assert error(fast(tokens(3, count)), exact(model, tokens(3, count))) < LIMIT
