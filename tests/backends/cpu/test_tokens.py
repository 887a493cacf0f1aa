"""Moves of tokens and the operators that mostly move them, against their references, on each machine.

Every kernel is planned for a largest number of tokens and run with fewer; what lies past them is NaN.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.backends.base import Machine
from sparsec.backends.cpu import convert, key_bias, moves, prepend, repack, token_moves, token_table, token_vectors
from sparsec.backends.cpu.families import FAMILIES
from sparsec.backends.cpu.pointwise_ops import map_op
from sparsec.backends.cpu.tokens import token_groups
from sparsec.backends.plan import Buffer
from sparsec.lower.layouts import Geometry, Storage
from sparsec.run.affine import Count
from tests.backends.cpu import kernel_call
from tests.backends.cpu.kernel_call import Kernels
from tests.backends.cpu.token_call import Tokens, from_tiled, garbage, reference, run, spec_of, task_of, to_tiled
from tests.machines import MACHINES, WIDEST, lanes_of

TILES = (64, 32)
PREFIXES = (1, 5, 16, 21, 32)
MASKS = {"int64": np.int64, "int32": np.int32, "bool": np.bool_, "float32": np.float32}

COUNTS = {"count": st.integers(1, 150), "spare": st.sampled_from([0, 1, 70]), "features": st.integers(1, 80)}
ANY = COUNTS | {"tile": st.sampled_from(TILES), "threads": st.integers(1, 2)}


@pytest.fixture(scope="module", params=MACHINES)
def built(request: pytest.FixtureRequest) -> tuple[Machine, Kernels]:
    vector, lanes = request.param.vector, lanes_of(request.param)
    sources = [token_vectors.select_token(vector), convert.copy_rows(vector)]
    for make in (token_moves.rows_to_tiled, token_moves.tiled_to_rows, repack.repack, repack.gather):
        sources += [make(vector, tile // lanes) for tile in TILES]
    for make in (token_table.add_table, token_vectors.mean_tokens):
        sources += [make(vector, tile // lanes) for tile in TILES]
    sources += [map_op(vector, tile // lanes, "affine", "clamp", False) for tile in TILES]
    sources += [prepend.prepend(vector, tile // lanes, p) for tile in TILES for p in PREFIXES]
    sources += [key_bias.key_bias(vector, mask, affine) for mask in MASKS for affine in (False, True)]
    return request.param, Kernels(sources, request.param)


def tokens_of(count: int, spare: int, tile: int = 64) -> Tokens:
    return Tokens(count, count + spare if spare else 0, tile)


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape[0]).standard_normal(shape).astype(np.float32)


def done(built, spec, tokens, source, target, x, y, *weights, threads=1) -> np.ndarray:
    machine, kernels = built
    ((call,),) = (group.calls for group in token_groups(task_of(spec, source, target, *weights), (), machine))
    return run(kernels, call, x, y, tokens.count, threads)


def moved(built, tokens, source, target, x, y, threads=1) -> np.ndarray:
    machine, kernels = built
    return run(kernels, moves.copy(Buffer("x", source), Buffer("y", target), machine), x, y, tokens.count, threads)


@settings(max_examples=60)
@given(**ANY)
@pytest.mark.slow
def test_rows_to_tiled_and_back(built, count, spare, features, tile, threads) -> None:
    x, tokens = values(count, features), tokens_of(count, spare, tile)
    tiled = tokens.tiled(features)
    there = moved(built, tokens, tokens.rows(features), tiled, x, garbage(tiled), threads)
    np.testing.assert_array_equal(from_tiled(there, count), x)
    back = moved(built, tokens, tiled, tokens.rows(features), to_tiled(x, tiled), np.full_like(x, np.nan), threads)
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("features", [0, 1, 5, 40])
@pytest.mark.parametrize("spare", [0, 30])
@pytest.mark.slow
def test_rows_are_copied(built, features, spare) -> None:
    x, tokens = values(37, max(features, 1)), tokens_of(37, spare)
    rows = tokens.rows(features)
    np.testing.assert_array_equal(moved(built, tokens, rows, rows, x, np.full_like(x, np.nan)), x)


@settings(max_examples=40)
@given(**ANY, whole=st.booleans())
@pytest.mark.slow
def test_add_table(built, count, spare, features, tile, threads, whole) -> None:
    x, tokens, spec = values(count, features), tokens_of(count, spare, tile), spec_of("add_table")
    storage = tokens.tiled(features)
    table = values(count + spare + 1, features)[1:] if whole else values(features)
    got = done(built, spec, tokens, storage, storage, to_tiled(x, storage), garbage(storage), table, threads=threads)
    np.testing.assert_array_equal(from_tiled(got, count), x + (table[:count] if whole else table))


@settings(max_examples=60)
@given(**ANY, prefix=st.sampled_from(PREFIXES), same=st.booleans())
@pytest.mark.slow
def test_prepend(built, count, spare, features, tile, threads, prefix, same) -> None:
    x, first, spec = values(count, features), values(prefix, features), spec_of("prepend")
    tokens, wide = tokens_of(count, spare, tile), tokens_of(count, spare, tile if same else sum(TILES) - tile)
    source, target = tokens.tiled(features), wide.tiled(features, prefix)
    got = done(built, spec, tokens, source, target, to_tiled(x, source), garbage(target), first, threads=threads)
    np.testing.assert_array_equal(from_tiled(got, count + prefix), reference(spec, x, first))


@settings(max_examples=40)
@given(**ANY, at=st.floats(0, 1, exclude_max=True))
@pytest.mark.slow
def test_select_token(built, count, spare, features, tile, threads, at) -> None:
    x, tokens, spec = values(count, features), tokens_of(count, spare, tile), spec_of("select_token", index=int(at * count))
    source, vector = tokens.tiled(features), Storage("single", features)
    got = done(built, spec, tokens, source, vector, to_tiled(x, source), np.full(features, np.nan, np.float32), threads=threads)
    np.testing.assert_array_equal(got, reference(spec, x))


@settings(max_examples=40)
@given(**ANY)
@pytest.mark.slow
def test_mean_tokens(built, count, spare, features, tile, threads) -> None:
    x, tokens, spec = values(count, features), tokens_of(count, spare, tile), spec_of("mean_tokens")
    source, vector = tokens.tiled(features), Storage("single", features)
    got = done(built, spec, tokens, source, vector, to_tiled(x, source), np.full(features, np.nan, np.float32), threads=threads)
    np.testing.assert_allclose(got, reference(spec, x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("count", "spare"), [(1, 0), (7, 3), (128, 0), (33, 95)])
@pytest.mark.slow
def test_key_bias(built, mask, affine, count, spare) -> None:
    x = (np.random.default_rng(count).random(count) < 0.5).astype(MASKS[mask])
    tokens, spec = tokens_of(count, spare), spec_of("key_bias", on=0.0, off=float(np.finfo(np.float32).min), affine=affine)
    y = np.full(count, np.nan, np.float32)
    got = done(built, spec, tokens, tokens.rows(dtype=mask), tokens.rows(), x, y)
    np.testing.assert_array_equal(got, reference(spec, x).astype(np.float32))


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.slow
def test_key_bias_of_numbers_that_are_no_flags(built, affine) -> None:
    x = np.array([0, -0.0, 1, 0.25, -2, np.nan, np.inf, 1e-40], np.float32)
    spec, tokens = spec_of("key_bias", on=0.5, off=-3.0, affine=affine), Tokens(len(x))
    got = done(built, spec, tokens, tokens.rows(), tokens.rows(), x, np.zeros_like(x))
    np.testing.assert_allclose(got, reference(spec, x), rtol=1e-6)


def test_other_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="a mask of dtype 'float64'"):
        key_bias.key_bias(WIDEST.vector, "float64", False)


def map_storage(layout: str, x: np.ndarray, g: Geometry) -> np.ndarray:
    return kernel_call.to_halo(x, g) if layout == "halo" else kernel_call.to_tiled(x, g)


MAPS: dict[str, Any] = {
    "features": st.integers(1, 20),
    "size": st.tuples(st.integers(1, 15), st.integers(1, 15)),
    "pad": st.integers(0, 2),
    "layout": st.sampled_from(["halo", "tiled"]),
    "tiles": st.tuples(st.sampled_from(TILES), st.sampled_from(TILES)),
    "threads": st.integers(1, 2),
}


@settings(max_examples=60)
@given(**MAPS)
@pytest.mark.slow
def test_map_to_tokens(built, features, size, pad, layout, tiles, threads) -> None:
    x, g, tokens, spec = (
        values(features, *size),
        Geometry(*size, pad, tiles[0]),
        Tokens(size[0] * size[1], 0, tiles[1]),
        spec_of("map_to_tokens"),
    )
    source, target = Storage(layout, features, g), tokens.tiled(features)
    got = done(built, spec, tokens, source, target, map_storage(layout, x, g), garbage(target), threads=threads)
    np.testing.assert_array_equal(from_tiled(got, tokens.count), reference(spec, x))


@settings(max_examples=60)
@given(**MAPS)
@pytest.mark.slow
def test_tokens_to_map(built, features, size, pad, layout, tiles, threads) -> None:
    g, tokens, spec = (
        Geometry(*size, pad, tiles[0]),
        Tokens(size[0] * size[1], 0, tiles[1]),
        spec_of("tokens_to_map", height=size[0], width=size[1]),
    )
    x, target = values(size[0] * size[1], features), Storage(layout, features, g)
    empty = map_storage(layout, np.full((features, *size), np.nan, np.float32), g)
    got = done(built, spec, tokens, tokens.tiled(features), target, to_tiled(x, tokens.tiled(features)), empty, threads=threads)
    want = reference(spec, x)
    if layout == "halo":
        np.testing.assert_array_equal(got, kernel_call.to_halo(want, g))
    else:
        np.testing.assert_array_equal(kernel_call.from_tiled(got, g), want)


def test_every_operator_is_tested_here_or_in_a_file_of_its_own() -> None:
    ops = {op for family in FAMILIES if family.lower is token_groups for op in family.ops}
    assert {"layer_norm", "embedding"} | {name[5:] for name in globals() if name[5:] in ops and name.startswith("test_")} == ops


@pytest.mark.parametrize("op", ["layer_norm", "embedding", "add_table", "prepend", "mean_tokens", "key_bias"])
@pytest.mark.slow
def test_work_follows_the_run_time_size(built, op) -> None:
    tokens = Tokens(3, 200)
    tiled = tokens.tiled(8)
    attributes: dict[str, Any] = {"layer_norm": {"eps": 1e-5}, "key_bias": {"on": 0.0, "off": -1.0}}
    weights = {"layer_norm": (None, None), "embedding": (values(9, 8),), "add_table": (values(200, 8),), "prepend": (values(1, 8),)}
    source = {"embedding": tokens.rows(dtype="int64"), "key_bias": tokens.rows()}.get(op, tiled)
    target = {"prepend": tokens.tiled(8, 1), "mean_tokens": Storage("single", 8), "key_bias": tokens.rows()}.get(op, tiled)
    task = task_of(spec_of(op, **attributes.get(op, {})), source, target, *weights.get(op, ()))
    ((call,),) = (group.calls for group in token_groups(task, (), built[0]))
    if op in ("mean_tokens", "key_bias"):
        assert isinstance(call.scalars["count"], Count)
    else:
        assert isinstance(call.units, Count) and call.units.at(3) == 1
