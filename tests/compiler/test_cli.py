"""The command line: what it prints, what it writes, how it fails. The compiler itself is a stand-in here."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import sparsec
from sparsec.bench import Comparison, RivalResult
from sparsec.cli import app
from sparsec.doors.factories import make_model
from sparsec.errors import InvalidInput, UnsupportedModel
from sparsec.run import artifact
from sparsec.run.explanation import Explanation, Layer
from sparsec.settings import Settings
from tests.compiler.tiny_program import ANY_MACHINE, chain, library, pair

EXPLANATION = Explanation((Layer("layer0", "conv2d", (8, 8, 1, 1), 0.1, "unstructured", "affine", "spmm"),), notes=("a note",))
FACTORIES = """
import torch
from torch import nn

def both():
    return nn.Linear(24, 24), (torch.ones(1, 4, 24),)

def bare():
    return nn.Bilinear(8, 4, 2)

class Difference(nn.Module):
    def forward(self, left, right):
        return left - right

def alone():
    return nn.Linear(24, 24), torch.ones(2, 24)

def listed():
    return [nn.Linear(24, 24), torch.ones(2, 24)]

def in_lists():
    return nn.Linear(24, 24), [torch.ones(2, 24)]

def named():
    return Difference(), {"right": torch.ones(2, 24), "left": torch.zeros(2, 24)}

def mixed():
    return Difference(), (torch.ones(2, 24),), {"right": torch.ones(2, 24)}

def arrays():
    return Difference(), (torch.ones(2, 24).numpy(), torch.ones(2, 24).numpy())

def of_a_number():
    return nn.Linear(24, 24), 3

def of_nothing():
    return nn.Linear(24, 24), ()

def of_three():
    return nn.Linear(24, 24), torch.ones(2, 24), torch.ones(2, 24)

def fails():
    raise RuntimeError("no weights today")

def number():
    return 3

constant = 3
"""


@dataclasses.dataclass
class Compiled:
    """Stands in for a compiled model; remembers how it was asked for."""

    model: Any
    inputs: Any
    options: dict[str, Any]
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)

    def explain(self) -> Explanation:
        return EXPLANATION

    def save(self, path: Path) -> Path:
        return artifact.save(path, chain(), library(), EXPLANATION, {"output": "leaf"}, ANY_MACHINE)


Invoke = Callable[..., Result]


class Two(torch.nn.Module):
    """Two inputs with a common free batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(8, 4)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(left)) + right


def save_program(path: Path) -> Path:
    """`Two` as a file, exported for a batch of 3."""
    rows = torch.export.Dim("rows")
    program = torch.export.export(Two().eval(), (torch.ones(3, 8), torch.ones(3, 4)), dynamic_shapes=({0: rows}, {0: rows}))
    torch.export.save(program, path)
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Compiled]:
    """A fake driver; the list receives each compilation."""
    made: list[Compiled] = []

    def compile(model: Any, inputs: Any, kwargs: dict[str, Any] | None = None, **options: Any) -> Compiled:
        if options["tune"] == "never":
            raise UnsupportedModel("This model is beyond us.", where="layer 3", hint="Try another.")
        made.append(Compiled(model, inputs, options, kwargs or {}))
        return made[-1]

    driver = types.ModuleType("sparsec.driver")
    driver.compile = compile  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sparsec.driver", driver)
    monkeypatch.setattr("sparsec.driver", driver, raising=False)
    return made


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command in an own directory that holds the module ``shop_of_models``."""
    (tmp_path / "shop_of_models.py").write_text(FACTORIES)
    (tmp_path / "text.pt2").write_text("text")
    (tmp_path / "folder.onnx").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "shop_of_models", raising=False)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "120"})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The artifact of ``chain()``."""
    return artifact.save(tmp_path / "tiny.sparsec", chain(), library(), EXPLANATION, {"output": "leaf"}, ANY_MACHINE)


def test_compile_writes_an_artifact_from_the_current_directory(invoke: Invoke, calls: list[Compiled], tmp_path: Path) -> None:
    done = invoke("compile", "shop_of_models:both", "-o", "out.sparsec", "--tune", "quick", "--threads", "2")
    assert done.exit_code == 0, done.output
    assert "out.sparsec" in done.output
    assert "1 layers: 1 sparse, 0 stayed dense" in done.output
    assert "Note: a note" in done.output
    assert calls[0].options == {"tune": "quick", "threads": 2}
    assert not calls[0].model.training
    assert artifact.load(tmp_path / "out.sparsec").inputs[0].name == "x"


@pytest.mark.parametrize(
    ("arguments", "shapes"),
    [
        (("input2=3,4", "input1=3,8"), [(3, 8), (3, 4)]),
        (("3,8", "input2=3,4"), [(3, 8), (3, 4)]),
        (("3x8", "3x4"), [(3, 8), (3, 4)]),
    ],
)
def test_shapes_of_inputs(invoke: Invoke, calls: list[Compiled], arguments: tuple[str, ...], shapes: list[tuple[int, ...]]) -> None:
    options = [part for shape in arguments for part in ("--input", shape)]
    assert invoke("explain", "shop_of_models:bare", *options).exit_code == 0
    assert [tuple(x.shape) for x in calls[0].inputs] == shapes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compile", "shop_of_models", "-o", "y"), "does not name a factory"),
        (("compile", "no_such_shop:x", "-o", "y"), "No module named"),
        (("compile", "shop_of_models:missing", "-o", "y"), "no attribute"),
        (("compile", "shop_of_models:constant", "-o", "y"), "no function"),
        (("compile", "shop_of_models:fails", "-o", "y"), "no weights today"),
        (("compile", "shop_of_models:number", "-o", "y"), "returned no torch.nn.Module, but int"),
        (("compile", "shop_of_models:bare", "-o", "y"), "no example inputs"),
        (("compile", "shop_of_models:bare", "-o", "y", "--input", "z=1,8"), "no input named z"),
        (("compile", "shop_of_models:bare", "-o", "y", "--input", "1,a"), "not a shape"),
        (("compile", "shop_of_models:both", "-o", "y", "--tune", "never"), "beyond us"),
        (("explain", "nowhere.sparsec"), "no artifact"),
        (("run", "nowhere.sparsec", "--input", "x.npy", "-o", "y.npy"), "no artifact"),
        (("compile", "nothing.pt2", "-o", "y"), "does not exist"),
        (("compile", "nothing.onnx", "-o", "y"), "does not exist"),
        (("compile", "shop_of_models.py", "-o", "y"), "or the path of a .pt2 or .onnx file"),
        (("explain", "text.pt2"), "no zip archive"),
        (("tune", "folder.onnx"), "is a directory"),
        (("bench", "text.pt2"), "no zip archive"),
        (("bisect", "nothing.PT2"), "does not exist"),
        (("bench", "nonsense"), "does not name a factory"),
        (("bench", "shop_of_models:both", "--rivals", "abacus"), "abacus"),
    ],
)
def test_what_a_user_can_cause_is_a_message(invoke: Invoke, calls: list[Compiled], arguments: tuple[str, ...], message: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert not calls


@pytest.mark.parametrize("command", ["compile", "explain", "tune"])
def test_programs_are_compiled_from_files(invoke: Invoke, calls: list[Compiled], tmp_path: Path, command: str) -> None:
    save_program(tmp_path / "two.pt2")
    output = ("-o", "out.sparsec") if command == "compile" else ()
    done = invoke(command, "two.pt2", *output)
    assert done.exit_code == 0, done.output
    assert isinstance(calls[0].model, torch.export.ExportedProgram)
    assert [tuple(x.shape) for x in calls[0].inputs] == [(3, 8), (3, 4)]


@pytest.mark.parametrize("shapes", [("right=5,4", "left=5,8"), ("5,8", "right=5x4")])
def test_shapes_of_inputs_of_files(invoke: Invoke, calls: list[Compiled], tmp_path: Path, shapes: tuple[str, ...]) -> None:
    save_program(tmp_path / "two.pt2")
    options = [part for shape in shapes for part in ("--input", shape)]
    assert invoke("explain", "two.pt2", *options).exit_code == 0
    assert [tuple(x.shape) for x in calls[0].inputs] == [(5, 8), (5, 4)]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [(("middle=1,8",), "no input named middle"), (("1,8", "1,4", "1,4"), "has 2 inputs"), (("left=a",), "not a shape")],
)
def test_shapes_that_no_input_of_a_file_has(
    invoke: Invoke, calls: list[Compiled], tmp_path: Path, shapes: tuple[str, ...], message: str
) -> None:
    save_program(tmp_path / "two.pt2")
    done = invoke("explain", "two.pt2", *(part for shape in shapes for part in ("--input", shape)))
    assert done.exit_code == 2
    assert message in done.stderr
    assert not calls


def test_onnx_models_are_compiled_from_files(invoke: Invoke, calls: list[Compiled], tmp_path: Path) -> None:
    torch.onnx.export(Two().eval(), (torch.ones(3, 8), torch.ones(3, 4)), tmp_path / "two.onnx", dynamo=True, verbose=False)
    assert invoke("explain", "two.onnx").exit_code == 0
    assert (str(calls[0].model), calls[0].inputs) == ("two.onnx", None)
    assert invoke("explain", "two.onnx", "--input", "right=3,4").exit_code == 0
    assert {name: tuple(x.shape) for name, x in calls[1].inputs.items()} == {"left": (3, 8), "right": (3, 4)}


def test_a_file_is_a_factory_for_benchmarks(tmp_path: Path) -> None:
    from sparsec.bench.program import load_program
    from sparsec.doors.file_factories import name_of

    path = save_program(tmp_path / "two.pt2")
    for batch in (1, 5):
        program = load_program(name_of(path, batch), batch, tmp_path, 1, "off")
        with torch.no_grad():
            expected = Two().eval()(*program.inputs).numpy()
        np.testing.assert_allclose(program.expected[0], expected, rtol=1e-6, atol=1e-6)
        assert [tuple(x.shape) for x in program.inputs] == [(batch, 8), (batch, 4)]


def test_a_file_with_another_batch_is_no_factory(invoke: Invoke, tmp_path: Path) -> None:
    program = torch.export.export(Two().eval(), (torch.ones(3, 8), torch.ones(3, 4)))
    torch.export.save(program, tmp_path / "fixed.pt2")
    done = invoke("bench", "fixed.pt2", "--batch", "2")
    assert done.exit_code == 2
    assert "[3, 8]" in done.stderr or "(3, 8)" in done.stderr


def test_bisect_of_a_file(invoke: Invoke, tmp_path: Path) -> None:
    save_program(tmp_path / "two.pt2")
    assert json.loads(invoke("bisect", "two.pt2", "--json").stdout)["culprit"] is None
    done = invoke("bisect", "two.pt2")
    assert done.exit_code == 0, done.output
    assert "passes changes the answer" in done.output


@pytest.mark.parametrize("place", [0, 4])
def test_debug_shows_the_traceback(invoke: Invoke, calls: list[Compiled], place: int) -> None:
    arguments = ["compile", "shop_of_models:fails", "-o", "y"]
    done = invoke(*arguments[:place], "--debug", *arguments[place:])
    assert isinstance(done.exception, InvalidInput)
    assert isinstance(done.exception.__cause__, RuntimeError)


def test_a_missing_package_is_a_message(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    done = invoke("compile", "shop_of_models:both", "-o", "y")
    assert done.exit_code == 2
    assert "torch" in done.stderr


def test_run(invoke: Invoke, saved: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 4, 24)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    for given in ("x.npy", "x=x.npy"):
        done = invoke("run", saved, "--input", given, "-o", "y.npy", "--threads", 2)
        assert done.exit_code == 0, done.output
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), (x * 3 + 1) * 2 + 0.5, rtol=1e-6, atol=1e-6)
        (tmp_path / "y.npy").unlink()


def test_run_with_several_inputs_and_results(invoke: Invoke, tmp_path: Path) -> None:
    path = artifact.save(tmp_path / "pair.sparsec", pair(), library(), None, {"output": {"list": ["leaf", "leaf"]}}, ANY_MACHINE)
    np.save(tmp_path / "a.npy", np.ones((1, 8), np.float32))
    np.save(tmp_path / "b.npy", np.ones((1, 4), np.float32))
    inputs = ("--input", "b=b.npy", "--input", "a=a.npy")
    assert "y.npz" in invoke("run", path, *inputs, "-o", "y.npy").stderr
    assert invoke("run", path, *inputs, "-o", "y.npz").exit_code == 0
    with np.load(tmp_path / "y.npz") as results:
        assert (results["twice"] == 2).all()
        assert (results["more"] == 2).all()


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "pickle", "archive", "doubles"])
def test_run_refuses_bad_files(invoke: Invoke, saved: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "x.npy"
    if kind in ("text", "empty"):
        file.write_text("hello" * (kind == "text"))
    elif kind == "pickle":
        np.save(file, np.array([{"a": 1}], dtype=object))
    elif kind == "archive":
        np.savez(tmp_path / "x", a=np.ones(1))
        (tmp_path / "x.npz").rename(file)
    elif kind == "doubles":
        np.save(file, np.ones((1, 4, 24)))
    done = invoke("run", saved, "--input", "x.npy", "-o", "y.npy")
    assert done.exit_code == 2
    assert not (tmp_path / "y.npy").exists()


def test_run_says_where_it_cannot_write(invoke: Invoke, saved: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 4, 24), np.float32))
    done = invoke("run", saved, "--input", "x.npy", "-o", "none/y.npy")
    assert done.exit_code == 2
    assert "cannot be written" in done.stderr


def test_explain_an_artifact_without_compiling(invoke: Invoke, saved: Path, calls: list[Compiled]) -> None:
    done = invoke("explain", saved)
    assert done.exit_code == 0
    assert "10.0% unstructured" in done.output
    assert Explanation.from_json(invoke("explain", saved, "--json").output) == EXPLANATION
    assert not calls


def test_tune(invoke: Invoke, calls: list[Compiled], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSEC_CACHE_DIR", str(tmp_path / "cache"))
    done = invoke("tune", "shop_of_models:both", "--level", "full")
    assert done.exit_code == 0, done.output
    assert re.search(r"tuned in .* s; records are in .*cache", done.output)
    assert calls[0].options == {"tune": "full", "threads": None}


def test_tune_says_where_nothing_is_kept(invoke: Invoke, calls: list[Compiled], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = invoke("tune", "shop_of_models:both", "--cache-dir", tmp_path / "file")
    assert re.search(r"records are lost: .*file cannot be written", done.output)
    assert json.loads(invoke("tune", "shop_of_models:both", "--cache-dir", tmp_path / "file", "--json").stdout)["records"] is None


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


def test_options_are_those_of_settings(invoke: Invoke, calls: list[Compiled], tmp_path: Path) -> None:
    given = ("--remove-padding", "--token-pruning", '{"keep": 0.5, "after": [3]}', "--cache-dir", "cache", "--dump", "graphs")
    assert invoke("explain", "shop_of_models:both", *given, "--threads", "3", "--tune", "quick", "--target", "x86").exit_code == 0
    pruning = {"keep": 0.5, "after": [3]}
    wanted = {"remove_padding": True, "token_pruning": pruning, "cache_dir": Path("cache"), "dump_dir": Path("graphs"), "target": "x86"}
    assert calls[0].options == {"tune": "quick", "threads": 3, **wanted}
    assert {*calls[0].options} <= {field.name for field in dataclasses.fields(Settings)}
    assert invoke("tune", "shop_of_models:both", "--tune", "full", "--cache-dir", "cache").exit_code == 0
    assert calls[1].options == {"tune": "full", "threads": None, "cache_dir": Path("cache")}


@pytest.mark.parametrize("text", ["keep=0.5", "[1]", "3", "{"])
def test_token_pruning_that_is_no_object(invoke: Invoke, calls: list[Compiled], text: str) -> None:
    done = invoke("explain", "shop_of_models:both", "--token-pruning", text)
    assert done.exit_code == 2 and '{"keep": 0.5' in done.stderr and not calls


def test_every_table_is_there_as_json(invoke: Invoke, calls: list[Compiled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CACHE_DIR", str(tmp_path / "cache"))
    made = json.loads(invoke("compile", "shop_of_models:both", "-o", "out.sparsec", "--json").stdout)
    assert made["artifact"] == "out.sparsec" and made["bytes"] > 0 and Explanation.restored(made["explanation"]) == EXPLANATION
    assert Explanation.restored(json.loads(invoke("tune", "shop_of_models:both", "--json").stdout)["explanation"]) == EXPLANATION
    checks = json.loads(invoke("doctor", "--json").stdout)["checks"]
    assert {"name", "ok", "detail", "hint"} == {*checks[0]} and any(check["name"] == "torch" for check in checks)


@pytest.mark.parametrize("how", [("--version",), ("-h",), ("compile", "-h")])
def test_what_every_command_has(invoke: Invoke, how: tuple[str, ...]) -> None:
    done = invoke(*how)
    assert done.exit_code == 0
    assert ("sparsec 0." in done.output) if how == ("--version",) else ("Usage: " in done.output)
    assert how != ("-h",) or "SPARSEC_CACHE_DIR" in done.output


def test_it_is_a_module_too(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "sparsec", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"sparsec {sparsec.__version__}\n"


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


@pytest.mark.parametrize("name", ["alone", "listed", "in_lists", "named", "mixed", "arrays"])
def test_factories_return_what_people_return(invoke: Invoke, name: str) -> None:
    model, args, kwargs = make_model(f"shop_of_models:{name}")
    assert model(*map(torch.as_tensor, args), **kwargs).shape == (2, 24)


@pytest.mark.parametrize("name", ["of_a_number", "of_nothing", "of_three"])
def test_what_is_no_input_is_said(invoke: Invoke, name: str) -> None:
    done = invoke("compile", f"shop_of_models:{name}", "-o", "y")
    assert done.exit_code == 2
    assert "Return (model" in done.stderr and "Traceback" not in done.output


def test_models_of_named_inputs_are_compiled_and_timed(invoke: Invoke, calls: list[Compiled], tmp_path: Path) -> None:
    from sparsec.bench.program import load_program

    assert invoke("explain", "shop_of_models:named").exit_code == 0
    assert calls[0].inputs == () and {*calls[0].kwargs} == {"right", "left"}
    program = load_program("shop_of_models:named", 3, tmp_path, 1, "off")
    assert [tuple(x.shape) for x in program.inputs] == [(3, 24), (3, 24)]
    np.testing.assert_allclose(program.model(*program.inputs).detach(), program.expected[0], rtol=1e-6)


def test_doctor(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSEC_CACHE_DIR", str(tmp_path / "cache"))
    done = invoke("doctor")
    assert done.exit_code == 0, done.output
    assert "TVM runtime" in done.output
    (tmp_path / "cache" / "records.db").write_bytes(b"garbage" * 1000)
    broken = invoke("doctor")
    assert broken.exit_code == 1
    assert "problem  tuned records" in broken.output


def test_importing_sparsec_is_cheap() -> None:
    code = (
        "import sys, sparsec, sparsec.cli\n"
        "names = (sparsec.load, sparsec.Settings, sparsec.errors, sparsec.SparsecError, sparsec.__version__)\n"
        "assert not {'torch', 'tvm', 'onnx'} & set(sys.modules), set(sys.modules)\n"
        "assert {'compile', 'refresh', 'CompiledModel'} <= set(dir(sparsec))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_lead_home() -> None:
    import sparsec

    assert sparsec.load is artifact.load
    with pytest.raises(AttributeError, match="no attribute 'compille'"):
        sparsec.compille  # noqa: B018


def test_run_needs_neither_torch_nor_tvm(saved: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 4, 24), np.float32))
    code = (
        "import sys; sys.modules.update(torch=None, tvm=None)\n"
        "from sparsec.cli import app\n"
        "app(['run', sys.argv[1], '--input', 'x.npy', '-o', 'y.npy'])"
    )
    command = [sys.executable, "-c", code, str(saved)]
    done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (np.load(tmp_path / "y.npy") == 2.5).all()
