"""Facts: what is measured holds, implication and join are sound, and N:M implication is exactly right."""

import itertools
import json
import math
import time

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from sparsec.facts.lattice import MEASURED_GROUPS, NOTHING, ZERO, Blocks, Fact, Groups, implies, join, meet
from tests.strategies import facts, integers, sparse_matrices

ALL_MASKS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=12)))


@given(tensor=sparse_matrices())
def test_what_is_measured_holds_and_survives_json(tensor: torch.Tensor) -> None:
    fact = Fact.of(tensor)
    assert fact.holds(tensor)
    assert Fact.from_json(json.loads(json.dumps(fact.to_json()))) == fact


@example(tensor=torch.zeros(1, 1), other=Fact(density=0.5, dead=((0, frozenset({1})),)))
@given(tensor=sparse_matrices(), other=facts())
def test_implication_is_sound(tensor: torch.Tensor, other: Fact) -> None:
    if implies(Fact.of(tensor), other):
        assert other.holds(tensor)


@given(a=facts(), b=facts())
def test_join_is_implied_by_both_and_commutes(a: Fact, b: Fact) -> None:
    joined = join(a, b)
    assert implies(a, joined)
    assert implies(b, joined)
    assert joined == join(b, a)
    assert join(a, a) == a or a.is_zero


@given(a=sparse_matrices(), b=sparse_matrices())
def test_join_holds_on_both_tensors(a: torch.Tensor, b: torch.Tensor) -> None:
    joined = join(Fact.of(a), Fact.of(b))
    assert joined.holds(a)
    assert joined.holds(b)


@given(tensor=sparse_matrices(), keys=st.sets(st.sampled_from(["groups", "blocks", "dead", "pattern", "low", "high"])))
def test_meet_of_two_proofs_is_the_stronger(tensor: torch.Tensor, keys: set) -> None:
    measured = Fact.of(tensor)
    plain = measured.to_json()
    parts = [{k: v for k, v in plain.items() if (k in keys) == side} for side in (True, False)]
    a, b = (Fact.from_json(part) for part in parts)
    assert meet(a, b).holds(tensor)
    assert implies(meet(a, b), a)
    assert implies(meet(a, b), b)


@pytest.mark.parametrize("m", range(1, 7))
@pytest.mark.parametrize("size", range(1, 7))
def test_group_bound_is_the_maximum_over_all_masks(m: int, size: int) -> None:
    """All 4096 masks of 12 elements: the bound is never exceeded, and reached where 12 holds a whole period."""
    counts = ALL_MASKS.unfold(1, m, m).sum(2) if 12 % m == 0 else torch.nn.functional.pad(ALL_MASKS, (0, -12 % m)).unfold(1, m, m).sum(2)
    measured = torch.nn.functional.pad(ALL_MASKS, (0, -12 % size)).unfold(1, size, size).sum(2).amax(1)
    for n in range(1, m + 1):
        bound = Fact(groups=(Groups(n, m),)).group_bound(size)
        found = int(measured[counts.amax(1) <= n].max())
        assert found <= bound
        if math.lcm(m, size) <= 12:
            assert found == bound


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (2, 8), (4, 8)])
def test_groups_are_found(n: int, m: int) -> None:
    weight = integers((6, 24, 3, 3), 0, 1, 3)
    weight[:, torch.arange(24) % m >= n] = 0
    found = {group.m: group.n for group in Fact.of(weight).groups}
    assert (n, m) in MEASURED_GROUPS
    assert found[m] == n


def test_groups_run_along_inputs_at_a_fixed_tap() -> None:
    weight = torch.zeros(2, 4, 1, 3)
    weight[:, 0, 0, 0] = weight[:, 1, 0, 1] = weight[:, 2, 0, 2] = 1.0
    assert {group.m: group.n for group in Fact.of(weight).groups}[4] == 1


@pytest.mark.parametrize(("rows", "columns"), [(4, 1), (8, 1), (16, 1), (32, 1), (32, 32)])
@pytest.mark.parametrize("outputs", [64, 61])
def test_blocks_are_found(rows: int, columns: int, outputs: int) -> None:
    kept = torch.rand(-(-outputs // rows), -(-70 // columns), generator=torch.Generator().manual_seed(0)) < 0.3
    kept[0, 0], kept[-1, -1] = True, False
    mask = kept.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[:outputs, :70]
    fact = Fact.of(mask.double())
    assert fact.block_bound(rows, columns) == pytest.approx(kept.double().mean().item(), abs=1e-12)


def test_dead_rows_and_columns_are_found() -> None:
    weight = torch.ones(4, 5, 2, 2)
    weight[1], weight[:, 3] = 0, 0
    fact = Fact.of(weight)
    assert fact.dead_along(0) == {1}
    assert fact.dead_along(1) == {3}
    assert fact.density == pytest.approx(12 / 20)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nothing_is_known_of_infinities(value: float) -> None:
    weight = torch.zeros(4, 4)
    weight[2, 2] = value
    fact = Fact.of(weight)
    assert fact == NOTHING
    assert fact.reason == "non-finite"


def test_nothing_is_known_of_complex_and_empty_tensors() -> None:
    assert Fact.of(torch.zeros(2, 2, dtype=torch.complex64)).reason == "complex"
    assert Fact.of(torch.zeros(0, 2)).reason == "empty"


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_measured(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1], [0, 0]]).to(dtype)
    assert Fact.of(tensor).density == 0.25
    assert Fact.of(tensor).holds(tensor)


def test_all_zero_implies_every_zero_fact_but_no_constant() -> None:
    assert implies(ZERO, Fact(groups=(Groups(1, 4),), blocks=(Blocks(8, 1, 0.1),), dead=((1, frozenset({2})),), pattern="any"))
    assert not implies(ZERO, Fact(constants=((0, 1.0),)))
    assert not implies(ZERO, Fact(low=1.0))
    assert Fact.of(torch.zeros(3, 3)) == ZERO


@pytest.mark.parametrize("a", [Fact(density=0.5), Fact(groups=(Groups(1, 4),)), Fact(blocks=(Blocks(8, 1, 0.1),))])
def test_facts_do_not_imply_what_an_edge_may_break(a: Fact) -> None:
    """1:4 on one column is dense; one of two 8x1 blocks on 9 rows may hold 8 of 9 elements."""
    assert not implies(a, Fact(density=0.3))


def test_measuring_is_fast() -> None:
    weight = torch.randn(1024, 2048) * (torch.rand(1024, 2048) < 0.1)
    start = time.process_time()
    Fact.of(weight)
    assert time.process_time() - start < 0.5


def test_a_fact_reads_as_text() -> None:
    assert str(ZERO) == "all zero"
    assert str(NOTHING) == "nothing known"
    assert str(Fact.of(torch.full((2, 2), math.nan))) == "nothing known (non-finite)"
    assert "2:4" in str(Fact(groups=(Groups(2, 4),)))
