"""Whatever boards do, each unit is accepted once or given up, and nothing that a liar has said is kept."""

import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.autotune.scheduler import MOST_LOST, MOST_RETURNS, Scheduler


def joined(units, *boards):
    scheduler = Scheduler(units)
    assert all(scheduler.join(board) for board in boards)
    return scheduler


def accepted(scheduler):
    return {unit: opinion.board for unit, opinion in scheduler.accepted.items()}


def test_work_goes_round():
    scheduler = joined(["u", "v", "w"], "a", "b")
    assert (scheduler.take("a"), scheduler.take("b"), scheduler.take("a")) == ("u", "v", None)
    scheduler.measured("b", "numbers")
    assert scheduler.take("b") == "w" and not scheduler.finished
    scheduler.measured("a", "numbers")
    scheduler.measured("b", "numbers")
    assert scheduler.finished and accepted(scheduler) == {"u": "a", "v": "b", "w": "b"} and not scheduler.dropped


def test_the_work_of_a_lost_board_goes_to_others_and_what_it_has_measured_stays():
    scheduler = joined(["u", "v"], "a", "b")
    assert scheduler.take("a") == "u"
    scheduler.measured("a", "first")
    assert scheduler.take("a") == "v"
    scheduler.lost("a", "it died")
    assert scheduler.dropped == {"a": "it died"} and not scheduler.join("a")
    assert scheduler.take("b") == "v"
    scheduler.measured("b", "second")
    assert scheduler.finished and accepted(scheduler) == {"u": "a", "v": "b"}


def test_a_liar_is_dropped_and_all_that_it_has_measured_is_measured_again():
    scheduler = joined(["u", "v"], "liar", "b")
    assert scheduler.take("liar") == "u"
    scheduler.measured("liar", "numbers")
    assert scheduler.take("liar") == "v"
    scheduler.measured("liar", "numbers", frozenset({3}))
    assert scheduler.take("liar") is None and scheduler.take("b") == "v"
    scheduler.measured("b", "numbers")
    assert list(scheduler.dropped) == ["liar"] and "right on b" in scheduler.dropped["liar"]
    assert accepted(scheduler) == {"v": "b"} and scheduler.take("b") == "u"
    scheduler.measured("b", "numbers")
    assert scheduler.finished and accepted(scheduler) == {"u": "b", "v": "b"}


def test_a_liar_that_has_died_has_lied_all_the_same():
    scheduler = joined(["u", "v", "w"], "liar", "b")
    assert scheduler.take("liar") == "u"
    scheduler.measured("liar", "numbers")
    assert (scheduler.take("liar"), scheduler.take("b")) == ("v", "w")
    for board in ("liar", "b"):
        scheduler.measured(board, "numbers", frozenset({1}))
    assert (scheduler.take("liar"), scheduler.take("b")) == ("w", "v")
    scheduler.lost("liar", "it died")
    assert accepted(scheduler) == {"u": "liar", "w": "b"}
    scheduler.measured("b", "numbers")
    assert accepted(scheduler) == {"v": "b", "w": "b"} and scheduler.dropped == {"liar": "it died"} and scheduler.take("b") == "u"


@pytest.mark.parametrize("boards", [["a"], ["a", "b"]])
def test_what_is_wrong_on_every_board_is_the_candidates_fault(boards):
    scheduler = joined(["u"], *boards)
    for board in boards:
        assert scheduler.take(board) == "u" or board == "b"
        scheduler.measured(board, board, frozenset({1}))
    assert scheduler.finished and not scheduler.dropped and scheduler.accepted["u"].result == "a"


def test_who_confirms_one_mistake_and_lies_of_another_is_dropped():
    scheduler = joined(["u"], "a", "b", "c")
    for board, wrong in (("a", {1}), ("b", {1, 2}), ("c", {1})):
        assert scheduler.take(board) == "u"
        scheduler.measured(board, board, frozenset(wrong))
    assert scheduler.finished and list(scheduler.dropped) == ["b"] and scheduler.accepted["u"].wrong == {1}


def test_a_candidate_that_takes_boards_down_is_left_out():
    boards = [f"b{i}" for i in range(MOST_LOST + 1)]
    scheduler = joined(["u"], *boards)
    for board in boards[:MOST_LOST]:
        assert scheduler.take(board) == "u" and not scheduler.left_out("u")
        scheduler.lost(board, "it died", 4)
    assert scheduler.take(boards[-1]) == "u" and list(scheduler.left_out("u")) == [4]
    scheduler.measured(boards[-1], "numbers")
    assert scheduler.finished


def test_a_unit_that_takes_boards_down_is_given_up():
    scheduler = joined(["u", "v"], *"abc")
    for board in "abc"[:MOST_LOST]:
        assert scheduler.take(board) == "u"
        scheduler.lost(board, "it died")
    assert list(scheduler.given_up) == ["u"] and scheduler.take("c") == "v"


def test_a_board_that_comes_back_stays_but_not_for_ever():
    scheduler = joined(["u"], "a")
    for candidate in range(MOST_RETURNS):
        assert scheduler.take("a") == "u"
        scheduler.fell("a", "crashed", candidate)
        assert scheduler.left_out("u")[candidate] == "crashed"
    assert scheduler.take("a") == "u"
    scheduler.fell("a", "crashed", MOST_RETURNS)
    assert list(scheduler.dropped) == ["a"] and "crashed" in scheduler.dropped["a"]


EVENTS = ("right", "right", "right", "lies", "dies", "falls", "hangs")


@settings(deadline=None, max_examples=300)
@given(st.data(), st.integers(1, 12), st.integers(1, 5))
def test_any_mixture_of_deaths_hangs_and_lies(data, units, boards):
    """Unit 0 has a candidate 1 that is wrong everywhere. Lies are of candidate 2, so that two liars may agree."""
    scheduler = joined([f"u{i}" for i in range(units)], *(f"b{i}" for i in range(boards)))
    running, alive, history = {}, {f"b{i}" for i in range(boards)}, []
    for _ in range(60 * (units + boards)):
        for board in sorted(alive - running.keys()):
            if (unit := scheduler.take(board)) is not None:
                assert unit not in running.values(), "two boards measure one unit"
                assert unit not in scheduler.accepted, "it is measured again"
                running[board] = unit
        if not running:
            break
        board = data.draw(st.sampled_from(sorted(running)))
        event = "right" if len(history) > 20 * units else data.draw(st.sampled_from(EVENTS))
        unit = running.pop(board)
        history.append((event, board, unit))
        truth = frozenset({1}) if unit == "u0" else frozenset()
        if event == "right":
            scheduler.measured(board, (board, unit, True), truth)
        elif event == "lies":
            scheduler.measured(board, (board, unit, False), truth | {2})
        elif event == "falls":
            scheduler.fell(board, "fell", 3)
        else:
            scheduler.lost(board, event, data.draw(st.sampled_from([None, 1, 2])))
        alive -= scheduler.dropped.keys()
        for gone in scheduler.dropped.keys() & running.keys():
            del running[gone]
    assert scheduler.finished or not alive, f"nothing happens any more: {history}"
    assert not scheduler.accepted.keys() & scheduler.given_up.keys()
    for unit, opinion in scheduler.accepted.items():
        assert opinion.result[:2] == (opinion.board, unit)
        if not opinion.result[2]:
            said = {board for event, board, of in history if (event, of) == ("lies", unit)}
            assert len(said) > 1 or alive <= {opinion.board}, "one board's word stands though others could be asked"
    kept = {o.board for o in scheduler.accepted.values()} & scheduler.dropped.keys()
    assert all("right on" not in scheduler.dropped[board] for board in kept), "a liar's numbers were kept"


def test_a_hundred_boards_and_ten_thousand_candidates_cost_little():
    """Simulated: units of ten candidates, 100 ms each, on boards of unequal speed; one lies, some die. Time is that of the model."""
    boards, units, each_s = 100, 1000, 10 * 0.1
    scheduler = joined([f"u{i}" for i in range(units)], *(f"b{i}" for i in range(boards)))
    free_at = {f"b{i}": 0.0 for i in range(boards)}
    busy, spent, done = {}, 0.0, Counter()
    while not scheduler.finished:
        begin = time.perf_counter()
        for board in [b for b in free_at if b not in busy and b not in scheduler.dropped]:
            if scheduler.take(board) is not None:
                busy[board] = free_at[board] + each_s * (1 + int(board[1:]) % 7 / 10)
        spent += time.perf_counter() - begin
        board = min(busy, key=busy.__getitem__)
        free_at[board] = busy.pop(board)
        begin = time.perf_counter()
        done[board] += 1
        if board == "b13" and done[board] == 5:
            scheduler.measured(board, "numbers", frozenset({1}))
        elif board in ("b40", "b41") and done[board] == 3:
            scheduler.lost(board, "it died")
        else:
            scheduler.measured(board, "numbers")
        spent += time.perf_counter() - begin
    assert len(scheduler.accepted) == units and set(scheduler.dropped) == {"b13", "b40", "b41"}
    assert "b13" not in accepted(scheduler).values()
    wall = max(free_at.values())
    assert wall < 1.3 * units * each_s * 1.3 / boards
    assert spent < 0.01 * wall, f"{spent:.3f} s of {wall:.1f} s"
