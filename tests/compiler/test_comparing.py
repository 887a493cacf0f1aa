"""Comparing on the user's own data: numbers that are right, the place where a difference begins, exit codes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

import sparsec
from sparsec import driver
from sparsec.cli import app
from sparsec.errors import InvalidInput
from sparsec.report import comparing
from sparsec.report.agreement import compare_results, first_different, read_data
from sparsec.report.comparing import compare
from tests.fuzz.prelude import seeded

RANDOM = np.random.default_rng(0)
FACTORY = """
from tests.compiler.test_comparing import made
def make():
    return made(), {"x": __import__("torch").ones(1, 3, 8, 8), "scale": __import__("torch").ones(1, 16)}
"""


class Two(nn.Module):
    """Two inputs, two results."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 10)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        features = self.conv(x).relu().mean((2, 3)) * scale
        return {"classes": self.head(features), "features": features}


def made() -> nn.Module:
    return seeded(Two(), "90%", 0)


def arrays(batch: int) -> dict[str, np.ndarray]:
    return {"x": RANDOM.standard_normal((batch, 3, 8, 8), np.float32), "scale": RANDOM.standard_normal((batch, 16), np.float32)}


EXAMPLES = tuple(torch.from_numpy(value) for value in arrays(1).values())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for number, batch in enumerate((1, 4, 3)):
        np.savez(folder / f"batch{number}.npz", **arrays(batch))
    return folder


@pytest.mark.parametrize("way", ["positional", "named", "program", "file"])
def test_models_and_programs_agree(data: Path, kernels: Path, tmp_path: Path, way: str) -> None:
    model: Any = made()
    given_ = (EXAMPLES, None) if way != "named" else ((), dict(zip(("x", "scale"), EXAMPLES, strict=True)))
    if way in ("program", "file"):
        free = torch.export.Dim("n", min=1, max=64)
        model = torch.export.export(model, tuple(torch.cat([x, x]) for x in EXAMPLES), dynamic_shapes=({0: free}, {0: free}))
        given_ = model.example_inputs
    found = compare(model, *given_, data, threads=1, cache_dir=kernels)
    assert found.holds and found.samples == 8 and not found.begins and "eager" in found.reference
    by_name = {result.name: result for result in found.results}
    assert {*by_name} == {"['classes']", "['features']"} and by_name["['classes']"].top == {1: 1.0, 5: 1.0}


def test_onnx_files_are_compared_with_onnx_runtime(data: Path, kernels: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript", reason="the exporter of torch needs onnxscript")
    free = {name: {0: "n"} for name in ("x", "scale", "classes", "features")}
    names: dict[str, Any] = {"input_names": ["x", "scale"], "output_names": ["classes", "features"], "dynamic_axes": free}
    torch.onnx.export(made(), EXAMPLES, tmp_path / "net.onnx", dynamo=False, opset_version=17, **names)
    found = compare(tmp_path / "net.onnx", None, None, data, threads=1, cache_dir=kernels)
    assert found.holds and found.samples == 8 and "ONNX Runtime" in found.reference
    assert [result.name for result in found.results] == ["classes", "features"]


def test_inputs_that_must_be_known_are_those_of_the_data(kernels: Path, tmp_path: Path, without_inductor: None) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from tests import onnx_files

    nodes = [onnx.helper.make_node("Reshape", ["x", "shape"], ["flat"]), onnx.helper.make_node("MatMul", ["flat", "w"], ["y"])]
    weight = np.where(np.random.default_rng(0).random((16, 32)) < 0.1, 1, 0).astype(np.float32)
    inputs = [("x", 1, ["n", 4, 4]), ("shape", 7, [2])]
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_files.model(nodes, inputs, [("y", 1, None)], {"w": weight}).SerializeToString())
    x, shape = np.random.default_rng(1).standard_normal((3, 4, 4)).astype(np.float32), np.array([-1, 16])
    np.savez(tmp_path / "data.npz", x=x, shape=shape)
    artifact = sparsec.compile(path, (x, shape), threads=1, cache_dir=kernels).save(tmp_path / "net.sparsec")
    for made in (None, artifact):
        found = compare(path, None, None, tmp_path / "data.npz", artifact=made, threads=1, cache_dir=kernels)
        assert found.holds and found.samples == 3


def test_an_artifact_of_another_model_does_not_agree(data: Path, kernels: Path, tmp_path: Path) -> None:
    model = made()
    artifact = sparsec.compile(model, EXAMPLES, threads=1, cache_dir=kernels).save(tmp_path / "net.sparsec")
    assert compare(model, EXAMPLES, None, data, artifact=artifact).holds
    with torch.no_grad():
        model.head.bias[3] += 10
    found = compare(model, EXAMPLES, None, data, artifact=artifact)
    assert not found.holds and found.results[0].largest == pytest.approx(10, rel=1e-3) and found.results[0].top[1] < 1
    assert found.results[1].relative < 1e-4


@pytest.mark.parametrize("target", ["relu", "linear"])
def test_the_node_where_a_difference_begins(
    data: Path, kernels: Path, monkeypatch: pytest.MonkeyPatch, without_inductor: None, target: str
) -> None:
    """A compiler that gets every graph with this operator wrong."""
    real = driver.compile

    def wrong(model: Any, *args: Any, **options: Any) -> Any:
        fast = real(model, *args, **options)
        nodes = model.graph.nodes if isinstance(model, torch.fx.GraphModule) else []
        if isinstance(model, Two) or any(target in str(node.target) for node in nodes):
            return lambda *given, **named: torch.utils._pytree.tree_map(lambda x: x * 1.01, fast(*given, **named))
        return fast

    monkeypatch.setattr(comparing.driver, "compile", wrong)
    found = compare(made(), EXAMPLES, None, data, threads=1, cache_dir=kernels)
    assert not found.holds and found.begins.startswith(target) and "test_comparing.py" in found.begins


@given(st.lists(st.booleans(), max_size=20))
def test_the_first_that_differs(differs: list[bool]) -> None:
    grown = [any(differs[: n + 1]) for n in range(len(differs))]
    wanted = next((n for n, each in enumerate(grown) if each), None)
    assert first_different(len(grown), lambda n: 1.0 if grown[n] else 0.0, 0.5) == wanted


def test_numbers_of_a_comparison() -> None:
    a, b = np.array([[1.0, 2.0, 4.0], [np.nan, 1.0, 0.0]]), np.array([[1.0, 3.0, 2.0], [np.nan, np.inf, 0.5]])
    (found,), samples = compare_results(["y"], iter([([a], [b]), ([a], [a])]))
    assert (samples, found.largest, found.relative, found.unlike) == (4, 2.0, 2 / 4, 1)
    assert found.mean == pytest.approx((1 + 2 + 0.5) / 12)
    with pytest.raises(InvalidInput, match="other shapes"):
        compare_results(["y"], iter([([a], [a[:1]])]))


@pytest.mark.parametrize(
    ("names", "content", "message"),
    [
        (["x"], {"y": np.ones(1)}, "not the model's inputs"),
        (["x", "y"], {"x": np.ones(1)}, "not the model's inputs"),
        (["x"], None, "cannot be read"),
    ],
)
def test_data_that_do_not_fit(tmp_path: Path, names: list[str], content: Any, message: str) -> None:
    np.savez(tmp_path / "x.npz", **content) if content else (tmp_path / "x.npz").write_text("text")
    with pytest.raises(InvalidInput, match=message):
        read_data(tmp_path / "x.npz", names)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="holds no data"):
        read_data(tmp_path / "empty", names)


def test_data_in_order(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    np.savez(tmp_path / "two.npz", np.ones(1), np.zeros(1))
    assert read_data(tmp_path / "x.npy", ["input"])[0]["input"].shape == (2, 3)
    assert {name: float(value[0]) for name, value in read_data(tmp_path / "two.npz", ["a", "b"])[0].items()} == {"a": 1.0, "b": 0.0}


def test_the_command(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "factory_of_two.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEC_CACHE_DIR", str(tmp_path / "cache"))
    arguments = ["compare", "factory_of_two:make", "--data", str(data), "--threads", "1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "within 0.0001" in done.output, done.output
    strict = CliRunner().invoke(app, [*arguments, "--tolerance", "0", "--json"])
    assert strict.exit_code in (0, 1) and json.loads(strict.stdout)["samples"] == 8
    assert json.loads(strict.stdout)["holds"] == (strict.exit_code == 0)
