"""The scripts of `benchmarks/`, on a tiny model and rivals that need no compiler."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sparsec.bench import BenchError, Comparison, Kernel, RivalResult
from sparsec.bench.child import environment

FOLDER = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(FOLDER / script), *arguments]
    env = {**environment(1), "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_networks_prints_and_writes_every_rival(tmp_path: Path) -> None:
    rivals = "eager,tests.bench.factories:missing"
    zoo = ("--zoo", "tests.bench.factories", "--models", "tiny", "--sparsity", "90")
    written = tmp_path / "out.json"
    text = run("networks.py", *zoo, "--rivals", rivals, "--rounds", "2", "--seconds", "0.02", "--json", str(written))
    assert "No module named 'imaginary_engine'" in text
    data = json.loads(written.read_text())
    comparison = Comparison.from_json(json.dumps(data["comparisons"][0]))
    assert comparison.factory == "tests.bench.factories:tiny_90"
    assert comparison.ratio("eager") == 1.0
    assert 0 < data["roofline"]["memory_gbs"] < data["roofline"]["l2_gbs"]


@pytest.mark.parametrize(
    ("sparsity", "name"), [("0", "dense"), ("90", "90"), ("90:8x1", "90_8x1"), ("95:32x32", "95_32x32"), ("2:4", "2of4")]
)
def test_sparsities_are_spelled_as_the_zoo_does(monkeypatch: pytest.MonkeyPatch, sparsity: str, name: str) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from networks import suffix

    from sparsec.models import zoo

    assert suffix(sparsity) == name
    assert callable(getattr(zoo, f"bert_base_{name}"))


def test_ratios_are_to_the_best_dense_rival_of_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from networks import ratios_table

    def found(factory: str, **milliseconds: int) -> Comparison:
        rivals = tuple(RivalResult(name, ((value * 10**6,),)) for name, value in milliseconds.items())
        return Comparison(factory, 1, 1, (0,), (), rivals)

    console = Console(width=120)
    with console.capture() as capture:
        console.print(ratios_table([found("zoo:a_90", sparsec=2, eager=8, openvino=4), found("zoo:b_90", eager=8)]))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capture.get().splitlines() if "_90" in line]
    assert rows == [["a_90", "2.00", "0.50", "1.00", "openvino"], ["b_90", "–", "1.00", "–", "eager"]]


def test_thread_counts_alternate_and_their_samples_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import threads

    asked: list[int] = []

    def compare(factory: str, rivals: list[str], *, threads: int, **_: object) -> Comparison:
        asked.append(threads)
        return Comparison(factory, threads, 1, (), (), (RivalResult(rivals[0], ((threads * 10 + len(asked),),)),))

    monkeypatch.setattr(threads, "compare", compare)
    assert threads.alternate("net", "sparsec", (1, 2), 2, 0.1) == [[11, 13], [22, 24]]
    assert asked == [1, 2, 1, 2]


def test_a_rival_that_fails_with_more_threads_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import threads

    failed = Comparison("net", 2, 1, (), (), (RivalResult("sparsec", failure="out of cores"),))
    monkeypatch.setattr(threads, "compare", lambda *_, **__: failed)
    with pytest.raises(BenchError, match="out of cores"):
        threads.alternate("net", "sparsec", (1, 2), 1, 0.1)


def test_peak_memory_remembers_what_was_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from compile_cost import MEBIBYTE, peak_bytes

    block = b"1" * (512 * MEBIBYTE)
    size = len(block)
    assert peak_bytes() >= size
    del block
    assert peak_bytes() >= size


def test_kinds_are_summed_and_set_against_the_roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from networks import kinds_table
    from roofline import Roofline

    kernels = (
        Kernel("dw", "depthwise", 1e-3, 1e6, 4e7),
        Kernel("pw0", "spmm", 1e-3, 5e7, 1e3),
        Kernel("pw1", "spmm", 2e-3, 1e8, 1e3),
    )
    found = Comparison("net", 1, 1, (0,), (), (RivalResult("sparsec-artifact", kernels=kernels),))
    console = Console(width=120)
    with console.capture() as capture:
        console.print(kinds_table([found], Roofline(peak_gflops=100.0, l2_gbs=80.0, memory_gbs=20.0)))
    rows = [[cell.strip() for cell in line.split("│")[2:-1]] for line in capture.get().splitlines() if "net" in line]
    assert rows == [
        ["spmm", "2", "3.000", "75%", "50.0", "50%"],
        ["depthwise", "1", "1.000", "25%", "1.0", "50%"],
    ]
