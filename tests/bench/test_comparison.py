"""Arithmetic, JSON and table of a comparison; no processes."""

import dataclasses
import io

import pytest
from rich.console import Console

from sparsec.bench import Comparison, Kernel, RivalResult


def printed(comparison: Comparison) -> str:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(comparison.table())
    return capture.get()


def rival(name: str, *milliseconds: float, **rest: object) -> RivalResult:
    rounds = tuple((int(value * 1e6),) for value in milliseconds)
    return RivalResult(name, rounds, **rest)  # type: ignore[arg-type]


@pytest.fixture
def comparison() -> Comparison:
    kernels = (Kernel("pw0", "spmm", 1e-3, 2e6, 3e5), Kernel("dw0", "depthwise", 5e-4, 1e6, 2e5))
    rivals = (
        rival("sparsec", 2.0, 2.5, 9.0, error=3e-6, setup_s=1.5, versions={"sparsec": "0.1.0"}, kernels=kernels),
        rival("eager", 20.0, 20.0, 20.0, error=0.0),
        rival("openvino", 10.0, 7.5, 7.0),
        rival("openvino-bf16", 3.0, 3.0, 3.0),
        rival("onnxruntime", failure="ModuleNotFoundError: No module named 'onnxruntime'"),
        rival("inductor", 1.0, failure="its process was killed by SIGSEGV"),
    )
    order = (("sparsec", "eager"), ("eager", "sparsec"))
    return Comparison("zoo:net_90", 1, 1, (1,), order, rivals)


def test_medians_and_minima_are_over_all_rounds() -> None:
    result = RivalResult("eager", ((4_000_000, 2_000_000), (3_000_000,)))
    assert result.samples_ns == (4_000_000, 2_000_000, 3_000_000)
    assert (result.median_ms, result.min_ms) == (3.0, 2.0)


def test_ratio_is_to_the_best_dense_float32_rival_that_finished(comparison: Comparison) -> None:
    assert comparison.best_dense is comparison.result("openvino")
    assert comparison.ratio("sparsec") == pytest.approx(7.5 / 2.5)
    assert comparison.ratio("eager") == pytest.approx(7.5 / 20)
    assert comparison.ratio("openvino-bf16") == pytest.approx(7.5 / 3)
    assert comparison.ratio("sparsec", over="eager") == pytest.approx(20 / 2.5)
    assert comparison.ratio("sparsec", over="onnxruntime") is None


def test_no_ratio_without_times(comparison: Comparison) -> None:
    assert comparison.ratio("onnxruntime") is None
    assert comparison.ratio("inductor") is None
    only_ours = dataclasses.replace(comparison, rivals=comparison.rivals[:1])
    assert only_ours.best_dense is None
    assert only_ours.ratio("sparsec") is None


def test_unknown_name_is_a_key_error(comparison: Comparison) -> None:
    with pytest.raises(KeyError, match="tvm"):
        comparison.result("tvm")


def test_json_round_trip(comparison: Comparison) -> None:
    assert Comparison.from_json(comparison.to_json()) == comparison


def test_table_shows_every_rival_with_its_ratio_or_its_reason(comparison: Comparison) -> None:
    text = printed(comparison)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == [result.name for result in comparison.rivals]
    assert rows[0] == ["sparsec", "2.500", "2.000", "3.00", "3.0e-06", "1.5"]
    assert rows[4] == ["onnxruntime", "failed", "–", "–", "–", "–"]
    assert "onnxruntime: ModuleNotFoundError: No module named 'onnxruntime'" in text
    assert "inductor: its process was killed by SIGSEGV" in text
    assert "sparsec 0.1.0" in text


def test_brackets_in_a_reason_are_not_taken_for_markup(comparison: Comparison) -> None:
    failed = RivalResult("openvino", failure="cannot broadcast [1,3] to [/2]")
    assert "cannot broadcast [1,3] to [/2]" in printed(dataclasses.replace(comparison, rivals=(failed,)))
