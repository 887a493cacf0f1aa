"""The runner on a library of one small kernel: batches, threads, profiles, refusals."""

import ctypes
import dataclasses
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.errors import InvalidInput
from sparsec.run.inputs import check_inputs
from sparsec.run.instance import split
from sparsec.run.program import Program
from sparsec.run.runtime import Runner
from tests.compiler.tiny_program import FEATURES, SIZE, TOKENS, chain, drawn, expected, library, looked_up, pair, sized


@pytest.mark.parametrize("batch", [0, 1, 3, 8])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("joined", [False, True])
def test_any_batch_and_thread_count(batch: int, threads: int, joined: bool) -> None:
    x = drawn(batch, 4, 24)
    (y,) = Runner(chain(joined=joined), library(), threads)(x)
    assert y.shape == (batch, 4, 24)
    np.testing.assert_allclose(y, expected(x), rtol=1e-6, atol=1e-6)


def test_inputs_that_are_not_contiguous_or_read_only() -> None:
    runner, x = Runner(chain(), library()), drawn(2, 24, 4).transpose(0, 2, 1)
    np.testing.assert_allclose(runner(x)[0], expected(x), rtol=1e-6, atol=1e-6)
    frozen = np.ascontiguousarray(x)
    frozen.flags.writeable = False
    np.testing.assert_allclose(runner(frozen)[0], expected(x), rtol=1e-6, atol=1e-6)


def test_misaligned_input() -> None:
    raw = np.zeros(4 * SIZE + 1, np.uint8)
    x = raw[1:].view(np.float32).reshape(1, 4, 24)
    x[...] = drawn(1, 4, 24)
    np.testing.assert_allclose(Runner(chain(), library())(x)[0], expected(x), rtol=1e-6, atol=1e-6)


def test_several_inputs_and_outputs() -> None:
    a, b = drawn(5, 8), drawn(5, 4, seed=1)
    twice, more = Runner(pair(), library())(a, b)
    np.testing.assert_array_equal(twice, 2 * a)
    np.testing.assert_allclose(more, b + 1, rtol=1e-6)


def test_offsets_of_inputs_and_outputs_are_honoured() -> None:
    program = chain()
    half = [dataclasses.replace(r, offset=4 * SIZE // 2) if r.segment in ("input", "output") else r for r in program.relocations]
    groups = program.groups.copy()
    groups[:, 2] = SIZE // 2
    runner = Runner(dataclasses.replace(program, relocations=tuple(half), groups=groups), library())
    x, y = drawn(1, 4, 24), np.full((1, 4, 24), -1, np.float32)
    runner.run_addresses([x.ctypes.data], [y.ctypes.data], 1)
    assert (y[:, :2] == -1).all()
    np.testing.assert_allclose(y[:, 2:], expected(x)[:, 2:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "takes 1 input"),
        ((drawn(1, 4, 24), drawn(1, 4, 24)), "2 given"),
        ((drawn(1, 4, 25),), "batch × 4 × 24"),
        ((drawn(4, 24),), "batch × 4 × 24"),
        ((np.float32(1),), "batch × 4 × 24"),
        ((drawn(1, 4, 24).astype(np.float64),), "float64"),
        ((drawn(1, 4, 24).astype(">f4"),), ">f4"),
        ((np.zeros((1, 4, 24), np.int32),), "int32"),
    ],
)
def test_bad_inputs_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Runner(chain(), library())(*arguments)


def test_batches_must_agree() -> None:
    with pytest.raises(InvalidInput, match="'b'"):
        check_inputs(pair(), (drawn(2, 8), drawn(3, 4)))


@pytest.mark.parametrize(("threads", "slots"), [(0, None), (-1, None), (3, 2)])
def test_thread_counts_out_of_range_are_refused(threads: int, slots: int | None) -> None:
    with pytest.raises(InvalidInput, match="thread"):
        Runner(dataclasses.replace(chain(), thread_slots=slots), library(), threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_concurrent_calls_do_not_share_memory(threads: int) -> None:
    runner, wrong = Runner(chain(), library(), threads), []

    def many(seed: int) -> None:
        x = drawn(64, 4, 24, seed=seed)
        wanted = expected(x)
        for _ in range(100):
            if not np.allclose(runner(x)[0], wanted, rtol=1e-6, atol=1e-6):
                wrong.append(seed)

    workers = [threading.Thread(target=many, args=(seed,)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("threads", [1, 2])
def test_profile_gives_one_time_per_group(batch: int, threads: int) -> None:
    runner, x = Runner(chain(), library(), threads), drawn(batch, 4, 24)
    times = runner.profile([x], repeats=5)
    assert [t.step.node for t in times] == ["layer0", "layer1"]
    assert all(0 <= t.seconds < 1 for t in times)
    assert tuple(times[0]) == ("layer0: affine", "scale", times[0].seconds, 2 * SIZE, 12 * SIZE)
    np.testing.assert_allclose(runner(x)[0], expected(x), rtol=1e-6, atol=1e-6)


def test_profile_sums_up_the_records_of_a_group() -> None:
    (time,) = Runner(chain(joined=True), library()).profile([drawn(1, 4, 24)], repeats=3)
    assert time.step.node == "layer0 + layer1"
    assert time.step.kind == "scale"
    assert time.step.flops == 4 * SIZE


def test_profile_takes_off_what_a_start_costs(monkeypatch) -> None:
    """With a clock that goes on by a start and the work of a group; every third run takes long."""
    runner, now, started = Runner(chain(), library()), [0.0], [0]
    count = len(runner.program.groups)

    def run(words: int) -> None:
        group_count = (ctypes.c_int64 * 7).from_address(words)[3]
        turn, group = divmod(started[0], count)
        now[0] += 1.0 + group_count * (10.0 + group + 100.0 * (turn % 3 == 0))
        started[0] += group_count

    monkeypatch.setattr(runner, "_run", run)
    monkeypatch.setattr("sparsec.run.runtime.time.perf_counter", lambda: now[0])
    times = runner.profile([drawn(1, 4, 24)], repeats=5)
    assert count > 1 and [time.seconds for time in times] == [10.0 + group for group in range(count)]
    assert [time.step.node for time in times] == [step.node for step in runner.program.steps]


@given(units=st.integers(0, 500), strip=st.integers(0, 64), threads=st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_split_covers_each_unit_once(units: int, strip: int, threads: int) -> None:
    ((_, _, total, length, share),) = split(np.array([[0, 1, units, strip, 0]], np.int64), threads)
    starts = [(t * share + s) * length for t in range(threads) for s in range(share)]
    ranges = [range(start, min(start + length, total)) for start in starts if start < total]
    assert [unit for r in ranges for unit in r] == list(range(units))
    assert strip == 0 or length <= max(strip, 1)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_one_runner_serves_sizes_in_any_order(threads: int) -> None:
    runner = Runner(sized(), library(), threads)
    for count, batch in ((TOKENS, 2), (1, 3), (5, 1), (5, 4), (11, 2), (2, 0), (TOKENS, 1)):
        x = drawn(batch, count, FEATURES, seed=count)
        (y,) = runner(x)
        assert y.shape == x.shape
        np.testing.assert_allclose(y, expected(x), rtol=1e-6, atol=1e-6)


def test_less_tokens_write_no_more_than_their_own() -> None:
    runner, x, y = Runner(sized(), library()), drawn(1, 5, FEATURES), np.full((TOKENS, FEATURES), -1, np.float32)
    runner.run_addresses([x.ctypes.data], [y.ctypes.data], 1, {"tokens": 5})
    np.testing.assert_allclose(y[:5], expected(x)[0], rtol=1e-6, atol=1e-6)
    assert (y[5:] == -1).all()


def test_sizes_that_are_not_given_are_the_largest() -> None:
    runner, x, y = Runner(sized(), library()), drawn(1, TOKENS, FEATURES), np.zeros((1, TOKENS, FEATURES), np.float32)
    runner.run_addresses([x.ctypes.data], [y.ctypes.data], 1, {"tokens": 3})
    runner.run_addresses([x.ctypes.data], [y.ctypes.data], 1)
    np.testing.assert_allclose(y, expected(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [0, TOKENS + 1])
def test_sizes_out_of_range_are_refused(count: int) -> None:
    with pytest.raises(InvalidInput, match=f"tokens = {count}"):
        Runner(sized(), library())(drawn(1, count, FEATURES))


def test_profile_takes_sizes() -> None:
    assert len(Runner(sized(), library()).profile([drawn(2, 5, FEATURES)], repeats=2)) == 2


def test_concurrent_calls_have_sizes_of_their_own() -> None:
    runner, wrong = Runner(sized(), library()), []

    def many(count: int) -> None:
        x = drawn(8, count, FEATURES, seed=count)
        wrong.extend(count for _ in range(100) if not np.allclose(runner(x)[0], expected(x), rtol=1e-6, atol=1e-6))

    workers = [threading.Thread(target=many, args=(count,)) for count in (1, 7, TOKENS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize("index", [-1, 5, 2**31 - 1])
def test_indices_out_of_range_are_refused(index: int) -> None:
    ids, other = np.zeros((2, 8), np.int32), drawn(2, 4)
    ids[1, 3] = index
    runner = Runner(looked_up(), library())
    assert len(runner(np.full((2, 8), 4, np.int32), other)) == 2
    with pytest.raises(InvalidInput, match="rows 0 to 4"):
        runner(ids, other)
    with pytest.raises(InvalidInput, match="rows 0 to 4"):
        runner.profile([ids, other])


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5), width=st.integers(1, TOKENS))
@settings(max_examples=50, deadline=None)
def test_padding_is_left_out_and_zero(lengths: list[int], width: int) -> None:
    mask = np.arange(width) < np.array(lengths)[:, None]
    x = drawn(len(lengths), width, FEATURES)
    (y,) = Runner(sized(masked=True), library())(x, mask)
    wanted = expected(x)
    for n, length in enumerate(lengths):
        computed = min(length, width) or width
        np.testing.assert_allclose(y[n, :computed], wanted[n, :computed], rtol=1e-6, atol=1e-6)
        assert not y[n, computed:].any()


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_a_mask_of_another_dtype_is_refused(dtype: type) -> None:
    with pytest.raises(InvalidInput, match="'mask' must be bool"):
        Runner(sized(masked=True), library())(drawn(1, 5, FEATURES), np.ones((1, 5), dtype))


@pytest.mark.parametrize("program", [pair(), sized(), sized(masked=True), looked_up()], ids=["fixed", "sized", "masked", "indices"])
def test_description_is_the_inverse_of_restoring(program: Program) -> None:
    again = Program.restored(program.described(), program.arrays())
    assert again.described() == program.described()
    for name, array in program.arrays().items():
        np.testing.assert_array_equal(array, again.arrays()[name])
