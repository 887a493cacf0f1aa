"""The script that sets latency and accuracy against the share of tokens kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from sparsec.models.attention import seed_transformer
from sparsec.models.vit import VisionTransformer

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    import token_pruning

    return token_pruning


def some_points(script: Any) -> list:
    return [
        script.Point("vit", "prune", 1.0, 4.0, 0.9),
        script.Point("vit", "prune", 0.5, 2.0, 0.875),
        script.Point("vit", "merge", 1.0, 3.0, None),
        script.Point("vit", "merge", 0.3, 3.0, None, "too few"),
    ]


def test_speed_is_relative_to_the_same_model_whole(script: Any) -> None:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(script.table_of(some_points(script)))
    lines = capture.get().splitlines()
    assert any("0.50" in line and "2.00x" in line and "87.5%" in line for line in lines)
    assert any("0.30" in line and "1.00x" in line and "too few" in line for line in lines)


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_plot_is_drawn(script: Any, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plot.{suffix}"
    script.plot(some_points(script), path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") if suffix == "png" else b"share of tokens kept" in content


@pytest.mark.slow
def test_points_of_a_small_model(script: Any) -> None:
    model = VisionTransformer(image=8, patch=2, width=16, depth=2, heads=2, hidden=16, channels=1, num_classes=3)
    seed_transformer(model, 0)
    inputs = (torch.ones(1, 1, 8, 8),)
    seen = []
    grid = [("prune", 1.0), ("prune", 0.5), ("merge", 0.2)]
    found = script.points("tiny", model.eval(), inputs, grid, [1], 0.02, lambda run: seen.append(run(*inputs)) or 0.25)
    assert [(p.strategy, p.keep, p.accuracy) for p in found] == [(*entry, 0.25) for entry in grid]
    assert [bool(p.refusal) for p in found] == [False, False, True] and "merging in pairs" in found[2].refusal
    assert all(p.milliseconds > 0 for p in found)
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])
