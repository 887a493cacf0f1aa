"""The harness with real child processes on tiny models."""

import os
from pathlib import Path

import pytest

from sparsec.bench import BenchError, Comparison, compare
from sparsec.bench.child import Child, RivalFailed
from sparsec.bench.interleave import iterations, rotations

HERE = "tests.bench.factories"


@pytest.fixture(scope="module")
def mixed() -> tuple[Comparison, list[tuple[str, int, int]]]:
    steps: list[tuple[str, int, int]] = []
    names = ["eager", *(f"{HERE}:{name}" for name in ("off_by_a_tenth", "missing", "crashing", "crashing_later"))]
    result = compare(
        f"{HERE}:tiny",
        names,
        rounds=3,
        seconds_per_rival=0.03,
        batch=3,
        progress=lambda *step: steps.append(step),
    )
    return result, steps


@pytest.mark.slow
def test_eager_is_timed_and_equals_itself(mixed: tuple[Comparison, list]) -> None:
    eager = mixed[0].result("eager")
    assert eager.failure is None
    assert eager.error == 0.0
    assert len(eager.rounds_ns) == 3
    assert all(len(samples) >= 1 and min(samples) > 0 for samples in eager.rounds_ns)
    assert "torch" in eager.versions
    assert mixed[0].best_dense is eager


@pytest.mark.slow
def test_error_is_relative_to_the_largest_expected_value(mixed: tuple[Comparison, list]) -> None:
    assert mixed[0].result(f"{HERE}:off_by_a_tenth").error == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "ModuleNotFoundError: No module named 'imaginary_engine'"),
        ("crashing", "killed by SIGABRT"),
        ("crashing_later", "killed by SIGABRT"),
    ],
)
@pytest.mark.slow
def test_a_failing_rival_is_reported_with_its_reason(mixed: tuple[Comparison, list], name: str, reason: str) -> None:
    result = mixed[0].result(f"{HERE}:{name}")
    assert reason in (result.failure or "")
    assert not result.timed
    assert mixed[0].ratio(result.name) is None


@pytest.mark.slow
def test_everything_is_loaded_before_the_first_round_and_then_runs_in_the_recorded_order(
    mixed: tuple[Comparison, list],
) -> None:
    comparison, steps = mixed
    names = [result.name for result in comparison.rivals]
    runs = [f"run {name}" for one_round in comparison.order for name in one_round]
    assert [what for what, _, _ in steps] == [f"load {name}" for name in names] + runs
    assert [done for _, done, _ in steps] == list(range(len(steps)))
    assert {total for _, _, total in steps} == {len(steps)}


def test_rotation_gives_everyone_every_place() -> None:
    order = rotations("abc", 4)
    assert order == (("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b"), ("a", "b", "c"))


def test_iterations_fill_a_slice_and_are_at_least_one() -> None:
    assert iterations([9_000_000, 1_000_000, 2_000_000], 0.2) == 100
    assert iterations([5_000_000_000], 0.2) == 1


def test_output_printed_by_a_model_does_not_reach_the_protocol() -> None:
    result = compare(f"{HERE}:chatty", ["eager"], rounds=1, seconds_per_rival=0.01, batch=2).result("eager")
    assert result.failure is None
    assert result.error == 0.0


@pytest.mark.slow
def test_rivals_take_several_integer_inputs() -> None:
    names = ["eager", "inductor-freezing", "onnxruntime", "openvino"]
    result = compare(f"{HERE}:masked", names, rounds=1, seconds_per_rival=0.01, batch=2)
    for rival in result.rivals:
        assert rival.failure is None
        assert rival.error is not None
        assert rival.error <= 1e-6


def test_a_worker_has_the_cores_and_threads_asked_for_and_survives_a_bad_request(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    child = Child((core,), tmp_path / "log")
    load = {"rival": "eager", "factory": f"{HERE}:resources", "batch": 1, "threads": 1}
    try:
        child.ask({"do": "load", **load, "folder": str(tmp_path), "tune": "off"}, 60)
        with pytest.raises(RivalFailed, match="TypeError"):
            child.ask({"do": "run"}, 60)
        assert len(child.ask({"do": "run", "iterations": 2}, 60)["samples_ns"]) == 2
    finally:
        child.close()
    assert (tmp_path / "log").read_text().split() == [f"threads=1,cores=[{core}],omp=1,policy=passive"]


def test_a_broken_factory_is_the_reason_of_every_rival() -> None:
    result = compare(f"{HERE}:broken", ["eager"], rounds=1)
    assert "ValueError: the weights are on holiday" in (result.result("eager").failure or "")


@pytest.mark.slow
def test_a_hanging_rival_is_ended() -> None:
    result = compare(f"{HERE}:tiny", [f"{HERE}:hanging"], rounds=1, load_timeout_s=5).rivals[0]
    assert "no answer to 'load' within 5 s" in (result.failure or "")


@pytest.mark.parametrize(
    ("factory", "rivals", "options", "message"),
    [
        ("no_colon", ["eager"], {}, "write module:function"),
        ("a:b", ["egaer"], {}, "Unknown rivals: egaer"),
        ("a:b", [], {}, "empty"),
        ("a:b", ["eager", "eager"], {}, "names one twice"),
        ("a:b", ["eager"], {"rounds": 0}, "at least 1"),
        ("a:b", ["eager"], {"threads": 0}, "as many threads as cores"),
        ("a:b", ["eager"], {"threads": 4096}, "as many threads as cores"),
    ],
)
def test_senseless_requests_are_refused(factory: str, rivals: list[str], options: dict, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        compare(factory, rivals, **options)
