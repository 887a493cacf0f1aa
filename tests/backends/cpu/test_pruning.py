"""Leaving tokens out and joining them, against the operators' own bodies in float64, on each machine."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.backends.base import Machine
from sparsec.backends.cpu import token_choice, token_merging
from sparsec.backends.cpu.attention import Masks
from sparsec.backends.cpu.families import FAMILIES
from sparsec.backends.cpu.pruning import pruning_groups
from sparsec.backends.plan import Buffer, Task
from sparsec.lower.layouts import Geometry, Storage
from sparsec.tokens import pruning_ops
from tests.backends.cpu.kernel_call import At, Call, Kernels
from tests.backends.cpu.token_call import Tokens, at_size, from_tiled, garbage, spec_of, to_tiled, words
from tests.machines import MACHINES

TILES = (64, 32)
MASKS = [Masks(k, p, c) for k, p, c in ((False,) * 3, (True, False, False), (False, True, False), (True, True, True))]


@pytest.fixture(scope="module", params=MACHINES)
def built(request: pytest.FixtureRequest) -> tuple[Machine, Kernels]:
    vector = request.param.vector
    sources = [token_choice.keep_tokens(vector), token_choice.gather_keys(vector)]
    for tile in TILES:
        sources += [token_choice.token_scores(vector, tile, m, v) for m in MASKS for v in {False, m.key_bias}]
        sources += [token_choice.gather_tokens(vector, tile)]
        sources += [token_merging.merge_plan(vector, tile), token_merging.mean_merged(vector, tile)]
        sources += [token_merging.merge_tokens(vector, tile, sized) for sized in (False, True)]
    sources += [token_merging.merge_sizes(vector, sized) for sized in (False, True)]
    sources += [token_merging.size_op(vector, op) for op in ("log_sizes", "token_sizes")]
    return request.param, Kernels(sources, request.param)


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def compute(
    built: Any,
    op: str,
    sources: list[tuple[np.ndarray, Storage]],
    target: Storage,
    weights: tuple = (),
    threads: int = 1,
    size: int = 0,
    **traits: Any,
) -> np.ndarray:
    """What the planned call leaves in the target: [T, F] of tiled tokens, else a row."""
    machine, kernels = built
    buffers = tuple(Buffer(f"x{i}", storage) for i, (_, storage) in enumerate(sources))
    task = Task("node", spec_of(op, **traits), buffers, None, Buffer("y", target), weights)
    ((call,),) = (group.calls for group in pruning_groups(task, (), machine))
    tiled = target.layout == "tiled"
    y = garbage(target) if tiled else np.full(target.index_space.width if target.geometry else target.channels, -7, target.dtype)
    memory = {"y": y if tiled else words(y)}
    memory |= {f"x{i}": words(to_tiled(x, s) if s.layout == "tiled" else x) for i, (x, s) in enumerate(sources)}
    arguments: dict[str, Any] = {n: At(b.name) for n, b in call.buffers.items() if not b.slot}
    for name, room in ((n, b) for n, b in call.buffers.items() if b.slot):
        memory[room.name] = np.full(room.slot * threads, np.nan, np.float32)
        arguments[name] = At(room.name, per_slot=room.slot)
    arguments |= dict(call.constants) | {name: at_size(v, size) for name, v in call.scalars.items()}
    found = kernels.run([Call(call.source, arguments)], memory, at_size(call.units, size), threads=threads)["y"]
    return from_tiled(found, target.index_space.width) if tiled else found.view(target.dtype)


def expected(op: str, *tensors: np.ndarray | None, **traits: Any) -> np.ndarray:
    double = [None if x is None else torch.from_numpy(x)[None] for x in tensors]
    double = [x.double() if x is not None and x.is_floating_point() else x for x in double]
    return getattr(pruning_ops, op)(*double, **traits)[0].numpy()


COUNTS = st.integers(1, 150)
ANY = {"count": COUNTS, "tile": st.sampled_from(TILES), "seed": st.integers(0, 999)}


@settings(max_examples=30)
@given(
    heads=st.sampled_from([1, 3]),
    dim=st.integers(1, 20),
    masks=st.sampled_from(MASKS),
    cls=st.booleans(),
    spare=st.sampled_from([0, 40]),
    **ANY,
)
@pytest.mark.slow
def test_scores(built, count, tile, seed, heads, dim, masks, cls, spare) -> None:
    tokens = Tokens(count, count + spare if spare else 0, tile)
    q, k, bias = (values(count, f, seed=seed + i) for i, f in enumerate((heads * dim, heads * dim, 1)))
    bias = np.where(values(count, seed=seed) > 0.5, np.float32(-1e30), bias[:, 0])
    pairs = values(heads if seed % 2 else 1, count, count, seed=seed) if masks.pair_bias else None
    traits = {"heads": heads, "scale": dim**-0.5, "causal": masks.causal, "cls": cls}
    sources = [(q, tokens.tiled(heads * dim)), (k, tokens.tiled(heads * dim))]
    sources += [(bias, tokens.rows(1))] * masks.key_bias
    weights = () if pairs is None else (pairs,)
    found = compute(built, "token_scores", sources, tokens.rows(1), weights, size=count, **traits)[:count]
    given_pairs = None if pairs is None else torch.from_numpy(pairs).double()
    double = [torch.from_numpy(x)[None].double() for x in (q, k, bias)]
    want = pruning_ops.token_scores(*double[:2], double[2] if masks.key_bias else None, given_pairs, **traits)[0].numpy()
    np.testing.assert_allclose(found, want, rtol=2e-5, atol=1e-7)


@pytest.mark.slow
def test_scores_of_nothing_but_padding_are_zero(built) -> None:
    tokens, x = Tokens(5), values(5, 4)
    for off in (-np.inf, -1e30):
        sources = [(x, tokens.tiled(4)), (x, tokens.tiled(4)), (np.full(5, off, np.float32), tokens.rows(1))]
        found = compute(built, "token_scores", sources, tokens.rows(1), heads=2, scale=1.0, causal=False, cls=False)
        assert (found == 0).all()


@settings(max_examples=60)
@given(count=COUNTS, seed=st.integers(0, 999), levels=st.sampled_from([2, 5, 1000]), share=st.floats(0, 1), first=st.integers(0, 3))
@pytest.mark.slow
def test_the_highest_stay_and_ties_go_to_the_lower(built, count, seed, levels, share, first) -> None:
    first = min(first, count)
    keep = max(first, 1, round(share * count))
    scores = np.random.default_rng(seed).integers(0, levels, count).astype(np.float32)
    rows, index = Tokens(count).rows(1), Tokens(keep).rows(1, "int64")
    found = compute(built, "keep_tokens", [(scores, rows)], index, keep=keep, first=first)
    np.testing.assert_array_equal(found, expected("keep_tokens", scores, keep=keep, first=first))


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.slow
def test_odd_scores_rank_as_in_torch(built, odd) -> None:
    scores = values(40)
    scores[[0, 7, 21, 39]] = odd
    for keep in (1, 2, 20, 38, 40):
        found = compute(built, "keep_tokens", [(scores, Tokens(40).rows(1))], Tokens(keep).rows(1, "int64"), keep=keep, first=0)
        np.testing.assert_array_equal(found, expected("keep_tokens", scores, keep=keep, first=0))


@settings(max_examples=30)
@given(features=st.integers(1, 40), share=st.floats(0.01, 1), threads=st.integers(1, 2), **ANY)
@pytest.mark.slow
def test_gathers(built, count, tile, seed, features, share, threads) -> None:
    rng = np.random.default_rng(seed)
    index = np.sort(rng.permutation(count)[: max(1, round(share * count))])
    whole, left = Tokens(count, tile=tile), Tokens(len(index), tile=tile)
    x, keys = values(count, features), values(count)
    positions = (index, left.rows(1, "int64"))
    found = compute(built, "gather_tokens", [(x, whole.tiled(features)), positions], left.tiled(features), threads=threads)
    np.testing.assert_array_equal(found, x[index])
    np.testing.assert_array_equal(compute(built, "gather_keys", [(keys, whole.rows(1)), positions], left.rows(1)), keys[index])


@pytest.mark.slow
def test_positions_and_slots_outside_are_the_nearest_inside(built) -> None:
    """They are numbers in memory: no address is made of them unseen."""
    count, index = 40, np.array([-(2**63), -1, 0, 39, 40, 2**32 + 3, 2**63 - 1])
    whole, left = Tokens(count, tile=64), Tokens(len(index), tile=64)
    x, keys, inside = values(count, 5), values(count), np.clip(index, 0, count - 1)
    positions = (index, left.rows(1, "int64"))
    found = compute(built, "gather_tokens", [(x, whole.tiled(5)), positions], left.tiled(5))
    np.testing.assert_array_equal(found, x[inside])
    np.testing.assert_array_equal(compute(built, "gather_keys", [(keys, whole.rows(1)), positions], left.rows(1)), keys[inside])
    plan = np.concatenate([np.arange(4), np.resize(index, count - 4)])
    slots, kept = (plan, whole.rows(1, "int64")), Tokens(4, tile=64)
    found = compute(built, "merge_sizes", [slots], kept.rows(1), keep=4)
    np.testing.assert_array_equal(found, np.bincount(np.clip(plan, 0, 3), minlength=4))
    found = compute(built, "merge_tokens", [(x, whole.tiled(5)), slots], kept.tiled(5), keep=4)
    np.testing.assert_allclose(found, expected("merge_tokens", x, np.clip(plan, 0, 3), keep=4), rtol=1e-5, atol=1e-6)


@settings(max_examples=40)
@given(heads=st.sampled_from([1, 3]), dim=st.integers(2, 20), first=st.integers(0, 3), share=st.floats(0, 1), **ANY)
@pytest.mark.slow
def test_plans(built, count, tile, seed, heads, dim, first, share) -> None:
    """Keys of small integers whose cosines differ clearly or not at all would tie: these are random, so that pairs are far apart."""
    first = min(first, count)
    least = max(first, 1, count - pruning_ops.mergeable(count, first))
    keep = least + round(share * (count - least))
    key = values(count, heads * dim, seed=seed)
    tokens = Tokens(count, tile=tile)
    traits = {"heads": heads, "keep": keep, "first": first}
    found = compute(built, "merge_plan", [(key, tokens.tiled(heads * dim))], tokens.rows(1, "int64"), **traits)
    np.testing.assert_array_equal(found, expected("merge_plan", key, **traits))


@pytest.mark.slow
def test_equal_keys_and_nan_give_valid_plans(built) -> None:
    tokens = Tokens(9)
    traits = {"heads": 1, "keep": 6, "first": 1}
    for key in (np.ones((9, 4), np.float32), np.full((9, 4), np.nan, np.float32), np.zeros((9, 4), np.float32)):
        found = compute(built, "merge_plan", [(key, tokens.tiled(4))], tokens.rows(1, "int64"), **traits)
        assert sorted(set(found)) == list(range(6)) and found[0] == 0
        if not np.isnan(key).any():
            np.testing.assert_array_equal(found, expected("merge_plan", key, **traits))


@settings(max_examples=30)
@given(features=st.integers(1, 40), share=st.floats(0.01, 1), sized=st.booleans(), threads=st.integers(1, 2), **ANY)
@pytest.mark.slow
def test_merging(built, count, tile, seed, features, share, sized, threads) -> None:
    rng = np.random.default_rng(seed)
    keep = max(1, round(share * count))
    plan = np.concatenate([np.arange(keep), rng.integers(0, keep, count - keep)])
    sizes = rng.integers(0, 4, count).astype(np.float32)
    x = values(count, features)
    whole, left = Tokens(count, tile=tile), Tokens(keep, tile=tile)
    more = [(sizes, whole.rows(1))] * sized
    tail = [sizes] * sized
    slots = (plan, whole.rows(1, "int64"))
    found = compute(built, "merge_tokens", [(x, whole.tiled(features)), slots, *more], left.tiled(features), threads=threads, keep=keep)
    np.testing.assert_allclose(found, expected("merge_tokens", x, plan, *tail, keep=keep), rtol=1e-5, atol=1e-6)
    found = compute(built, "merge_sizes", [slots, *more], left.rows(1), keep=keep)
    np.testing.assert_array_equal(found, expected("merge_sizes", plan, *tail, keep=keep))


@pytest.mark.slow
def test_sizes_and_their_logarithms(built) -> None:
    sizes = np.concatenate([np.arange(0, 400), 10.0 ** np.arange(-30, 30), [np.inf, 0.70710678, 1e-45, np.nan]]).astype(np.float32)
    rows = Tokens(len(sizes)).rows(1)
    found = compute(built, "log_sizes", [(sizes, rows)], rows)
    with np.errstate(divide="ignore"):
        want = np.log(np.where(sizes < 1e-38, 0, sizes).astype(np.float64))
    np.testing.assert_allclose(found, want, rtol=3e-7, atol=1e-7)
    bias = np.array([0, 3, -1, -87.5, -1e30, -np.inf, -0.001], np.float32)
    rows = Tokens(len(bias)).rows(1)
    np.testing.assert_allclose(compute(built, "token_sizes", [(bias, rows)], rows), np.exp(np.minimum(bias, 0)), rtol=3e-7, atol=2e-38)


@settings(max_examples=15)
@given(features=st.integers(1, 40), threads=st.integers(1, 2), **ANY)
@pytest.mark.slow
def test_means_of_merged_tokens(built, count, tile, seed, features, threads) -> None:
    x, sizes = values(count, features), np.random.default_rng(seed).integers(1, 5, count).astype(np.float32)
    tokens = Tokens(count, tile=tile)
    found = compute(
        built, "mean_merged", [(x, tokens.tiled(features)), (sizes, tokens.rows(1))], Storage("single", features), threads=threads
    )
    np.testing.assert_allclose(found, expected("mean_merged", x, sizes), rtol=1e-5, atol=2e-6)


@pytest.mark.slow
def test_every_operator_is_tested_and_odd_tiles_are_refused(built) -> None:
    machine, _ = built
    ops = {op for family in FAMILIES if family.lower is pruning_groups for op in family.ops}
    assert {f.__name__ for f in pruning_ops.FUNCTIONS} - {"gather_pairs"} == ops
    storages = [Storage("tiled", 4, Geometry(1, 8, 0, tile)) for tile in (32, 64)]
    task = Task(
        "node",
        spec_of("gather_tokens"),
        (Buffer("x", storages[0]), Buffer("i", Tokens(8).rows(1, "int64"))),
        None,
        Buffer("y", storages[1]),
        (),
    )
    with pytest.raises(ValueError, match="tiles of \\[32, 64\\] tokens"):
        pruning_groups(task, (), machine)
