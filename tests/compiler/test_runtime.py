"""The runner on a library of one small kernel: batches, threads, profiles, refusals."""

import dataclasses
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.errors import ArtifactError, InvalidInput
from sparsec.inputs import check_inputs
from sparsec.program import Program, Relocation, check_tables
from sparsec.runtime import Runner, split
from tests.compiler.tiny_program import SIZE, chain, library, pair


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def expected(x: np.ndarray) -> np.ndarray:
    """What ``chain()`` computes."""
    return (x * 3 + 1) * 2 + np.float32(0.5)


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


def test_profile_is_proportional_to_work() -> None:
    program = chain()
    groups = program.groups.copy()
    groups[1, 2] = 1
    times = Runner(dataclasses.replace(program, groups=groups), library()).profile([drawn(512, 4, 24)], repeats=5)
    assert times[0].seconds > times[1].seconds


@given(units=st.integers(0, 500), strip=st.integers(0, 64), threads=st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_split_covers_each_unit_once(units: int, strip: int, threads: int) -> None:
    ((_, _, total, length, share),) = split(np.array([[0, 1, units, strip, 0]], np.int64), threads)
    starts = [(t * share + s) * length for t in range(threads) for s in range(share)]
    ranges = [range(start, min(start + length, total)) for start in starts if start < total]
    assert [unit for r in ranges for unit in r] == list(range(units))
    assert strip == 0 or length <= max(strip, 1)


def altered(program: Program, **changes: object) -> Program:
    """A program with one table cell or field changed: ``records=(row, column, value)``."""
    made = dict(changes)
    for name in ("records", "groups"):
        if name in made:
            row, column, value = made[name]  # type: ignore[misc]
            made[name] = getattr(program, name).copy()
            made[name][row, column] = value  # type: ignore[index]
    return dataclasses.replace(program, **made)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"records": (0, 0, 1)},
        {"records": (1, 0, -1)},
        {"groups": (0, 1, 3)},
        {"groups": (0, 0, -1)},
        {"groups": (0, 0, 2)},
        {"groups": (1, 2, 2**40)},
        {"groups": (1, 3, -5)},
        {"relocations": (Relocation(96, "arena", 0),)},
        {"relocations": (Relocation(48, "arena", 0),)},
        {"relocations": (Relocation(-47, "arena", 0),)},
        {"relocations": (Relocation(1, "arena", 4 * SIZE + 1),)},
        {"relocations": (Relocation(1, "weights", 1 << 30),)},
        {"relocations": (Relocation(1, "input", 0, 1),)},
        {"relocations": (Relocation(1, "output", -4, 0),)},
        {"relocations": (Relocation(1, "heap", 0, 0),)},  # type: ignore[arg-type]
        {"arena_bytes": -1},
        {"thread_slots": 0},
        {"records": (0, 5, 4 * SIZE + 4)},
        {"records": (0, 5, 4 * SIZE), "thread_slots": 2},
        {"records": (0, 5, -4)},
        {"steps": ()},
    ],
)
def test_tables_that_point_outside_are_refused(changes: dict) -> None:
    check_tables(chain())
    with pytest.raises(ArtifactError, match="tables do not fit"):
        check_tables(altered(chain(), **changes))


def test_description_is_the_inverse_of_restoring() -> None:
    program = pair()
    again = Program.restored(program.described(), program.arrays())
    assert again.described() == program.described()
    for name, array in program.arrays().items():
        np.testing.assert_array_equal(array, again.arrays()[name])


def test_a_file_that_is_no_library_is_refused(tmp_path) -> None:
    path = tmp_path / "kernels.so"
    path.write_bytes(b"not an object file")
    with pytest.raises(ArtifactError, match="kernel library"):
        Runner(chain(), path)
