"""The attention kernel against the operator's meaning in float64, on each machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.backends.base import Machine
from sparsec.backends.cpu.attention import Masks, attention
from sparsec.backends.cpu.attention_calls import attention_groups, pack_pair_bias, panel_of
from sparsec.backends.plan import Buffer, Call, Task
from sparsec.lower.layouts import Geometry, Storage
from sparsec.lower.spec import KernelSpec
from sparsec.run.affine import Affine, Count
from sparsec.tokens import ops as token_ops
from tests.backends.cpu import kernel_call
from tests.backends.cpu.kernel_call import At, Kernels, from_tiled, to_tiled
from tests.machines import AVX2, MACHINES, WIDEST, lanes_of

PLAIN = Masks()
MASKS = [PLAIN, Masks(True), Masks(False, True), Masks(False, False, True), Masks(True, True), Masks(True, True, True)]
LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Problem:
    """q [Tq, H*D], k [Tk, H*D], v [Tk, H*E], key_bias [Tk] or None, pair_bias [1 or H, Tq, Tk] or None.

    ``most``: (queries, keys) that the program is laid out for, where the sizes above come at run time.
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    heads: int
    scale: float
    causal: bool = False
    key_bias: np.ndarray | None = None
    pair_bias: np.ndarray | None = None
    tile: int = 64
    most: tuple[int, int] | None = None

    def reference(self) -> np.ndarray:
        """[Tq, H*E] in float64."""
        q, k, v = (torch.from_numpy(x).double()[None] for x in (self.q, self.k, self.v))
        key_bias = None if self.key_bias is None else torch.from_numpy(self.key_bias).double()[None]
        pair_bias = None if self.pair_bias is None else torch.from_numpy(self.pair_bias).double()
        return token_ops.attention(q, k, v, key_bias, pair_bias, heads=self.heads, scale=self.scale, causal=self.causal)[0].numpy()

    def geometries(self) -> tuple[Geometry, Geometry]:
        """Of queries and keys, as the program is laid out."""
        follows = (None, None) if self.most is None else (Affine("queries"), Affine("keys"))
        counts = self.most or (len(self.q), len(self.k))
        queries, keys = (Geometry(1, n, 0, self.tile, each) for n, each in zip(counts, follows, strict=True))
        return queries, keys

    def call(self, machine: Machine) -> Call:
        """What the backend makes of it."""
        queries, keys = self.geometries()
        buffers = [
            Buffer(name, Storage("tiled", x.shape[1], g))
            for name, x, g in (("q", self.q, queries), ("k", self.k, keys), ("v", self.v, keys))
        ]
        if self.key_bias is not None:
            buffers.append(Buffer("key_bias", Storage("token_major", 1, keys)))
        attributes = (("causal", self.causal), ("heads", self.heads), ("scale", self.scale))
        target = Buffer("y", Storage("tiled", self.v.shape[1], queries))
        weights = () if self.pair_bias is None else (_enlarged(self.pair_bias, (queries.width, keys.width)),)
        (group,) = attention_groups(
            Task("node", KernelSpec("attention", (), (), attributes=attributes), tuple(buffers), None, target, weights), (), machine
        )
        (call,) = group.calls
        return call


def _enlarged(bias: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    out = np.full((len(bias), *shape), np.nan, np.float32)
    out[:, : bias.shape[1], : bias.shape[2]] = bias
    return out


def _value(number: Any, sizes: dict[str, int]) -> Any:
    return number.at(sizes[number.follows.symbol]) if isinstance(number, Count) else number


def _stored(x: np.ndarray, largest: Geometry) -> np.ndarray:
    """[tiles, F, tile] for the largest size; NaN past the last token."""
    out = np.full((largest.tiles, x.shape[1], largest.tile), np.nan, np.float32)
    own = to_tiled(np.ascontiguousarray(x.T)[:, None], Geometry(1, len(x), 0, largest.tile))
    out[: len(own)] = own
    return out


class Variants:
    """All code variants of this module in one library."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        panels = [panel[:2] for panel in machine.panels.attention]
        sources = [attention(machine.vector, *panel, 64, masks) for panel in panels for masks in MASKS]
        sources += [attention(machine.vector, *panel, tile, PLAIN) for panel in panels for tile in (16, 32)]
        self.kernels = Kernels(sources, machine)

    def run(self, case: Problem, threads: int = 1) -> np.ndarray:
        """[Tq, H*E]"""
        call, (queries, keys) = case.call(self.machine), case.geometries()
        sizes = {"queries": len(case.q), "keys": len(case.k)}
        memory = {"q": _stored(case.q, queries), "k": _stored(case.k, keys), "v": _stored(case.v, keys)}
        memory["y"] = np.full((queries.tiles, case.v.shape[1], queries.tile), np.nan, np.float32)
        memory["key_bias"] = np.full(keys.width, np.nan, np.float32)
        if case.key_bias is not None:
            memory["key_bias"][: len(case.key_bias)] = case.key_bias
        slot = call.buffers["scores"].slot
        memory["scores"] = np.full(threads * slot, np.nan, np.float32)
        arguments = {**call.constants, **{n: _value(x, sizes) for n, x in call.scalars.items()}}
        arguments |= {n: "key_bias" if n == "key_bias" else At(n) for n in ("q", "k", "v", "y", "key_bias")}
        arguments["scores"] = At("scores", per_slot=slot)
        units = _value(call.units, sizes)
        out = self.kernels.run([kernel_call.Call(call.source, arguments)], memory, units, threads=threads)["y"]
        return from_tiled(out, Geometry(1, queries.width, 0, queries.tile))[:, 0].T[: len(case.q)]

    def check(self, case: Problem, threads: int = 1) -> None:
        want = case.reference()
        got = self.run(case, threads)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        size = float(np.nan_to_num(abs(case.v), posinf=0).max(initial=1e-3))
        np.testing.assert_allclose(got, want, rtol=0, atol=4e-6 * size)


@pytest.fixture(scope="module", params=MACHINES)
def variants(request: pytest.FixtureRequest) -> Variants:
    return Variants(request.param)


def problem(seed: int, queries: int, keys: int, heads: int, dim: int, value_dim: int, masks: Masks = PLAIN, **rest: Any) -> Problem:
    """Random operands; a key bias keeps about two thirds of the keys."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return Problem(
        q=normal(queries, heads * dim),
        k=normal(keys, heads * dim),
        v=normal(keys, heads * value_dim),
        heads=heads,
        scale=dim**-0.5,
        causal=masks.causal,
        key_bias=np.where(rng.random(keys) < 0.66, normal(keys), -np.inf).astype(np.float32) if masks.key_bias else None,
        pair_bias=normal(rng.choice([1, heads]), queries, keys) if masks.pair_bias else None,
        **rest,
    )


@settings(max_examples=80)
@given(
    seed=st.integers(0, 1 << 30),
    queries=st.integers(1, 140),
    keys=st.integers(1, 140),
    heads=st.integers(1, 4),
    dim=st.integers(1, 40),
    value_dim=st.integers(1, 40),
    masks=st.sampled_from(MASKS),
    threads=st.integers(1, 2),
)
@pytest.mark.slow
def test_matches_float64(variants, seed, queries, keys, heads, dim, value_dim, masks, threads):
    variants.check(problem(seed, queries, keys, heads, dim, value_dim, masks), threads)


@pytest.mark.parametrize("tile", [16, 32])
@pytest.mark.parametrize("keys", [1, 16, 29, 33, 100])
@pytest.mark.slow
def test_narrow_tiles(variants, tile, keys):
    variants.check(problem(keys, 50, keys, 2, 12, 11, tile=tile))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [1, 5, 17, 50, 128, 197, 512])
@pytest.mark.slow
def test_lengths_of_models(variants, tokens, causal):
    variants.check(problem(tokens, tokens, tokens, 2, 64, 64, Masks(causal=causal)), threads=2)


@pytest.mark.parametrize("dim", [8, 9, 31, 64, 128])
@pytest.mark.parametrize("value_dim", [8, 13, 64, 128])
@pytest.mark.slow
def test_heads_of_any_size(variants, dim, value_dim):
    variants.check(problem(dim, 37, 70, 3, dim, value_dim))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1 << 30),
    sizes=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    more=st.tuples(st.integers(0, 150), st.integers(0, 150)),
    masks=st.sampled_from(MASKS),
    threads=st.integers(1, 2),
)
@pytest.mark.slow
def test_sizes_that_come_at_run_time(variants, seed, sizes, more, masks, threads):
    most = (sizes[0] + more[0], sizes[1] + more[1])
    variants.check(problem(seed, *sizes, 2, 12, 20, masks, most=most), threads)


@pytest.mark.parametrize("masks", [m for m in MASKS if m.key_bias], ids=lambda m: m.suffix)
@pytest.mark.slow
def test_rows_whose_scores_are_all_minus_infinity_are_zero(variants, masks):
    case = problem(3, 40, 30, 2, 8, 8, masks)
    hidden = replace(case, key_bias=np.full(30, -np.inf, np.float32))
    assert not variants.run(hidden).any()
    first = replace(case, key_bias=np.where(np.arange(30) < 7, -np.inf, 0).astype(np.float32))
    variants.check(first)
    if masks.causal:
        assert not variants.run(first)[:7].any()


@pytest.mark.parametrize("bias", [LOWEST, -1e4])
@pytest.mark.slow
def test_additive_masks_of_finite_numbers(variants, bias):
    case = problem(4, 20, 33, 2, 16, 16)
    variants.check(replace(case, key_bias=np.where(np.arange(33) % 3 == 0, 0, bias).astype(np.float32)))
    # Where every key has the lowest number the scores drown in it, in float32 as in eager float32.
    everywhere = replace(case, key_bias=np.full(33, bias, np.float32))
    scores = np.einsum("ihd,jhd->hij", *(x.reshape(len(x), 2, 16) for x in (case.q, case.k))) * np.float32(case.scale) + np.float32(bias)
    weights = torch.from_numpy(scores).double().softmax(2).numpy()
    want = np.einsum("hij,jhd->ihd", weights, case.v.reshape(33, 2, 16)).reshape(20, 32)
    np.testing.assert_allclose(variants.run(everywhere), want, rtol=0, atol=4e-6 if bias == LOWEST else 2e-3)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["q", "k", "v", "key_bias", "pair_bias"])
@pytest.mark.slow
def test_nan_and_infinities_go_where_torch_sends_them(variants, where, bad):
    case = problem(5, 21, 40, 2, 8, 8, Masks(True, True))
    operand = getattr(case, where).copy()
    operand[(0,) * (operand.ndim - 1) + (3,)] = bad
    operand.reshape(-1)[-1] = bad
    case = replace(case, **{where: operand})
    got, want = variants.run(case), case.reference()
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(np.isposinf(got), np.isposinf(want))
    np.testing.assert_allclose(got[np.isfinite(want)], want[np.isfinite(want)], rtol=0, atol=2e-5)


@pytest.mark.slow
def test_a_nan_payload_is_not_lost_in_the_exponential(variants):
    case = problem(6, 16, 16, 1, 8, 8, Masks(key_bias=True))
    bias = case.key_bias.copy()
    bias[2:3].view(np.uint32)[:] = 0x7FC00001
    assert np.isnan(variants.run(replace(case, key_bias=bias))).all()


@pytest.mark.slow
def test_large_scores_do_not_overflow_and_far_ones_vanish(variants):
    case = problem(7, 33, 50, 2, 8, 8)
    variants.check(replace(case, q=case.q * np.float32(2.0**7), k=np.round(case.k * 4)))


@pytest.mark.parametrize("length", [0.5, 3.0, 20.0, 86.0])
@pytest.mark.slow
def test_the_exponential_is_exact_to_two_units(variants, length):
    # Two keys of scores 0 and -x, values 0 and 1: y = e / (1 + e), so e = y / (1 - y).
    x = np.linspace(0, length, 64, dtype=np.float32)
    case = Problem(-x[:, None], np.array([[0], [1]], np.float32), np.array([[0], [1]], np.float32), 1, 1.0)
    want = np.exp(-x.astype(np.float64))
    np.testing.assert_allclose(variants.run(case)[:, 0], want / (1 + want), rtol=4 * 2**-23)


def test_the_panel_that_wastes_least():
    def chosen(tokens: int, causal: bool = False, tile: int = 64) -> tuple[int, int]:
        storage = Storage("tiled", 64, Geometry(1, tokens, 0, tile))
        return panel_of(storage, storage, storage, causal, WIDEST)

    lanes, (wide, narrow) = lanes_of(WIDEST), (panel[:2] for panel in WIDEST.panels.attention)
    assert chosen(16 * lanes) == wide
    assert chosen(1) == narrow
    assert chosen(2 * lanes, tile=lanes) == narrow


def test_pair_bias_lies_along_queries():
    packed = pack_pair_bias(np.arange(6, dtype=np.float32).reshape(1, 2, 3), 4)
    assert packed.tolist() == [[[0, 3, 0, 0], [1, 4, 0, 0], [2, 5, 0, 0]]]


def test_storages_that_do_not_fit_are_refused():
    case, machine = problem(8, 4, 4, 1, 4, 4, tile=64), AVX2
    with pytest.raises(ValueError, match="tiles of 20 and 20 queries"):
        replace(case, tile=20).call(machine)
    with pytest.raises(ValueError, match="narrower than a panel"):
        attention(AVX2.vector, 6, 2, 4, Masks())
