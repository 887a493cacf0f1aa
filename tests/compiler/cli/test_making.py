"""The command line: what it prints, what it writes, how it fails. The compiler itself is a stand-in here."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparsec
from sparsec.errors import InvalidInput
from sparsec.run import artifact
from sparsec.run.explanation import Explanation
from sparsec.settings import Settings
from tests.compiler.cli.shop import BEYOND_US, EXPLANATION, Compiled, Invoke
from tests.compiler.tiny_program import ANY_MACHINE, library, pair


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
        (("compile", "shop_of_models:both", "-o", "y", "--threads", str(BEYOND_US)), "beyond us"),
        (("compile", "shop_of_models:fails", "-o", "y", "--tune", "never"), "Unknown tuning level 'never'"),
        (("explain", "shop_of_models:fails", "--target", "riscv"), "Known targets: native, x86"),
        (
            ("compile", "shop_of_models:fails", "-o", "y", "--cpu", "x86-64-v3,x86-64-v9", "--target", "x86"),
            "Unknown processor 'x86-64-v9'",
        ),
        (("compile", "shop_of_models:fails", "-o", "y", "--cpu", "cortex-a53,cortex-a72", "--target", "arm"), "the same instructions"),
        (("tune", "shop_of_models:fails", "--level", "never"), "Unknown tuning level 'never'"),
        (("export", "shop_of_models:fails", "--kernels", "y", "--tune", "never"), "Unknown tuning level 'never'"),
        (("compile", "shop_of_models:fails", "-o", "y", "--token-pruning", '{"keep": 2}'), "Name the blocks"),
        (("bench", "shop_of_models:fails", "--tune", "never"), "Unknown tuning level 'never'"),
        (("compare", "shop_of_models:fails", "--data", "x.npy", "--tune", "never"), "Unknown tuning level 'never'"),
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


def test_options_are_those_of_settings(invoke: Invoke, calls: list[Compiled], tmp_path: Path) -> None:
    given = ("--remove-padding", "--token-pruning", '{"keep": 0.5, "after": [3]}', "--cache-dir", "cache", "--dump", "graphs")
    assert invoke("explain", "shop_of_models:both", *given, "--threads", "3", "--tune", "quick", "--target", "x86").exit_code == 0
    pruning = {"keep": 0.5, "after": [3]}
    wanted = {"remove_padding": True, "token_pruning": pruning, "cache_dir": Path("cache"), "dump_dir": Path("graphs"), "target": "x86"}
    assert calls[0].options == {"tune": "quick", "threads": 3, **wanted}
    assert {*calls[0].options} <= {field.name for field in dataclasses.fields(Settings)}
    assert invoke("tune", "shop_of_models:both", "--tune", "full", "--cache-dir", "cache").exit_code == 0
    assert calls[1].options == {"tune": "full", "threads": None, "cache_dir": Path("cache")}


@pytest.mark.parametrize("given", [("--cpu", "x86-64-v3", "--cpu", "x86-64-v4"), ("--cpu", "x86-64-v3, x86-64-v4")])
def test_several_processors(invoke: Invoke, calls: list[Compiled], given: tuple[str, ...]) -> None:
    assert invoke("compile", "shop_of_models:both", "-o", "y", "--target", "x86", *given).exit_code == 0
    assert calls[0].options == {"tune": "off", "threads": None, "target": "x86", "cpu": ["x86-64-v3", "x86-64-v4"]}
    assert Settings.from_options(calls[0].options).processors == ("x86-64-v3", "x86-64-v4")


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
