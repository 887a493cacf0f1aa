"""The commands that judge: what they print, by which code they exit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsec.bench import Comparison, RivalResult
from tests.compiler.cli.shop import Invoke, save_program


def test_bisect_of_a_file(invoke: Invoke, tmp_path: Path) -> None:
    save_program(tmp_path / "two.pt2")
    assert json.loads(invoke("bisect", "two.pt2", "--json").stdout)["culprit"] is None
    done = invoke("bisect", "two.pt2")
    assert done.exit_code == 0, done.output
    assert "passes changes the answer" in done.output


@pytest.mark.parametrize(
    ("rivals", "asked"), [("eager,onnxruntime", ["sparsec", "eager", "onnxruntime"]), ("sparsec-artifact", ["sparsec-artifact"])]
)
def test_bench_always_includes_ours(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, rivals: str, asked: list[str]) -> None:
    seen: dict[str, Any] = {}

    def compare(factory: str, names: list[str], *, progress: Callable[[str, int, int], None], **options: Any) -> Comparison:
        progress("load", 0, 2)
        seen.update(options, names=names)
        results = tuple(RivalResult(name, ((1000, 2000),)) for name in names)
        return Comparison(factory, 1, 1, (0,), (tuple(names),), results)

    monkeypatch.setattr("sparsec.bench.compare", compare)
    done = invoke("bench", "shop_of_models:both", "--rivals", rivals, "--rounds", "3")
    assert done.exit_code == 0, done.output
    assert seen["names"] == asked
    assert seen["rounds"] == 3
    assert all(name in done.output for name in asked)


MEDIANS = {"sparsec": 2000, "sparsec-artifact": 1000, "eager": 3000, "onnxruntime": 2500}


@pytest.mark.parametrize(
    ("failed", "arguments", "code", "said"),
    [
        ((), (), 0, ""),
        (("sparsec",), (), 1, "sparsec failed"),
        (("eager",), (), 0, ""),
        (("eager", "onnxruntime"), (), 1, "No other engine"),
        (("sparsec", "eager", "onnxruntime"), (), 1, "sparsec failed"),
        ((), ("--fail-below", "1.2"), 0, ""),
        ((), ("--fail-below", "1.3"), 1, "sparsec 1.25"),
        ((), ("--fail-below", "2", "--rivals", "sparsec-artifact,onnxruntime"), 0, ""),
        ((), ("--fail-below", "1", "--rivals", "sparsec"), 1, "No dense float32 engine"),
        (("sparsec",), ("--json",), 1, "sparsec failed"),
    ],
)
def test_bench_says_by_its_exit_code_what_came_of_it(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, failed: tuple[str, ...], arguments: tuple[str, ...], code: int, said: str
) -> None:
    def compare(factory: str, names: list[str], **options: Any) -> Comparison:
        results = [RivalResult(name, failure="it broke") if name in failed else RivalResult(name, ((MEDIANS[name],),)) for name in names]
        return Comparison(factory, 1, 1, (0,), (tuple(names),), tuple(results))

    monkeypatch.setattr("sparsec.bench.compare", compare)
    done = invoke("bench", "shop_of_models:both", *(() if "--rivals" in arguments else ("--rivals", "eager,onnxruntime")), *arguments)
    assert (done.exit_code, said in done.stderr) == (code, True), done.output
    if "--json" in arguments:
        summary = json.loads(done.stdout)["summary"]
        assert summary["sparsec"]["median_ms"] is None and summary["eager"] == {
            "median_ms": 0.003,
            "min_ms": 0.003,
            "over_best_dense": 2500 / 3000,
        }


def test_bench_invents_no_inputs(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def compare(factory: str, names: list[str], **options: Any) -> Comparison:
        seen.update(options)
        return Comparison(factory, 1, 1, (0,), (), (RivalResult("sparsec", ((1,),)),))

    monkeypatch.setattr("sparsec.bench.compare", compare)
    done = invoke("bench", "shop_of_models:bare")
    assert done.exit_code == 2 and "no example inputs" in done.stderr and not seen
    shapes = ("input1=3,8", "input2=3,4")
    assert invoke("bench", "shop_of_models:bare", *(part for shape in shapes for part in ("--input", shape))).exit_code == 0
    assert tuple(seen["shapes"]) == shapes


def test_doctor(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSEC_CACHE_DIR", str(tmp_path / "cache"))
    done = invoke("doctor")
    assert done.exit_code == 0, done.output
    assert "cache directory" in done.output
    (tmp_path / "cache" / "records.db").write_bytes(b"garbage" * 1000)
    broken = invoke("doctor")
    assert broken.exit_code == 1
    assert "problem  tuned records" in broken.output
