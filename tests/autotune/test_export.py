"""Exported kernels: built and run by a C compiler alone, right and wrong; what is said of them; what cannot be exported."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import sparsec
from sparsec.autotune.export import Exported, export_kernels
from sparsec.autotune.kernel_case import case_of, smallest
from sparsec.autotune.record import Record
from sparsec.autotune.records import Records
from sparsec.autotune.tasks import shape_key, task_key
from sparsec.backends.x86.backend import X86
from sparsec.cli import app
from sparsec.errors import ArtifactError, InvalidInput
from sparsec.models import mobilenet_v2, prune
from sparsec.run.artifact import load, save
from tests.autotune.fakes import Variety, record
from tests.compiler.tiny_program import ANY_MACHINE, chain, library

pytestmark = pytest.mark.slow

needs_cc = pytest.mark.skipif(not (shutil.which("cc") and shutil.which("make")), reason="no C compiler (cc) or no make on PATH")


def small_network() -> tuple[nn.Module, tuple[torch.Tensor]]:
    torch.manual_seed(0)
    return Variety().eval(), (torch.zeros(1, 3, 24, 24),)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def compiled(cache: Path) -> Any:
    """A network; its classifier has been measured three times: elsewhere, here, and here with another schedule."""
    made = sparsec.compile(*small_network(), threads=1, cache_dir=cache)
    lowered = made._compiled.programs[0].lowered
    task = next(t for t in lowered.tasks if t.spec.op == "linear")
    place = {"task": task_key(task), "shape": shape_key(task), "spec": task.spec.json(), "spec_key": task.spec.key}
    here = record(made._settings, **place, schedule=lowered.schedules[task.node], reason="this one")
    with Records(cache) as records:
        records.add([replace(here, machine="elsewhere"), here, replace(here, schedule=(("kernel", "other"),), rank=1)])
    return made


@pytest.fixture(scope="module")
def exported(compiled: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Exported]]:
    folder = tmp_path_factory.mktemp("kernels") / "made"
    return folder, export_kernels(compiled, folder)


def make(folder: Path, *targets: str) -> subprocess.CompletedProcess:
    command = ["make", "-k", "CFLAGS=-O1 -Wall -Wextra -Werror", *targets]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250, check=False)


@needs_cc
def test_all_self_tests_pass(exported: tuple[Path, list[Exported]]) -> None:
    folder, kernels = exported
    done = make(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(kernels) >= 4 and not any(kernel.untested for kernel in kernels)
    assert done.stdout.count("passed: error") == len(kernels)


@needs_cc
@pytest.mark.slow
def test_all_kernels_of_a_network(tmp_path: Path) -> None:
    model = prune(mobilenet_v2().eval(), 0.9)
    kernels = export_kernels(sparsec.compile(model, (torch.zeros(1, 3, 224, 224),), threads=1), tmp_path)
    done = make(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("passed: error") == len(kernels) > 10


def broken(folder: Path, copy: Path, change: str) -> tuple[int, str]:
    """Exit code and output of a self-test whose data has been changed."""
    shutil.copytree(folder, copy)
    name = next(path.name.removesuffix("_test.c") for path in sorted(copy.glob("spmm*_test.c")) + sorted(copy.glob("block*_test.c")))
    make(copy, f"{name}_test")
    data = bytearray((copy / f"{name}_test.bin").read_bytes())
    values = np.frombuffer(data, np.float32, 16)
    if change == "value":
        values[:] = values + 1
    (copy / f"{name}_test.bin").write_bytes(data[:-1] if change == "short" else data)
    done = subprocess.run([f"./{name}_test"], cwd=copy, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@needs_cc
@pytest.mark.parametrize(("change", "code", "text"), [("none", 0, "passed"), ("value", 1, "FAILED"), ("short", 2, "does not hold")])
def test_self_tests_tell_right_from_wrong(exported: tuple[Path, list[Exported]], tmp_path: Path, change: str, code: int, text: str) -> None:
    found = broken(exported[0], tmp_path / "copy", change)
    assert found[0] == code and text in found[1]


@pytest.mark.skipif(not shutil.which("nm"), reason="no nm on PATH")
def test_a_library_has_one_symbol_and_needs_nothing_of_tvm(exported: tuple[Path, list[Exported]]) -> None:
    for kernel in exported[1]:
        listed = subprocess.run(["nm", "-D", kernel.library], capture_output=True, text=True, check=True).stdout
        assert re.findall(r" [TVBDW] (\S+)", listed) == [kernel.symbol]
        assert "TVM" not in listed


def test_headers_are_c_and_describe_each_parameter(exported: tuple[Path, list[Exported]]) -> None:
    folder, kernels = exported
    for kernel in kernels:
        header, known = (folder / f"{kernel.symbol}.h").read_text(), json.loads((folder / f"{kernel.symbol}.json").read_text())
        assert all(re.search(rf"\b{p['name']}, /\* \w+.*{p['dtype']} \*/", header) for p in known["parameters"])
        assert f"int32_t {kernel.symbol}(" in header


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def test_json_says_what_was_chosen_and_measured(compiled: Any, exported: tuple[Path, list[Exported]]) -> None:
    folder, kernels = exported
    known = {kernel.symbol: strict((folder / f"{kernel.symbol}.json").read_text()) for kernel in kernels}
    (tuned,) = [k for k in known.values() if k["record"]]
    assert tuned["record"]["reason"] == "this one" and tuned["record"]["schedule"] == tuned["schedule"]
    assert Record.from_json(json.dumps(tuned["record"])).median_ns == 1100
    assert tuned["spec"]["op"] == "linear" and len(tuned["storages"]["sources"]) == 1
    for kernel in known.values():
        assert kernel["tools"]["apache-tvm"] and kernel["machine"]["features"]
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", kernel["source"])
        assert kernel["layers"]


def test_the_same_kernel_has_the_same_source(compiled: Any, exported: tuple[Path, list[Exported]], tmp_path: Path) -> None:
    folder, kernels = exported
    export_kernels(compiled, tmp_path)
    for kernel in kernels:
        name = f"{kernel.symbol}.json"
        assert strict((tmp_path / name).read_text())["source"] == strict((folder / name).read_text())["source"]


def test_cases_are_computed_in_float64(compiled: Any) -> None:
    lowered = compiled._compiled.programs[0].lowered
    task, groups = next((t, g) for t, g in smallest(lowered).values() if t is not None and t.spec.op == "linear")
    case = case_of(task, groups, X86())
    (x,) = case.filled.values()
    assert task is not None and task.weights[0] is not None and task.weights[1] is not None
    wanted = task.weights[0].astype(np.float64) @ x[:24].astype(np.float64) + task.weights[1]
    np.testing.assert_array_equal(case.wanted[:10], wanted.astype(np.float32))


def test_an_artifact_has_no_specs(tmp_path: Path) -> None:
    artifact = save(tmp_path / "net.sparsec", chain(), library(), None, {"output": "leaf"}, ANY_MACHINE)
    with pytest.raises(InvalidInput, match=r"cannot be exported(.|\n)*the model it was compiled from"):
        export_kernels(load(artifact), tmp_path / "kernels")
    assert not (tmp_path / "kernels").exists()
    result = CliRunner().invoke(app, ["export", str(artifact), "--kernels", str(tmp_path / "kernels")])
    assert result.exit_code == 2 and "compiled from" in result.output


def test_a_place_that_cannot_be_written(compiled: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be exported"):
        export_kernels(compiled, tmp_path / "file" / "kernels")


def test_the_command(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CACHE_DIR", str(cache))
    result = CliRunner().invoke(app, ["export", "tests.autotune.test_export:small_network", "--kernels", str(tmp_path / "k")])
    assert result.exit_code == 0, result.output
    assert f"make -C {tmp_path / 'k'}" in result.output
    assert list((tmp_path / "k").glob("*.so"))
