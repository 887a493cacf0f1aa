"""The option token_pruning: what it accepts, what it says of bad entries, and how a budget becomes counts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsec.errors import InvalidInput
from sparsec.settings import Settings
from sparsec.tokens.budget import TokenPruning, counts, remaining, spread


def test_options_are_read_once() -> None:
    made = Settings(token_pruning={"keep": 0.5, "after": [3, 6]}).token_pruning
    assert made == TokenPruning(keep=0.5, after=(3, 6)) and TokenPruning.read(made) is made
    assert TokenPruning(keep=[1, 0.5], after=[3, 6]).ratios() == (1.0, 0.5)
    assert TokenPruning(keep=0.5, after=3).blocks(3) == (3,)
    assert TokenPruning(budget=0.5).blocks(4) == (1, 2, 3) and TokenPruning(budget=0.5).ratios() == ()
    assert Settings().token_pruning is None and Settings().remove_padding is False


BAD: list[tuple[Any, str]] = [
    *(({"keep": keep, "after": [1]}, rf"token_pruning\['keep'\] cannot be {keep!r}") for keep in (0, -0.5, 1.5, True)),
    ({"keep": float("nan"), "after": [1]}, r"token_pruning\['keep'\] cannot be nan"),
    ({"keep": "half", "after": [1]}, r"token_pruning\['keep'\] cannot be 'half'"),
    ({"keep": [0.5, 2.0], "after": [1, 2]}, r"token_pruning\['keep'\] cannot be 2.0"),
    ({"keep": [0.5], "after": [1, 2]}, "names 2 blocks"),
    *(({"budget": budget}, rf"token_pruning\['budget'\] cannot be {budget!r}") for budget in (0, 1.01, -1, "x")),
    ({}, r'Give either "keep"'),
    ({"keep": 0.5, "budget": 0.5, "after": [1]}, r'Give either "keep"'),
    ({"keep": 0.5}, r"token_pruning\['after'\] cannot be None"),
    *(({"keep": 0.5, "after": after}, r"token_pruning\['after'\] cannot be") for after in ([], [0], [2, 1], [1, 1], [1.5], "12", [True])),
    ({"keep": 0.5, "after": [1], "strategy": "drop"}, "Use one of prune, merge"),
    ({"keep": 0.5, "after": [1], "cls": "yes"}, r"token_pruning\['cls'\] cannot be 'yes'"),
    ({"keep": 0.5, "after": [1], "allow_shorter": 1}, r"token_pruning\['allow_shorter'\] cannot be 1"),
    ({"kep": 0.5}, "Did you mean 'keep'"),
    (0.5, "token_pruning is a mapping, got 0.5"),
]


@pytest.mark.parametrize(("option", "message"), BAD)
def test_bad_options_are_named(option: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Settings(token_pruning=option)


def test_padding_removal_is_a_switch() -> None:
    with pytest.raises(InvalidInput, match="remove_padding is True or False"):
        Settings(remove_padding="no")  # type: ignore[arg-type]


@given(st.integers(1, 1000), st.integers(1, 100))
def test_remaining_is_the_exact_ceiling(tokens: int, percent: int) -> None:
    assert remaining(tokens, percent / 100) == -(-percent * tokens // 100)


def test_counts_follow_one_another() -> None:
    assert counts(197, (0.5, 0.5)) == (99, 50)
    assert counts(10, (0.1, 0.1), least=3) == (3, 3)
    assert counts(2, (0.5,), least=3) == (2,)


@given(st.integers(1, 300), st.integers(1, 12), st.floats(0.05, 1.0), st.integers(1, 3))
@pytest.mark.slow
def test_a_budget_is_met_and_used(tokens: int, steps: int, budget: float, least: int) -> None:
    def cost(left: Any) -> int:
        return tokens * 1000 + sum(1000 * count + count * count for count in left)

    whole = cost((tokens,) * steps)
    lowest = cost(counts(tokens, (1 / 4096,) * steps, least))
    if lowest > budget * whole:
        with pytest.raises(InvalidInput, match="needs at least"):
            spread(budget, tokens, steps, cost, least)
        return
    left = spread(budget, tokens, steps, cost, least)
    assert cost(left) <= budget * whole
    assert left == counts(tokens, (1.0,) * steps, least) or budget < 1
    more = next((s for s in range(1, 4097) if counts(tokens, (s / 4096,) * steps, least) == left), 0)
    while more < 4096 and counts(tokens, (more / 4096,) * steps, least) == left:
        more += 1
    bigger = counts(tokens, (more / 4096,) * steps, least)
    assert bigger == left or cost(bigger) > budget * whole


def test_a_floor_is_the_smallest_share() -> None:
    assert spread(0.9, 100, 1, lambda left: left[0] + 100, floor=0.5) == (80,)
    with pytest.raises(InvalidInput, match=r"needs at least 0\.75"):
        spread(0.7, 100, 1, lambda left: left[0] + 100, floor=0.5)
